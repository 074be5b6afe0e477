//! Where the parts of a dynamic or differencing disk lie: bounds, overlaps, gaps, sector bitmaps.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const Findings = @import("../qcow2/check_findings.zig").Findings;
const footers = @import("footer.zig");
const dynamic = @import("dynamic.zig");
const segments = @import("segments.zig");

const sector = footers.sector;

pub const Parts = struct {
    header: *const dynamic.Header,
    layout: dynamic.Layout,
    /// At the end of the file.
    footer: ?footers.Footer,
    differencing: bool,
    /// Bytes of the disk by whichever size is larger.
    disk_size: u64,
};

/// A part of the file.
const Range = struct {
    start: u64,
    end: u64,
    name: []const u8,

    fn before(_: void, a: Range, b: Range) bool {
        return a.start < b.start;
    }
};

/// Footer copy, dynamic header, BAT, eight parent locators, footer.
const Metadata = struct {
    room: [12]Range = undefined,
    count: usize = 0,

    fn add(self: *Metadata, name: []const u8, start: u64, length: u64) void {
        if (length == 0) return;
        self.room[self.count] = .{ .start = start, .end = start +| length, .name = name };
        self.count += 1;
    }
};

pub fn check(context: image.Context, findings: *Findings, device: block.Device, parts: Parts, report: *messages.Check) block.Error!void {
    var metadata: Metadata = .{};
    metadata.add("footer copy", 0, footers.size);
    metadata.add("dynamic header", parts.header.offset, dynamic.size);
    metadata.add("BAT", parts.layout.table_offset, std.mem.alignForward(u64, @as(u64, parts.layout.table_entries) * 4, sector));
    if (parts.footer) |footer| metadata.add("footer", footer.offset, footer.length);
    if (parts.differencing) try addLocators(findings, device, parts.header, &metadata);

    var walk: Walk = .{ .findings = findings, .device = device, .parts = parts, .report = report };
    walk.table = try .init(context, device, parts.layout);
    const placed = try walk.entries(context);
    std.sort.heap(u64, placed, {}, std.sort.asc(u64));
    const ranges = metadata.room[0..metadata.count];
    std.sort.insertion(Range, ranges, {}, Range.before);
    try walk.layOut(placed, ranges);
    try walk.bitmaps(context, placed);
}

fn addLocators(findings: *Findings, device: block.Device, header: *const dynamic.Header, metadata: *Metadata) block.Error!void {
    for (0..8) |index| {
        const locator = header.locator(@intCast(index));
        if (!locator.isUsed()) continue;
        const end = locator.offset +| locator.length;
        if (end > device.length) {
            try findings.put(.corruption, "parent locator", "parent locator {index} ends at byte {value}, file has {expected}", .{
                .offset = header.offset,
                .index = index,
                .value = end,
                .expected = device.length,
            });
        } else metadata.add("parent locator", locator.offset, std.mem.alignForward(u64, locator.length, sector));
    }
}

/// A block in the file: its first sector above, its index in the BAT below.
fn pack(first: u32, index: u32) u64 {
    return @as(u64, first) << 32 | index;
}

fn startOf(packed_block: u64) u64 {
    return (packed_block >> 32) * sector;
}

fn indexOf(packed_block: u64) u32 {
    return @truncate(packed_block);
}

const Walk = struct {
    findings: *Findings,
    device: block.Device,
    parts: Parts,
    report: *messages.Check,
    table: dynamic.Table = undefined,

    /// Check every entry by itself; answers the blocks that lie inside the file.
    fn entries(self: *Walk, context: image.Context) block.Error![]u64 {
        const layout = self.parts.layout;
        const totals = try self.table.totals();
        const placed = context.allocator.alloc(u64, std.math.cast(usize, totals.allocated) orelse return error.NoMemory) catch return error.NoMemory;
        var count: usize = 0;
        var inside: u64 = 0;
        var fragmented: u64 = 0;
        var expected: ?u64 = null;
        for (0..layout.table_entries) |number| {
            const index: u32 = @intCast(number);
            const first = try self.table.entry(index);
            if (first == dynamic.absent) continue;
            const start = @as(u64, first) * sector;
            if (expected != null and start != expected.?) fragmented += 1;
            expected = start + layout.stride();
            if (@as(u64, index) * layout.block_size < self.parts.disk_size) {
                inside += 1;
            } else try self.findings.put(.leak, "BAT", "block {index} lies behind the end of the disk", .{ .index = index, .offset = start });
            // The last sector of the file need not be whole.
            if (start + layout.stride() > std.mem.alignForward(u64, self.device.length, sector)) {
                try self.findings.put(.corruption, "BAT", "block {index} ends at byte {value}, file has {expected}", .{
                    .index = index,
                    .offset = layout.table_offset + number * 4,
                    .value = start + layout.stride(),
                    .expected = self.device.length,
                });
                continue;
            }
            placed[count] = pack(first, index);
            count += 1;
        }
        self.report.allocated_clusters = totals.allocated;
        self.report.clusters_inside = inside;
        self.report.fragmented_clusters = fragmented;
        return placed[0..count];
    }

    /// Go through the file in order: overlaps are corruptions, gaps are leaks.
    fn layOut(self: *Walk, placed: []const u64, metadata: []const Range) block.Error!void {
        const stride = self.parts.layout.stride();
        var last: Range = .{ .start = 0, .end = 0, .name = "" };
        var gaps: u64 = 0;
        var first_gap: ?u64 = null;
        var next_block: usize = 0;
        var next_part: usize = 0;
        while (next_block < placed.len or next_part < metadata.len) {
            var index: ?u64 = null;
            var range: Range = undefined;
            if (next_part == metadata.len or (next_block < placed.len and startOf(placed[next_block]) < metadata[next_part].start)) {
                const start = startOf(placed[next_block]);
                index = indexOf(placed[next_block]);
                range = .{ .start = start, .end = start + stride, .name = "data block" };
                next_block += 1;
            } else {
                range = metadata[next_part];
                next_part += 1;
            }
            if (range.start < last.end) {
                try self.findings.add(
                    .corruption,
                    .{ .structure = range.name, .offset = range.start, .index = index, .value = range.start, .expected = last.end },
                    "{s} at byte {d} overlaps the {s} at byte {d}",
                    .{ range.name, range.start, last.name, last.start },
                );
            } else if (range.start > last.end) {
                gaps += range.start - last.end;
                first_gap = first_gap orelse last.end;
            }
            if (range.end > last.end) last = range;
        }
        self.report.image_end_offset = last.end;
        if (last.end < self.device.length) {
            gaps += self.device.length - last.end;
            first_gap = first_gap orelse last.end;
        }
        // Writers align tables and blocks: what is less than a block can hold none, and is nobody's loss.
        const text = "{value} bytes of the file belong to nothing, the first of them at byte {offset}";
        if (gaps >= stride) {
            try self.findings.put(.leak, "file", text, .{ .count = gaps / stride, .offset = first_gap.?, .value = gaps });
        } else if (gaps > 0) {
            try self.findings.put(.note, "file", text, .{ .offset = first_gap.?, .value = gaps });
        }
    }

    /// On a dynamic disk a clear bit makes a sector read as zero for some readers and as data for others (qemu).
    fn bitmaps(self: *Walk, context: image.Context, placed: []const u64) block.Error!void {
        const layout = self.parts.layout;
        if (self.parts.differencing or placed.len == 0 or layout.bitmap_size == 0) return;
        // As many bitmaps at a time as 64 KiB hold, and as one exit serves.
        const per_batch: usize = @max(1, @min(32, 65536 / layout.bitmap_size));
        const room = context.allocator.alloc(u8, per_batch * layout.bitmap_size) catch return error.NoMemory;
        var reads: [32]block.Read = undefined;
        var blocks_with_clear: u64 = 0;
        var first: ?u64 = null;
        var done: usize = 0;
        while (done < placed.len) {
            const batch = placed[done..@min(placed.len, done + per_batch)];
            for (batch, 0..) |one, i| {
                reads[i] = .{ .offset = startOf(one), .buffer = room[i * layout.bitmap_size ..][0..layout.bitmap_size] };
            }
            try self.device.readMany(reads[0..batch.len]);
            for (batch, 0..) |one, i| {
                if (!self.hasClearBit(indexOf(one), reads[i].buffer)) continue;
                blocks_with_clear += 1;
                first = first orelse startOf(one);
            }
            done += batch.len;
        }
        if (blocks_with_clear > 0) {
            try self.findings.put(.note, "sector bitmap", "{value} blocks have sectors that their bitmap does not mark as present, the first at byte {offset}", .{ .offset = first.?, .value = blocks_with_clear });
        }
    }

    fn hasClearBit(self: *Walk, index: u32, bitmap: []const u8) bool {
        const start = @as(u64, index) * self.parts.layout.block_size;
        if (start >= self.parts.disk_size) return false;
        const bytes = @min(self.parts.layout.block_size, self.parts.disk_size - start);
        const sectors = std.math.divCeil(u64, bytes, sector) catch unreachable;
        if (!std.mem.allEqual(u8, bitmap[0..@intCast(sectors / 8)], 0xff)) return true;
        for (sectors / 8 * 8..sectors) |one| if (!segments.bit(bitmap, one)) return true;
        return false;
    }
};
