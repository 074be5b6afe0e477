//! The decoder for requests: the deterministic subset, straight into a struct.  Text and byte strings point into the
//! input; arrays come from the allocator.  Keys may come in any order, a key twice or an unknown key is an error.

const std = @import("std");
const cbor = @import("cbor.zig");
const utf8 = @import("utf8.zig");

pub const DecodeError = error{
    /// The input ends inside an item.
    Truncated,
    /// Bytes follow the item.
    TrailingData,
    /// A tag, a float, an indefinite length or an argument that is longer than it need be.
    NotDeterministic,
    /// An item of another type than the field's.
    WrongType,
    /// A number or name outside the field's range.
    OutOfRange,
    /// A string is not UTF-8.
    InvalidText,
    UnknownKey,
    DuplicateKey,
    MissingKey,
    /// Nested deeper than `max_depth`.
    TooDeep,
    OutOfMemory,
};

/// Levels of arrays and maps that an item may have.
pub const max_depth = 16;

/// What the error is about: the innermost key that was being decoded, empty at the top.
pub const Problem = struct {
    key: []const u8 = "",
};

/// Decode one item that is all of `bytes`.
pub fn decode(comptime T: type, allocator: std.mem.Allocator, bytes: []const u8) DecodeError!T {
    var problem: Problem = .{};
    return decodeReporting(T, allocator, bytes, &problem);
}

/// `decode`, and on an error `problem` says which key it is about.
pub fn decodeReporting(comptime T: type, allocator: std.mem.Allocator, bytes: []const u8, problem: *Problem) DecodeError!T {
    var decoder: Decoder = .{ .rest = bytes, .allocator = allocator, .problem = problem };
    const item = try decoder.value(T, max_depth);
    if (decoder.rest.len != 0) return error.TrailingData;
    return item;
}

const Header = struct {
    major: u3,
    argument: u64,
};

const Decoder = struct {
    rest: []const u8,
    allocator: std.mem.Allocator,
    problem: *Problem,

    fn take(self: *Decoder, count: u64) DecodeError![]const u8 {
        if (count > self.rest.len) return error.Truncated;
        const n: usize = @intCast(count);
        defer self.rest = self.rest[n..];
        return self.rest[0..n];
    }

    /// Out of line, like `expect`: there are few kinds of fields, and each would have a copy.
    noinline fn header(self: *Decoder) DecodeError!Header {
        const first = (try self.take(1))[0];
        const major: u3 = @intCast(first >> 5);
        const short: u5 = @truncate(first);
        if (short < 24) return .{ .major = major, .argument = short };
        // Major 7 with more bytes is a float or a simple value that we do not use.
        if (short > 27 or major == 7) return error.NotDeterministic;
        const bytes = try self.take(@as(u64, 1) << @intCast(short - 24));
        var argument: u64 = 0;
        for (bytes) |byte| argument = argument << 8 | byte;
        const least: u64 = switch (short) {
            24 => 24,
            25 => 1 << 8,
            26 => 1 << 16,
            else => 1 << 32,
        };
        if (argument < least) return error.NotDeterministic;
        return .{ .major = major, .argument = argument };
    }

    noinline fn expect(self: *Decoder, major: u3) DecodeError!u64 {
        const item = try self.header();
        if (item.major == 6) return error.NotDeterministic;
        if (item.major != major) return error.WrongType;
        return item.argument;
    }

    fn text(self: *Decoder) DecodeError![]const u8 {
        const bytes = try self.take(try self.expect(3));
        if (!utf8.valid(bytes)) return error.InvalidText;
        return bytes;
    }

    /// Step over one item of any type, checking that it is well-formed.
    fn skip(self: *Decoder, depth: u8) DecodeError!void {
        const item = try self.header();
        switch (item.major) {
            0, 1 => {},
            2 => _ = try self.take(item.argument),
            3 => if (!utf8.valid(try self.take(item.argument))) return error.InvalidText,
            4, 5 => {
                if (depth == 0) return error.TooDeep;
                var left = item.argument;
                while (left > 0) : (left -= 1) {
                    if (item.major == 5) try self.skip(depth - 1);
                    try self.skip(depth - 1);
                }
            },
            6 => return error.NotDeterministic,
            7 => if (item.argument < 20 or item.argument > 22) return error.NotDeterministic,
        }
    }

    fn integer(self: *Decoder, comptime T: type) DecodeError!T {
        const item = try self.header();
        switch (item.major) {
            0 => return std.math.cast(T, item.argument) orelse error.OutOfRange,
            1 => {
                if (@typeInfo(T).int.signedness == .unsigned) return error.OutOfRange;
                return std.math.cast(T, -1 - @as(i128, item.argument)) orelse error.OutOfRange;
            },
            6 => return error.NotDeterministic,
            else => return error.WrongType,
        }
    }

    fn boolean(self: *Decoder) DecodeError!bool {
        return switch (try self.expect(7)) {
            20 => false,
            21 => true,
            else => error.WrongType,
        };
    }

    fn value(self: *Decoder, comptime T: type, depth: u8) DecodeError!T {
        switch (@typeInfo(T)) {
            .int => return self.integer(T),
            .bool => return self.boolean(),
            .optional => |info| {
                if (self.rest.len > 0 and self.rest[0] == 0xf6) {
                    self.rest = self.rest[1..];
                    return null;
                }
                return try self.value(info.child, depth);
            },
            .@"enum" => {
                const name = try self.text();
                inline for (@typeInfo(T).@"enum".fields) |field| {
                    if (std.mem.eql(u8, name, comptime cbor.keyOf(field.name))) return @field(T, field.name);
                }
                return error.OutOfRange;
            },
            .pointer => |info| {
                if (info.size != .slice) @compileError("cbor: no decoding for " ++ @typeName(T));
                if (info.child == u8) return self.text();
                if (depth == 0) return error.TooDeep;
                const count = try self.expect(4);
                // Each element takes a byte at least, so the input bounds what is allocated.
                if (count > self.rest.len) return error.Truncated;
                const items = try self.allocator.alloc(info.child, @intCast(count));
                errdefer self.allocator.free(items);
                for (items) |*item| item.* = try self.value(info.child, depth - 1);
                return items;
            },
            .@"struct" => {
                if (T == cbor.Bytes) return .{ .bytes = try self.take(try self.expect(2)) };
                if (T == cbor.Any) {
                    const from = self.rest;
                    try self.skip(depth);
                    return .{ .encoded = from[0 .. from.len - self.rest.len] };
                }
                if (depth == 0) return error.TooDeep;
                return self.fields(T, depth - 1);
            },
            else => @compileError("cbor: no decoding for " ++ @typeName(T)),
        }
    }

    fn fields(self: *Decoder, comptime T: type, depth: u8) DecodeError!T {
        const all = comptime slots(T);
        var out: T = comptime blank(T);
        try self.pairs(&all, std.mem.asBytes(&out).ptr, depth);
        return out;
    }

    /// The pairs of a map into the fields of a struct at `out`.  One function for every struct: a request has many
    /// fields of few types, and code for each of them would be most of a small operation.
    fn pairs(self: *Decoder, all: []const Slot, out: [*]u8, depth: u8) DecodeError!void {
        var seen: u64 = 0;
        var left = try self.expect(5);
        while (left > 0) : (left -= 1) {
            const key = try self.text();
            self.problem.key = key;
            const index = find(all, key) orelse return error.UnknownKey;
            const bit = @as(u64, 1) << index;
            if (seen & bit != 0) return error.DuplicateKey;
            seen |= bit;
            try all[index].set(self, out + all[index].offset, depth);
        }
        for (all, 0..) |slot, index| {
            if (slot.required and seen & (@as(u64, 1) << @intCast(index)) == 0) {
                self.problem.key = slot.key;
                return error.MissingKey;
            }
        }
        self.problem.key = "";
    }
};

/// A field of a struct that is decoded: where it lies and how it is set.
const Slot = struct {
    key: []const u8,
    offset: usize,
    required: bool,
    set: *const fn (*Decoder, *anyopaque, u8) DecodeError!void,
};

fn find(all: []const Slot, key: []const u8) ?u6 {
    for (all, 0..) |slot, index| if (std.mem.eql(u8, slot.key, key)) return @intCast(index);
    return null;
}

fn slots(comptime T: type) [@typeInfo(T).@"struct".fields.len]Slot {
    const all = @typeInfo(T).@"struct".fields;
    if (all.len > 64) @compileError("cbor: too many fields in " ++ @typeName(T));
    var out: [all.len]Slot = undefined;
    for (all, &out) |field, *slot| slot.* = .{
        .key = cbor.keyOf(field.name),
        .offset = @offsetOf(T, field.name),
        .required = field.defaultValue() == null and @typeInfo(field.type) != .optional,
        .set = Setter(field.type).set,
    };
    return out;
}

fn Setter(comptime T: type) type {
    return struct {
        fn set(decoder: *Decoder, out: *anyopaque, depth: u8) DecodeError!void {
            const typed: *T = @ptrCast(@alignCast(out));
            typed.* = try decoder.value(T, depth);
        }
    };
}

/// T before anything is decoded: defaults, null, and required fields undefined.
fn blank(comptime T: type) T {
    var out: T = undefined;
    for (@typeInfo(T).@"struct".fields) |field| {
        if (field.defaultValue()) |default| {
            @field(out, field.name) = default;
        } else if (@typeInfo(field.type) == .optional) {
            @field(out, field.name) = null;
        }
    }
    return out;
}

const testing = std.testing;

const Example = struct {
    target_format: []const u8,
    size: ?u64 = null,
    bits: u8 = 16,
    quick: bool = false,
    ranges: []const Range = &.{},
    extra: ?cbor.Any = null,
    key: ?cbor.Bytes = null,

    const Range = struct { start: i64 };
};

test "a request" {
    const input = "\xa6\x64size\x1b\x00\x00\x00\x01\x00\x00\x00\x00\x65quick\xf5\x65extra\x82\x01\xa1\x61a\xf6\x63key\x42\xff\x00\x66ranges\x82\xa1\x65start\x20\xa1\x65start\x05\x6dtarget-format\x63raw";
    const got = try decode(Example, testing.allocator, input);
    defer testing.allocator.free(got.ranges);
    try testing.expectEqualStrings("raw", got.target_format);
    try testing.expectEqual(@as(?u64, 1 << 32), got.size);
    try testing.expectEqual(@as(u8, 16), got.bits);
    try testing.expect(got.quick);
    try testing.expectEqual(@as(i64, -1), got.ranges[0].start);
    try testing.expectEqual(@as(usize, 2), got.ranges.len);
    try testing.expectEqualSlices(u8, "\x82\x01\xa1\x61a\xf6", got.extra.?.encoded);
    try testing.expectEqualSlices(u8, "\xff\x00", got.key.?.bytes);
}

test "what a request may not hold, and the key that the error names" {
    const cases = [_]struct { []const u8, DecodeError, []const u8 }{
        .{ "\xa0", error.MissingKey, "target-format" },
        .{ "\xa1\x64what\x01", error.UnknownKey, "what" },
        .{ "\xa2\x64size\x01\x64size\x01", error.DuplicateKey, "size" },
        .{ "\xa1\x64size\x61a", error.WrongType, "size" },
        .{ "\xa1\x64size\x20", error.OutOfRange, "size" },
        .{ "\xa1\x64bits\x19\x01\x00", error.OutOfRange, "bits" },
        .{ "\xa1\x64bits\x18\x10", error.NotDeterministic, "bits" },
        .{ "\xa1\x64size\xc1\x01", error.NotDeterministic, "size" },
        .{ "\xa1\x64size\xfa\x00\x00\x00\x00", error.NotDeterministic, "size" },
        .{ "\xbf\xff", error.NotDeterministic, "" },
        .{ "\xa1\x6dtarget-format\x62\xc3\x28", error.InvalidText, "target-format" },
        .{ "\xa1\x6dtarget-format\x63ra", error.Truncated, "target-format" },
        .{ "\xa1\x6dtarget-format\x63raw\x00", error.TrailingData, "" },
        .{ "\xa1\x66ranges\x9b\x00\x00\x00\x01\x00\x00\x00\x00", error.Truncated, "ranges" },
        .{ "\xa1\x65extra\xbb\xff\xff\xff\xff\xff\xff\xff\xff", error.Truncated, "extra" },
        .{ "\xa1\x65extra" ++ "\x81" ** 40 ++ "\x01", error.TooDeep, "extra" },
        .{ "\x80", error.WrongType, "" },
        .{ "", error.Truncated, "" },
    };
    for (cases) |case| {
        var problem: Problem = .{};
        try testing.expectError(case[1], decodeReporting(Example, testing.allocator, case[0], &problem));
        try testing.expectEqualStrings(case[2], problem.key);
    }
}

test "no input of two bytes crashes the decoder" {
    for (0..0x10000) |n| {
        const input = [_]u8{ @truncate(n >> 8), @truncate(n) };
        const item = decode(cbor.Any, testing.allocator, &input) catch continue;
        try testing.expectEqual(@as(usize, 2), item.encoded.len);
    }
}
