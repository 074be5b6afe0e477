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

    /// Files up to 512 TiB: 64 MiB of memory.
    const most: u64 = 512 << 20;

    fn init(context: image.Context, length: u64) block.Error!?Units {
        const count = std.math.divCeil(u64, length, format.mib) catch unreachable;
        if (count > most) return null;
        const bits = context.allocator.alloc(u8, @intCast(count / 8 + 1)) catch return error.NoMemory;
        @memset(bits, 0);
        return .{ .bits = bits, .count = count };
    }

    /// Mark [start, end) as far as it lies in the file; whether something was marked already.
    fn mark(self: *Units, start: u64, end: u64) bool {
        var taken = false;
        var unit = start / format.mib;
        const stop = @min(self.count, (std.math.divCeil(u64, end, format.mib) catch unreachable));
        while (unit < stop) : (unit += 1) {
            const mask = @as(u8, 1) << @intCast(unit % 8);
            const byte = &self.bits[@intCast(unit / 8)];
            taken = taken or byte.* & mask != 0;
            byte.* |= mask;
        }
        return taken;
    }

    fn isMarked(self: *const Units, unit: u64) bool {
        return self.bits[@intCast(unit / 8)] >> @intCast(unit % 8) & 1 != 0;
    }
};

pub fn check(context: image.Context, findings: *Findings, parts: Parts, report: *messages.Check) block.Error!void {
    var walk: Walk = .{
        .findings = findings,
        .parts = parts,
        .table = try .init(context, parts.device, parts.layout),
        .units = try .init(context, parts.device.length),
    };
    if (walk.units) |*units| {
        _ = units.mark(0, format.header_section);
        for (parts.known.ranges) |range| _ = units.mark(range.start, range.end);
    } else try findings.put(.check_error, "file", "a file of {value} bytes is too long to look for overlaps, at most {expected}", .{ .value = parts.device.length, .expected = Units.most * format.mib });

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
        const end = place.offset +| place.length;
        if (self.parts.known.overlapping(place.offset, end)) |other| {
            try self.findings.put(.corruption, "BAT", "block {index} at byte {value} overlaps the log or region at byte {expected}", .{ .offset = at, .index = number, .value = place.offset, .expected = other.start });
            return;
        }
        if (place.offset < format.header_section) {
            return self.findings.put(.corruption, "BAT", "block {index} lies at byte {value}, in the header section", .{ .offset = at, .index = number, .value = place.offset });
        }
        if (self.units) |*units| if (units.mark(place.offset, end)) {
            try self.findings.put(.corruption, "BAT", "block {index} at byte {value} overlaps another block", .{ .offset = at, .index = number, .value = place.offset });
        };
    }

    fn summary(self: *Walk) block.Error!void {
        if (self.reserved.number > 0) try self.findings.put(.note, "BAT", "{value} BAT entries have reserved bits set, the first at byte {offset}", .{ .offset = self.reserved.first, .value = self.reserved.number });
        if (self.old_unmapped.number > 0) try self.findings.put(.note, "BAT", "{value} blocks are unmapped in the way of version 0.95 of the format, the first by the entry at byte {offset}", .{ .offset = self.old_unmapped.first, .value = self.old_unmapped.number });
        if (self.stray_bitmaps.number > 0) try self.findings.put(.note, "BAT", "{value} BAT entries of sector bitmap blocks are not zero although the disk has no parent, the first at byte {offset}", .{ .offset = self.stray_bitmaps.first, .value = self.stray_bitmaps.number });
        const units = self.units orelse return;
        var unused: u64 = 0;
        var first: u64 = 0;
        for (0..@intCast(units.count)) |unit| {
            if (units.isMarked(unit)) continue;
            if (unused == 0) first = unit;
            unused += 1;
        }
        if (unused > 0) try self.findings.put(.note, "file", "{value} bytes of the file belong to nothing, the first of them at byte {offset}", .{ .offset = first * format.mib, .value = unused * format.mib });
    }

    /// Each chunk with a partially present block has its bitmap block.
    fn bitmapsAreThere(self: *Walk) block.Error!void {
        const layout = &self.parts.layout;
        var number: u64 = 0;
        while (number < layout.blocks) {
            const chunk = number / layout.chunk_ratio;
            const end = @min((chunk + 1) * layout.chunk_ratio, layout.blocks);
            const partial = while (number < end) : (number += 1) {
                if (format.State.of(try self.table.entry(layout.payloadEntry(number))) == .partially_present) break number;
            } else null;
            if (partial) |one| {
                const index = layout.bitmapEntry(chunk);
                if (@as(u3, @truncate(try self.table.entry(index))) != format.bitmap_present) {
                    try self.findings.put(.corruption, "BAT", "block {index} is partially present, but the sector bitmap block of its chunk is not", .{ .offset = self.entryOffset(index), .index = one });
                }
            }
            number = end;
        }
    }
};
