//! Another virtual size of a qcow2 image.
//!
//! The header's first sector holds the size, the place and length of the L1 table and of the refcount table: writing it
//! is the one moment at which the image changes (where old tables come to name clusters that new refcount blocks count,
//! the new refcount table is put in place by an earlier write of it).  Everything that the new header needs lies behind the old end of the
//! file before (or where no reader looks yet), and everything that it no longer needs is given back after.  Between
//! the stages there is a flush; a run that ends between two of them leaves clusters that nobody uses, never less.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const target = @import("../target.zig");
const plans = @import("../plan.zig");
const resizing = @import("../resizing.zig");
const steps = @import("../steps.zig");
const header_zig = @import("header.zig");
const tables = @import("tables.zig");
const template = @import("template.zig");
const compressed = @import("compressed.zig");
const open = @import("open.zig");
const counts_zig = @import("counts.zig");
const bitmaps = @import("resize_bitmaps.zig");
const refuse = template.refuse;
const none = template.none;
const Header = header_zig.Header;
const Counts = counts_zig.Counts;
const Steps = counts_zig.Steps;
const Entry = tables.Entry;

const format = "qcow2";
/// Free runs below this many bytes stay as they are: a hole costs a request of its own.
const least_hole = 64 << 10;
/// L2 tables that are given up are read so many bytes at once.
const read_bytes = 1 << 20;

pub fn resize(context: image.Context, device: block.Device, request: *const messages.ResizeRequest) block.Error!steps.Resize {
    const opened = try open.Opened.open(context, device, .content);
    const header = opened.header;
    const old_size = header.virtualSize();
    const wanted = try resizing.wanted(context, format, old_size, request);
    if (wanted.size % 512 != 0)
        return refuse(context.diagnostic, .invalid_option, "virtual size", "The new size must be a multiple of 512, not {value}", none, wanted.size, none);
    try refuseState(context, &opened);
    var work: Work = .{
        .context = context,
        .device = device,
        .header = header,
        .backing = opened.backing_name != null,
        .mode = wanted.preallocation,
        .counts = try .init(context, device, header),
        .l1 = &.{},
        .l1_offset = header.l1_offset,
        .l1_entries = header.l1_entries,
    };
    const span = @as(u64, 1) << header.l1Shift();
    const new_tables = wanted.size / span + @intFromBool(wanted.size % span != 0);
    if (new_tables * 8 > header_zig.max_l1_bytes)
        return refuse(context.diagnostic, .too_large, "L1 table", "Failed to grow the L1 table: File too large: it would have {value} bytes, the limit is {limit}", none, new_tables * 8, header_zig.max_l1_bytes);
    if (opened.extensions.bitmaps) |place| work.bitmaps = .{
        .context = context,
        .device = device,
        .header = header,
        .place = place,
        .list = opened.bitmaps,
        .counts = &work.counts,
        .fresh = &work.fresh,
        .lost = &work.lost_clusters,
    };
    if (wanted.size != old_size) {
        try work.readL1(new_tables);
        if (wanted.size > old_size) try work.grow(old_size, wanted.size, new_tables) else try work.shrink(wanted.size, new_tables);
    }
    return .{ .old_size = old_size, .new_size = wanted.size, .steps = work.plan.items };
}

/// What qemu opens for nobody who writes, or repairs first, or cannot resize; and what needs another file.
fn refuseState(context: image.Context, opened: *const open.Opened) error{Refused}!void {
    const diagnostic = context.diagnostic;
    const header = opened.header;
    if (header.markedCorrupt())
        return refuse(diagnostic, .corrupt, "header", "Image is corrupt; cannot be opened read/write", 72, header.incompatible, none);
    if (header.dirty())
        return refuse(diagnostic, .corrupt, "header", "the image is marked dirty: its refcounts may be wrong, and have to be repaired first", 72, header.incompatible, none);
    if (header.snapshot_count > 0 and header.version < 3)
        return refuse(diagnostic, .unsupported, "snapshot table", "Can't resize a v2 image which has snapshots", header.snapshots_offset, header.snapshot_count, none);
    try bitmaps.refuseInUse(context, opened.bitmaps);
    if (header.hasDataFile())
        return refuse(diagnostic, .needs_reference, "data file", "the data lie in an external data file, which would have to be resized too and is not followed", none, none, none);
    if (header.crypt_method != 0)
        return refuse(diagnostic, .unsupported, "header", "an encrypted image is not resized (method {value})", 32, header.crypt_method, none);
}

const Work = struct {
    context: image.Context,
    device: block.Device,
    header: Header,
    /// Whether a backing file answers for what is unallocated.
    backing: bool,
    mode: target.Preallocation,
    counts: Counts,
    /// The L1 table as it will be, whole clusters.
    l1: []u8,
    l1_offset: u64,
    l1_entries: u32,
    /// Null where there are none.
    bitmaps: ?bitmaps.Change = null,
    new_directory: bool = false,

    /// The stages, in order.
    fresh: Steps = .empty,
    counted: Steps = .empty,
    recounted: Steps = .empty,
    prepared: Steps = .empty,
    switched: Steps = .empty,
    extended: Steps = .empty,
    named: Steps = .empty,
    cleared: Steps = .empty,
    released: Steps = .empty,
    unlinked: Steps = .empty,
    trimmed: Steps = .empty,
    plan: Steps = .empty,

    /// What the new header does not need: L2 tables with everything in them, entries of L2 tables, single clusters.
    lost_tables: std.ArrayList(u64) = .empty,
    lost_entries: std.ArrayList(Entry) = .empty,
    lost_clusters: std.ArrayList(counts_zig.Range) = .empty,

    fn clusterSize(self: *const Work) usize {
        return @intCast(self.header.clusterSize());
    }

    fn perTable(self: *const Work) u64 {
        return @as(u64, 1) << self.header.l2Bits();
    }

    fn entryBytes(self: *const Work) usize {
        return @as(usize, 1) << @intCast(self.header.l2EntryBits());
    }

    fn buffer(self: *const Work, bytes: u64) block.Error![]u8 {
        const room = self.context.allocator.alloc(u8, @intCast(bytes)) catch return open.noMemory(self.context, bytes);
        @memset(room, 0);
        return room;
    }

    fn add(self: *const Work, list: *Steps, step: steps.Step) error{NoMemory}!void {
        list.append(self.context.allocator, step) catch return error.NoMemory;
    }

    fn addWrite(self: *const Work, list: *Steps, offset: u64, bytes: []const u8) error{NoMemory}!void {
        if (bytes.len > 0) try self.add(list, .{ .write = .{ .offset = offset, .bytes = bytes } });
    }

    fn readL1(self: *Work, new_tables: u64) block.Error!void {
        const entries = @max(self.header.l1_entries, new_tables);
        self.l1 = try self.buffer(self.header.clusters(entries * 8) << self.header.cluster_bits);
        try self.device.readPadded(self.header.l1_offset, self.l1[0 .. self.header.l1_entries * 8]);
    }

    fn l1Entry(self: *const Work, index: u64) u64 {
        return std.mem.readInt(u64, self.l1[@intCast(index * 8)..][0..8], .big);
    }

    fn setL1(self: *Work, index: u64, word: u64) void {
        std.mem.writeInt(u64, self.l1[@intCast(index * 8)..][0..8], word, .big);
    }

    /// Byte offset of an L2 table; 0 where there is none.
    fn tableOffset(self: *const Work, index: u64) error{Refused}!u64 {
        const offset = self.l1Entry(index) & tables.offset_mask;
        if (self.header.offsetInCluster(offset) != 0)
            return refuse(self.context.diagnostic, .corrupt, "active L1 table", "L2 table offset {value} unaligned", self.header.l1_offset + index * 8, offset, none);
        return offset;
    }

    /// An L2 table in memory, and what is to become of it.
    const Table = struct {
        index: u64,
        /// 0: there is none in the file.
        offset: u64,
        bytes: []u8,
        /// The bytes that changed: [low, high).
        low: usize,
        high: usize = 0,

        fn set(self: *Table, work: *const Work, index: u64, entry: Entry) void {
            const size = work.entryBytes();
            const at: usize = @as(usize, @intCast(index)) * size;
            std.mem.writeInt(u64, self.bytes[at..][0..8], entry.word, .big);
            if (size == 16) std.mem.writeInt(u64, self.bytes[at + 8 ..][0..8], entry.bitmap, .big);
            self.low = @min(self.low, at);
            self.high = @max(self.high, at + size);
        }
    };

    fn loadTable(self: *Work, index: u64) block.Error!Table {
        const offset = try self.tableOffset(index);
        const bytes = try self.buffer(self.header.clusterSize());
        if (offset != 0) try self.device.readPadded(offset, bytes);
        return .{ .index = index, .offset = offset, .bytes = bytes, .low = bytes.len };
    }

    /// The changes of an L2 table go to `list` when it is this image's alone, otherwise to a copy; answers whether the
    /// L1 entry changed.
    fn storeTable(self: *Work, table: *const Table, list: *Steps) block.Error!bool {
        if (table.low >= table.high) return false;
        if (table.offset != 0 and try self.counts.get(table.offset >> self.header.cluster_bits) == 1) {
            try self.addWrite(list, table.offset + table.low, table.bytes[table.low..table.high]);
            return false;
        }
        if (table.offset != 0) try self.lose(table.offset >> self.header.cluster_bits, 1);
        const offset = self.counts.take(1) << self.header.cluster_bits;
        try self.addWrite(&self.fresh, offset, table.bytes);
        self.setL1(table.index, offset | tables.copied);
        return true;
    }

    fn lose(self: *Work, first: u64, count: u64) error{NoMemory}!void {
        self.lost_clusters.append(self.context.allocator, .{ .first = first, .count = count }) catch return error.NoMemory;
    }

    fn loseEntry(self: *Work, entry: Entry) error{NoMemory}!void {
        self.lost_entries.append(self.context.allocator, entry) catch return error.NoMemory;
    }

    /// L1 entries [first, end) go, with their tables.
    fn loseTables(self: *Work, first: u64, end: u64) block.Error!void {
        var index = first;
        while (index < end) : (index += 1) {
            const offset = try self.tableOffset(index);
            if (offset != 0) self.lost_tables.append(self.context.allocator, offset) catch return error.NoMemory;
        }
    }

    // Growing.

    fn grow(self: *Work, old_size: u64, new_size: u64, new_tables: u64) block.Error!void {
        const header = self.header;
        if (self.backing and header.version < 3)
            return refuse(self.context.diagnostic, .needs_reference, "backing file", "whether the backing file is longer than this image is not known, since it is not followed, and version 2 has no way to hide what it holds there", none, none, none);
        const span = @as(u64, 1) << header.l1Shift();
        const old_tables = old_size / span + @intFromBool(old_size % span != 0);
        // What lies behind the end must not become visible: the state of a virtual machine, or what a crash left.
        try self.loseTables(old_tables, header.l1_entries);
        @memset(self.l1[@intCast(@min(old_tables, header.l1_entries) * 8)..], 0);
        const copied = old_size % span != 0 and try self.growLastTable(old_tables - 1, old_size, new_size);
        try self.addTables(old_tables, new_tables, new_size);
        self.l1_entries = @intCast(@max(header.l1_entries, new_tables));
        const old_clusters = header.clusters(@as(u64, header.l1_entries) * 8);
        const new_clusters = header.clusters(@as(u64, self.l1_entries) * 8);
        if (new_clusters > old_clusters) {
            self.l1_offset = self.counts.take(new_clusters) << header.cluster_bits;
            try self.addWrite(&self.fresh, self.l1_offset, self.l1);
            if (old_clusters > 0) try self.lose(header.l1_offset >> header.cluster_bits, old_clusters);
        } else {
            const first: usize = @intCast((old_tables - @intFromBool(copied)) * 8);
            try self.addWrite(&self.prepared, header.l1_offset + first, self.l1[first .. @as(usize, self.l1_entries) * 8]);
        }
        try self.finish(new_size, false);
    }

    /// The table that the old end lies in: what is behind the end becomes what new space is.  Answers whether its L1
    /// entry changed.
    fn growLastTable(self: *Work, index: u64, old_size: u64, new_size: u64) block.Error!bool {
        const header = self.header;
        const first_cluster = index << header.l2Bits();
        const fills = self.backing or self.mode != .off;
        if (try self.tableOffset(index) == 0 and !fills) return false;
        var table = try self.loadTable(index);
        const tail = header.offsetInCluster(old_size);
        const begin = header.clusters(old_size) - first_cluster;
        const end = @min(self.perTable(), header.clusters(new_size) - first_cluster);
        var at = begin;
        while (at < self.perTable()) : (at += 1) {
            const entry: Entry = .read(header, table.bytes, @intCast(at));
            if (entry.isEmpty()) continue;
            try self.loseEntry(entry);
            table.set(self, at, .{ .word = 0 });
        }
        var allocated = begin;
        if (tail != 0) {
            const entry: Entry = .read(header, table.bytes, @intCast(begin - 1));
            if (entry.kind(header) == .unallocated and !self.backing and entry.bitmap == 0) {
                if (self.mode != .off) allocated = begin - 1;
            } else if (try self.clearTail(entry, tail)) |changed| table.set(self, begin - 1, changed);
        }
        if (self.mode != .off) {
            try self.allocateEntries(&table, allocated, end);
        } else if (self.backing) {
            at = begin;
            while (at < end) : (at += 1) table.set(self, at, self.zeroEntry());
        }
        return self.storeTable(&table, &self.prepared);
    }

    /// An entry that reads as zero whatever the backing file holds (version 3).
    fn zeroEntry(self: *const Work) Entry {
        return if (self.header.extendedL2()) .{ .word = 0, .bitmap = 0xffff_ffff << 32 } else .{ .word = tables.zero_flag };
    }

    /// An entry of a data cluster that was never written.
    fn dataEntry(self: *const Work, cluster: u64) Entry {
        const hidden = self.backing and self.header.extendedL2();
        return .{ .word = cluster << self.header.cluster_bits | tables.copied, .bitmap = if (hidden) 0xffff_ffff << 32 else 0 };
    }

    fn allocateEntries(self: *Work, table: *Table, begin: u64, end: u64) block.Error!void {
        if (begin >= end) return;
        const first = self.counts.take(end - begin);
        var at = begin;
        while (at < end) : (at += 1) table.set(self, at, self.dataEntry(first + at - begin));
        try self.writeData(first, end - begin);
    }

    /// Data clusters are holes unless they were asked to be written.
    fn writeData(self: *Work, first: u64, count: u64) block.Error!void {
        if (self.mode != .full) return;
        try self.add(&self.fresh, .{ .fill = .{
            .offset = first << self.header.cluster_bits,
            .length = count << self.header.cluster_bits,
            .content = .{ .pattern = &.{0} },
        } });
    }

    /// The last `cluster - tail` bytes of a cluster read as zero afterwards, those before as ever; answers the new entry
    /// when it changes.
    fn clearTail(self: *Work, entry: Entry, tail: u64) block.Error!?Entry {
        const header = self.header;
        switch (entry.kind(header)) {
            .zero_plain, .zero_allocated => return null,
            .unallocated => return self.hideTail(entry, tail),
            .normal => {},
            .compressed => return self.clearCompressed(entry, tail),
        }
        const bytes = try self.buffer(header.clusterSize());
        const offset = entry.offset();
        if (header.offsetInCluster(offset) != 0)
            return refuse(self.context.diagnostic, .corrupt, "L2 table", "Cluster allocation offset {value} unaligned", none, offset, none);
        try self.device.readPadded(offset, bytes);
        const end: usize = @intCast(tail);
        if (!std.mem.allEqual(u8, bytes[end..], 0)) {
            if (try self.counts.get(offset >> header.cluster_bits) > 1) return try self.copyCluster(entry, bytes, end);
            const stop = @min(offset + header.clusterSize(), self.device.length);
            if (stop > offset + tail) try self.add(&self.prepared, .{ .zero = .{ .offset = offset + tail, .length = stop - offset - tail } });
        }
        return self.hideTail(entry, tail);
    }

    /// Subclusters behind the end that nothing is written to: hidden from the backing file.
    fn hideTail(self: *Work, entry: Entry, tail: u64) block.Error!?Entry {
        const header = self.header;
        if (!self.backing) return null;
        if (!header.extendedL2()) {
            if (entry.kind(header) == .unallocated) return self.needsBacking();
            return null;
        }
        const size = header.clusterSize() / 32;
        var bits = entry.zeroBits();
        for (@intCast(tail / size)..32) |number| {
            const bit = @as(u32, 1) << @intCast(number);
            if ((entry.allocatedBits() | bits) & bit != 0) continue;
            if (number * size < tail) return self.needsBacking();
            bits |= bit;
        }
        if (bits == entry.zeroBits()) return null;
        return .{ .word = entry.word, .bitmap = @as(u64, bits) << 32 | entry.allocatedBits() };
    }

    fn needsBacking(self: *Work) error{Refused} {
        return refuse(self.context.diagnostic, .needs_reference, "backing file", "the last cluster of the disk is in the backing file, which is not followed, and only a part of it is inside the disk", none, none, none);
    }

    /// A cluster that others use as well is left to them.
    fn copyCluster(self: *Work, entry: Entry, bytes: []u8, tail: usize) block.Error!Entry {
        @memset(bytes[tail..], 0);
        try self.loseEntry(entry);
        const cluster = self.counts.take(1);
        const offset = cluster << self.header.cluster_bits;
        try self.addWrite(&self.fresh, offset, bytes);
        const bitmap = if (entry.kind(self.header) == .compressed and self.header.extendedL2()) 0xffff_ffff else entry.bitmap;
        const copy: Entry = .{ .word = offset | tables.copied, .bitmap = bitmap };
        return try self.hideTail(copy, tail) orelse copy;
    }

    fn clearCompressed(self: *Work, entry: Entry, tail: u64) block.Error!?Entry {
        const bytes = try self.buffer(self.header.clusterSize());
        try compressed.read(self.context, self.device, self.header, entry.word, bytes);
        const end: usize = @intCast(tail);
        if (std.mem.allEqual(u8, bytes[end..], 0)) return null;
        return try self.copyCluster(entry, bytes, end);
    }

    /// Tables of the clusters behind the last old table, where new space is anything but unallocated.
    fn addTables(self: *Work, first: u64, end: u64, new_size: u64) block.Error!void {
        const header = self.header;
        const allocates = self.mode != .off;
        if (first >= end or !(allocates or self.backing)) return;
        const place = self.counts.take(end - first);
        for (@intCast(first)..@intCast(end)) |index| {
            self.setL1(index, (place + index - first) << header.cluster_bits | tables.copied);
        }
        const entries = header.clusters(new_size) - (first << header.l2Bits());
        const data = if (allocates) self.counts.take(entries) else 0;
        if (allocates) try self.writeData(data, entries);
        const stride: u64 = self.entryBytes();
        const offset = place << header.cluster_bits;
        if (self.backing and header.extendedL2()) {
            // No region repeats sixteen bytes.
            var done: u64 = 0;
            while (done < entries) {
                const count = @min(self.perTable(), entries - done);
                var table: Table = .{ .index = 0, .offset = 0, .bytes = try self.buffer(count * stride), .low = 0 };
                for (0..@intCast(count)) |at| table.set(self, at, if (allocates) self.dataEntry(data + done + at) else self.zeroEntry());
                try self.addWrite(&self.fresh, offset + done * stride, table.bytes);
                done += count;
            }
            return;
        }
        const content: plans.Content = if (allocates) .{ .progression = .{
            .first = data << header.cluster_bits | tables.copied,
            .step = header.clusterSize(),
            .word = if (header.extendedL2()) .big_64_and_zero else .big_64,
        } } else .{ .pattern = &.{ 0, 0, 0, 0, 0, 0, 0, 1 } };
        try self.add(&self.fresh, .{ .fill = .{ .offset = offset, .length = entries * stride, .content = content } });
    }

    // Shrinking.

    fn shrink(self: *Work, new_size: u64, new_tables: u64) block.Error!void {
        const header = self.header;
        const span = @as(u64, 1) << header.l1Shift();
        if (new_size % span != 0) try self.shrinkLastTable(new_tables - 1, new_size);
        try self.loseTables(new_tables, header.l1_entries);
        self.l1_entries = @intCast(@min(header.l1_entries, new_tables));
        const kept = header.clusters(@as(u64, self.l1_entries) * 8);
        const had = header.clusters(@as(u64, header.l1_entries) * 8);
        if (had > kept) try self.lose((header.l1_offset >> header.cluster_bits) + kept, had - kept);
        try self.finish(new_size, true);
    }

    /// The table that the new end lies in: entries behind it become empty.
    fn shrinkLastTable(self: *Work, index: u64, new_size: u64) block.Error!void {
        const header = self.header;
        if (try self.tableOffset(index) == 0) return;
        var table = try self.loadTable(index);
        var at = header.clusters(new_size) - (index << header.l2Bits());
        while (at < self.perTable()) : (at += 1) {
            const entry: Entry = .read(header, table.bytes, @intCast(at));
            if (entry.isEmpty()) continue;
            try self.loseEntry(entry);
            table.set(self, at, .{ .word = 0 });
        }
        if (try self.storeTable(&table, &self.cleared)) {
            const first: usize = @intCast(index * 8);
            try self.addWrite(&self.cleared, header.l1_offset + first, self.l1[first..][0..8]);
        }
    }

    // Both.

    fn finish(self: *Work, new_size: u64, trim: bool) block.Error!void {
        if (self.bitmaps) |*change| self.new_directory = try change.plan(new_size);
        if (try self.counts.settle(&self.fresh, &self.counted)) |old_table| {
            try self.lose(old_table.first, old_table.count);
            // What is prepared may name clusters that the new blocks count.
            if (self.prepared.items.len > 0) try self.addWrite(&self.recounted, 0, try self.headerSector(self.header.size, self.header.l1_entries, self.header.l1_offset));
        }
        const sector = try self.headerSector(new_size, self.l1_entries, self.l1_offset);
        if (self.new_directory) try self.bitmaps.?.addExtension(sector, &self.extended, &self.named);
        try self.addWrite(&self.switched, 0, sector);
        try self.releaseAll();
        try self.counts.writeReleased(&self.released, &self.unlinked, trim);
        if (self.released.items.len > 0) try self.expectKept();
        try self.trimFile(trim);
        const stages = [_]*Steps{ &self.fresh, &self.counted, &self.recounted, &self.prepared, &self.switched, &self.extended, &self.named, &self.cleared, &self.released, &self.unlinked, &self.trimmed };
        for (stages) |stage| {
            if (stage.items.len == 0) continue;
            self.plan.appendSlice(self.context.allocator, stage.items) catch return error.NoMemory;
            try self.add(&self.plan, .flush);
        }
    }

    /// The sector that changes everything.  Features of others that are cleared by whoever does not know them go.
    fn headerSector(self: *Work, size: u64, l1_entries: u32, l1_offset: u64) block.Error![]u8 {
        const bytes = try self.buffer(512);
        try self.device.readPadded(0, bytes);
        std.mem.writeInt(u64, bytes[24..32], size, .big);
        std.mem.writeInt(u32, bytes[36..40], l1_entries, .big);
        std.mem.writeInt(u64, bytes[40..48], l1_offset, .big);
        std.mem.writeInt(u64, bytes[48..56], self.counts.table_offset, .big);
        std.mem.writeInt(u32, bytes[56..60], self.counts.table_clusters, .big);
        if (self.header.version >= 3) std.mem.writeInt(u64, bytes[88..96], self.header.autoclear & header_zig.Autoclear.known, .big);
        return bytes;
    }

    fn releaseAll(self: *Work) block.Error!void {
        for (self.lost_entries.items) |entry| try self.releaseEntry(entry);
        try self.releaseTables();
        for (self.lost_clusters.items) |range| {
            for (0..@intCast(range.count)) |i| try self.counts.release(range.first + i);
        }
    }

    fn releaseEntry(self: *Work, entry: Entry) block.Error!void {
        const bits = self.header.cluster_bits;
        switch (entry.kind(self.header)) {
            .unallocated, .zero_plain => {},
            .zero_allocated, .normal => try self.counts.release(entry.offset() >> bits),
            .compressed => {
                const place = tables.compressedPlace(self.header, entry.word);
                var cluster = place.offset >> bits;
                const last = (place.offset + place.length - 1) >> bits;
                while (cluster <= last) : (cluster += 1) try self.counts.release(cluster);
            },
        }
    }

    /// Tables are read many at once: at 512 bytes a cluster, a gigabyte has 32768 of them.
    fn releaseTables(self: *Work) block.Error!void {
        const size = self.clusterSize();
        const at_once: usize = @min(32, @max(1, read_bytes / size));
        const offsets = self.lost_tables.items;
        if (offsets.len == 0) return;
        const room = try self.buffer(@min(at_once, offsets.len) * size);
        var done: usize = 0;
        while (done < offsets.len) {
            const some = offsets[done..@min(offsets.len, done + at_once)];
            var reads: [32]block.Read = undefined;
            for (some, 0..) |offset, i| {
                const bytes = room[i * size ..][0..size];
                const inside: usize = if (offset >= self.device.length) 0 else @intCast(@min(size, self.device.length - offset));
                @memset(bytes[inside..], 0);
                reads[i] = .{ .offset = if (inside == 0) 0 else offset, .buffer = bytes[0..inside] };
            }
            try self.device.readMany(reads[0..some.len]);
            for (some, 0..) |offset, i| {
                const bytes = room[i * size ..][0..size];
                if (!std.mem.allEqual(u8, bytes, 0)) {
                    for (0..@intCast(self.perTable())) |index| {
                        const entry: Entry = .read(self.header, bytes, index);
                        if (!entry.isEmpty()) try self.releaseEntry(entry);
                    }
                }
                try self.counts.release(offset >> self.header.cluster_bits);
                self.context.tick(done + i, offsets.len);
            }
            done += some.len;
        }
    }

    /// A broken image may name a cluster twice: what it still needs is not given away.
    fn expectKept(self: *Work) block.Error!void {
        const header = self.header;
        try self.counts.expectUsed(0, 1);
        try self.counts.expectUsed(self.l1_offset, @as(u64, self.l1_entries) * 8);
        try self.counts.expectUsed(header.snapshots_offset, @intFromBool(header.snapshot_count > 0));
        try self.counts.expectOwn();
        if (self.bitmaps) |*change| try change.expectKept();
        for (0..self.l1_entries) |index| {
            const offset = try self.tableOffset(index);
            if (offset != 0) try self.counts.expectUsed(offset, 1);
        }
    }

    /// The file ends behind its last cluster; large free runs before become holes.
    fn trimFile(self: *Work, trim: bool) block.Error!void {
        const bits = self.header.cluster_bits;
        var end = @max(self.header.clusters(self.device.length), self.counts.end);
        if (trim) {
            const used = try self.counts.lastUsed(0) orelse 0;
            if (used + 1 < end) {
                end = used + 1;
                if (end << bits < self.device.length) try self.add(&self.trimmed, .{ .length = end << bits });
            }
        }
        const freed = self.counts.freed.items;
        std.mem.sortUnstable(counts_zig.Range, freed, {}, before);
        var at: usize = 0;
        while (at < freed.len) {
            var run = freed[at];
            at += 1;
            while (at < freed.len and freed[at].first == run.first + run.count) : (at += 1) run.count += freed[at].count;
            const stop = @min(@min(run.first + run.count, end) << bits, self.device.length);
            if (stop < (run.first << bits) + least_hole) continue;
            try self.add(&self.trimmed, .{ .zero = .{ .offset = run.first << bits, .length = stop - (run.first << bits) } });
        }
    }

    fn before(_: void, one: counts_zig.Range, other: counts_zig.Range) bool {
        return one.first < other.first;
    }
};
