//! The parent of a differencing disk: its names, and whether a file is it.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const dynamic = @import("dynamic.zig");
const footers = @import("footer.zig");
const vhd = @import("vhd.zig");
const posix = @import("alternatives.zig").posix;
const base = @import("alternatives.zig").base;
const none = @import("../qcow2/template.zig").none;

/// Name the parent; see image.Driver.references.  The names are alternatives for one file, likeliest first: what is
/// written relative to this file, then absolute paths, then the header's own field, and at last the name alone, because an
/// absolute path is one of the machine that wrote it.  Windows' separators are turned into those of POSIX.
pub fn run(context: image.Context, device: block.Device, sink: image.Sink) block.Error!void {
    const loaded = try vhd.load(context, device);
    const sparse = loaded.sparse orelse return;
    if (!sparse.differencing) return;
    const header = &sparse.header;
    for ([_]bool{ true, false }) |relative| {
        for (0..8) |index| {
            const locator = header.locator(@intCast(index));
            if (!locator.isUsed() or isRelative(locator.platform) != relative) continue;
            const name = try locator.name(context, device) orelse continue;
            try offer(context, sink, posix(name));
        }
    }
    const name = posix(header.parentName(context.allocator) catch return error.NoMemory);
    try offer(context, sink, name);
    try offer(context, sink, base(name));
    for (0..8) |index| {
        const locator = header.locator(@intCast(index));
        if (!locator.isUsed()) continue;
        const path = try locator.name(context, device) orelse continue;
        try offer(context, sink, base(posix(path)));
    }
}

fn offer(context: image.Context, sink: image.Sink, name: []const u8) block.Error!void {
    if (name.len == 0) return;
    return sink.emitReference(context, .{ .kind = image.ReferenceKind.parent.text(), .name = name, .format = vhd.driver.name });
}

/// W2ru and Wi2r.
fn isRelative(platform: [4]u8) bool {
    return platform[3] == 'u' and platform[2] == 'r' or platform[3] == 'r';
}

/// Refuse a file that is not the parent, by its identifier.
pub fn checkParent(context: image.Context, header: *const dynamic.Header) block.Error!void {
    if (try isParent(context, header)) return;
    return vhd.refuse(context.diagnostic, .corrupt, "dynamic header", "the file that the parent's name leads to has another identifier than the parent", header.offset + 40, none, none);
}

/// Whether the file that was given as the parent has the parent's identifier; one that was not given is not asked, and
/// a file that is no VHD at all is refused when it is opened.
pub fn isParent(context: image.Context, header: *const dynamic.Header) block.Error!bool {
    const given = try context.reference(.parent, 0) orelse return true;
    var footer: footers.Footer = try .read(context.allocator, given.device, 0, footers.size);
    if (!footer.hasCookie()) footer = try footers.atEnd(context.allocator, given.device) orelse return true;
    return std.mem.eql(u8, footer.uuid(), header.parentUuid());
}

test "relative locators" {
    try std.testing.expect(isRelative("W2ru".*) and isRelative("Wi2r".*));
    try std.testing.expect(!isRelative("W2ku".*) and !isRelative("Wi2k".*) and !isRelative("MacX".*));
}
