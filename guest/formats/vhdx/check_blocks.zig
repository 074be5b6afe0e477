//! The BAT: states, bounds, overlaps, sector bitmap blocks, and bytes of the file that belong to nothing.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const Findings = @import("../qcow2/check_findings.zig").Findings;
const format = @import("format.zig");
const bat = @import("bat.zig");
const regions = @import("regions.zig");

pub const Parts = struct {
    device: block.Device,
    layout: bat.Layout,
    known: *const regions.Regions,
    differencing: bool,
};

/// Which MiB of the file belong to something.  All structures begin and end at whole ones.
const Units = struct {
    bits: []u8,
    count: u64,

    /// 512 TiB: 64 MiB of memory.
    const most: u64 = 512 << 20;

    /// For the bytes up to `end`; null when those are too many.
    fn init(context: image.Context, end: u64) block.Error!?Units {
        const count = unitsOf(end);
        if (count > most) return null;
        const bits = context.allocator.alloc(u8, @intCast(count / 8 + 1)) catch return error.NoMemory;
        @memset(bits, 0);
        return .{ .bits = bits, .count = count };
    }

    fn unitsOf(bytes: u64) u64 {
        return std.math.divCeil(u64, bytes, format.mib) catch unreachable;
    }

    /// Mark [start, end) up to the first MiB that is marked already; whether there is one.  So all calls together take
    /// no more steps than there are MiB and calls.
    fn mark(self: *Units, start: u64, end: u64) bool {
        const stop = @min(self.count, unitsOf(end));
        var unit = start / format.mib;
        while (unit < stop) : (unit += 1) {
            if (self.isMarked(unit)) return true;
            self.bits[@intCast(unit / 8)] |= @as(u8, 1) << @intCast(unit % 8);
        }
        return false;
    }

    fn isMarked(self: *const Units, unit: u64) bool {
        return self.bits[@intCast(unit / 8)] >> @intCast(unit % 8) & 1 != 0;
    }

    /// How many are not marked, and the first of them.
    fn unmarked(self: *const Units) struct { count: u64, first: ?u64 } {
        var count: u64 = 0;
        var first: ?u64 = null;
        var unit: u64 = 0;
        while (unit < self.count) {
            if (unit % 8 == 0 and self.bits[@intCast(unit / 8)] == 0xff) {
                unit += 8;
                continue;
            }
            if (!self.isMarked(unit)) {
                count += 1;
                first = first orelse unit;
            }
            unit += 1;
        }
        return .{ .count = count, .first = first };
    }
};

pub fn check(context: image.Context, findings: *Findings, parts: Parts, report: *messages.Check) block.Error!void {
    var walk: Walk = .{
        .findings = findings,
        .parts = parts,
        .table = try .init(context, parts.device, parts.layout),
        .units = null,
    };
    const end = try walk.end();
    walk.units = try .init(context, end);
    if (walk.units) |*units| {
        _ = units.mark(0, format.header_section);
        for (parts.known.ranges) |range| _ = units.mark(range.start, range.end);
    } else try findings.put(.check_error, "file", "blocks up to byte {value} are too far apart to look for overlaps, at most {expected}", .{ .value = end, .expected = Units.most * format.mib });

    for (0..@intCast(parts.layout.entries)) |index| {
        context.tick(index / 4096, parts.layout.entries / 4096);
        const value = try walk.table.entry(index);
        if (value != 0) if (parts.layout.isBitmap(index)) try walk.bitmap(index, value) else try walk.payload(index, value);
    }
    try walk.summary();
    if (parts.differencing) try walk.bitmapsAreThere();
    report.clusters_inside = walk.inside;
}

const Walk = struct {
    findings: *Findings,
    parts: Parts,
    table: bat.Table,
    units: ?Units,
    /// Payload blocks in the file.
    inside: u64 = 0,
    /// Entries with reserved bits, entries of the old unmapped state, bitmap entries of a disk without parent; and the
    /// first of each.
    reserved: Count = .{},
    old_unmapped: Count = .{},
    stray_bitmaps: Count = .{},

    const Count = struct {
        number: u64 = 0,
        first: u64 = 0,

        fn add(self: *Count, at: u64) void {
            if (self.number == 0) self.first = at;
            self.number += 1;
        }
    };

    /// The first byte behind everything that lies in the file.
    fn end(self: *Walk) block.Error!u64 {
        var last: u64 = format.header_section;
        for (self.parts.known.ranges) |range| last = @max(last, range.end);
        for (0..@intCast(self.parts.layout.entries)) |index| {
            const value = try self.table.entry(index);
            if (value & format.state_mask != 0) last = @max(last, bat.offsetOf(value) +| self.parts.layout.block_size);
        }
        return @min(last, format.lengthOf(self.parts.device));
    }

    fn entryOffset(self: *const Walk, index: u64) u64 {
        return self.parts.layout.offset + index * format.entry_size;
    }

    fn payload(self: *Walk, index: u64, value: u64) block.Error!void {
        const at = self.entryOffset(index);
        const number = self.parts.layout.blockOf(index);
        if (value & format.reserved_mask != 0) self.reserved.add(at);
        switch (format.State.of(value)) {
            .not_present, .zero => return,
            .undefined, .unmapped, .unmapped_old => |state| {
                if (state == .unmapped_old) self.old_unmapped.add(at);
                // The place may be kept for the block.
                if (self.units) |*units| if (bat.offsetOf(value) >= format.header_section) {
                    _ = units.mark(bat.offsetOf(value), bat.offsetOf(value) +| self.parts.layout.block_size);
                };
                return;
            },
            .reserved => return self.findings.put(.corruption, "BAT", "block {index} is in state 4, which is reserved", .{ .offset = at, .index = number }),
            .partially_present => if (!self.parts.differencing) {
                return self.findings.put(.corruption, "BAT", "block {index} is partially present, but the disk has no parent", .{ .offset = at, .index = number });
            },
            .fully_present => {},
        }
        if (number < self.parts.layout.blocks) self.inside += 1 else try self.findings.put(.corruption, "BAT", "block {index} lies behind the end of the disk", .{ .offset = at, .index = number });
        try self.placed(index, number, value);
    }

    /// A sector bitmap block.  qemu reads none, and takes their entries for those of payload blocks.
    fn bitmap(self: *Walk, index: u64, value: u64) block.Error!void {
        const at = self.entryOffset(index);
        if (value & format.reserved_mask != 0) self.reserved.add(at);
        const state: u3 = @truncate(value);
        if (self.parts.differencing) {
            if (state == format.bitmap_present) return self.placed(index, index / (self.parts.layout.chunk_ratio + 1), value);
            if (state != format.bitmap_not_present) {
                try self.findings.put(.corruption, "BAT", "the sector bitmap block of chunk {index} is in state {value}, which is reserved", .{ .offset = at, .index = index / (self.parts.layout.chunk_ratio + 1), .value = state });
            }
            return;
        }
        self.stray_bitmaps.add(at);
        if (state == format.bitmap_present) try self.placed(index, index / (self.parts.layout.chunk_ratio + 1), value);
    }

    /// Bounds and overlaps; an entry can add more than one error, as in qemu.
    fn placed(self: *Walk, index: u64, number: u64, value: u64) block.Error!void {
        const layout = &self.parts.layout;
        const at = self.entryOffset(index);
        const place: bat.Placed = .of(layout, index, value, self.parts.differencing);
        const length = format.lengthOf(self.parts.device);
        if (place.offset > std.math.maxInt(i64) - @as(u64, layout.block_size)) {
            try self.findings.put(.corruption, "BAT", "block {index} lies at byte {value}: offset overflow", .{ .offset = at, .index = number, .value = place.offset });
        }
        if (place.offset >= length or place.offset +| place.needed > length) {
            try self.findings.put(.corruption, "BAT", "block {index} ends at byte {value}, file has {expected}: the image was truncated", .{ .offset = at, .index = number, .value = place.offset +| place.needed, .expected = length });
        } else if (!layout.isBitmap(index) and place.offset +| layout.bytesOf(number) > length) {
            // qemu forgives the last block of a disk larger than a chunk.
            try self.findings.put(.corruption, "BAT", "block {index} ends at byte {value}, file has {expected}", .{ .offset = at, .index = number, .value = place.offset +| layout.bytesOf(number), .expected = length });
        }
        const stop = place.offset +| place.length;
        if (self.parts.known.overlapping(place.offset, stop)) |other| {
            try self.findings.put(.corruption, "BAT", "block {index} at byte {value} overlaps the log or region at byte {expected}", .{ .offset = at, .index = number, .value = place.offset, .expected = other.start });
            return;
        }
        if (place.offset < format.header_section) {
            return self.findings.put(.corruption, "BAT", "block {index} lies at byte {value}, in the header section", .{ .offset = at, .index = number, .value = place.offset });
        }
        if (self.units) |*units| if (units.mark(place.offset, stop)) {
            try self.findings.put(.corruption, "BAT", "block {index} at byte {value} overlaps another block", .{ .offset = at, .index = number, .value = place.offset });
        };
    }

    fn summary(self: *Walk) block.Error!void {
        if (self.reserved.number > 0) try self.findings.put(.note, "BAT", "{value} BAT entries have reserved bits set, the first at byte {offset}", .{ .offset = self.reserved.first, .value = self.reserved.number });
        if (self.old_unmapped.number > 0) try self.findings.put(.note, "BAT", "{value} blocks are unmapped in the way of version 0.95 of the format, the first by the entry at byte {offset}", .{ .offset = self.old_unmapped.first, .value = self.old_unmapped.number });
        if (self.stray_bitmaps.number > 0) try self.findings.put(.note, "BAT", "{value} BAT entries of sector bitmap blocks are not zero although the disk has no parent, the first at byte {offset}", .{ .offset = self.stray_bitmaps.first, .value = self.stray_bitmaps.number });
        const units = self.units orelse return;
        const gaps = units.unmarked();
        const tail = self.parts.device.length -| units.count * format.mib;
        const first = gaps.first orelse units.count;
        const bytes = gaps.count * format.mib + tail;
        if (bytes > 0) try self.findings.put(.note, "file", "{value} bytes of the file belong to nothing, the first of them at byte {offset}", .{ .offset = first * format.mib, .value = bytes });
    }

    /// Each chunk with a partially present block has its bitmap block.
    fn bitmapsAreThere(self: *Walk) block.Error!void {
        const layout = &self.parts.layout;
        var number: u64 = 0;
        while (number < layout.blocks) {
            const chunk = number / layout.chunk_ratio;
            const stop = @min((chunk + 1) * layout.chunk_ratio, layout.blocks);
            const partial = while (number < stop) : (number += 1) {
                if (format.State.of(try self.table.entry(layout.payloadEntry(number))) == .partially_present) break number;
            } else null;
            if (partial) |one| {
                const index = layout.bitmapEntry(chunk);
                if (@as(u3, @truncate(try self.table.entry(index))) != format.bitmap_present) {
                    try self.findings.put(.corruption, "BAT", "block {index} is partially present, but the sector bitmap block of its chunk is not", .{ .offset = self.entryOffset(index), .index = one });
                }
            }
            number = stop;
        }
    }
};
