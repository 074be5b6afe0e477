//! The text of a VMDK descriptor: `key=value` lines and one line for each extent (VMware Virtual Disk Format 5.0, "The
//! Text Descriptor").  What is found where is as in qemu, which looks for keys anywhere in the text; the places where
//! it is not are in docs/differences.md.

const std = @import("std");
const block = @import("block");
const format = @import("format.zig");

/// Bytes of a descriptor that are looked at.
pub const max_size = (1 << 20) - 1;
/// Bytes at its beginning in which identifiers and the parent are looked for.
pub const head_size = format.descriptor_sectors * format.sector;

/// Bytes of a parent's name at most: qemu's PATH_MAX.
const max_parent = 4095;
/// Bytes of a create type at most.
const max_type = 127;
/// Bytes of an extent's name; what is longer is cut.
const max_name = 511;
/// Characters of the first and third word of an extent line.
const max_word = 10;

pub const Type = enum {
    FLAT,
    VMFS,
    SPARSE,
    VMFSSPARSE,
    SESPARSE,

    /// Whether the disk's bytes lie in the extent as they are.
    pub fn isFlat(self: Type) bool {
        return self == .FLAT or self == .VMFS;
    }

    fn of(word: []const u8) ?Type {
        inline for (@typeInfo(Type).@"enum".fields) |field| {
            if (std.mem.eql(u8, word, field.name)) return @enumFromInt(field.value);
        }
        return null;
    }
};

/// An extent line that counts.
pub const Line = struct {
    /// At least 1.
    sectors: u64,
    type: Type,
    /// As written, not empty.
    name: []const u8,
    /// First sector in its file; flat extents only.
    offset: u64,
};

/// The text of a descriptor, up to the first NUL.
pub const Descriptor = struct {
    text: []const u8,

    pub fn init(bytes: []const u8) Descriptor {
        return .{ .text = block.search.until(bytes, 0) };
    }

    /// `createType`; null when there is none.
    pub fn createType(self: Descriptor) ?[]const u8 {
        const key = "createType";
        const start = (find(self.text, key) orelse return null) + key.len + 2;
        if (start >= self.text.len) return null;
        const length = block.search.first(self.text[start..], '"') orelse return null;
        return if (length > max_type) null else self.text[start..][0..length];
    }

    /// A value of the disk database, for example of `ddb.adapterType`.
    pub fn database(self: Descriptor, key: []const u8) ?[]const u8 {
        const rest = self.text[(find(self.text, key) orelse return null) + key.len ..];
        const open = block.search.first(rest, '"') orelse return null;
        for (rest[0..open]) |byte| if (byte != ' ' and byte != '=') return null;
        const value = rest[open + 1 ..];
        const length = block.search.first(value, '"') orelse return null;
        return if (length > max_type) null else value[0..length];
    }

    pub fn lines(self: Descriptor) Lines {
        return .{ .text = self.text };
    }
};

/// What the first bytes of a descriptor say about its identity.
pub const Identity = struct {
    cid: u32,
    parent_cid: u32,
    /// `parentFileNameHint` as written, not empty.
    parent: ?[]const u8,

    pub const Problem = error{ NoCid, NoParentCid, BadParent };

    /// `head` is `head_size` bytes.
    pub fn parse(head: []const u8) Problem!Identity {
        const text = block.search.until(head, 0);
        var identity: Identity = .{ .cid = 0, .parent_cid = 0, .parent = null };
        const hint = "parentFileNameHint";
        if (find(text, hint)) |at| {
            const start = at + hint.len + 2;
            if (start > text.len) return error.BadParent;
            const length = block.search.first(text[start..], '"') orelse return error.BadParent;
            if (length > max_parent) return error.BadParent;
            if (length > 0) identity.parent = text[start..][0..length];
        }
        // The last byte is no part of the text here.
        const short = text[0..@min(text.len, head.len - 1)];
        identity.cid = number(short, "CID") orelse return error.NoCid;
        identity.parent_cid = number(short, "parentCID") orelse return error.NoParentCid;
        return identity;
    }

    /// The hexadecimal number behind the first `key` and one more character.
    fn number(text: []const u8, comptime key: []const u8) ?u32 {
        const start = (find(text, key) orelse return null) + key.len + 1;
        if (start >= text.len) return null;
        var scan: Scan = .{ .text = text[start..] };
        return scan.hexadecimal();
    }
};

/// The lines of a descriptor that are extents.
pub const Lines = struct {
    text: []const u8,
    /// Lines that look like extents and are passed over: read-only, not accessible, of another type, empty.
    ignored: u64 = 0,

    /// The next extent; null at the end.  `error.Invalid`: an extent line that contradicts its type, which is `bad`.
    pub fn next(self: *Lines) error{Invalid}!?Line {
        while (self.text.len > 0) {
            const end = block.search.first(self.text, '\n') orelse self.text.len;
            const text = self.text[0..end];
            self.text = self.text[@min(end + 1, self.text.len)..];
            if (try self.extent(text)) |line| return line;
        }
        return null;
    }

    fn extent(self: *Lines, text: []const u8) error{Invalid}!?Line {
        var scan: Scan = .{ .text = text };
        const access = scan.word() orelse return null;
        const sectors = scan.decimal() orelse return null;
        const word = scan.word() orelse return null;
        const writable = std.mem.eql(u8, access, "RW");
        const name = scan.quoted() orelse {
            if (writable or isAccess(access)) self.ignored += 1;
            return null;
        };
        if (!writable) {
            if (isAccess(access)) self.ignored += 1;
            return null;
        }
        const offset: ?i64 = if (scan.literal('"')) scan.decimal() else null;
        const kind = Type.of(word);
        var line: Line = .{ .sectors = @intCast(@max(sectors, 0)), .type = kind orelse .SPARSE, .name = name, .offset = 0 };
        if (kind == .FLAT) {
            line.offset = std.math.cast(u64, offset orelse return error.Invalid) orelse return error.Invalid;
        } else if (offset != null) return error.Invalid;
        if (kind != null and sectors > 0) return line;
        self.ignored += 1;
        return null;
    }

    fn isAccess(word: []const u8) bool {
        return std.mem.eql(u8, word, "RDONLY") or std.mem.eql(u8, word, "NOACCESS");
    }
};

/// The conversions of C's sscanf that qemu uses, within one line.
const Scan = struct {
    text: []const u8,

    fn space(self: *Scan) void {
        var count: usize = 0;
        while (count < self.text.len and isSpace(self.text[count])) count += 1;
        self.text = self.text[count..];
    }

    fn isSpace(byte: u8) bool {
        return byte == ' ' or (byte >= 9 and byte <= 13);
    }

    fn take(self: *Scan, count: usize) []const u8 {
        defer self.text = self.text[count..];
        return self.text[0..count];
    }

    fn word(self: *Scan) ?[]const u8 {
        self.space();
        var count: usize = 0;
        while (count < self.text.len and count < max_word and !isSpace(self.text[count])) count += 1;
        return if (count == 0) null else self.take(count);
    }

    fn literal(self: *Scan, wanted: u8) bool {
        if (self.text.len == 0 or self.text[0] != wanted) return false;
        self.text = self.text[1..];
        return true;
    }

    /// What stands between quotation marks; the second one is left.
    fn quoted(self: *Scan) ?[]const u8 {
        self.space();
        if (!self.literal('"')) return null;
        var count: usize = 0;
        while (count < self.text.len and count < max_name) : (count += 1) {
            const byte = self.text[count];
            if (byte == '"' or byte == '\r') break;
        }
        return if (count == 0) null else self.take(count);
    }

    fn sign(self: *Scan) bool {
        self.space();
        if (self.literal('-')) return true;
        _ = self.literal('+');
        return false;
    }

    /// Saturates.
    fn decimal(self: *Scan) ?i64 {
        const negative = self.sign();
        const value = self.digits(10) orelse return null;
        const magnitude: i64 = std.math.cast(i64, value) orelse std.math.maxInt(i64);
        return if (negative) -magnitude else magnitude;
    }

    /// The low 32 bits.
    fn hexadecimal(self: *Scan) ?u32 {
        const negative = self.sign();
        const prefixed = self.text.len >= 2 and self.text[0] == '0' and self.text[1] | 0x20 == 'x';
        if (prefixed) self.text = self.text[2..];
        // A prefix alone is a 0 for C's library.
        const value = self.digits(16) orelse if (prefixed) 0 else return null;
        const truncated: u32 = @truncate(value);
        return if (negative and value != std.math.maxInt(u64)) 0 -% truncated else truncated;
    }

    fn digits(self: *Scan, base: u8) ?u64 {
        var value: u64 = 0;
        var count: usize = 0;
        for (self.text) |byte| {
            const digit: u8 = switch (byte) {
                '0'...'9' => byte - '0',
                'a'...'f' => byte - 'a' + 10,
                'A'...'F' => byte - 'A' + 10,
                else => break,
            };
            if (digit >= base) break;
            value = value *| base +| digit;
            count += 1;
        }
        if (count == 0) return null;
        _ = self.take(count);
        return value;
    }
};

/// Index of the first `wanted` in `text`.
noinline fn find(text: []const u8, wanted: []const u8) ?usize {
    if (wanted.len > text.len) return null;
    for (0..text.len - wanted.len + 1) |at| {
        if (text[at] == wanted[0] and std.mem.eql(u8, text[at..][0..wanted.len], wanted)) return at;
    }
    return null;
}

const testing = std.testing;

fn headOf(comptime text: []const u8) [head_size]u8 {
    var bytes: [head_size]u8 = @splat(0);
    bytes[0..text.len].* = text[0..text.len].*;
    return bytes;
}

test "identity: the first CID in the text counts, even that of parentCID" {
    const plain = try Identity.parse(&headOf("CID=181dd651\nparentCID=ffffffff\n"));
    try testing.expectEqual(0x181dd651, plain.cid);
    try testing.expectEqual(format.no_parent, plain.parent_cid);
    try testing.expectEqual(null, plain.parent);
    const turned = try Identity.parse(&headOf("parentCID=12\nCID=34\nparentFileNameHint=\"a b.vmdk\"\n"));
    try testing.expectEqual(0x12, turned.cid);
    try testing.expectEqual(0x12, turned.parent_cid);
    try testing.expectEqualStrings("a b.vmdk", turned.parent.?);
    try testing.expectEqual(null, (try Identity.parse(&headOf("CID=1 parentCID=1 parentFileNameHint=\"\""))).parent);
}

test "identity: numbers as C reads them" {
    try testing.expectEqual(0x3456789a, (try Identity.parse(&headOf("CID=123456789a parentCID=0x1F"))).cid);
    try testing.expectEqual(0x1f, (try Identity.parse(&headOf("CID=123456789a parentCID=0x1F"))).parent_cid);
    try testing.expectEqual(0xffffffff, (try Identity.parse(&headOf("CID=-1 parentCID= fffffffffffffffffffff"))).cid);
    try testing.expectEqual(0xffffffff, (try Identity.parse(&headOf("CID=-1 parentCID= fffffffffffffffffffff"))).parent_cid);
    try testing.expectEqual(0, (try Identity.parse(&headOf("CID=0x parentCID=0Xg"))).parent_cid);
    try testing.expectError(error.NoCid, Identity.parse(&headOf("cid=1")));
    try testing.expectError(error.NoCid, Identity.parse(&headOf("CID=xyz")));
    try testing.expectError(error.NoCid, Identity.parse(&headOf("CID")));
    try testing.expectError(error.NoParentCid, Identity.parse(&headOf("CID=1\nparentCID=")));
    try testing.expectError(error.BadParent, Identity.parse(&headOf("CID=1 parentCID=1 parentFileNameHint=\"abc")));
    try testing.expectError(error.BadParent, Identity.parse(&headOf("CID=1 parentCID=1 parentFileNameHint")));
}

test "identity: a parent's name has at most 4095 bytes" {
    var bytes: [head_size]u8 = @splat('n');
    const start = "CID=1 parentCID=2 parentFileNameHint=\"";
    bytes[0..start.len].* = start.*;
    bytes[start.len + 4095] = '"';
    try testing.expectEqual(4095, (try Identity.parse(&bytes)).parent.?.len);
    bytes[start.len + 4095] = 'n';
    bytes[start.len + 4096] = '"';
    try testing.expectError(error.BadParent, Identity.parse(&bytes));
}

test "create type and disk database" {
    const one: Descriptor = .init("createType=\"vmfs\"\nddb.adapterType = \"ide\"\nddb.broken \"x\x00createType=\"y\"");
    try testing.expectEqualStrings("vmfs", one.createType().?);
    try testing.expectEqualStrings("ide", one.database("ddb.adapterType").?);
    try testing.expectEqual(null, one.database("ddb.broken"));
    try testing.expectEqual(null, one.database("ddb.none"));
    try testing.expectEqual(null, Descriptor.init("createType=\"" ++ "x" ** 128 ++ "\"").createType());
    try testing.expectEqualStrings("x" ** 127, Descriptor.init("createType=\"" ++ "x" ** 127 ++ "\"").createType().?);
    try testing.expectEqual(null, Descriptor.init("createType").createType());
    try testing.expectEqual(null, Descriptor.init("createType=\"vmfs").createType());
}

test "extent lines" {
    var lines = Descriptor.init(
        \\RW 63 FLAT "a-flat.vmdk" 7
        \\# RW 1 FLAT "no.vmdk" 0
        \\  RW  2048 SPARSE  "s 001.vmdk"
        \\RDONLY 5 FLAT "r.vmdk" 0
        \\NOACCESS 5 ZERO
        \\RW 5 ZERO
        \\RW 0 SPARSE "empty.vmdk"
        \\RW 5 VMFSRDM "raw.vmdk"
        \\RW 9223372036854775808 VMFS "big.vmdk"
    ++ "\r\nRW 1 SESPARSE \"cut\rRW 9").lines();
    const first = (try lines.next()).?;
    try testing.expectEqual(63, first.sectors);
    try testing.expectEqual(7, first.offset);
    try testing.expectEqual(Type.FLAT, first.type);
    try testing.expectEqualStrings("a-flat.vmdk", first.name);
    const second = (try lines.next()).?;
    try testing.expectEqual(Type.SPARSE, second.type);
    try testing.expectEqualStrings("s 001.vmdk", second.name);
    const third = (try lines.next()).?;
    try testing.expectEqual(std.math.maxInt(i64), third.sectors);
    try testing.expectEqual(5, lines.ignored);
    try testing.expectEqualStrings("cut", (try lines.next()).?.name);
    try testing.expectEqual(null, try lines.next());
}

test "extent lines that contradict their type" {
    for ([_][]const u8{
        "RW 1 FLAT \"a\"",
        "RW 1 FLAT \"a\" -1",
        "RW 1 FLAT \"a",
        "RW 1 SPARSE \"a\" 0",
        "RW 1 VMFS \"a\" 0",
        "RW 1 OTHER \"a\" 0",
    }) |text| {
        var lines = Descriptor.init(text).lines();
        try testing.expectError(error.Invalid, lines.next());
    }
    for ([_][]const u8{ "RW", "RW x", "RW 1", "RW 1 FLAT", "RW 1 FLAT \"\"", "RW -1 SPARSE \"a\"", "RWX 1 FLAT \"a\" 0", "" }) |text| {
        var lines = Descriptor.init(text).lines();
        try testing.expectEqual(null, try lines.next());
    }
}

test "a name is cut at 511 bytes" {
    var lines = Descriptor.init("RW 1 SPARSE \"" ++ "n" ** 600 ++ "\"").lines();
    try testing.expectEqual(511, (try lines.next()).?.name.len);
}
