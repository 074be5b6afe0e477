//! The size in an embedded descriptor, changed in place: every sector that changes is good with the others as they were.
//!
//! A text that fits one sector is written anew.  In a longer one, a number that needs more digits takes them from a
//! comment of the same sector, so that no other sector changes.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const format = @import("format.zig");

const sector = format.sector;

/// A sector of the descriptor, counted from its first.
pub const Sector = struct { index: u64, bytes: []const u8 };

/// A number in the text.
const Number = struct {
    at: usize,
    length: usize,
    value: u64,
};

/// The value of a key that begins a line, without quotes; null when there is none.
pub fn value(bytes: []const u8, key: []const u8) ?[]const u8 {
    var lines: Lines = .{ .bytes = block.search.until(bytes, 0) };
    while (lines.next()) |line| {
        if (!std.mem.startsWith(u8, line, key)) continue;
        const rest = trimmed(line[key.len..]);
        if (rest.len == 0 or rest[0] != '=') continue;
        const found = trimmed(rest[1..]);
        if (found.len >= 2 and found[0] == '"' and found[found.len - 1] == '"') return found[1 .. found.len - 1];
        return found;
    }
    return null;
}

/// The sectors to write for a disk of `capacity` sectors; none when the text says so already.
///
/// Refuses when there is not exactly one sparse extent, and when its sector has no room for a longer number.
pub fn resized(context: image.Context, bytes: []const u8, capacity: u64) block.Error![]const Sector {
    const text = block.search.until(bytes, 0);
    const size = extentSize(text) orelse return refuse(context, "does not have one line for one sparse extent");
    const cylinders = geometry(text, size.value);
    if (size.value == capacity) return &.{};

    const new = context.allocator.alloc(u8, bytes.len) catch return error.NoMemory;
    @memcpy(new, bytes);
    if (text.len <= sector) {
        var length = text.len;
        // The later one first: it does not move the other.
        if (cylinders) |number| if (number.at > size.at) replace(new, &length, number, newCylinders(text, capacity));
        replace(new, &length, size, capacity);
        if (cylinders) |number| if (number.at < size.at) replace(new, &length, number, newCylinders(text, capacity));
        if (length > sector) return refuse(context, "has no room for the new size in its sector");
    } else {
        if (!exchange(new, text.len, size, capacity)) return refuse(context, "has no room for the new size in its sector");
        // A hint that nobody has to follow: it stays as it was where it cannot be changed.
        if (geometry(block.search.until(new, 0), size.value)) |number| _ = exchange(new, text.len, number, newCylinders(text, capacity));
    }

    var changed: std.ArrayList(Sector) = .empty;
    changed.ensureTotalCapacity(context.allocator, 2) catch return error.NoMemory;
    var at: usize = 0;
    while (at < new.len) : (at += sector) {
        const piece = new[at..@min(at + sector, new.len)];
        if (!std.mem.eql(u8, piece, bytes[at..][0..piece.len])) changed.appendAssumeCapacity(.{ .index = at / sector, .bytes = piece });
    }
    return changed.items;
}

fn refuse(context: image.Context, what: []const u8) error{Refused} {
    return context.diagnostic.refuse(.unsupported, .{ .format = format.name, .structure = "descriptor" }, "vmdk: the descriptor {s}", .{what});
}

/// The number of sectors in the line of the extent, when there is one such line.
fn extentSize(text: []const u8) ?Number {
    var found: ?Number = null;
    var lines: Lines = .{ .bytes = text };
    while (lines.next()) |line| {
        if (!std.mem.startsWith(u8, line, "RW ")) continue;
        if (found != null) return null;
        const rest = line[3..];
        const digits = digitsOf(rest) orelse return null;
        if (!std.mem.startsWith(u8, rest[digits.len..], " SPARSE \"")) return null;
        found = .{
            .at = @intFromPtr(digits.ptr) - @intFromPtr(text.ptr),
            .length = digits.len,
            .value = std.fmt.parseInt(u64, digits, 10) catch return null,
        };
    }
    return found;
}

const cylinders_key = "ddb.geometry.cylinders";

/// The cylinders, when they are those of a disk of `capacity` sectors.
fn geometry(text: []const u8, capacity: u64) ?Number {
    const digits = value(text, cylinders_key) orelse return null;
    const number = std.fmt.parseInt(u64, digits, 10) catch return null;
    const per_cylinder = sectorsOfCylinder(text) orelse return null;
    if (number != capacity / per_cylinder) return null;
    return .{ .at = @intFromPtr(digits.ptr) - @intFromPtr(text.ptr), .length = digits.len, .value = number };
}

fn sectorsOfCylinder(text: []const u8) ?u64 {
    const heads = std.fmt.parseInt(u16, value(text, "ddb.geometry.heads") orelse return null, 10) catch return null;
    const sectors = std.fmt.parseInt(u16, value(text, "ddb.geometry.sectors") orelse return null, 10) catch return null;
    const product = @as(u64, heads) * sectors;
    return if (product == 0) null else product;
}

fn newCylinders(text: []const u8, capacity: u64) u64 {
    return capacity / (sectorsOfCylinder(text) orelse unreachable);
}

fn digitsOf(bytes: []const u8) ?[]const u8 {
    var length: usize = 0;
    while (length < bytes.len and bytes[length] >= '0' and bytes[length] <= '9') length += 1;
    return if (length == 0) null else bytes[0..length];
}

/// Put a number in the place of another, moving what follows; `length` is that of the text.
fn replace(bytes: []u8, length: *usize, old: Number, new: u64) void {
    var room: [20]u8 = undefined;
    const digits = block.sentence.write(&room, "{d}", .{new});
    const rest = bytes[old.at + old.length .. length.*];
    const after = length.* - old.length + digits.len;
    if (after > bytes.len) {
        length.* = after;
        return;
    }
    if (digits.len >= old.length) {
        std.mem.copyBackwards(u8, bytes[old.at + digits.len .. after], rest);
    } else {
        std.mem.copyForwards(u8, bytes[old.at + digits.len .. after], rest);
        @memset(bytes[after..length.*], 0);
    }
    @memcpy(bytes[old.at..][0..digits.len], digits);
    length.* = after;
}

/// Put a number in the place of another inside its sector; false when there is no room, and nothing is changed then.
fn exchange(bytes: []u8, length: usize, old: Number, new: u64) bool {
    var room: [20]u8 = undefined;
    const digits = block.sentence.write(&room, "{d}", .{new});
    const begin = old.at / sector * sector;
    const end = @min(begin + sector, length);
    if (old.at + old.length > end or digits.len < old.length) return false;
    const needed = digits.len - old.length;
    var at = old.at;
    if (needed > 0) {
        const comment = commentIn(bytes[0..length], begin, end, needed) orelse return false;
        if (comment < at) {
            // Its last bytes go, and what is between moves to the front.
            std.mem.copyForwards(u8, bytes[comment - needed .. at - needed], bytes[comment..at]);
            at -= needed;
        } else {
            std.mem.copyBackwards(u8, bytes[at + digits.len .. comment], bytes[at + old.length .. comment - needed]);
        }
    }
    @memcpy(bytes[at..][0..digits.len], digits);
    return true;
}

/// Where a comment ends that lies in [begin, end) and can lose `needed` bytes.  Not the first line, which says what the
/// file is.
fn commentIn(text: []const u8, begin: usize, end: usize, needed: usize) ?usize {
    var lines: Lines = .{ .bytes = text };
    _ = lines.next();
    while (lines.next()) |line| {
        const start = @intFromPtr(line.ptr) - @intFromPtr(text.ptr);
        if (start < begin or start + line.len > end) continue;
        if (line.len > needed and line[0] == '#' and line[line.len - 1] != '\r') return start + line.len;
    }
    return null;
}

fn trimmed(bytes: []const u8) []const u8 {
    return std.mem.trim(u8, bytes, " \t\r");
}

/// Lines without their ends.
const Lines = struct {
    bytes: []const u8,
    at: usize = 0,

    fn next(self: *Lines) ?[]const u8 {
        if (self.at >= self.bytes.len) return null;
        const line = block.search.until(self.bytes[self.at..], '\n');
        self.at += line.len + 1;
        return line;
    }
};

const testing = std.testing;

const short =
    \\# Disk DescriptorFile
    \\version=1
    \\CID=39ce86a2
    \\parentCID=ffffffff
    \\createType="monolithicSparse"
    \\
    \\# Extent description
    \\RW 2048 SPARSE "a.vmdk"
    \\
    \\# The Disk Data Base
    \\#DDB
    \\
    \\ddb.virtualHWVersion = "4"
    \\ddb.geometry.cylinders = "2"
    \\ddb.geometry.heads = "16"
    \\ddb.geometry.sectors = "63"
    \\ddb.adapterType = "ide"
    \\
;

fn padded(comptime text: []const u8, comptime length: usize) [length]u8 {
    return text[0..text.len].* ++ [_]u8{0} ** (length - text.len);
}

const Edited = struct {
    arena: std.heap.ArenaAllocator,
    diagnostic: block.Diagnostic = .{},
    bytes: []u8,
    sectors: usize,

    fn init(bytes: []const u8, new: u64) !Edited {
        var self: Edited = .{ .arena = .init(testing.allocator), .bytes = undefined, .sectors = 0 };
        errdefer self.arena.deinit();
        self.bytes = try self.arena.allocator().dupe(u8, bytes);
        const context: image.Context = .{ .allocator = self.arena.allocator(), .diagnostic = &self.diagnostic };
        const changed = try resized(context, bytes, new);
        for (changed) |one| @memcpy(self.bytes[@intCast(one.index * sector)..][0..one.bytes.len], one.bytes);
        self.sectors = changed.len;
        return self;
    }

    fn deinit(self: *Edited) void {
        self.arena.deinit();
    }

    fn has(self: *const Edited, line: []const u8) !void {
        var lines: Lines = .{ .bytes = block.search.until(self.bytes, 0) };
        while (lines.next()) |one| if (std.mem.eql(u8, one, line)) return;
        std.debug.print("no line {s} in:\n{s}\n", .{ line, block.search.until(self.bytes, 0) });
        return error.TestExpectedLine;
    }
};

test "a text of one sector is written anew" {
    const bytes = comptime padded(short, 20 * sector);
    var edited: Edited = try .init(&bytes, 2_097_152);
    defer edited.deinit();
    try testing.expectEqual(1, edited.sectors);
    try edited.has("RW 2097152 SPARSE \"a.vmdk\"");
    try edited.has("ddb.geometry.cylinders = \"2080\"");
    try edited.has("ddb.adapterType = \"ide\"");
    try testing.expectEqual(short.len + 6, block.search.until(edited.bytes, 0).len);
    var again: Edited = try .init(edited.bytes, 2_097_152);
    defer again.deinit();
    try testing.expectEqual(0, again.sectors);
}

test "a longer text changes in one sector for each number" {
    // The geometry lies in the second sector.
    const text = comptime short[0..std.mem.indexOf(u8, short, "ddb.geometry").?] ++ "ddb.comment = \"" ++ [_]u8{'c'} ** 300 ++ "\"\n" ++
        short[std.mem.indexOf(u8, short, "ddb.geometry").?..];
    const bytes = comptime padded(text, 20 * sector);
    var edited: Edited = try .init(&bytes, 2_097_152);
    defer edited.deinit();
    try testing.expectEqual(1, edited.sectors);
    try edited.has("RW 2097152 SPARSE \"a.vmdk\"");
    try edited.has("# Extent descript");
    // There is no comment beside the cylinders.
    try edited.has("ddb.geometry.cylinders = \"2\"");
    try testing.expectEqual(text.len, block.search.until(edited.bytes, 0).len);

    var same: Edited = try .init(&bytes, 9072);
    defer same.deinit();
    try testing.expectEqual(2, same.sectors);
    try same.has("RW 9072 SPARSE \"a.vmdk\"");
    try same.has("ddb.geometry.cylinders = \"9\"");
    try same.has("# Extent description");
}

test "a comment behind the number gives its bytes as well" {
    const text = "# Disk DescriptorFile\nRW 9 SPARSE \"a\"\n# The Disk Data Base\n" ++ [_]u8{'x'} ** 600;
    const bytes = comptime padded(text, 2 * sector);
    var edited: Edited = try .init(&bytes, 1000);
    defer edited.deinit();
    try edited.has("RW 1000 SPARSE \"a\"");
    try edited.has("# The Disk Data B");
    try testing.expectEqual(1, edited.sectors);
}

test "texts that are refused" {
    try testing.expectError(error.Refused, Edited.init("# Disk DescriptorFile\n\x00", 2));
    try testing.expectError(error.Refused, Edited.init("RW 1 SPARSE \"a\"\nRW 1 SPARSE \"b\"\n\x00", 2));
    try testing.expectError(error.Refused, Edited.init("RW 1 FLAT \"a\" 0\n\x00", 2));
    try testing.expectError(error.Refused, Edited.init("RW 99999999999999999999 SPARSE \"a\"\n\x00", 2));
    try testing.expectError(error.Refused, Edited.init("RW 9 SPARSE \"a\"\n" ++ [_]u8{'x'} ** 600, 10));
    // A sector that is full.
    try testing.expectError(error.Refused, Edited.init("RW 9 SPARSE \"a\"\n" ++ [_]u8{'x'} ** 496 ++ [_]u8{0} ** 512, 10));
}

test "values of keys" {
    try testing.expectEqualStrings("monolithicSparse", value(short, "createType").?);
    try testing.expectEqualStrings("39ce86a2", value(short, "CID").?);
    try testing.expectEqualStrings("x", value("a\r\nkey\t= \"x\" \r\n", "key").?);
    try testing.expectEqual(null, value("key\nkeys=1", "key"));
}
