//! 64-bit words of a device in any order, through a cache of pages: entries of a broken L2 table may ask for the
//! refcounts of millions of clusters in no order, and each must not cost a read.

const std = @import("std");
const block = @import("block");

const page_bytes = 4096;
/// Twice the largest refcount table: its pages have a place each, and as many are left for refcount blocks.
const slot_count = 4096;

const Slot = struct { number: u64 = std.math.maxInt(u64), bytes: ?[]u8 = null };

pub const Pages = struct {
    device: block.Device,
    allocator: std.mem.Allocator,
    /// Page n has its place at n modulo the count; empty until the first look-up.
    slots: []Slot = &.{},
    /// Pages that may still be read: what makes the work finite where places collide.
    reads_left: u32 = 1 << 16,
    exhausted: bool = false,

    /// The big-endian word at byte `offset`, a multiple of 8; bytes behind the end of the device are 0.  Null when too
    /// many pages have been read.
    pub fn word(self: *Pages, offset: u64) block.DeviceError!?u64 {
        if (offset >= self.device.length) return 0;
        const page = try self.at(offset / page_bytes) orelse return null;
        return std.mem.readInt(u64, page[@intCast(offset % page_bytes)..][0..8], .big);
    }

    noinline fn at(self: *Pages, number: u64) block.DeviceError!?[]const u8 {
        if (self.slots.len == 0) {
            self.slots = self.allocator.alloc(Slot, slot_count) catch return error.NoMemory;
            @memset(self.slots, .{});
        }
        const slot = &self.slots[@intCast(number % slot_count)];
        if (slot.number == number) return slot.bytes;
        if (self.reads_left == 0) {
            self.exhausted = true;
            return null;
        }
        self.reads_left -= 1;
        const bytes = slot.bytes orelse self.allocator.alloc(u8, page_bytes) catch return error.NoMemory;
        slot.* = .{ .bytes = bytes };
        try self.device.readPadded(number * page_bytes, bytes);
        slot.number = number;
        return bytes;
    }
};

test "a page is read once; a place that two pages share costs a read each time, up to the limit" {
    var arena: std.heap.ArenaAllocator = .init(std.testing.allocator);
    defer arena.deinit();
    var memory = try block.Memory.init(arena.allocator(), "");
    try memory.bytes.resize(arena.allocator(), page_bytes * slot_count + 16);
    @memset(memory.bytes.items, 0);
    memory.bytes.items[15] = 1;
    memory.bytes.items[page_bytes * slot_count + 7] = 2;
    var pages: Pages = .{ .device = memory.device(), .allocator = arena.allocator(), .reads_left = 3 };
    for (0..4) |_| try std.testing.expectEqual(1, try pages.word(8));
    try std.testing.expectEqual(1, memory.reads);
    try std.testing.expectEqual(2, try pages.word(page_bytes * slot_count));
    try std.testing.expectEqual(0, try pages.word(page_bytes * slot_count + 8));
    try std.testing.expectEqual(0, try pages.word(1 << 60));
    try std.testing.expectEqual(2, memory.reads);
    try std.testing.expectEqual(1, try pages.word(8));
    try std.testing.expect(!pages.exhausted);
    try std.testing.expectEqual(null, try pages.word(page_bytes * slot_count));
    try std.testing.expect(pages.exhausted);
    try std.testing.expectEqual(3, memory.reads);
}
