//! The block allocation table: where payload and sector bitmap blocks lie.
//!
//! [MS-VHDX] 2.4, 2.5.  The disk is a row of chunks; behind the entries of a chunk's payload blocks is one for the sector
//! bitmap block that they share.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const none = @import("../qcow2/template.zig").none;
const format = @import("format.zig");
const Metadata = @import("metadata.zig").Metadata;
const regions = @import("regions.zig");
const refuse = @import("vhdx.zig").refuse;

/// What qemu reads at once; the largest disk in the smallest blocks needs a quarter of it.
const max_region = std.math.maxInt(i32) & ~@as(u32, 511);

/// How the table is laid out.
pub const Layout = struct {
    /// Byte offset of the table in the file.
    offset: u64,
    block_size: u32,
    logical_sector_size: u32,
    virtual_size: u64,
    /// Payload blocks of a chunk, 16 to 32768.
    chunk_ratio: u64,
    /// Payload blocks of the disk.
    blocks: u64,
    chunks: u64,
    /// Entries of the table, bitmap blocks included.
    entries: u64,

    /// Check that the region holds all entries and the file all of the table.
    pub fn of(context: image.Context, device: block.Device, region: regions.Region, metadata: *const Metadata) error{Refused}!Layout {
        const ratio = format.sectors_per_chunk * metadata.logical_sector_size / metadata.block_size;
        // The virtual size is below 2^63: nothing here can wrap.
        const blocks = std.math.divCeil(u64, metadata.virtual_size, metadata.block_size) catch unreachable;
        const chunks = std.math.divCeil(u64, blocks, ratio) catch unreachable;
        const entries = if (blocks == 0)
            0
        else if (metadata.isDifferencing())
            chunks * (ratio + 1)
        else
            blocks + (blocks - 1) / ratio;
        const diagnostic = context.diagnostic;
        if (entries > region.length / format.entry_size) {
            return refuse(diagnostic, .corrupt, "BAT", "the BAT region holds {value} entries, the disk needs {limit}", region.offset, region.length / format.entry_size, entries);
        }
        if (region.length > max_region) {
            return refuse(diagnostic, .too_large, "BAT", "a BAT region of {value} bytes, at most {limit}", region.offset, region.length, max_region);
        }
        const end = region.offset +| entries * format.entry_size;
        if (end > format.lengthOf(device)) {
            return refuse(diagnostic, .out_of_bounds, "BAT", "BAT at byte {offset} ends at byte {value}, file has {limit}", region.offset, end, device.length);
        }
        return .{
            .offset = region.offset,
            .block_size = metadata.block_size,
            .logical_sector_size = metadata.logical_sector_size,
            .virtual_size = metadata.virtual_size,
            .chunk_ratio = ratio,
            .blocks = blocks,
            .chunks = chunks,
            .entries = entries,
        };
    }

    /// Index in the table of a payload block's entry.
    pub fn payloadEntry(self: *const Layout, number: u64) u64 {
        return number + number / self.chunk_ratio;
    }

    /// Index in the table of the entry for a chunk's bitmap block.
    pub fn bitmapEntry(self: *const Layout, chunk: u64) u64 {
        return chunk * (self.chunk_ratio + 1) + self.chunk_ratio;
    }

    pub fn isBitmap(self: *const Layout, index: u64) bool {
        return index % (self.chunk_ratio + 1) == self.chunk_ratio;
    }

    /// The payload block of an entry that is none of a bitmap; it may lie behind the end of the disk.
    pub fn blockOf(self: *const Layout, index: u64) u64 {
        return index - index / (self.chunk_ratio + 1);
    }

    /// Bytes of a block's part of its bitmap block.
    pub fn bitmapBytes(self: *const Layout) u32 {
        return self.block_size / self.logical_sector_size / 8;
    }

    /// Bytes that the disk has of a payload block.
    pub fn bytesOf(self: *const Layout, number: u64) u64 {
        const start = number *| self.block_size;
        return @min(self.block_size, self.virtual_size -| start);
    }
};

pub fn offsetOf(entry: u64) u64 {
    return entry & format.offset_mask;
}

/// The table, read through a window so that its size costs no memory.
pub const Table = struct {
    device: block.Device,
    layout: Layout,
    window: []u8,
    /// Index of the first entry in the window, and how many are there.
    first: u64 = 0,
    count: u64 = 0,

    /// Entries in the window at most: 512 KiB.
    const window_entries = 64 * 1024;

    pub fn init(context: image.Context, device: block.Device, layout: Layout) block.Error!Table {
        const entries: usize = @intCast(@min(layout.entries, window_entries));
        const window = context.allocator.alloc(u8, entries * format.entry_size) catch return error.NoMemory;
        return .{ .device = device, .layout = layout, .window = window };
    }

    /// The entry at `index` (below `layout.entries`).
    pub fn entry(self: *Table, index: u64) block.Error!u64 {
        std.debug.assert(index < self.layout.entries);
        if (index < self.first or index - self.first >= self.count) try self.load(index);
        const start: usize = @intCast((index - self.first) * format.entry_size);
        return std.mem.readInt(u64, self.window[start..][0..8], .little);
    }

    fn load(self: *Table, index: u64) block.Error!void {
        const wanted: usize = @intCast(@min(self.window.len / format.entry_size, self.layout.entries - index));
        try self.device.readPadded(self.layout.offset + index * format.entry_size, self.window[0 .. wanted * format.entry_size]);
        self.first = index;
        self.count = wanted;
    }

    /// How many entries are in which state, and where the last block ends.
    pub const Totals = struct {
        present: u64 = 0,
        partial: u64 = 0,
        bitmaps: u64 = 0,
        end: u64 = 0,
    };

    /// Go over all entries; refuse as qemu does when it opens an image.
    pub fn verify(self: *Table, context: image.Context, known: *const regions.Regions, differencing: bool) block.Error!Totals {
        var totals: Totals = .{};
        for (0..@intCast(self.layout.entries)) |index| {
            const value = try self.entry(index);
            const state = format.State.of(value);
            if (state != .fully_present and state != .partially_present) continue;
            const bitmap = self.layout.isBitmap(index);
            if (bitmap) totals.bitmaps += 1 else if (state == .fully_present) totals.present += 1 else totals.partial += 1;
            const place: Placed = .of(&self.layout, index, value, differencing);
            totals.end = @max(totals.end, place.offset +| place.length);
            // What only differencing disks have is no concern of qemu's.
            if (state == .partially_present and !differencing) continue;
            try self.refuseOutside(context, known, index, place);
        }
        return totals;
    }

    fn refuseOutside(self: *const Table, context: image.Context, known: *const regions.Regions, index: u64, place: Placed) error{Refused}!void {
        const diagnostic = context.diagnostic;
        const at = self.layout.offset + index * format.entry_size;
        if (place.offset > std.math.maxInt(i64) - @as(u64, self.layout.block_size)) {
            return refuse(diagnostic, .out_of_bounds, "BAT", "VHDX BAT entry at byte {offset} offset overflow: {value}", at, place.offset, none);
        }
        const needed = place.offset +| place.needed;
        const length = format.lengthOf(self.device);
        if (place.offset >= length or needed > length) {
            return refuse(diagnostic, .out_of_bounds, "BAT", "The image has been truncated: the block of the BAT entry at byte {offset} ends at byte {value}, file has {limit}", at, needed, self.device.length);
        }
        if (known.overlapping(place.offset, place.offset + place.length)) |other| {
            return refuse(diagnostic, .corrupt, "BAT", "the block of the BAT entry at byte {offset} begins at byte {value} and overlaps with the log or region at byte {limit}", at, place.offset, other.start);
        }
    }
};

/// A block in the file.
pub const Placed = struct {
    offset: u64,
    /// Bytes of the whole block.
    length: u64,
    /// Bytes of it that the file must have.
    needed: u64,

    pub fn of(layout: *const Layout, index: u64, entry: u64, differencing: bool) Placed {
        const size: u64 = if (differencing and layout.isBitmap(index)) format.bitmap_block_size else layout.block_size;
        return .{
            .offset = offsetOf(entry),
            .length = size,
            // qemu takes the index in the table for that of the block, which are the same in the first chunk.
            .needed = if (!differencing)
                @min(size, layout.virtual_size -% index * layout.block_size)
            else if (layout.isBitmap(index)) size else layout.bytesOf(layout.blockOf(index)),
        };
    }
};

test "payload and bitmap entries take turns" {
    const layout: Layout = .{ .offset = 0, .block_size = 1 << 20, .logical_sector_size = 512, .virtual_size = 0, .chunk_ratio = 4, .blocks = 10, .chunks = 3, .entries = 15 };
    for ([_]u64{ 0, 1, 2, 3, 5, 6, 7, 8, 10, 11 }, 0..) |index, number| {
        try std.testing.expectEqual(index, layout.payloadEntry(number));
        try std.testing.expectEqual(number, layout.blockOf(index));
        try std.testing.expect(!layout.isBitmap(index));
    }
    for ([_]u64{ 4, 9, 14 }, 0..) |index, chunk| {
        try std.testing.expectEqual(index, layout.bitmapEntry(chunk));
        try std.testing.expect(layout.isBitmap(index));
    }
}
