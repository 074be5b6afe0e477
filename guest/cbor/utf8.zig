//! Well-formed UTF-8 (Unicode 15.0, table 3-7).  std.unicode's validation is made for speed: with its tables and
//! vectors it is three times as large.

const std = @import("std");

/// Bytes of the sequence that `bytes`, which are not empty, begin with; 0 where that is none.
pub noinline fn sequence(bytes: []const u8) usize {
    const first = bytes[0];
    if (first < 0x80) return 1;
    const length: usize = switch (first) {
        0xc2...0xdf => 2,
        0xe0...0xef => 3,
        0xf0...0xf4 => 4,
        else => return 0,
    };
    if (bytes.len < length) return 0;
    // No overlong forms, no surrogates, nothing above U+10FFFF.
    const lowest: u8 = if (first == 0xe0) 0xa0 else if (first == 0xf0) 0x90 else 0x80;
    const highest: u8 = if (first == 0xed) 0x9f else if (first == 0xf4) 0x8f else 0xbf;
    if (bytes[1] < lowest or bytes[1] > highest) return 0;
    for (bytes[2..length]) |byte| if (byte & 0xc0 != 0x80) return 0;
    return length;
}

pub fn valid(bytes: []const u8) bool {
    var rest = bytes;
    while (rest.len > 0) {
        const length = sequence(rest);
        if (length == 0) return false;
        rest = rest[length..];
    }
    return true;
}

test "as std has it: all of two bytes and of three, the borders of four" {
    var bytes: [4]u8 = undefined;
    for (0..1 << 24) |number| {
        std.mem.writeInt(u24, bytes[0..3], @intCast(number), .big);
        // The third byte matters by its class alone.
        if (bytes[2] & 0x3f != 0 and bytes[2] & 0x3f != 0x3f) continue;
        try std.testing.expectEqual(std.unicode.utf8ValidateSlice(bytes[0..3]), valid(bytes[0..3]));
    }
    for (0xec..0x100) |first| for (0..0x100) |second| for ([_]u8{ 0x7f, 0x80, 0xbf, 0xc0 }) |third| for ([_]u8{ 0x7f, 0x80, 0xbf, 0xc0 }) |fourth| {
        bytes = .{ @intCast(first), @intCast(second), third, fourth };
        try std.testing.expectEqual(std.unicode.utf8ValidateSlice(&bytes), valid(&bytes));
    };
    try std.testing.expect(valid(""));
    try std.testing.expect(valid("a\u{7ff}\u{ffff}\u{10ffff}"));
    try std.testing.expect(!valid("a\xc3"));
}
