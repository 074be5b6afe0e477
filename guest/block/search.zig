//! Looking for a byte.  std.mem's search uses vectors, which is much code for names and lines of some bytes.

const std = @import("std");

/// Index of the first `wanted`.
pub noinline fn first(bytes: []const u8, wanted: u8) ?usize {
    for (bytes, 0..) |byte, index| if (byte == wanted) return index;
    return null;
}

/// What lies before the first `end`, or everything.
pub fn until(bytes: []const u8, end: u8) []const u8 {
    return bytes[0 .. first(bytes, end) orelse bytes.len];
}

test "first and until" {
    try std.testing.expectEqual(null, first("", 0));
    try std.testing.expectEqual(1, first("abb", 'b'));
    try std.testing.expectEqualStrings("a", until("abb", 'b'));
    try std.testing.expectEqualStrings("abb", until("abb", 0));
}
