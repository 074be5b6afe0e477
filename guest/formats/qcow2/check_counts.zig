//! Numbers for each cluster of the file while a check runs: memory is taken a page at a time and only where there is
//! something to count, so that a sparse file of terabytes costs what it holds.

const std = @import("std");

const page_bytes = 4096;
const Page = [page_bytes]u8;

/// Zero-initialised bytes, addressed from 0, in pages that exist once they are written.
const Paged = struct {
    allocator: std.mem.Allocator,
    pages: []?*align(8) Page,

    fn init(allocator: std.mem.Allocator, bytes: u64) error{OutOfMemory}!Paged {
        const count = std.math.cast(usize, (bytes + page_bytes - 1) / page_bytes) orelse return error.OutOfMemory;
        const pages = try allocator.alloc(?*align(8) Page, count);
        @memset(pages, null);
        return .{ .allocator = allocator, .pages = pages };
    }

    fn get(self: *const Paged, byte: u64) ?*align(8) Page {
        return self.pages[@intCast(byte / page_bytes)];
    }

    fn ensure(self: *Paged, byte: u64) error{OutOfMemory}!*align(8) Page {
        const slot = &self.pages[@intCast(byte / page_bytes)];
        if (slot.*) |page| return page;
        const page = try self.allocator.alignedAlloc(u8, .@"8", page_bytes);
        @memset(page, 0);
        slot.* = page[0..page_bytes];
        return slot.*.?;
    }
};

/// How often each cluster is referred to.
pub const Counts = struct {
    paged: Paged,
    /// log2 of the bytes of a cell: 16 bits where refcounts have at most 16, 32 otherwise.
    shift: u1,
    /// A count ends here: the largest refcount of the image's width, or what a cell holds.
    max: u64,

    /// `clusters` cells of 0.
    pub fn init(allocator: std.mem.Allocator, clusters: u64, refcount_max: u64) error{OutOfMemory}!Counts {
        const shift: u1 = if (refcount_max > 0xffff) 1 else 0;
        return .{
            .paged = try Paged.init(allocator, clusters << (@as(u6, shift) + 1)),
            .shift = shift,
            .max = @min(refcount_max, 0xffff_ffff),
        };
    }

    fn byteOf(self: *const Counts, cluster: u64) u64 {
        return cluster << (@as(u6, self.shift) + 1);
    }

    /// Clusters that a page holds.
    pub fn pageClusters(self: *const Counts) u64 {
        return @as(u64, page_bytes / 2) >> self.shift;
    }

    /// Whether all counts of the page that `cluster` lies on are 0.
    pub fn pageEmpty(self: *const Counts, cluster: u64) bool {
        return self.paged.get(self.byteOf(cluster)) == null;
    }

    pub fn get(self: *const Counts, cluster: u64) u64 {
        const byte = self.byteOf(cluster);
        const page = self.paged.get(byte) orelse return 0;
        const at: usize = @intCast(byte % page_bytes);
        return if (self.shift == 0) std.mem.readInt(u16, page[at..][0..2], .little) else std.mem.readInt(u32, page[at..][0..4], .little);
    }

    /// Count `times` more references; answers how many did not fit the width.
    pub fn add(self: *Counts, cluster: u64, times: u64) error{OutOfMemory}!u64 {
        const byte = self.byteOf(cluster);
        const page = try self.paged.ensure(byte);
        const at: usize = @intCast(byte % page_bytes);
        const before = self.get(cluster);
        const fits = @min(times, self.max - before);
        if (self.shift == 0) {
            std.mem.writeInt(u16, page[at..][0..2], @intCast(before + fits), .little);
        } else {
            std.mem.writeInt(u32, page[at..][0..4], @intCast(before + fits), .little);
        }
        return times - fits;
    }
};

/// One bit a cluster.
pub const Bits = struct {
    paged: Paged,

    pub fn init(allocator: std.mem.Allocator, clusters: u64) error{OutOfMemory}!Bits {
        return .{ .paged = try Paged.init(allocator, clusters / 8 + 1) };
    }

    pub fn set(self: *Bits, cluster: u64) error{OutOfMemory}!void {
        const page = try self.paged.ensure(cluster / 8);
        page[@intCast(cluster / 8 % page_bytes)] |= @as(u8, 1) << @intCast(cluster % 8);
    }

    pub fn isSet(self: *const Bits, cluster: u64) bool {
        const page = self.paged.get(cluster / 8) orelse return false;
        return page[@intCast(cluster / 8 % page_bytes)] >> @intCast(cluster % 8) & 1 != 0;
    }
};

test "counts saturate at the width" {
    var arena: std.heap.ArenaAllocator = .init(std.testing.allocator);
    defer arena.deinit();
    var one_bit = try Counts.init(arena.allocator(), 10_000, 1);
    try std.testing.expect(one_bit.pageEmpty(9_999));
    try std.testing.expectEqual(@as(u64, 0), try one_bit.add(9_999, 1));
    try std.testing.expectEqual(@as(u64, 2), try one_bit.add(9_999, 2));
    try std.testing.expectEqual(@as(u64, 1), one_bit.get(9_999));
    try std.testing.expectEqual(@as(u64, 0), one_bit.get(9_998));
    try std.testing.expect(one_bit.pageEmpty(0));
    var wide = try Counts.init(arena.allocator(), 3000, std.math.maxInt(u64));
    try std.testing.expectEqual(@as(u64, 0), try wide.add(2999, 70_000));
    try std.testing.expectEqual(@as(u64, 70_000), wide.get(2999));
}

test "bits" {
    var arena: std.heap.ArenaAllocator = .init(std.testing.allocator);
    defer arena.deinit();
    var bits = try Bits.init(arena.allocator(), 100_000);
    try bits.set(99_999);
    try std.testing.expect(bits.isSet(99_999));
    try std.testing.expect(!bits.isSet(99_998));
    try std.testing.expect(!bits.isSet(0));
}
