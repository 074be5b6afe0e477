//! Sectors of a file that are taken, in pages that exist once something in them is: a sparse file of terabytes costs
//! what it holds.

const std = @import("std");

const page_bytes = 4096;
const Page = [page_bytes]u8;
/// Sectors that a page stands for.
const page_sectors = page_bytes * 8;

pub const SectorSet = struct {
    allocator: std.mem.Allocator,
    pages: []?*Page,
    /// First sector behind all that were added: most questions end here.
    end: u64 = 0,

    /// Sectors that a set can have at most: files of 64 TiB and what seSparse can address.
    pub const max_sectors: u64 = 1 << 38;

    /// `sectors` is at most `max_sectors`.
    pub fn init(allocator: std.mem.Allocator, sectors: u64) error{OutOfMemory}!SectorSet {
        const pages = try allocator.alloc(?*Page, @intCast(sectors / page_sectors + 1));
        @memset(pages, null);
        return .{ .allocator = allocator, .pages = pages };
    }

    /// Whether one of `count` sectors from `first` on is in the set.  All of them lie in its range.
    pub fn any(self: *const SectorSet, first: u64, count: u64) bool {
        const last = @min(first + count, self.end);
        var at = first;
        while (at < last) {
            const page = self.pages[@intCast(at / page_sectors)] orelse {
                at = (at / page_sectors + 1) * page_sectors;
                continue;
            };
            const run = Run.of(at, last);
            if (page[run.byte] & run.mask != 0) return true;
            at += run.length;
        }
        return false;
    }

    pub fn add(self: *SectorSet, first: u64, count: u64) error{OutOfMemory}!void {
        const last = first + count;
        var at = first;
        while (at < last) {
            const slot = &self.pages[@intCast(at / page_sectors)];
            const page = slot.* orelse blk: {
                const new = try self.allocator.create(Page);
                @memset(new, 0);
                slot.* = new;
                break :blk new;
            };
            const run = Run.of(at, last);
            page[run.byte] |= run.mask;
            at += run.length;
        }
        self.end = @max(self.end, last);
    }

    /// Sectors within one byte.
    const Run = struct {
        byte: usize,
        mask: u8,
        length: u64,

        fn of(at: u64, last: u64) Run {
            const shift: u3 = @intCast(at % 8);
            const length = @min(8 - @as(u64, shift), last - at);
            const ones: u8 = @intCast((@as(u16, 1) << @intCast(length)) - 1);
            return .{ .byte = @intCast(at / 8 % page_bytes), .mask = ones << shift, .length = length };
        }
    };
};

test "ranges, across bytes and pages" {
    var arena: std.heap.ArenaAllocator = .init(std.testing.allocator);
    defer arena.deinit();
    var set: SectorSet = try .init(arena.allocator(), 1 << 20);
    try std.testing.expect(!set.any(0, 1 << 20));
    try set.add(page_sectors - 3, 17);
    try std.testing.expect(!set.any(0, page_sectors - 3));
    try std.testing.expect(set.any(0, page_sectors - 2));
    try std.testing.expect(set.any(page_sectors + 13, 100));
    try std.testing.expect(!set.any(page_sectors + 14, 100));
    try set.add(9, 1);
    try std.testing.expect(!set.any(0, 9));
    try std.testing.expect(set.any(9, 1));
    try std.testing.expect(!set.any(10, 1000));
    try std.testing.expectEqual(page_sectors + 14, set.end);
}
