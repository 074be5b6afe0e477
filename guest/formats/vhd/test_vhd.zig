//! Small VHDs in memory: what opens, what is refused and why, and where the data is.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const footers = @import("footer.zig");
const dynamic = @import("dynamic.zig");
const vhd = @import("vhd.zig");
const testing = std.testing;

/// A builder of footers, headers and tables.  Everything is as a good writer would have it until a test changes it.
pub const Builder = struct {
    bytes: []u8,

    pub fn footer(out: []u8, kind: u32, size: u64, creator: *const [4]u8) void {
        @memset(out[0..footers.size], 0);
        out[0..8].* = footers.cookie.*;
        put(u32, out, 8, 2);
        put(u32, out, 12, 0x10000);
        put(u64, out, 16, if (kind == 2) std.math.maxInt(u64) else 512);
        out[28..32].* = creator.*;
        out[36..40].* = "Wi2k".*;
        put(u64, out, 40, size);
        put(u64, out, 48, size);
        put(u16, out, 56, 31);
        out[58] = 4;
        out[59] = 17;
        put(u32, out, 60, kind);
        sign(out);
    }

    pub fn sign(out: []u8) void {
        put(u32, out, 64, footers.sumOf(out[0..footers.size], 64));
    }

    pub fn header(out: []u8, table_offset: u64, table_entries: u32, size_of_block: u32) void {
        @memset(out[0..dynamic.size], 0);
        out[0..8].* = dynamic.cookie.*;
        put(u64, out, 8, std.math.maxInt(u64));
        put(u64, out, 16, table_offset);
        put(u32, out, 24, 0x10000);
        put(u32, out, 28, table_entries);
        put(u32, out, 32, size_of_block);
        signHeader(out);
    }

    pub fn signHeader(out: []u8) void {
        put(u32, out, 36, footers.sumOf(out[0..dynamic.size], 36));
    }

    pub fn put(comptime T: type, out: []u8, at: usize, value: T) void {
        std.mem.writeInt(T, out[at..][0..@sizeOf(T)], value, .big);
    }

    pub const block_size = 4096;
    pub const entries = 264;
    /// Footer copy 0, header 512, BAT 1536 (3 sectors), two blocks, footer.
    pub const first_block = 3072;
    pub const dynamic_length = first_block + 2 * (512 + block_size) + 512;
    pub const dynamic_size = 31 * 4 * 17 * 512;

    /// A dynamic disk of 1,079,296 bytes with blocks 1 and 3 present.
    pub fn dynamicDisk(kind: u32) [dynamic_length]u8 {
        var out: [dynamic_length]u8 = @splat(0);
        footer(&out, kind, dynamic_size, "vpc ");
        header(out[512..], 1536, entries, block_size);
        @memset(out[1536..first_block], 0xff);
        put(u32, &out, 1536 + 4, first_block / 512);
        put(u32, &out, 1536 + 12, (first_block + 512 + block_size) / 512);
        for ([_]usize{ first_block, first_block + 512 + block_size }) |at| out[at] = 0xff;
        @memcpy(out[dynamic_length - 512 ..], out[0..512]);
        return out;
    }
};

/// Everything that a test of one image needs.
const Case = struct {
    memory: block.Memory,
    arena: std.heap.ArenaAllocator,
    diagnostic: block.Diagnostic = .{},

    fn init(bytes: []const u8) !Case {
        return .{ .memory = try .init(testing.allocator, bytes), .arena = .init(testing.allocator) };
    }

    fn deinit(self: *Case) void {
        self.memory.deinit();
        self.arena.deinit();
    }

    fn open(self: *Case) block.Error!image.Image {
        return vhd.open(.{ .allocator = self.arena.allocator(), .diagnostic = &self.diagnostic }, self.memory.device());
    }
};

fn expectSegment(opened: image.Image, start: u64, length: u64, kind: image.Kind, offset: ?u64) !void {
    const segment = try opened.segmentAt(start);
    try testing.expectEqual(kind, segment.kind);
    try testing.expectEqual(length, segment.length);
    try testing.expectEqual(offset, segment.offset);
}

fn expectRefused(bytes: []const u8, part: []const u8) !void {
    var case: Case = try .init(bytes);
    defer case.deinit();
    try testing.expectError(error.Refused, case.open());
    if (std.mem.indexOf(u8, case.diagnostic.message(), part) == null) {
        std.debug.print("\nsays: {s}\nexpected: {s}\n", .{ case.diagnostic.message(), part });
        return error.TestUnexpectedMessage;
    }
}

test "a dynamic disk: blocks, holes, and nothing past the virtual size" {
    const bytes = Builder.dynamicDisk(3);
    var case: Case = try .init(&bytes);
    defer case.deinit();
    const opened = try case.open();
    try testing.expectEqual(@as(u64, 1_079_296), opened.virtual_size);
    try testing.expect(!opened.has_backing);
    try expectSegment(opened, 0, 4096, .zero, null);
    try expectSegment(opened, 4096, 4096, .data, Builder.first_block + 512);
    try expectSegment(opened, 5000, 3192, .data, Builder.first_block + 512 + 904);
    try expectSegment(opened, 12288, 4096, .data, Builder.first_block + 512 + 4096 + 512);
    try expectSegment(opened, 16384, 1_079_296 - 16384, .zero, null);
}

test "a block that reaches past the virtual size is cut there" {
    var bytes = Builder.dynamicDisk(3);
    // 263 blocks and a half.
    Builder.put(u32, &bytes, 1536 + 4 * 263, Builder.first_block / 512);
    var case: Case = try .init(&bytes);
    defer case.deinit();
    const opened = try case.open();
    try expectSegment(opened, 263 * 4096, 1_079_296 - 263 * 4096, .data, Builder.first_block + 512);
}

test "a differencing disk asks the sector bitmap" {
    const bytes = Builder.dynamicDisk(4);
    var case: Case = try .init(&bytes);
    defer case.deinit();
    case.memory.bytes.items[Builder.first_block] = 0b1100_0000;
    const opened = try case.open();
    try testing.expect(opened.has_backing);
    try expectSegment(opened, 4096, 1024, .data, Builder.first_block + 512);
    try expectSegment(opened, 5120, 3072, .unallocated, null);
}

test "a fixed disk, its footer 512 or 511 bytes long" {
    var bytes: [1_079_296 + 512]u8 = @splat(1);
    Builder.footer(bytes[1_079_296..], 2, 1_079_296, "vpc ");
    inline for (.{ bytes.len, bytes.len - 1 }) |length| {
        var case: Case = try .init(bytes[0..length]);
        defer case.deinit();
        const opened = try case.open();
        try testing.expectEqual(@as(u64, 1_079_296), opened.virtual_size);
        try expectSegment(opened, 0, 1_079_296, .data, 0);
    }
    // The footer is looked for at every place where it may begin, not at every byte.
    try expectRefused(bytes[0 .. bytes.len - 500], "no footer");
    try expectRefused(bytes[0..100], "no footer");
    try expectRefused("", "no footer");
}

test "the current size counts when the writer is not Virtual PC" {
    var bytes: [512]u8 = @splat(0);
    Builder.footer(&bytes, 2, 10 * 512 + 1, "win ");
    // At byte 0 this would be a copy, which fixed disks do not have.
    try expectRefused(&bytes, "says fixed disk");
    var case: Case = try .init(&(@as([512]u8, @splat(0)) ++ bytes));
    defer case.deinit();
    try testing.expectEqual(@as(u64, 5120), (try case.open()).virtual_size);
}

test "bad structures are refused by name and number" {
    const Change = struct { at: usize, value: u64, width: u8, says: []const u8 };
    const changes = [_]Change{
        .{ .at = 64, .value = 1, .width = 4, .says = "Incorrect header checksum 1 of" },
        .{ .at = 512, .value = 0, .width = 4, .says = "no dynamic disk header at byte 512" },
        .{ .at = 512 + 32, .value = 0, .width = 4, .says = "Invalid block size 0" },
        .{ .at = 512 + 32, .value = 256, .width = 4, .says = "Invalid block size 256" },
        .{ .at = 512 + 32, .value = 4097, .width = 4, .says = "Invalid block size 4097" },
        .{ .at = 512 + 28, .value = 0xffff_ffff, .width = 4, .says = "Max Table Entries too large (4294967295)" },
        .{ .at = 512 + 28, .value = 263, .width = 4, .says = "Page table too small: its blocks hold 1077248 bytes, the disk has 1079296" },
        .{ .at = 512 + 16, .value = 0xffff_ffff_ffff_fff0, .width = 8, .says = "ends at byte 18446744073709551615" },
        .{ .at = 512 + 16, .value = 12_400, .width = 8, .says = "BAT at byte 12400 ends at byte 13456, file has 12800" },
        .{ .at = 1536, .value = 17, .width = 4, .says = "truncated: its last data block ends at byte 13312, file has 12800" },
    };
    for (changes) |change| {
        var bytes = Builder.dynamicDisk(3);
        switch (change.width) {
            4 => Builder.put(u32, &bytes, change.at, @truncate(change.value)),
            else => Builder.put(u64, &bytes, change.at, change.value),
        }
        try expectRefused(&bytes, change.says);
    }
}

test "the last block may end with the file" {
    var bytes = Builder.dynamicDisk(3);
    Builder.put(u32, &bytes, 1536, 16);
    var case: Case = try .init(&bytes);
    defer case.deinit();
    try expectSegment(try case.open(), 0, 4096, .data, 16 * 512 + 512);
}

test "a table larger than its window" {
    const entries = 140_000;
    const blocks = [_]usize{ 0, 131_071, 131_072, 139_999 };
    const table_end = 1536 + entries * 4;
    const first = std.mem.alignForward(usize, table_end, 512) / 512;
    const bytes = try testing.allocator.alloc(u8, (first + blocks.len) * 512);
    defer testing.allocator.free(bytes);
    @memset(bytes, 0xff);
    Builder.footer(bytes, 3, entries * 512, "win ");
    Builder.header(bytes[512..], 1536, entries, 512);
    for (blocks, 0..) |index, i| Builder.put(u32, bytes, 1536 + index * 4, @intCast(first + i));
    var case: Case = try .init(bytes);
    defer case.deinit();
    const opened = try case.open();
    // Blocks as small as a sector have no bitmap.
    try expectSegment(opened, 0, 512, .data, first * 512);
    try expectSegment(opened, 512, 131_070 * 512, .zero, null);
    try expectSegment(opened, 131_072 * 512, 512, .data, (first + 2) * 512);
    try expectSegment(opened, 131_071 * 512, 512, .data, (first + 1) * 512);
    try expectSegment(opened, 131_073 * 512, 8_926 * 512, .zero, null);
    try expectSegment(opened, 139_999 * 512, 512, .data, (first + 3) * 512);
}

test "a footer at the end alone does not open a dynamic disk" {
    var bytes = Builder.dynamicDisk(3);
    bytes[0] = 0;
    try expectRefused(&bytes, "its copy at byte 0 is missing");
}

test "more than 2040 GiB is refused" {
    var bytes: [1024]u8 = @splat(0);
    Builder.footer(bytes[512..], 2, (footers.max_sectors + 1) * 512, "win ");
    try expectRefused(&bytes, "4278190081 sectors is above the limit of 4278190080");
    Builder.footer(bytes[512..], 2, footers.max_sectors * 512, "win ");
    var case: Case = try .init(&bytes);
    defer case.deinit();
    try testing.expectEqual(footers.max_sectors * 512, (try case.open()).virtual_size);
}
