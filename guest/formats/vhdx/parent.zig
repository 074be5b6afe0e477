//! Whether a file is the parent of a differencing disk.
//!
//! [MS-VHDX] 2.6.2.6.3 "VHDX Parent Locator": parent_linkage, and parent_linkage2 of a merge that was begun.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const text = @import("../text.zig");
const format = @import("format.zig");
const Headers = @import("headers.zig").Headers;
const locators = @import("locator.zig");
const refuse = @import("vhdx.zig").refuse;
const none = @import("../qcow2/template.zig").none;
const metadata_zig = @import("metadata.zig");

/// Refuse another file in the parent's place.  A file that was not given, or that is no VHDX, is refused elsewhere, and
/// a locator that says no identity is a finding of the check.
pub fn verify(context: image.Context, device: block.Device, metadata: *const metadata_zig.Metadata) block.Error!void {
    const given = try context.reference(.parent, 0) orelse return;
    const locator: locators.Locator = try .read(context, device, metadata);
    if (!locator.isVhdx()) return;
    const linkage = try locator.find(context, locators.keys.linkage) orelse return;
    var signature: [8]u8 = undefined;
    try given.device.readPadded(0, &signature);
    if (!std.mem.eql(u8, &signature, format.file_signature)) return;
    var headers: Headers = try .read(context, given.device);
    try headers.pick(context);
    var buffer: [36]u8 = undefined;
    const identity = text.guid(&buffer, headers.current().dataWriteGuid());
    if (says(linkage, identity)) return;
    if (try locator.find(context, locators.keys.linkage2)) |second| if (says(second, identity)) return;
    return refuse(context.diagnostic, .corrupt, "parent locator", "the file that the parent's name leads to has another identity than the parent, or was changed", locator.offset, none, none);
}

fn says(linkage: []const u8, identity: []const u8) bool {
    return linkage.len == identity.len + 2 and std.ascii.eqlIgnoreCase(linkage[1 .. linkage.len - 1], identity);
}
