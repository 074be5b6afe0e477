//! Sentences with numbers in them, for diagnostics and findings.
//!
//! std.fmt makes code for every format string, which is more than half of a small operation.  Here the format string is
//! checked when it is compiled and read when it is needed, by one function.
//!
//! Placeholders: `{d}` integer, `{x}` hexadecimal, `{x:0>8}` the same, eight digits at least, `{s}` text.

const std = @import("std");
const search = @import("search.zig");

/// One argument, whatever its type was: a magnitude and whether it is negative, or address and length of a text.  Which
/// of the two is in the format string.  Two words, because hundreds of calls build these.
pub const Argument = extern struct { first: u64, second: u64 = 0 };

/// Fill `buffer` with the sentence; answers the used part.  A sentence that does not fit ends in "...".
pub inline fn write(buffer: []u8, comptime format: []const u8, arguments: anytype) []const u8 {
    return fill(buffer, format, &pack(format, arguments));
}

/// The arguments of `format`, checked against it.
pub inline fn pack(comptime format: []const u8, arguments: anytype) [arguments.len]Argument {
    comptime check(format, @typeInfo(@TypeOf(arguments)).@"struct".fields);
    return switch (arguments.len) {
        0 => .{},
        1 => .{packOne(arguments[0])},
        2 => .{ packOne(arguments[0]), packOne(arguments[1]) },
        3 => .{ packOne(arguments[0]), packOne(arguments[1]), packOne(arguments[2]) },
        4 => .{ packOne(arguments[0]), packOne(arguments[1]), packOne(arguments[2]), packOne(arguments[3]) },
        5 => .{ packOne(arguments[0]), packOne(arguments[1]), packOne(arguments[2]), packOne(arguments[3]), packOne(arguments[4]) },
        else => @compileError("more than five arguments for: " ++ format),
    };
}

inline fn packOne(argument: anytype) Argument {
    switch (@typeInfo(@TypeOf(argument))) {
        .int => |info| {
            if (info.signedness == .unsigned) return .{ .first = argument };
            return .{ .first = @abs(@as(i64, argument)), .second = @intFromBool(argument < 0) };
        },
        .comptime_int => return .{ .first = @abs(argument), .second = @intFromBool(argument < 0) },
        else => {
            const text: []const u8 = argument;
            return .{ .first = @intFromPtr(text.ptr), .second = text.len };
        },
    }
}

fn check(comptime format: []const u8, comptime fields: anytype) void {
    @setEvalBranchQuota(10_000);
    var next: usize = 0;
    var i: usize = 0;
    while (i < format.len) : (i += 1) {
        if (format[i] != '{') continue;
        const end = std.mem.indexOfScalarPos(u8, format, i, '}') orelse @compileError("'{' without '}' in: " ++ format);
        const what = format[i + 1 .. end];
        if (next == fields.len) @compileError("too few arguments for: " ++ format);
        const is_number = switch (@typeInfo(fields[next].type)) {
            .int, .comptime_int => true,
            else => false,
        };
        const wants_number = std.mem.eql(u8, what, "d") or std.mem.eql(u8, what, "x") or std.mem.eql(u8, what, "x:0>8");
        if (!wants_number and !std.mem.eql(u8, what, "s")) @compileError("no such placeholder in: " ++ format);
        if (is_number != wants_number) @compileError("an argument has the wrong type in: " ++ format);
        next += 1;
        i = end;
    }
    if (next != fields.len) @compileError("too many arguments for: " ++ format);
}

/// Appends until the buffer is full.
const Output = struct {
    buffer: []u8,
    length: usize = 0,
    cut: bool = false,

    noinline fn append(self: *Output, bytes: []const u8) void {
        const room = self.buffer.len - self.length;
        const taken = bytes[0..@min(room, bytes.len)];
        @memcpy(self.buffer[self.length..][0..taken.len], taken);
        self.length += taken.len;
        self.cut = self.cut or taken.len < bytes.len;
    }

    fn number(self: *Output, value: u64, base: u8, width: usize) void {
        var digits: [20]u8 = undefined;
        var rest = value;
        var at = digits.len;
        while (rest > 0 or digits.len - at < width) {
            at -= 1;
            digits[at] = "0123456789abcdef"[@intCast(rest % base)];
            rest /= base;
        }
        self.append(digits[at..]);
    }
};

/// `write` on packed arguments.
pub noinline fn fill(buffer: []u8, format: []const u8, arguments: []const Argument) []const u8 {
    var output: Output = .{ .buffer = buffer };
    var rest = format;
    for (arguments) |argument| {
        const start = search.first(rest, '{').?;
        const end = start + search.first(rest[start..], '}').?;
        const what = rest[start + 1 .. end];
        output.append(rest[0..start]);
        rest = rest[end + 1 ..];
        if (what[0] == 's') {
            const text: [*]const u8 = @ptrFromInt(argument.first);
            output.append(text[0..@intCast(argument.second)]);
            continue;
        }
        if (argument.second != 0) output.append("-");
        output.number(argument.first, if (what[0] == 'x') 16 else 10, if (what.len > 1) 8 else 1);
    }
    output.append(rest);
    if (output.cut and buffer.len >= 3) buffer[buffer.len - 3 ..][0..3].* = "...".*;
    return buffer[0..output.length];
}

test "numbers, texts, widths, cuts" {
    var buffer: [40]u8 = undefined;
    try std.testing.expectEqualStrings(
        "0 18446744073709551615 -9223372036854775",
        write(&buffer, "{d} {d} {d}", .{ 0, @as(u64, std.math.maxInt(u64)), @as(i64, -9223372036854775) }),
    );
    try std.testing.expectEqualStrings("a ff 0000beef.", write(&buffer, "{s} {x} {x:0>8}.", .{ "a", @as(u8, 255), 0xbeef }));
    try std.testing.expectEqualStrings("0123456789012345678901234567890123456...", write(&buffer, "{s}{d}", .{ "01234567890123456789012345678901234567890", 1 }));
    try std.testing.expectEqualStrings("no arguments", write(&buffer, "no arguments", .{}));
}
