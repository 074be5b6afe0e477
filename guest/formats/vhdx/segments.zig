//! Where the content of the disk lies.
//!
//! [MS-VHDX] 2.5.1.1.  A partially present block asks its sector bitmap: a clear bit is the parent's sector.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const none = @import("../qcow2/template.zig").none;
const format = @import("format.zig");
const bat = @import("bat.zig");
const refuse = @import("vhdx.zig").refuse;

pub const Segments = struct {
    context: image.Context,
    table: bat.Table,
    differencing: bool,
    /// Room for a block's part of a sector bitmap; none when the disk has no parent.
    bitmap: []u8 = &.{},
    /// Block whose bitmap is loaded.
    loaded: ?u64 = null,

    pub fn init(context: image.Context, table: bat.Table, differencing: bool) block.Error!Segments {
        var self: Segments = .{ .context = context, .table = table, .differencing = differencing };
        if (differencing) self.bitmap = context.allocator.alloc(u8, table.layout.bitmapBytes()) catch return error.NoMemory;
        return self;
    }

    pub fn segmentAt(opaque_self: *anyopaque, start: u64) block.Error!image.Segment {
        const self: *Segments = @ptrCast(@alignCast(opaque_self));
        const layout = &self.table.layout;
        const number = start / layout.block_size;
        const inside = start % layout.block_size;
        const value = try self.table.entry(layout.payloadEntry(number));
        switch (format.State.of(value)) {
            .fully_present => return self.presentRun(start, number, bat.offsetOf(value) + inside),
            .partially_present => if (self.differencing) {
                try self.loadBitmap(number);
                return self.bitmapRun(start, number, bat.offsetOf(value));
            } else return self.refuseState(number, "block {value} of {limit} is partially present, but the disk has no parent"),
            .reserved => return self.refuseState(number, "block {value} of {limit} is in state 4, which is reserved"),
            else => return self.absentRun(start, number),
        }
    }

    fn refuseState(self: *Segments, number: u64, comptime text: []const u8) error{Refused} {
        const layout = &self.table.layout;
        const at = layout.offset + layout.payloadEntry(number) * format.entry_size;
        return refuse(self.context.diagnostic, .corrupt, "BAT", text, at, number, layout.blocks);
    }

    fn upTo(self: *const Segments, start: u64, number: u64) u64 {
        const layout = &self.table.layout;
        // The last block may reach past the virtual size: what lies there is nobody's data.
        return @min(number * layout.block_size, layout.virtual_size) - start;
    }

    /// All blocks from `number` on that follow one another in the file.
    fn presentRun(self: *Segments, start: u64, number: u64, offset: u64) block.Error!image.Segment {
        const layout = &self.table.layout;
        var expected = offset - start % layout.block_size;
        var next = number + 1;
        while (next < layout.blocks) : (next += 1) {
            const value = try self.table.entry(layout.payloadEntry(next));
            expected += layout.block_size;
            if (format.State.of(value) != .fully_present or bat.offsetOf(value) != expected) break;
        }
        return .{ .start = start, .length = self.upTo(start, next), .kind = .data, .offset = offset };
    }

    /// All blocks from `number` on that are absent in the same way.
    fn absentRun(self: *Segments, start: u64, number: u64) block.Error!image.Segment {
        const layout = &self.table.layout;
        const kind = kindOf(try self.table.entry(layout.payloadEntry(number))).?;
        var next = number + 1;
        while (next < layout.blocks) : (next += 1) {
            if (kindOf(try self.table.entry(layout.payloadEntry(next))) != kind) break;
        }
        return .{ .start = start, .length = self.upTo(start, next), .kind = kind };
    }

    /// Undefined and unmapped blocks may read as anything; zero, as with qemu, gives nothing away.
    fn kindOf(value: u64) ?image.Kind {
        return switch (format.State.of(value)) {
            .not_present => .unallocated,
            .undefined, .zero, .unmapped, .unmapped_old => .zero,
            .reserved, .fully_present, .partially_present => null,
        };
    }

    fn loadBitmap(self: *Segments, number: u64) block.Error!void {
        if (self.loaded == number) return;
        self.loaded = null;
        const layout = &self.table.layout;
        const index = layout.bitmapEntry(number / layout.chunk_ratio);
        const value = try self.table.entry(index);
        if (@as(u3, @truncate(value)) != format.bitmap_present) {
            return refuse(self.context.diagnostic, .corrupt, "BAT", "block {value} is partially present, but its sector bitmap block is not", layout.offset + index * format.entry_size, number, none);
        }
        const place = bat.offsetOf(value) + number % layout.chunk_ratio * self.bitmap.len;
        try self.table.device.readPadded(place, self.bitmap);
        self.loaded = number;
    }

    /// The run of sectors with equal bits from `start` on.
    fn bitmapRun(self: *Segments, start: u64, number: u64, offset: u64) image.Segment {
        const layout = &self.table.layout;
        const size = layout.logical_sector_size;
        const sectors = layout.block_size / size;
        const inside = start % layout.block_size;
        const set = bit(self.bitmap, inside / size);
        var next = inside / size + 1;
        while (next < sectors and bit(self.bitmap, next) == set) {
            // Eight at a time where they are equal.
            const whole: u8 = if (set) 0xff else 0;
            next += if (next % 8 == 0 and self.bitmap[@intCast(next / 8)] == whole) 8 else 1;
        }
        const end = @min(number * layout.block_size + next * size, layout.virtual_size);
        return .{
            .start = start,
            .length = end - start,
            .kind = if (set) .data else .unallocated,
            .offset = if (set) offset + inside else null,
        };
    }
};

/// The least significant bit is the first sector.
pub fn bit(bitmap: []const u8, sector: u64) bool {
    const shift: u3 = @intCast(sector % 8);
    return bitmap[@intCast(sector / 8)] >> shift & 1 != 0;
}
