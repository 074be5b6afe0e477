//! The vectors of RFC 8949 appendix A that lie in the subset, both ways.

const std = @import("std");
const cbor = @import("cbor.zig");

fn both(comptime T: type, item: T, hex: []const u8) !void {
    var expected_buffer: [64]u8 = undefined;
    const expected = try std.fmt.hexToBytes(&expected_buffer, hex);
    var buffer: [64]u8 = undefined;
    try std.testing.expectEqualSlices(u8, expected, try cbor.encode(&buffer, item));
    try std.testing.expectEqualDeep(item, try cbor.decode(T, std.testing.failing_allocator, expected));
}

test "unsigned integers" {
    const vectors = [_]struct { u64, []const u8 }{
        .{ 0, "00" },
        .{ 1, "01" },
        .{ 10, "0a" },
        .{ 23, "17" },
        .{ 24, "1818" },
        .{ 25, "1819" },
        .{ 100, "1864" },
        .{ 1000, "1903e8" },
        .{ 1000000, "1a000f4240" },
        .{ 1000000000000, "1b000000e8d4a51000" },
        .{ 18446744073709551615, "1bffffffffffffffff" },
    };
    for (vectors) |v| try both(u64, v[0], v[1]);
}

test "negative integers" {
    const vectors = [_]struct { i64, []const u8 }{
        .{ -1, "20" },
        .{ -10, "29" },
        .{ -100, "3863" },
        .{ -1000, "3903e7" },
        .{ std.math.minInt(i64), "3b7fffffffffffffff" },
    };
    for (vectors) |v| try both(i64, v[0], v[1]);
    // -18446744073709551616 is CBOR, but no i64.
    try std.testing.expectError(error.OutOfRange, cbor.decode(i64, std.testing.failing_allocator, "\x3b\xff\xff\xff\xff\xff\xff\xff\xff"));
}

test "simple values" {
    try both(bool, false, "f4");
    try both(bool, true, "f5");
    try both(?u64, null, "f6");
}

test "strings" {
    const vectors = [_]struct { []const u8, []const u8 }{
        .{ "", "60" },
        .{ "a", "6161" },
        .{ "IETF", "6449455446" },
        .{ "\"\\", "62225c" },
        .{ "\u{00fc}", "62c3bc" },
        .{ "\u{6c34}", "63e6b0b4" },
        .{ "\u{10151}", "64f0908591" },
    };
    for (vectors) |v| try both([]const u8, v[0], v[1]);
    try both(cbor.Bytes, .{ .bytes = "" }, "40");
    try both(cbor.Bytes, .{ .bytes = "\x01\x02\x03\x04" }, "4401020304");
}

test "arrays and maps" {
    var buffer: [64]u8 = undefined;
    try std.testing.expectEqualSlices(u8, "\x80", try cbor.encode(&buffer, @as([]const u64, &.{})));
    try std.testing.expectEqualSlices(u8, "\x83\x01\x02\x03", try cbor.encode(&buffer, @as([]const u64, &.{ 1, 2, 3 })));
    var many: [25]u64 = undefined;
    for (&many, 1..) |*m, i| m.* = i;
    const encoded = try cbor.encode(&buffer, @as([]const u64, &many));
    try std.testing.expectEqualSlices(u8, "\x98\x19\x01\x02", encoded[0..4]);
    const back = try cbor.decode([]const u64, std.testing.allocator, encoded);
    defer std.testing.allocator.free(back);
    try std.testing.expectEqualSlices(u64, &many, back);
    const Letters = struct { a: []const u8, b: []const u8, c: []const u8, d: []const u8, e: []const u8 };
    try both(Letters, .{ .a = "A", .b = "B", .c = "C", .d = "D", .e = "E" }, "a56161614161626142616361436164614461656145");
}
