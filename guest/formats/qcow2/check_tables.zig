//! The part of a check that follows L1 and L2 tables.  A table that several entries name is read once and counted as
//! often as it is named, so that the work is bounded by the file's length and not by what tables claim.

const std = @import("std");
const block = @import("block");
const check = @import("check.zig");
const open = @import("open.zig");
const tables = @import("tables.zig");
const Window = @import("window.zig").Window;
const Checker = check.Checker;

/// An L2 table and who names it.
const Use = struct {
    offset: u64,
    /// Entries of the active L1 table.
    active: u64 = 0,
    /// Those of them whose whole range lies inside the virtual disk.
    inside: u64 = 0,
    /// Whether one of them is the entry in whose range the virtual disk ends.
    boundary: bool = false,
    /// Entries of snapshots' L1 tables.
    inactive: u64 = 0,
    /// Whether the copied flags of its entries are checked: not where QEMU would not get there, which is a table at
    /// offset 0 and one whose own refcount cannot be read.
    copied: bool = true,

    fn before(_: void, a: Use, b: Use) bool {
        return a.offset < b.offset;
    }
};

/// An L1 table of snapshots.
pub const SnapshotTable = struct {
    offset: u64,
    entries: u64,
    times: u64 = 1,

    fn before(_: void, a: SnapshotTable, b: SnapshotTable) bool {
        return a.offset < b.offset or (a.offset == b.offset and a.entries < b.entries);
    }
};

const piece_bytes = 64 << 10;
const batch_pieces = 8;

pub const Walk = struct {
    checker: *Checker,
    window: *Window,
    uses: std.ArrayList(Use) = .empty,

    /// The active L1 table: references, reserved bits, alignment, and the copied flags of its entries.
    pub fn active(self: *Walk) block.Error!void {
        const c = self.checker;
        const header = c.header;
        try c.reference(header.l1_offset, @as(u64, header.l1_entries) * 8, 1);
        const boundary_index = header.virtualSize() >> header.l1Shift();
        var entries = Entries.init(self, header.l1_offset, header.l1_entries);
        while (try entries.next()) |entry| {
            const offset = try self.l1Entry(entry, 1);
            try self.use(.{
                .offset = offset,
                .active = 1,
                .inside = @intFromBool(entry.index < boundary_index),
                .boundary = entry.index == boundary_index,
            });
            if (offset != 0) try self.copiedL1(entry, offset);
        }
    }

    /// The L1 tables of all snapshots.
    pub fn inactive(self: *Walk, list: []SnapshotTable) block.Error!void {
        const c = self.checker;
        std.sort.heap(SnapshotTable, list, {}, SnapshotTable.before);
        // Tables that overlap each other would let a small file ask for much work; sound ones fit the file.
        var budget = 2 * c.device.length + (32 << 20);
        var i: usize = 0;
        while (i < list.len) {
            var table = list[i];
            i += 1;
            while (i < list.len and list[i].offset == table.offset and list[i].entries == table.entries) : (i += 1) table.times += 1;
            const bytes = table.entries * 8;
            const clipped = if (table.offset < c.device.length) @min(bytes, c.device.length - table.offset) else 0;
            if (clipped > budget)
                return c.findings.put(.check_error, "snapshot L1 table", "snapshots' L1 tables overlap: more bytes of them than the file has, the rest is not checked", .{ .offset = table.offset });
            budget -= clipped;
            try c.reference(table.offset, bytes, table.times);
            var entries = Entries.init(self, table.offset, table.entries);
            while (try entries.next()) |entry| {
                const offset = try self.l1Entry(entry, table.times);
                try self.use(.{ .offset = offset, .inactive = table.times });
            }
        }
    }

    const L1Entry = struct { index: u64, at: u64, word: u64 };

    /// The entries of an L1 table that are not 0, as far as the file reaches.
    const Entries = struct {
        window: *Window,
        start: u64,
        at: u64,
        end: u64,

        fn init(walk: *Walk, offset: u64, count: u64) Entries {
            const end = @min(offset +| count * 8, walk.checker.device.length);
            return .{ .window = walk.window, .start = offset, .at = offset, .end = end };
        }

        fn next(self: *Entries) block.DeviceError!?L1Entry {
            while (self.at < self.end) {
                const at = self.at;
                self.at += 8;
                const word = try self.window.word(at);
                if (word != 0) return .{ .index = (at - self.start) / 8, .at = at, .word = word };
            }
            return null;
        }
    };

    fn l1Entry(self: *Walk, entry: L1Entry, times: u64) block.Error!u64 {
        const c = self.checker;
        if (entry.word & tables.l1_reserved_mask != 0)
            try c.findings.put(.corruption, "L1 table", "L1 entry with reserved bits set: {value:x}", .{ .count = times, .offset = entry.at, .index = entry.index, .value = entry.word });
        const offset = entry.word & tables.offset_mask;
        try c.reference(offset, c.header.clusterSize(), times);
        if (c.header.offsetInCluster(offset) != 0)
            try c.findings.put(.corruption, "L1 table", "l2_offset={value:x}: table is not cluster aligned; L1 entry corrupted", .{ .count = times, .offset = entry.at, .index = entry.index, .value = offset });
        return offset;
    }

    fn copiedL1(self: *Walk, entry: L1Entry, offset: u64) block.Error!void {
        const c = self.checker;
        const one = try c.storedIsOne(offset >> c.header.cluster_bits) orelse return;
        if (one != (entry.word & tables.copied != 0))
            try c.findings.put(.corruption, "L1 table", "OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={value:x}, but its refcount is not what that says", .{ .offset = entry.at, .index = entry.index, .value = entry.word });
    }

    fn use(self: *Walk, new: Use) block.Error!void {
        // Neighbours often name the same table (none, when tables are sound).
        if (self.uses.items.len > 0 and self.uses.items[self.uses.items.len - 1].offset == new.offset) {
            merge(&self.uses.items[self.uses.items.len - 1], new);
            return;
        }
        self.uses.append(self.checker.context.allocator, new) catch return open.noMemory(self.checker.context, self.uses.items.len * @sizeOf(Use));
    }

    fn merge(into: *Use, from: Use) void {
        into.active += from.active;
        into.inside += from.inside;
        into.boundary = into.boundary or from.boundary;
        into.inactive +|= from.inactive;
    }

    /// Read every L2 table that an entry names.
    pub fn l2Tables(self: *Walk) block.Error!void {
        const c = self.checker;
        const list = self.uses.items;
        if (!std.sort.isSorted(Use, list, {}, Use.before)) std.sort.heap(Use, list, {}, Use.before);
        const slot: usize = @intCast(@min(c.header.clusterSize(), piece_bytes));
        const slots: usize = @min(batch_pieces, @max(list.len, 1));
        const buffer = c.context.allocator.alloc(u8, slot * slots) catch return open.noMemory(c.context, slot * slots);
        var batch: Batch = .{ .walk = self, .buffer = buffer };
        // Aligned tables are as many as the file has clusters; tables anywhere could overlap without end.
        var unaligned_budget = 16 * c.header.clusterSize() + (4 << 20);
        var i: usize = 0;
        while (i < list.len) {
            c.context.tick(i, list.len);
            var table = list[i];
            i += 1;
            while (i < list.len and list[i].offset == table.offset) : (i += 1) merge(&table, list[i]);
            if (table.offset >= c.device.length) continue;
            if (c.header.offsetInCluster(table.offset) != 0) {
                if (unaligned_budget < c.header.clusterSize()) {
                    try c.findings.put(.check_error, "L2 table", "too many L2 tables that are not cluster aligned; their entries are not checked", .{ .offset = table.offset });
                    break;
                }
                unaligned_budget -= c.header.clusterSize();
            }
            if (table.offset == 0) table.copied = false;
            if (c.unreadable and try c.storedIsOne(table.offset >> c.header.cluster_bits) == null) table.copied = false;
            try batch.table(table);
        }
        try batch.run();
    }
};

/// Pieces of L2 tables that are read together.
const Batch = struct {
    walk: *Walk,
    buffer: []u8,
    pieces: [batch_pieces]Piece = undefined,
    count: usize = 0,
    /// Where the next data cluster would have to be so as not to count as a fragment; goes on over a table's pieces.
    contiguous: u64 = 0,

    const Piece = struct { use: Use, start: u64, bytes: []u8 };

    fn table(self: *Batch, use: Use) block.Error!void {
        const device = self.walk.checker.device;
        const header = self.walk.checker.header;
        const inside = @min(header.clusterSize(), device.length - use.offset);
        var start: u64 = 0;
        while (start < inside) {
            const slot = @min(header.clusterSize(), piece_bytes);
            if (self.count == self.buffer.len / slot) try self.run();
            const entry_bytes = @as(u64, 1) << header.l2EntryBits();
            const length: usize = @intCast(std.mem.alignForward(u64, @min(inside - start, slot), entry_bytes));
            const bytes = self.buffer[self.count * slot ..][0..length];
            self.pieces[self.count] = .{ .use = use, .start = start, .bytes = bytes };
            self.count += 1;
            start += length;
        }
    }

    fn run(self: *Batch) block.Error!void {
        const device = self.walk.checker.device;
        var reads: [batch_pieces]block.Read = undefined;
        for (self.pieces[0..self.count], 0..) |piece, i| {
            const at = piece.use.offset + piece.start;
            const inside: usize = @intCast(@min(piece.bytes.len, device.length - at));
            @memset(piece.bytes[inside..], 0);
            reads[i] = .{ .offset = at, .buffer = piece.bytes[0..inside] };
        }
        if (self.count > 0) try device.readMany(reads[0..self.count]);
        for (self.pieces[0..self.count]) |piece| try self.entries(piece);
        self.count = 0;
    }

    fn entries(self: *Batch, piece: Piece) block.Error!void {
        const header = self.walk.checker.header;
        const bits = header.l2EntryBits();
        if (piece.start == 0) self.contiguous = 0;
        const shift = header.l1Shift();
        const boundary: u64 = (header.virtualSize() & ((@as(u64, 1) << shift) - 1)) + header.clusterSize() - 1 >> header.cluster_bits;
        for (0..piece.bytes.len >> bits) |i| {
            const entry = tables.Entry.read(header, piece.bytes, i);
            if (entry.isEmpty()) continue;
            const index = (piece.start >> bits) + i;
            try self.one(piece.use, entry, index, piece.use.inside + @intFromBool(piece.use.boundary and index < boundary));
        }
    }

    /// One entry of an L2 table; `inside` of the active uses lie on the virtual disk.
    fn one(self: *Batch, use: Use, entry: tables.Entry, index: u64, inside: u64) block.Error!void {
        const c = self.walk.checker;
        const header = c.header;
        const report = c.report;
        const times = use.active +| use.inactive;
        const at = use.offset + (index << header.l2EntryBits());
        const kind = entry.kind(header);
        if (kind != .compressed and entry.word & tables.l2_reserved_mask != 0)
            try c.findings.put(.corruption, "L2 table", "L2 entry with reserved bits set: {value:x}", .{ .count = times, .offset = at, .index = index, .value = entry.word });
        switch (kind) {
            .compressed => {
                const place = tables.compressedPlace(header, entry.word);
                if (entry.word & tables.copied != 0)
                    try c.findings.put(.corruption, "L2 table", "coffset={value:x}: copied flag must never be set for compressed clusters", .{ .count = times, .offset = at, .index = index, .value = place.offset });
                if (header.hasDataFile() or entry.bitmap != 0)
                    return c.findings.put(.corruption, "L2 table", "compressed cluster {index} where there is a data file or a subcluster bitmap, entry={value:x}", .{ .count = times, .offset = at, .index = index, .value = entry.word });
                try c.reference(place.offset, place.length, times);
                report.allocated_clusters.? += use.active;
                report.compressed_clusters.? += use.active;
                // Compressed clusters share sectors with their neighbours: QEMU counts each as a fragment.
                report.fragmented_clusters.? += use.active;
                report.clusters_inside.? += inside;
            },
            .normal, .zero_allocated => {
                const offset = entry.offset();
                if (entry.allocatedBits() & entry.zeroBits() != 0)
                    try c.findings.put(.corruption, "L2 table", "offset={expected:x}: allocated cluster has corrupted subcluster allocation bitmap {value:x}", .{ .count = times, .offset = at, .index = index, .value = entry.bitmap, .expected = offset });
                if (header.offsetInCluster(offset) != 0) {
                    try c.findings.put(.corruption, "L2 table", "offset={value:x}: data or preallocated cluster is not properly aligned; L2 entry corrupted", .{ .count = times, .offset = at, .index = index, .value = offset });
                }
                if (use.active > 0) {
                    report.allocated_clusters.? += use.active;
                    report.clusters_inside.? += inside;
                    if (self.contiguous != 0 and offset != self.contiguous) report.fragmented_clusters.? += use.active;
                    self.contiguous = offset + header.clusterSize();
                    if (use.copied) try self.copiedL2(use, entry, index, at);
                }
                if (!header.hasDataFile()) try c.reference(offset, header.clusterSize(), times);
            },
            .zero_plain => {},
            .unallocated => if (entry.allocatedBits() != 0)
                try c.findings.put(.corruption, "L2 table", "unallocated cluster has non-zero subcluster allocation map {value:x}", .{ .count = times, .offset = at, .index = index, .value = entry.bitmap }),
        }
    }

    fn copiedL2(self: *Batch, use: Use, entry: tables.Entry, index: u64, at: u64) block.Error!void {
        const c = self.walk.checker;
        // What lies in an external data file has no refcount and counts as referred to once.
        const one_reference = if (c.header.hasDataFile()) true else try c.storedIsOne(entry.offset() >> c.header.cluster_bits) orelse return;
        if (one_reference != (entry.word & tables.copied != 0))
            try c.findings.put(.corruption, "L2 table", "OFLAG_COPIED data cluster: l2_entry={value:x}, but its refcount is not what that says", .{ .count = use.active, .offset = at, .index = index, .value = entry.word });
    }
};
