//! What a parent's name of Windows may be called here.

const std = @import("std");

/// With POSIX's separators.  In place: the name is a copy.
pub fn posix(name: []const u8) []const u8 {
    const own = @constCast(name);
    for (own) |*byte| if (byte.* == '\\') {
        byte.* = '/';
    };
    return own;
}

/// The last part, because an absolute path is one of the machine that wrote it.
pub fn base(name: []const u8) []const u8 {
    var start: usize = 0;
    for (name, 0..) |byte, index| if (byte == '/' or byte == ':') {
        start = index + 1;
    };
    return name[start..];
}

test "Windows paths" {
    var path = "..\\images\\base.vhd".*;
    try std.testing.expectEqualStrings("../images/base.vhd", posix(&path));
    try std.testing.expectEqualStrings("base.vhd", base("../images/base.vhd"));
    try std.testing.expectEqualStrings("base.vhd", base("C:base.vhd"));
    try std.testing.expectEqualStrings("", base("a/"));
}
