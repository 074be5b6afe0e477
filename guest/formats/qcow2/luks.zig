//! The LUKS1 header that an encrypted image embeds: where it may lie, and what is read from there by the format's own
//! code.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const facts = @import("../luks/info.zig").facts;
const luks = @import("../luks/header.zig");
const checkOne = @import("../luks/check.zig").checkOne;
const CryptoHeader = @import("extensions.zig").CryptoHeader;
const Findings = @import("check_findings.zig").Findings;
const header_zig = @import("header.zig");
const template = @import("template.zig");
const none = template.none;

/// Refuse a place that is too small for a header.
pub fn checkPlace(context: image.Context, place: CryptoHeader) block.Error!void {
    if (place.length < luks.size or place.offset > header_zig.max_offset - luks.size)
        return template.refuse(context.diagnostic, .out_of_bounds, "encryption header", "unable to read LUKS header: {value} bytes at byte {offset}", place.offset, place.length, none);
}

pub fn read(context: image.Context, device: block.Device, place: CryptoHeader) block.Error!messages.InfoLuks {
    try checkPlace(context, place);
    return facts(context, try luks.open(context, device, place.offset));
}

/// What is wrong with the header, as notes: qemu-img counts clusters and does not look into it.
pub fn check(context: image.Context, device: block.Device, place: CryptoHeader, findings: *Findings) block.Error!void {
    findings.as_notes = true;
    defer findings.as_notes = false;
    inspect(context, device, place, findings) catch |reason| {
        if (reason != error.Refused) return reason;
        const diagnostic = context.diagnostic;
        try findings.add(.note, .{ .structure = "encryption header", .offset = diagnostic.offset, .value = diagnostic.value }, "encryption header: {s}", .{diagnostic.message()});
    };
}

fn inspect(context: image.Context, device: block.Device, place: CryptoHeader, findings: *Findings) block.Error!void {
    try checkPlace(context, place);
    const header = try luks.read(context, device, place.offset);
    try checkOne(context, device, header, findings);
    for (0..luks.slot_count) |index| {
        const slot = header.slot(index);
        const end = slot.offset() +| header.materialSize(slot.stripeCount());
        if (slot.active() and end > place.length)
            try findings.put(.note, "encryption header", "key slot {index}: its area ends at byte {value} of the encryption header, which has {expected}", .{ .offset = place.offset, .index = index, .value = end, .expected = place.length });
    }
}
