//! Sentences with numbers in them, for diagnostics and findings.
//!
//! std.fmt makes code for every format string, which is more than half of a small operation.  Here the format string is
//! checked when it is compiled and read when it is needed, by one function.
//!
//! Placeholders: `{d}` integer, `{x}` hexadecimal, `{x:0>8}` the same, eight digits at least, `{s}` text.

const std = @import("std");

/// One argument, whatever its type was.
const Argument = union(enum) {
    unsigned: u64,
    signed: i64,
    text: []const u8,
};

/// Fill `buffer` with the sentence; answers the used part.  A sentence that does not fit ends in "...".
pub fn write(buffer: []u8, comptime format: []const u8, arguments: anytype) []const u8 {
    comptime check(format, @typeInfo(@TypeOf(arguments)).@"struct".fields);
    var list: [arguments.len]Argument = undefined;
    inline for (&list, arguments) |*item, argument| item.* = pack(argument);
    return fill(buffer, format, &list);
}

fn pack(argument: anytype) Argument {
    return switch (@typeInfo(@TypeOf(argument))) {
        .int => |info| if (info.signedness == .signed) .{ .signed = argument } else .{ .unsigned = argument },
        .comptime_int => if (argument < 0) .{ .signed = argument } else .{ .unsigned = argument },
        else => .{ .text = argument },
    };
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

    fn append(self: *Output, bytes: []const u8) void {
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

noinline fn fill(buffer: []u8, format: []const u8, arguments: []const Argument) []const u8 {
    var output: Output = .{ .buffer = buffer };
    var rest = format;
    for (arguments) |argument| {
        const start = std.mem.indexOfScalar(u8, rest, '{').?;
        const end = std.mem.indexOfScalarPos(u8, rest, start, '}').?;
        const what = rest[start + 1 .. end];
        output.append(rest[0..start]);
        rest = rest[end + 1 ..];
        const base: u8 = if (what[0] == 'x') 16 else 10;
        const width: usize = if (what.len > 1) 8 else 1;
        switch (argument) {
            .text => |text| output.append(text),
            .unsigned => |value| output.number(value, base, width),
            .signed => |value| {
                if (value < 0) output.append("-");
                output.number(@abs(value), base, width);
            },
        }
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
