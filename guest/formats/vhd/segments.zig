//! Where the content of a dynamic or differencing disk lies.
//!
//! A dynamic disk: a block in the BAT is data as a whole, as qemu sees it; the sector bitmap in front of it is not asked
//! (writers set all its bits).  A differencing disk: a sector whose bit is clear is the parent's, so there the
//! bitmap counts.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const dynamic = @import("dynamic.zig");
const footers = @import("footer.zig");

pub const Segments = struct {
    table: dynamic.Table,
    virtual_size: u64,
    differencing: bool,
    /// Not null on differencing disks (whose blocks have bitmaps): room for one of them.
    bitmap: ?[]u8,
    /// Block whose bitmap is loaded.
    loaded: ?u32 = null,

    pub fn init(context: image.Context, table: dynamic.Table, virtual_size: u64, differencing: bool) block.Error!Segments {
        var bitmap: ?[]u8 = null;
        if (differencing and table.layout.bitmap_size > 0) {
            bitmap = context.allocator.alloc(u8, table.layout.bitmap_size) catch return error.NoMemory;
        }
        return .{ .table = table, .virtual_size = virtual_size, .differencing = differencing, .bitmap = bitmap };
    }

    pub fn segmentAt(opaque_self: *anyopaque, start: u64) block.Error!image.Segment {
        const self: *Segments = @ptrCast(@alignCast(opaque_self));
        const block_size = self.table.layout.block_size;
        // Layout made sure that the entries cover the virtual size.
        const index: u32 = @intCast(start / block_size);
        const value = try self.table.entry(index);
        if (value == dynamic.absent) return self.absentRun(start, index);

        const block_start = @as(u64, index) * block_size;
        // A block may reach past the virtual size: what lies there is nobody's data.
        const end = @min(block_start + block_size, self.virtual_size);
        const data = @as(u64, value) * footers.sector + self.table.layout.bitmap_size;
        if (self.bitmap) |bitmap| {
            try self.loadBitmap(index, value, bitmap);
            return bitmapRun(bitmap, block_start, start, end, data);
        }
        return .{ .start = start, .length = end - start, .kind = .data, .offset = data + (start - block_start) };
    }

    /// All absent blocks from `start` on, so that an empty disk is few segments.  A differencing disk leaves them to its
    /// parent; in a dynamic one they are zero.
    fn absentRun(self: *Segments, start: u64, first: u32) block.Error!image.Segment {
        const block_size = self.table.layout.block_size;
        const blocks: u32 = @intCast(std.math.divCeil(u64, self.virtual_size, block_size) catch unreachable);
        var index = first + 1;
        while (index < blocks and try self.table.entry(index) == dynamic.absent) index += 1;
        const end = @min(@as(u64, index) * block_size, self.virtual_size);
        return .{ .start = start, .length = end - start, .kind = if (self.differencing) .unallocated else .zero };
    }

    fn loadBitmap(self: *Segments, index: u32, value: u32, bitmap: []u8) block.Error!void {
        if (self.loaded == index) return;
        self.loaded = null;
        try self.table.device.readPadded(@as(u64, value) * footers.sector, bitmap);
        self.loaded = index;
    }
};

/// The run of sectors with equal bits from `start` on.  The most significant bit is the first sector.
fn bitmapRun(bitmap: []const u8, block_start: u64, start: u64, end: u64, data: u64) image.Segment {
    const set = bit(bitmap, (start - block_start) / footers.sector);
    var stop = (start / footers.sector + 1) * footers.sector;
    while (stop < end and bit(bitmap, (stop - block_start) / footers.sector) == set) stop += footers.sector;
    stop = @min(stop, end);
    return .{
        .start = start,
        .length = stop - start,
        .kind = if (set) .data else .unallocated,
        .offset = if (set) data + (start - block_start) else null,
    };
}

pub fn bit(bitmap: []const u8, sector: u64) bool {
    const shift: u3 = @intCast(7 - sector % 8);
    return bitmap[@intCast(sector / 8)] >> shift & 1 != 0;
}

test "runs of a sector bitmap" {
    const bitmap = [_]u8{ 0b1110_0001, 0 };
    const first = bitmapRun(&bitmap, 0, 512, 8192, 4096);
    try std.testing.expectEqual(@as(u64, 1024), first.length);
    try std.testing.expectEqual(@as(?u64, 4608), first.offset);
    const second = bitmapRun(&bitmap, 0, 1536, 8192, 4096);
    try std.testing.expectEqual(image.Kind.unallocated, second.kind);
    try std.testing.expectEqual(@as(u64, 2048), second.length);
    const last = bitmapRun(&bitmap, 0, 4096, 8192, 4096);
    try std.testing.expectEqual(@as(u64, 4096), last.length);
}
