//! Names of parents as Windows writes them into VHD and VHDX: UTF-16 with backslashes.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const target = @import("../target.zig");

/// UTF-16 units that a name may have with its prefix; Windows' own limit is 32767 units for a path.
pub const max_units = 4096;

pub fn isAbsolute(name: []const u8) bool {
    return std.mem.startsWith(u8, name, "/");
}

/// A name in UTF-8 with Windows' separators; one that is relative begins with `.\`.
///
/// Refuses what could not be read back: an empty name, backslashes, names that are too long or no UTF-8.
pub fn windows(context: image.Context, comptime format: []const u8, name: []const u8) (error{Refused} || error{OutOfMemory})![]const u8 {
    if (name.len == 0 or block.search.first(name, '\\') != null or !std.unicode.utf8ValidateSlice(name)) {
        return target.refuseOption(context, format, format ++ ": the name of the backing file cannot be written: it is empty, has a backslash or is not UTF-8", .{});
    }
    if (name.len > max_units - 2) return context.diagnostic.refuse(
        .too_large,
        .{ .format = format, .structure = "backing file name", .value = name.len, .limit = max_units - 2 },
        format ++ ": the backing file's name has {d} bytes, the limit is {d}",
        .{ name.len, max_units - 2 },
    );
    const prefix = if (isAbsolute(name)) "" else ".\\";
    const out = try context.allocator.alloc(u8, prefix.len + name.len);
    @memcpy(out[0..prefix.len], prefix);
    for (name, out[prefix.len..]) |byte, *kept| kept.* = if (byte == '/') '\\' else byte;
    return out;
}

/// Append valid UTF-8 as UTF-16.
pub fn appendUtf16(out: *std.ArrayList(u8), allocator: std.mem.Allocator, text: []const u8, order: std.builtin.Endian) error{OutOfMemory}!void {
    var codepoints = (std.unicode.Utf8View.initUnchecked(text)).iterator();
    while (codepoints.nextCodepoint()) |codepoint| {
        if (codepoint < 0x10000) {
            try appendUnit(out, allocator, codepoint, order);
        } else {
            try appendUnit(out, allocator, 0xd800 + (codepoint - 0x10000 >> 10), order);
            try appendUnit(out, allocator, 0xdc00 + (codepoint - 0x10000 & 0x3ff), order);
        }
    }
}

fn appendUnit(out: *std.ArrayList(u8), allocator: std.mem.Allocator, unit: u21, order: std.builtin.Endian) error{OutOfMemory}!void {
    var bytes: [2]u8 = undefined;
    std.mem.writeInt(u16, &bytes, @intCast(unit), order);
    try out.appendSlice(allocator, &bytes);
}

test "names with Windows' separators" {
    var diagnostic: block.Diagnostic = .{};
    var arena: std.heap.ArenaAllocator = .init(std.testing.allocator);
    defer arena.deinit();
    const context: image.Context = .{ .allocator = arena.allocator(), .diagnostic = &diagnostic };
    try std.testing.expectEqualStrings(".\\a", try windows(context, "vpc", "a"));
    try std.testing.expectEqualStrings(".\\..\\b\\c", try windows(context, "vpc", "../b/c"));
    try std.testing.expectEqualStrings("\\b\\c", try windows(context, "vpc", "/b/c"));
    for ([_][]const u8{ "", "a\\b", "\xff", "x" ** max_units }) |name| {
        try std.testing.expectError(error.Refused, windows(context, "vpc", name));
    }
    var out: std.ArrayList(u8) = .empty;
    try appendUtf16(&out, arena.allocator(), "a\u{1f600}", .big);
    try std.testing.expectEqualSlices(u8, "\x00a\xd8\x3d\xde\x00", out.items);
}
