//! The virtual disk as a sequence of segments: L1 and L2 tables walked on demand (QEMU docs/interop/qcow2.txt,
//! "Cluster mapping").  L2 tables are read in growing batches while the caller goes forward.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const open = @import("open.zig");
const refcount = @import("refcount.zig");
const tables = @import("tables.zig");
const Header = @import("header.zig").Header;
const template = @import("template.zig");
const refuse = template.refuse;
const none = template.none;
const Window = @import("window.zig").Window;

const format = "qcow2";

/// Bytes of L2 tables that are held at a time, and how many tables at most.
const cache_bytes = 512 << 10;
const cache_tables = 16;

/// How one subcluster is stored, as far as merging is concerned.
const Unit = struct {
    kind: image.Kind,
    compressed: bool = false,
    offset: ?u64 = null,
};

pub const Segments = struct {
    opened: open.Opened,
    header: Header,
    virtual_size: u64,
    /// What `image.Segment.device` says: where the guest's bytes lie.
    device: u32,
    l1: *Window,
    /// Bytes of an L2 table that can matter: less than a cluster on small disks.
    table_bytes: usize,
    buffer: []u8,
    /// L1 index of the table in each slot.
    slots: [cache_tables]u64 = @splat(std.math.maxInt(u64)),
    slot_count: usize,
    /// Tables that the next miss reads.
    batch: usize = 1,
    last_miss: u64 = std.math.maxInt(u64) - 1,
    /// Whether the last refusal was for a subcluster bitmap.
    contradiction: bool = false,
    /// Whether most clusters were allocated without data being written; see `preallocated`.
    holes_matter: ?bool = null,

    pub fn init(opened: open.Opened) block.Error!*Segments {
        const header = opened.header;
        const context = opened.context;
        const size = header.virtualSize();
        const entries = @min(header.clusters(size), @as(u64, 1) << header.l2Bits());
        const table_bytes: usize = @intCast(@max(entries, 1) << header.l2EntryBits());
        const tables_needed = @max(1, (size + (@as(u64, 1) << header.l1Shift()) - 1) >> header.l1Shift());
        const slot_count: usize = @intCast(@min(@max(cache_bytes / table_bytes, 1), cache_tables, tables_needed));
        const self = context.allocator.create(Segments) catch return open.noMemory(context, @sizeOf(Segments));
        const buffer = context.allocator.alloc(u8, table_bytes * slot_count) catch return open.noMemory(context, table_bytes * slot_count);
        self.* = .{
            .opened = opened,
            .header = header,
            .virtual_size = size,
            .device = try dataDevice(opened),
            .l1 = try open.newWindow(context, opened.device, @intCast(std.math.clamp(tables_needed * 8, 64, 64 << 10))),
            .table_bytes = table_bytes,
            .buffer = buffer,
            .slot_count = slot_count,
        };
        return self;
    }

    /// See image.Image.segmentAt.
    pub fn at(self: *Segments, start: u64) block.Error!image.Segment {
        var end = start;
        var first: Unit = undefined;
        while (end < self.virtual_size) {
            var length: u64 = undefined;
            const unit = self.unitAt(end, &length) catch |err| {
                // What lies before a broken entry is still an answer; the next call meets the entry first.  Only a
                // subcluster bitmap that contradicts itself is met by QEMU while it looks how far a run goes.
                const looked_at = self.contradiction and !first.compressed and end & ((@as(u64, 1) << self.header.l1Shift()) - 1) != 0;
                if (err == error.Refused and end > start and !looked_at) break;
                return err;
            };
            if (end == start) {
                first = unit;
            } else {
                if (unit.kind != first.kind or unit.compressed != first.compressed) break;
                const expected: ?u64 = if (first.offset) |offset| offset + (end - start) else null;
                if (!std.meta.eql(unit.offset, expected)) break;
            }
            end += length;
        }
        const segment: image.Segment = .{ .start = start, .length = end - start, .kind = first.kind, .compressed = first.compressed, .offset = first.offset, .device = self.device };
        return self.withHoles(segment);
    }

    /// How byte `position` is stored, and for how many bytes at least (`length`, clipped to the disk).
    fn unitAt(self: *Segments, position: u64, length: *u64) block.Error!Unit {
        const header = self.header;
        self.contradiction = false;
        const l1_shift = header.l1Shift();
        const l1_index = position >> l1_shift;
        const word = try self.l1Entry(l1_index);
        const table_offset = word & tables.offset_mask;
        if (table_offset == 0) {
            length.* = try self.emptyL1Run(l1_index, position);
            return .{ .kind = .unallocated };
        }
        if (header.offsetInCluster(table_offset) != 0)
            return self.corrupt("L1 table", "L2 table offset {value:x} unaligned (L1 index {limit})", header.l1_offset + l1_index * 8, table_offset, l1_index);
        const table_start = l1_index << l1_shift;
        if (table_offset >= self.opened.device.length) {
            // Reads as zeroes, as the file ends before.
            length.* = @min(self.virtual_size, table_start +| (@as(u64, 1) << l1_shift)) - position;
            return .{ .kind = .unallocated };
        }
        const table = try self.l2Table(l1_index, table_offset);
        const index: usize = @intCast((position - table_start) >> header.cluster_bits);
        const entry = tables.Entry.read(header, table, index);
        const in_cluster = header.offsetInCluster(position);
        const unit_bits = if (header.extendedL2()) header.cluster_bits - 5 else header.cluster_bits;
        const unit_end = ((in_cluster >> unit_bits) + 1) << unit_bits;
        const subcluster: u5 = if (header.extendedL2()) @intCast(in_cluster >> unit_bits) else 0;
        const kind = tables.subclusterKind(header, entry, subcluster);
        length.* = @min(if (kind == .compressed) header.clusterSize() - in_cluster else unit_end - in_cluster, self.virtual_size - position);
        const l2_at = table_offset + (index << header.l2EntryBits());
        switch (kind) {
            .invalid => {
                self.contradiction = true;
                return self.corrupt("L2 table", "invalid cluster entry {value:x} with subcluster bitmap {limit:x}", l2_at, entry.word, entry.bitmap);
            },
            .unallocated => return .{ .kind = .unallocated },
            .zero_plain => {
                try self.checkZeroVersion(l2_at, entry.word);
                return .{ .kind = .zero };
            },
            .compressed => {
                if (header.hasDataFile())
                    return self.corrupt("L2 table", "compressed cluster entry found in image with external data file", l2_at, entry.word, template.none);
                return .{ .kind = .data, .compressed = true };
            },
            .normal, .zero_allocated, .unallocated_allocated => {
                const offset = entry.offset();
                if (kind == .zero_allocated) try self.checkZeroVersion(l2_at, entry.word);
                if (header.offsetInCluster(offset) != 0)
                    return self.corrupt("L2 table", "cluster allocation offset {value:x} unaligned", l2_at, offset, template.none);
                if (header.hasDataFile() and offset != position - in_cluster)
                    return self.corrupt("L2 table", "external data file host cluster offset {value:x} does not match guest cluster offset {limit:x}", l2_at, offset, position - in_cluster);
                return .{
                    .kind = switch (kind) {
                        .normal => .data,
                        .zero_allocated => .zero,
                        else => .unallocated,
                    },
                    .offset = if (header.crypt_method == 0) offset + in_cluster else null,
                };
            },
        }
    }

    fn checkZeroVersion(self: *Segments, at_offset: u64, word: u64) error{Refused}!void {
        if (self.header.version < 3)
            return self.corrupt("L2 table", "zero cluster entry found in pre-v3 image", at_offset, word, template.none);
    }

    inline fn corrupt(self: *Segments, comptime structure: []const u8, comptime text: []const u8, offset: u64, value: u64, limit: u64) error{Refused} {
        return template.refuse(self.opened.context.diagnostic, .corrupt, structure, "image is corrupt: " ++ text, offset, value, limit);
    }

    /// Entries behind the end of the file are zero.
    fn l1Entry(self: *Segments, index: u64) block.DeviceError!u64 {
        return self.l1.word(self.header.l1_offset + index * 8);
    }

    /// Bytes from `position` to the end of the run of L1 entries that name no table.
    fn emptyL1Run(self: *Segments, first: u64, position: u64) block.DeviceError!u64 {
        const shift = self.header.l1Shift();
        var index = first + 1;
        while (index << shift < self.virtual_size) : (index += 1) {
            if (self.header.l1_offset + index * 8 >= self.opened.device.length) return self.virtual_size - position;
            if (try self.l1Entry(index) & tables.offset_mask != 0) return (index << shift) - position;
        }
        return self.virtual_size - position;
    }

    /// The bytes of the L2 table of `l1_index`; a miss that follows the last one reads ahead.
    fn l2Table(self: *Segments, l1_index: u64, offset: u64) block.DeviceError![]const u8 {
        for (self.slots[0..self.slot_count], 0..) |held, slot| {
            if (held == l1_index) return self.buffer[slot * self.table_bytes ..][0..self.table_bytes];
        }
        self.batch = if (l1_index > self.last_miss) @min(self.batch * 2, self.slot_count) else 1;
        @memset(&self.slots, std.math.maxInt(u64));
        var reads: [cache_tables]block.Read = undefined;
        var count: usize = 0;
        var index = l1_index;
        var place = offset;
        while (true) {
            const whole = self.buffer[count * self.table_bytes ..][0..self.table_bytes];
            const inside: usize = @intCast(@min(self.table_bytes, self.opened.device.length - place));
            @memset(whole[inside..], 0);
            reads[count] = .{ .offset = place, .buffer = whole[0..inside] };
            self.slots[count] = index;
            count += 1;
            index += 1;
            if (count == self.batch or index << self.header.l1Shift() >= self.virtual_size) break;
            place = try self.l1Entry(index) & tables.offset_mask;
            if (place == 0 or self.header.offsetInCluster(place) != 0 or place >= self.opened.device.length) break;
        }
        self.last_miss = index - 1;
        try self.opened.device.readMany(reads[0..count]);
        return self.buffer[0..self.table_bytes];
    }

    /// In an image whose clusters were allocated ahead of their data, a hole in the file is zeroes and not data.
    fn withHoles(self: *Segments, segment: image.Segment) block.Error!image.Segment {
        const offset = segment.offset orelse return segment;
        if (segment.kind != .data or self.header.hasDataFile()) return segment;
        const matter = self.holes_matter orelse try self.preallocated();
        self.holes_matter = matter;
        if (!matter) return segment;
        var clipped = segment;
        if (offset >= self.opened.device.length) {
            clipped.kind = .zero;
            clipped.hole = true;
            return clipped;
        }
        const inside = @min(segment.length, self.opened.device.length - offset);
        var extents: [1]block.Extent = undefined;
        const found = try self.opened.device.blockStatus(offset, inside, &extents);
        if (found.len == 0 or found[0].length == 0) return segment;
        clipped.hole = !found[0].isData();
        if (clipped.hole) clipped.kind = .zero;
        // Zeroes up to the end of the file go on behind it.
        const to_end = clipped.hole and found[0].offset + found[0].length == self.opened.device.length;
        clipped.length = if (to_end) segment.length else @min(segment.length, found[0].length);
        return clipped;
    }

    /// Whether the file's refcounts claim clearly more clusters than the file system has allocated, which is QEMU's
    /// rule for asking the file system about each cluster: more than 10/9 of them and at least two more.
    fn preallocated(self: *Segments) block.Error!bool {
        const device = self.opened.device;
        const header = self.header;
        const allocated = device.allocated orelse return false;
        const real = allocated >> header.cluster_bits;
        const threshold = @max(real +| real / 9, real + 2);
        const total = header.clusters(device.length);
        // A file without holes cannot reach the threshold: nothing is read for it.
        if (total < threshold) return false;
        var stored = refcount.Stored.init(self.opened.context, device, header, total) catch return open.noMemory(self.opened.context, header.clusterSize());
        var counted: u64 = 0;
        while (try stored.next()) |run| {
            switch (run.content) {
                .zero => {},
                .unreadable => return false,
                .bytes => |bytes| for (0..@intCast(run.count)) |index| {
                    counted += @intFromBool(refcount.get(header.refcount_order, bytes, index) != 0);
                },
            }
            if (counted >= threshold) return true;
        }
        return false;
    }
};

/// The number of the external data file, 0 where there is none.
fn dataDevice(opened: open.Opened) block.Error!u32 {
    if (!opened.header.hasDataFile()) return 0;
    const context = opened.context;
    if (try context.reference(.data_file, 0)) |given| return given.number;
    // Which bytes are allocated can be said without it.
    if (context.files == null) return image.Segment.elsewhere;
    return refuse(context.diagnostic, .needs_reference, "data file", "the external data file is not there", none, none, none);
}

pub fn openImage(context: image.Context, device: block.Device) block.Error!image.Image {
    const opened = try open.Opened.open(context, device, .content);
    const segments = try Segments.init(opened);
    return .{
        .driver = format,
        .virtual_size = segments.virtual_size,
        .cluster_size = opened.header.clusterSize(),
        .has_backing = opened.backing_name != null,
        .bitmaps = if (opened.header.version >= 3) try bitmapSizes(opened) else null,
        .context = segments,
        .segment_at = segmentAt,
    };
}

/// What of the bitmaps a measurement needs.
fn bitmapSizes(opened: open.Opened) block.Error![]const image.Bitmap {
    const sizes = opened.context.allocator.alloc(image.Bitmap, opened.bitmaps.len) catch
        return open.noMemory(opened.context, opened.bitmaps.len * @sizeOf(image.Bitmap));
    for (sizes, opened.bitmaps) |*size, bitmap| size.* = .{
        .granularity = @as(u64, 1) << bitmap.granularity_bits,
        .name_length = @intCast(bitmap.name.len),
    };
    return sizes;
}

fn segmentAt(context: *anyopaque, start: u64) block.Error!image.Segment {
    const self: *Segments = @ptrCast(@alignCast(context));
    return self.at(start);
}
