//! The encoder: reflective over structs, with everything that can be known at compile time done there (key order,
//! key bytes), and small non-generic functions for the rest.

const std = @import("std");
const cbor = @import("cbor.zig");
const utf8 = @import("utf8.zig");

pub const EncodeError = error{NoSpaceLeft};

/// Encode `[message_name, {fields}]`; the answer is the used part of `buffer`.
pub fn encodeMessage(buffer: []u8, message: anytype) EncodeError![]const u8 {
    var encoder: Encoder = .{ .buffer = buffer };
    try encoder.array(2);
    try encoder.raw(comptime encodedText(@TypeOf(message).message_name));
    try encoder.value(message);
    return encoder.written();
}

/// Encode any one value; the answer is the used part of `buffer`.
pub fn encode(buffer: []u8, item: anytype) EncodeError![]const u8 {
    var encoder: Encoder = .{ .buffer = buffer };
    try encoder.value(item);
    return encoder.written();
}

/// Writes items one after another into a buffer that does not move.
pub const Encoder = struct {
    buffer: []u8,
    length: usize = 0,

    pub fn written(self: *const Encoder) []const u8 {
        return self.buffer[0..self.length];
    }

    /// Bytes that are already CBOR.  Called from everywhere, so it is not repeated there.
    pub noinline fn raw(self: *Encoder, bytes: []const u8) EncodeError!void {
        if (bytes.len > self.buffer.len - self.length) return error.NoSpaceLeft;
        @memcpy(self.buffer[self.length..][0..bytes.len], bytes);
        self.length += bytes.len;
    }

    fn head(self: *Encoder, major: u3, argument: u64) EncodeError!void {
        const item = cbor.Head.init(major, argument);
        try self.raw(item.bytes[0..item.length]);
    }

    /// The head of an array; `count` items follow.
    pub fn array(self: *Encoder, count: usize) EncodeError!void {
        try self.head(4, count);
    }

    /// The head of a map; `count` pairs follow, in the bytewise order of their encoded keys.
    pub fn map(self: *Encoder, count: usize) EncodeError!void {
        try self.head(5, count);
    }

    pub fn uint(self: *Encoder, number: u64) EncodeError!void {
        try self.head(0, number);
    }

    pub fn int(self: *Encoder, number: i64) EncodeError!void {
        // -1 - n is the bitwise complement of n, which cannot overflow.
        if (number < 0) try self.head(1, @bitCast(~number)) else try self.head(0, @intCast(number));
    }

    pub fn boolean(self: *Encoder, truth: bool) EncodeError!void {
        try self.raw(if (truth) "\xf5" else "\xf4");
    }

    pub fn nothing(self: *Encoder) EncodeError!void {
        try self.raw("\xf6");
    }

    pub fn byteString(self: *Encoder, bytes: []const u8) EncodeError!void {
        try self.head(2, bytes.len);
        try self.raw(bytes);
    }

    /// Text; bytes that are not UTF-8 are escaped as the module says.
    pub fn text(self: *Encoder, bytes: []const u8) EncodeError!void {
        var total: usize = 0;
        var i: usize = 0;
        while (i < bytes.len) {
            const unit = Unit.at(bytes[i..]);
            total += if (unit.escaped) 4 else unit.length;
            i += unit.length;
        }
        try self.head(3, total);
        if (total == bytes.len) return self.raw(bytes);
        i = 0;
        while (i < bytes.len) {
            const unit = Unit.at(bytes[i..]);
            if (unit.escaped) {
                const digits = "0123456789abcdef";
                try self.raw(&.{ '\\', 'x', digits[bytes[i] >> 4], digits[bytes[i] & 15] });
            } else {
                try self.raw(bytes[i..][0..unit.length]);
            }
            i += unit.length;
        }
    }

    /// Any supported value (see the module's description).
    pub fn value(self: *Encoder, item: anytype) EncodeError!void {
        const T = @TypeOf(item);
        switch (@typeInfo(T)) {
            .int => |info| if (info.signedness == .signed) try self.int(item) else try self.uint(item),
            .comptime_int => if (item < 0) try self.int(item) else try self.uint(item),
            .bool => try self.boolean(item),
            .null => try self.nothing(),
            .optional => if (item) |inner| try self.value(inner) else try self.nothing(),
            .@"enum" => switch (item) {
                inline else => |tag| try self.raw(comptime encodedText(cbor.keyOf(@tagName(tag)))),
            },
            .pointer => |info| switch (info.size) {
                .slice => if (info.child == u8) try self.text(item) else {
                    try self.array(item.len);
                    for (item) |element| try self.value(element);
                },
                .one => switch (@typeInfo(info.child)) {
                    .array => |inner| try self.value(@as([]const inner.child, item)),
                    else => try self.value(item.*),
                },
                else => @compileError("cbor: no encoding for " ++ @typeName(T)),
            },
            .@"struct" => if (T == cbor.Bytes) try self.byteString(item.bytes) else if (T == cbor.Any) try self.raw(item.encoded) else try self.fields(item),
            else => @compileError("cbor: no encoding for " ++ @typeName(T)),
        }
    }

    fn fields(self: *Encoder, item: anytype) EncodeError!void {
        const T = @TypeOf(item);
        // A table and one loop instead of code for each field: a message costs tens of bytes of code.  Fields that exist
        // only at compile time (in tests) have no address, so they go one by one.
        if (comptime hasAddresses(T)) return self.tabulated(comptime fieldTable(T), @ptrCast(&item));
        const order = comptime sortedFields(T);
        var count: usize = 0;
        inline for (order) |name| count += @intFromBool(isPresent(@field(item, name)));
        try self.map(count);
        inline for (order) |name| {
            const field = @field(item, name);
            if (isPresent(field)) {
                try self.raw(comptime encodedText(cbor.keyOf(name)));
                try self.value(field);
            }
        }
    }

    fn tabulated(self: *Encoder, table: []const Field, base: [*]const u8) EncodeError!void {
        var count: usize = 0;
        for (table) |*field| count += @intFromBool(field.access.present(base + field.offset));
        try self.map(count);
        for (table) |*field| {
            if (!field.access.present(base + field.offset)) continue;
            try self.raw(field.key[0..field.key_length]);
            try field.access.write(self, base + field.offset);
        }
    }
};

/// A field of a struct: its encoded key, where it lies, and the functions of its type (shared by all of that type).
const Field = struct {
    key: [*]const u8,
    access: *const Functions,
    key_length: u16,
    offset: u16,
};

const Functions = struct {
    present: *const fn (*const anyopaque) bool,
    write: *const fn (*Encoder, *const anyopaque) EncodeError!void,
};

fn fieldTable(comptime T: type) []const Field {
    comptime {
        const order = sortedFields(T);
        var table: [order.len]Field = undefined;
        for (order, &table) |name, *field| {
            const key = encodedText(cbor.keyOf(name));
            field.* = .{
                .key = key.ptr,
                .access = &Access(@FieldType(T, name)).functions,
                .key_length = key.len,
                .offset = @offsetOf(T, name),
            };
        }
        const final = table;
        return &final;
    }
}

fn Access(comptime T: type) type {
    return struct {
        const functions: Functions = .{ .present = present, .write = write };

        fn at(address: *const anyopaque) *const T {
            return @ptrCast(@alignCast(address));
        }
        fn present(address: *const anyopaque) bool {
            return isPresent(at(address).*);
        }
        fn write(encoder: *Encoder, address: *const anyopaque) EncodeError!void {
            return encoder.value(at(address).*);
        }
    };
}

fn hasAddresses(comptime T: type) bool {
    for (@typeInfo(T).@"struct".fields) |field| if (field.is_comptime) return false;
    return true;
}

fn isPresent(item: anytype) bool {
    return @typeInfo(@TypeOf(item)) != .optional or item != null;
}

/// The next piece of text: one valid UTF-8 sequence, or one byte that must be escaped.
const Unit = struct {
    length: usize,
    escaped: bool,

    fn at(rest: []const u8) Unit {
        const one: Unit = .{ .length = 1, .escaped = true };
        if (rest[0] < 0x80) return .{ .length = 1, .escaped = rest[0] == '\\' and readsAsEscape(rest) };
        const length = utf8.sequence(rest);
        if (length == 0) return one;
        return .{ .length = length, .escaped = false };
    }

    fn readsAsEscape(rest: []const u8) bool {
        return rest.len >= 4 and rest[1] == 'x' and isDigit(rest[2]) and isDigit(rest[3]);
    }

    fn isDigit(c: u8) bool {
        return (c >= '0' and c <= '9') or (c >= 'a' and c <= 'f');
    }
};

fn encodedText(comptime string: []const u8) []const u8 {
    comptime {
        const item = cbor.Head.init(3, string.len);
        const final = item.bytes[0..item.length].* ++ string[0..string.len].*;
        return &final;
    }
}

/// Names of the fields of T in the order of their encoded keys.
fn sortedFields(comptime T: type) []const [:0]const u8 {
    comptime {
        @setEvalBranchQuota(200_000);
        const all = @typeInfo(T).@"struct".fields;
        var names: [all.len][:0]const u8 = undefined;
        for (all, 0..) |field, i| {
            var place = i;
            // Shorter keys come first: their head byte is smaller.  Replacing `_` by `-` in both keeps this true.
            while (place > 0 and before(field.name, names[place - 1])) : (place -= 1) names[place] = names[place - 1];
            names[place] = field.name;
        }
        const final = names;
        return &final;
    }
}

fn before(comptime a: []const u8, comptime b: []const u8) bool {
    if (a.len != b.len) return a.len < b.len;
    return std.mem.lessThan(u8, cbor.keyOf(a), cbor.keyOf(b));
}

test "a message is an array of its name and its fields, keys in deterministic order" {
    const Message = struct {
        pub const message_name = "example";
        virtual_size: u64,
        format: []const u8,
        dirty: ?bool = null,
        z: i64,
    };
    var buffer: [64]u8 = undefined;
    const got = try encodeMessage(&buffer, Message{ .virtual_size = 1000, .format = "raw", .z = -1 });
    try std.testing.expectEqualSlices(u8, "\x82\x67example\xa3\x61z\x20\x66format\x63raw\x6cvirtual-size\x19\x03\xe8", got);
}

test "keys that differ in a hyphen sort by the byte that is sent" {
    var buffer: [64]u8 = undefined;
    const got = try encode(&buffer, .{ .a_b = @as(u8, 1), .aZb = @as(u8, 2) });
    // '-' (2d) comes before 'Z' (5a), which comes before '_' (5f).
    try std.testing.expectEqualSlices(u8, "\xa2\x63a-b\x01\x63aZb\x02", got);
}

test "bytes that are not text are escaped without loss" {
    var buffer: [64]u8 = undefined;
    const cases = [_][2][]const u8{
        .{ "plain \\ \\xZZ", "plain \\ \\xZZ" },
        .{ "a\xffb", "a\\xffb" },
        .{ "C:\\x41", "C:\\x5cx41" },
        .{ "\xc3\xa4\xf0\x9f\x92\xbe", "\xc3\xa4\xf0\x9f\x92\xbe" },
        .{ "\xc3", "\\xc3" },
        .{ "\xed\xa0\x80", "\\xed\\xa0\\x80" },
        .{ "\xc0\x80", "\\xc0\\x80" },
        .{ "\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80" },
        .{ "a\x00b", "a\x00b" },
    };
    for (cases) |case| {
        var encoder: Encoder = .{ .buffer = &buffer };
        try encoder.text(case[0]);
        try std.testing.expectEqual(@as(u8, 0x60) + @as(u8, @intCast(case[1].len)), buffer[0]);
        try std.testing.expectEqualStrings(case[1], encoder.written()[1..]);
    }
}

test "slices, nested structs, enums, byte strings, encoded items" {
    const Inner = struct { x: u8 };
    var buffer: [128]u8 = undefined;
    const got = try encode(&buffer, .{
        .a = @as([]const Inner, &.{ .{ .x = 1 }, .{ .x = 2 } }),
        .b = cbor.Bytes{ .bytes = "\xff" },
        .c = cbor.Any{ .encoded = "\x82\x01\x02" },
        .d = @as(enum { no_memory, io }, .no_memory),
        .e = @as([]const []const u8, &.{ "p", "q" }),
    });
    try std.testing.expectEqualSlices(u8, "\xa5\x61a\x82\xa1\x61x\x01\xa1\x61x\x02\x61b\x41\xff\x61c\x82\x01\x02\x61d\x69no-memory\x61e\x82\x61p\x61q", got);
}

test "a buffer that is too small is an error and never overrun" {
    var buffer: [64]u8 = undefined;
    const whole = try encode(&buffer, .{ .name = @as([]const u8, "some text"), .size = @as(u64, 1 << 40) });
    for (0..whole.len) |length| {
        var small: [64]u8 = @splat(0xaa);
        try std.testing.expectError(error.NoSpaceLeft, encode(small[0..length], .{ .name = @as([]const u8, "some text"), .size = @as(u64, 1 << 40) }));
        try std.testing.expect(std.mem.allEqual(u8, small[length..], 0xaa));
    }
}
