//! The parent locator of a new differencing disk.
//!
//! [MS-VHDX] 2.6.2.6 "Parent Locator" and 2.6.2.6.3 "VHDX Parent Locator".

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const paths = @import("../vhd/path.zig");
const vhdx = @import("format.zig");
const fields = @import("fields.zig");
const identity = @import("identity.zig");

const format = vhdx.name;

/// The item for a parent of this name with this identity.  A name that is relative becomes `relative_path`, any other
/// `absolute_win32_path`.
///
/// Refuses a name that UTF-16 or Windows' separators cannot say.
pub fn bytes(context: image.Context, name: []const u8, parent: fields.Guid) (block.Error || error{OutOfMemory})![]const u8 {
    const path = try paths.windows(context, format, name);
    const guid = identity.text(parent);
    const pairs = [_]struct { []const u8, []const u8 }{
        .{ "parent_linkage", &guid },
        .{ if (paths.isAbsolute(name)) "absolute_win32_path" else "relative_path", path },
    };
    const at = fields.locator;
    var out: std.ArrayList(u8) = .empty;
    try out.resize(context.allocator, at.header_size + pairs.len * at.entry_size);
    @memset(out.items, 0);
    out.items[0..16].* = vhdx.guids.vhdx_locator;
    std.mem.writeInt(u16, out.items[at.count..][0..2], pairs.len, .little);
    for (pairs, 0..) |pair, i| {
        var row: [at.entry_size]u8 = undefined;
        inline for (.{ pair[0], pair[1] }, 0..) |text, part| {
            const begin = out.items.len;
            try paths.appendUtf16(&out, context.allocator, text, .little);
            std.mem.writeInt(u32, row[4 * part ..][0..4], @intCast(begin), .little);
            // A name has at most `paths.max_units` units.
            std.mem.writeInt(u16, row[8 + 2 * part ..][0..2], @intCast(out.items.len - begin), .little);
        }
        out.items[at.header_size + i * at.entry_size ..][0..at.entry_size].* = row;
    }
    return out.items;
}

test "a locator holds the linkage and the path" {
    var diagnostic: block.Diagnostic = .{};
    var arena: std.heap.ArenaAllocator = .init(std.testing.allocator);
    defer arena.deinit();
    const context: image.Context = .{ .allocator = arena.allocator(), .diagnostic = &diagnostic };
    const item = try bytes(context, "sub/b\u{fc}", vhdx.guids.bat);
    const linkage = std.unicode.utf8ToUtf16LeStringLiteral("parent_linkage{2dc27766-f623-4200-9d64-115e9bfd4a08}");
    const relative = std.unicode.utf8ToUtf16LeStringLiteral("relative_path.\\sub\\b\u{fc}");
    try std.testing.expectEqual(2, item[fields.locator.count]);
    try std.testing.expectEqual(44, std.mem.readInt(u32, item[20..24], .little));
    try std.testing.expectEqualSlices(u8, std.mem.sliceAsBytes(linkage)[0 .. 2 * linkage.len], item[44..][0 .. 2 * linkage.len]);
    try std.testing.expectEqualSlices(u8, std.mem.sliceAsBytes(relative)[0 .. 2 * relative.len], item[44 + 2 * linkage.len ..]);
    try std.testing.expectError(error.Refused, bytes(context, "a\\b", @splat(0)));
}
