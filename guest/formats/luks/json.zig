//! A strict reader of small JSON texts (RFC 8259) into a tree, for the metadata of LUKS2.
//!
//! std.json takes what it reads for friendly: no limit on depth, on members or on numbers.  Here every one of them is
//! bounded, a name that comes twice is an error, and so is anything behind the value.

const std = @import("std");
const cbor = @import("cbor");

/// Levels of arrays and objects.
pub const max_depth = 16;
/// Values of a text.
pub const max_values = 1 << 16;
/// Members of one object: names are compared with each other.
pub const max_members = 512;

pub const Kind = enum(u8) { null, true, false, number, string, array, object };

pub const Node = struct {
    kind: Kind,
    /// Byte of the text at which it begins.
    at: u32,
    /// Name, when it is a member of an object.
    name: []const u8 = "",
    /// A string decoded, a number as it is written.
    text: []const u8 = "",
    /// Of arrays and objects.
    first: ?*Node = null,
    next: ?*Node = null,
    /// Values directly in an array or object.
    count: u32 = 0,

    /// The member `name` of an object.
    pub fn member(self: *const Node, name: []const u8) ?*const Node {
        if (self.kind != .object) return null;
        var each = self.first;
        while (each) |node| : (each = node.next) if (std.mem.eql(u8, node.name, name)) return node;
        return null;
    }

    /// A number as an integer of 64 bits without a sign.
    pub fn integer(self: *const Node) ?u64 {
        return if (self.kind == .number) decimal(self.text) else null;
    }

    /// A string that holds such an integer, as LUKS2 writes sizes and offsets.
    pub fn decimalText(self: *const Node) ?u64 {
        return if (self.kind == .string) decimal(self.text) else null;
    }
};

/// Digits alone, no zero in front of others.
pub fn decimal(digits: []const u8) ?u64 {
    if (digits.len == 0 or digits.len > 20 or (digits.len > 1 and digits[0] == '0')) return null;
    var value: u64 = 0;
    for (digits) |digit| {
        if (digit < '0' or digit > '9') return null;
        value = std.math.mul(u64, value, 10) catch return null;
        value = std.math.add(u64, value, digit - '0') catch return null;
    }
    return value;
}

/// What is wrong with a text, and at which byte.
pub const Failure = struct { what: []const u8 = "", at: usize = 0 };

pub const Error = error{ Malformed, OutOfMemory };

/// The value that the whole of `bytes` is; strings may point into it.
pub fn parse(allocator: std.mem.Allocator, bytes: []const u8, failure: *Failure) Error!*const Node {
    var parser: Parser = .{ .allocator = allocator, .bytes = bytes, .failure = failure };
    const root = try parser.value(0);
    parser.blanks();
    if (parser.at != bytes.len) return parser.fail("bytes follow the JSON value");
    return root;
}

const Parser = struct {
    allocator: std.mem.Allocator,
    bytes: []const u8,
    failure: *Failure,
    at: usize = 0,
    values: u32 = 0,

    fn fail(self: *Parser, what: []const u8) Error {
        self.failure.* = .{ .what = what, .at = self.at };
        return error.Malformed;
    }

    fn peek(self: *const Parser) u8 {
        // NUL is in no JSON text outside a string, and an error there.
        return if (self.at < self.bytes.len) self.bytes[self.at] else 0;
    }

    fn blanks(self: *Parser) void {
        while (true) switch (self.peek()) {
            ' ', '\t', '\n', '\r' => self.at += 1,
            else => return,
        };
    }

    fn value(self: *Parser, depth: u32) Error!*Node {
        self.blanks();
        if (self.values == max_values) return self.fail("too many values");
        self.values += 1;
        const node = try self.allocator.create(Node);
        node.* = .{ .kind = .null, .at = @intCast(self.at) };
        switch (self.peek()) {
            '{', '[' => |open| try self.container(node, open, depth),
            '"' => {
                node.kind = .string;
                node.text = try self.string();
            },
            '-', '0'...'9' => {
                node.kind = .number;
                node.text = try self.number();
            },
            't' => node.kind = try self.word("true", .true),
            'f' => node.kind = try self.word("false", .false),
            'n' => node.kind = try self.word("null", .null),
            else => return self.fail("a value is expected"),
        }
        return node;
    }

    fn word(self: *Parser, comptime name: []const u8, kind: Kind) Error!Kind {
        if (!std.mem.startsWith(u8, self.bytes[self.at..], name)) return self.fail("a value is expected");
        self.at += name.len;
        return kind;
    }

    fn container(self: *Parser, node: *Node, open: u8, depth: u32) Error!void {
        if (depth == max_depth) return self.fail("values are nested too deeply");
        const close: u8 = if (open == '{') '}' else ']';
        node.kind = if (open == '{') .object else .array;
        self.at += 1;
        self.blanks();
        var link = &node.first;
        if (self.peek() == close) {
            self.at += 1;
            return;
        }
        while (true) {
            var name: []const u8 = "";
            if (open == '{') {
                self.blanks();
                if (self.peek() != '"') return self.fail("the name of a member is expected");
                const begin = self.at;
                name = try self.string();
                if (node.count == max_members) return self.fail("an object has too many members");
                if (node.member(name) != null) {
                    self.at = begin;
                    return self.fail("an object has a member twice");
                }
                self.blanks();
                if (self.peek() != ':') return self.fail("':' is expected");
                self.at += 1;
            }
            const item = try self.value(depth + 1);
            item.name = name;
            link.* = item;
            link = &item.next;
            node.count += 1;
            self.blanks();
            const after = self.peek();
            if (after != ',' and after != close) return self.fail("',' or the end of an array or object is expected");
            self.at += 1;
            if (after == close) return;
        }
    }

    fn number(self: *Parser) Error![]const u8 {
        const begin = self.at;
        if (self.peek() == '-') self.at += 1;
        if (self.peek() == '0') self.at += 1 else try self.digits();
        if (self.peek() == '.') {
            self.at += 1;
            try self.digits();
        }
        if (self.peek() == 'e' or self.peek() == 'E') {
            self.at += 1;
            if (self.peek() == '+' or self.peek() == '-') self.at += 1;
            try self.digits();
        }
        return self.bytes[begin..self.at];
    }

    fn digits(self: *Parser) Error!void {
        const begin = self.at;
        while (self.peek() >= '0' and self.peek() <= '9') self.at += 1;
        if (self.at == begin) return self.fail("a digit is expected");
    }

    /// Decode a string, whose quotation mark is next.
    fn string(self: *Parser) Error![]const u8 {
        self.at += 1;
        const begin = self.at;
        var escaped = false;
        while (true) {
            if (self.at >= self.bytes.len) return self.fail("a string does not end");
            const byte = self.bytes[self.at];
            if (byte == '"') break;
            if (byte < 0x20) return self.fail("a control character in a string");
            if (byte == '\\') {
                escaped = true;
                self.at += 1;
            }
            self.at += 1;
        }
        const raw = self.bytes[begin..self.at];
        self.at += 1;
        if (!cbor.utf8.valid(raw)) {
            self.at = begin;
            return self.fail("a string is not UTF-8");
        }
        return if (escaped) self.unescape(raw, begin) else raw;
    }

    fn unescape(self: *Parser, raw: []const u8, begin: usize) Error![]const u8 {
        // An escape is at least as long as what it stands for.
        const out = try self.allocator.alloc(u8, raw.len);
        var used: usize = 0;
        var i: usize = 0;
        const end = self.at;
        while (i < raw.len) {
            if (raw[i] != '\\') {
                out[used] = raw[i];
                used += 1;
                i += 1;
                continue;
            }
            self.at = begin + i;
            const letter = raw[i + 1];
            i += 2;
            if (letter == 'u') {
                var point: u21 = hex(raw[i..]) orelse return self.fail("an escape in a string is malformed");
                i += 4;
                if (point >= 0xd800 and point < 0xdc00 and std.mem.startsWith(u8, raw[i..], "\\u")) {
                    const low = hex(raw[i + 2 ..]) orelse return self.fail("an escape in a string is malformed");
                    if (low >= 0xdc00 and low < 0xe000) {
                        point = 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
                        i += 6;
                    }
                }
                if (point >= 0xd800 and point < 0xe000) return self.fail("half a surrogate pair in a string");
                used += std.unicode.utf8Encode(point, out[used..]) catch unreachable;
                continue;
            }
            out[used] = switch (letter) {
                '"', '\\', '/' => letter,
                'b' => 8,
                'f' => 12,
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                else => return self.fail("an escape in a string is malformed"),
            };
            used += 1;
        }
        self.at = end;
        return out[0..used];
    }
};

fn hex(four: []const u8) ?u16 {
    if (four.len < 4) return null;
    var value: u16 = 0;
    for (four[0..4]) |digit| value = value << 4 | switch (digit) {
        '0'...'9' => digit - '0',
        'a'...'f' => digit - 'a' + 10,
        'A'...'F' => digit - 'A' + 10,
        else => return null,
    };
    return value;
}

const testing = std.testing;

fn expectFailure(bytes: []const u8, what: []const u8, at: usize) !void {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    var failure: Failure = .{};
    try testing.expectError(error.Malformed, parse(arena.allocator(), bytes, &failure));
    try testing.expectEqualStrings(what, failure.what);
    try testing.expectEqual(at, failure.at);
}

test "a tree" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    var failure: Failure = .{};
    const root = try parse(arena.allocator(), " {\"a\" : [1, -2.5e+3, true,false, null,\"x\\n\\u00e9\\ud83d\\ude00\\/\"],\"b\":{},\"c\":\"18446744073709551615\"} ", &failure);
    try testing.expectEqual(@as(u32, 3), root.count);
    const list = root.member("a").?;
    try testing.expectEqual(@as(u32, 6), list.count);
    try testing.expectEqual(@as(?u64, 1), list.first.?.integer());
    try testing.expectEqual(null, list.first.?.next.?.integer());
    var last = list.first.?;
    while (last.next) |node| last = node;
    try testing.expectEqualStrings("x\né\u{1f600}/", last.text);
    try testing.expectEqual(Kind.object, root.member("b").?.kind);
    try testing.expectEqual(@as(?u64, std.math.maxInt(u64)), root.member("c").?.decimalText());
    try testing.expectEqual(null, root.member("d"));
    for ([_][]const u8{ "", "01", "-1", "18446744073709551616", "99999999999999999999", "1 ", "0x1" }) |wrong| try testing.expectEqual(null, decimal(wrong));
    try testing.expectEqual(@as(?u64, 0), decimal("0"));
}

test "what is no JSON, or too much of it" {
    try expectFailure("", "a value is expected", 0);
    try expectFailure("tru", "a value is expected", 0);
    try expectFailure("{} x", "bytes follow the JSON value", 3);
    try expectFailure("{\"a\":1,\"a\":2}", "an object has a member twice", 7);
    try expectFailure("{\"a\":1,\"\\u0061\":2}", "an object has a member twice", 7);
    try expectFailure("{\"a\" 1}", "':' is expected", 5);
    try expectFailure("{a:1}", "the name of a member is expected", 1);
    try expectFailure("[1,]", "a value is expected", 3);
    try expectFailure("[1", "',' or the end of an array or object is expected", 2);
    try expectFailure("[1}", "',' or the end of an array or object is expected", 2);
    try expectFailure("\"abc", "a string does not end", 4);
    try expectFailure("\"abc\\", "a string does not end", 6);
    try expectFailure("\"\x01\"", "a control character in a string", 1);
    try expectFailure("\"\xff\"", "a string is not UTF-8", 1);
    try expectFailure("\"a\\x\"", "an escape in a string is malformed", 2);
    try expectFailure("\"\\u12\"", "an escape in a string is malformed", 1);
    try expectFailure("\"\\ud800\"", "half a surrogate pair in a string", 1);
    try expectFailure("01", "bytes follow the JSON value", 1);
    try expectFailure("1.", "a digit is expected", 2);
    try expectFailure("-", "a digit is expected", 1);
    try expectFailure("[" ** 17, "values are nested too deeply", 16);
    try expectFailure("[" ++ "0," ** max_values ++ "0]", "too many values", 2 * max_values - 1);
}

test "any bytes end in a value or a failure" {
    var random: std.Random.DefaultPrng = .init(1);
    const letters = "{}[]\",:0123-.eE\\utrfalsn \x00\xc3\xa9";
    for (0..20_000) |_| {
        var bytes: [24]u8 = undefined;
        const length = random.random().uintLessThan(usize, bytes.len);
        for (bytes[0..length]) |*byte| byte.* = letters[random.random().uintLessThan(usize, letters.len)];
        var arena: std.heap.ArenaAllocator = .init(testing.allocator);
        defer arena.deinit();
        var failure: Failure = .{};
        _ = parse(arena.allocator(), bytes[0..length], &failure) catch |reason| {
            try testing.expectEqual(error.Malformed, reason);
            try testing.expect(failure.what.len > 0 and failure.at <= length + 1);
        };
    }
}
