//! Consistency of one sparse extent: bounds, overlaps, copies, markers.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const Findings = @import("../qcow2/check_findings.zig").Findings;
const format = @import("format.zig");
const headers = @import("check_headers.zig");
const sparse = @import("sparse.zig");
const SectorSet = @import("sector_set.zig").SectorSet;
const Tables = @import("segments.zig").Tables;
const refuse = @import("refusal.zig").refuse;
const none = @import("../qcow2/template.zig").none;

const sector = format.sector;

pub fn check(context: image.Context, findings: *Findings, extent: *const sparse.Sparse, report: *messages.Check) block.Error!void {
    const sectors = std.mem.alignForward(u64, extent.device.length, sector) / sector;
    if (sectors > SectorSet.max_sectors)
        return refuse(context.diagnostic, .too_large, "file", "check failed: a file of {value} bytes, at most {limit} are checked", none, extent.device.length, SectorSet.max_sectors * sector);
    var checker: Checker = .{
        .context = context,
        .findings = findings,
        .extent = extent,
        .sectors = sectors,
        .metadata = SectorSet.init(context.allocator, sectors) catch return error.NoMemory,
        .loose = SectorSet.init(context.allocator, sectors) catch return error.NoMemory,
        .units = SectorSet.init(context.allocator, sectors / extent.grain_sectors + 1) catch return error.NoMemory,
        .tables = try .init(context, extent.device),
    };
    try headers.check(&checker, report);
    try checker.directories();
    try checker.flushMarkers();
    try checker.unreferenced();
}

/// A compressed grain whose marker is still to be read.
const Pending = struct {
    /// Byte in the file.
    offset: u64,
    /// First sector of the grain in the extent, as its marker must have it.
    lba: u64,
    bytes: [format.grain_marker.size]u8 = undefined,
};

pub const Checker = struct {
    context: image.Context,
    findings: *Findings,
    extent: *const sparse.Sparse,
    /// Of the file.
    sectors: u64,
    metadata: SectorSet,
    /// Grains of whole size at a multiple of their size from the first one on: one bit each.
    units: SectorSet,
    /// Sector of the first grain modulo the size of a grain.
    phase: ?u64 = null,
    /// Sectors of all other grains.
    loose: SectorSet,
    tables: Tables,
    redundant_table: []u8 = &.{},
    /// First sectors of the tables whose grains were looked at.
    walked: ?SectorSet = null,
    pending: [64]Pending = undefined,
    pending_count: usize = 0,
    /// Sectors of grains.
    used: u64 = 0,

    /// Take `bytes` at byte `offset` for a structure; answers whether they are inside the file and nobody else's.
    pub noinline fn claim(self: *Checker, name: []const u8, offset: u64, bytes: u64) block.Error!bool {
        if (bytes == 0) return true;
        const first = offset / sector;
        const count = (bytes +| (sector - 1)) / sector;
        if (first >= self.sectors or count > self.sectors - first) {
            const length = self.extent.device.length;
            try self.findings.add(.corruption, .{ .structure = name, .offset = offset, .value = offset +| bytes, .expected = length }, "{s} at byte {d} ends at byte {d}, file has {d}", .{ name, offset, offset +| bytes, length });
            return false;
        }
        if (self.metadata.any(first, count)) {
            try self.findings.add(.corruption, .{ .structure = name, .offset = offset, .value = bytes }, "{s} at byte {d}, {d} bytes, overlaps another structure", .{ name, offset, bytes });
            return false;
        }
        self.metadata.add(first, count) catch return error.NoMemory;
        return true;
    }

    fn directories(self: *Checker) block.Error!void {
        const extent = self.extent;
        const needed = std.math.divCeil(u64, extent.size(), extent.tableSpan()) catch unreachable;
        if (needed > extent.directory_entries)
            try self.findings.put(.corruption, "grain directory", "the grain directory has {value} entries, the disk needs {expected}", .{ .offset = extent.directory, .value = extent.directory_entries, .expected = needed });
        const bytes = extent.directory_entries * extent.entryBytes();
        _ = try self.claim("grain directory", extent.directory, bytes);
        var redundant = extent.redundant;
        if (redundant) |offset| if (offset == extent.directory) {
            // One directory that is named twice.
            redundant = null;
        } else if (!try self.claim("redundant grain directory", offset, bytes)) {
            redundant = null;
        };
        // Tables are claimed before any grain, so that a grain over a table is found wherever the two stand.
        var index: u64 = 0;
        while (try self.nextTable(&index, redundant)) : (index += 1) try self.claimTables(index, redundant);
        index = 0;
        while (try self.nextTable(&index, null)) : (index += 1) try self.grains(index);
    }

    /// Move to the next entry that names a table, in either directory.
    fn nextTable(self: *Checker, index: *u64, redundant: ?u64) block.Error!bool {
        const extent = self.extent;
        const end = extent.directory_entries;
        const first = try self.tables.nextEntry(extent, extent.directory, index.*, end);
        // The windows would be filled again and again if both directories were walked in steps: the second one is looked
        // at entry by entry only as far as the first one has come.
        if (redundant) |offset| {
            var other = index.*;
            while (other < first) : (other += 1) {
                const value = try self.redundantEntry(offset, other);
                if (value == null) break;
                if (value.? != 0) {
                    index.* = other;
                    return true;
                }
            }
        }
        index.* = first;
        return first < end;
    }

    /// Null behind the end of the file.
    fn redundantEntry(self: *Checker, directory: u64, index: u64) block.Error!?u64 {
        const at = directory + index * format.entry_size;
        if (at >= self.extent.device.length) return null;
        return self.extent.entry(try self.tables.table.bytes(at, format.entry_size));
    }

    noinline fn claimTables(self: *Checker, index: u64, redundant: ?u64) block.Error!void {
        const extent = self.extent;
        const value = try self.tables.entry(extent, extent.directory, index);
        const bytes = extent.tableBytes();
        const table: ?u64 = switch (extent.table(value)) {
            .data => |offset| if (try self.claim("grain table", offset, bytes)) offset else null,
            .invalid => blk: {
                try self.findings.put(.corruption, "grain directory", "entry {index} of the grain directory is {value:x}, which is no grain table", .{ .offset = extent.directory, .index = index, .value = value });
                break :blk null;
            },
            else => null,
        };
        try self.tableMarker(table, .grain_table, bytes);
        const copy_directory = redundant orelse return;
        const copy = try self.redundantEntry(copy_directory, index) orelse 0;
        if ((copy == 0) != (value == 0))
            return self.findings.put(.corruption, "redundant grain directory", "entry {index} of the redundant grain directory is {value}, that of the grain directory {expected}", .{ .offset = copy_directory, .index = index, .value = copy, .expected = value });
        // Some writers keep the tables once and let both directories point to them.
        if (copy == value) return;
        if (!try self.claim("redundant grain table", copy * sector, bytes)) return;
        try self.compare(table orelse return, copy * sector, index);
    }

    fn compare(self: *Checker, table: u64, copy: u64, index: u64) block.Error!void {
        const bytes = self.extent.tableBytes();
        if (self.redundant_table.len == 0)
            self.redundant_table = self.context.allocator.alloc(u8, 2 * bytes) catch return error.NoMemory;
        const both = self.redundant_table;
        try self.extent.device.readPadded(table, both[0..bytes]);
        try self.extent.device.readPadded(copy, both[bytes..]);
        if (std.mem.eql(u8, both[0..bytes], both[bytes..])) return;
        var differ: u64 = 0;
        for (0..self.extent.table_entries) |entry| {
            const at = entry * format.entry_size;
            differ += @intFromBool(!std.mem.eql(u8, both[at..][0..format.entry_size], both[bytes + at ..][0..format.entry_size]));
        }
        try self.findings.put(.corruption, "redundant grain table", "{value} entries of grain table {index} and of its redundant copy at byte {offset} differ", .{ .offset = copy, .index = index, .value = differ });
    }

    /// In a stream whose directory is at the end, a marker says what follows.
    pub noinline fn tableMarker(self: *Checker, table: ?u64, kind: format.MarkerKind, bytes: u64) block.Error!void {
        const place = table orelse return;
        const extent = self.extent;
        if (extent.header_offset == 0 or !extent.markers or place < 2 * sector) return;
        const at = place - sector;
        var marker: [16]u8 = undefined;
        try extent.device.readPadded(at, &marker);
        const names = format.metadata_marker;
        const sectors = std.mem.readInt(u64, marker[names.sectors..][0..8], .little);
        const length = std.mem.readInt(u32, marker[names.length..][0..4], .little);
        const found = std.mem.readInt(u32, marker[names.kind..][0..4], .little);
        const wanted = (bytes + sector - 1) / sector;
        if (length != 0 or found != @intFromEnum(kind) or sectors != wanted)
            try self.findings.put(.note, "marker", "the marker at byte {offset} does not announce the {expected} sectors that follow it: type {value}", .{ .offset = at, .value = found, .expected = wanted });
    }

    noinline fn grains(self: *Checker, index: u64) block.Error!void {
        const extent = self.extent;
        const table = switch (extent.table(try self.tables.entry(extent, extent.directory, index))) {
            .data => |offset| offset,
            else => return,
        };
        if (table >= extent.device.length) return;
        // A table that an earlier entry has named too was walked then: that it was is a finding already.
        const first = table / sector;
        if (self.walked == null) self.walked = SectorSet.init(self.context.allocator, self.sectors) catch return error.NoMemory;
        if (self.walked.?.any(first, 1)) return;
        self.walked.?.add(first, 1) catch return error.NoMemory;

        const bytes = try self.tables.table.bytes(table, extent.tableBytes());
        const width = extent.entryBytes();
        const span_start = index * extent.tableSpan();
        for (0..extent.table_entries) |entry| {
            const value = extent.entry(bytes[entry * width ..][0..width]);
            if (value == 0) continue;
            const start = span_start + entry * extent.grainBytes();
            if (start >= extent.size()) {
                if (extent.grain(value) == .data) try self.findings.put(.note, "grain table", "entry {index} of the grain table at byte {offset} lies behind the end of the disk", .{ .offset = table, .index = entry, .value = value });
                continue;
            }
            switch (extent.grain(value)) {
                .data => |offset| try self.grain(table, entry, offset, start),
                .invalid => try self.findings.put(.corruption, "grain table", "entry {index} of the grain table at byte {offset} is {value:x}, which is no grain", .{ .offset = table, .index = entry, .value = value }),
                else => {},
            }
        }
    }

    fn grain(self: *Checker, table: u64, index: u64, offset: u64, start: u64) block.Error!void {
        const extent = self.extent;
        const first = offset / sector;
        if (first >= self.sectors)
            return self.findings.put(.corruption, "grain table", "entry {index} of the grain table at byte {offset} points to byte {value} behind the end of the file, which has {expected}", .{ .offset = table, .index = index, .value = offset, .expected = extent.device.length });
        if (extent.compressed) {
            // Without a marker the length of a grain is not known.
            if (!extent.markers) return self.take(first, 1, table, index);
            self.pending[self.pending_count] = .{ .offset = offset, .lba = start / sector };
            self.pending_count += 1;
            if (self.pending_count == self.pending.len) try self.flushMarkers();
            return;
        }
        const on_disk = @min(extent.grainBytes(), extent.size() - start) / sector;
        if (on_disk > self.sectors - first)
            try self.findings.put(.corruption, "grain", "the grain at byte {offset} ends at byte {value}, file has {expected}", .{ .offset = offset, .index = index, .value = offset + on_disk * sector, .expected = extent.device.length });
        try self.take(first, @min(extent.grain_sectors, self.sectors - first), table, index);
    }

    /// Take sectors for a grain.
    fn take(self: *Checker, first: u64, count: u64, table: u64, index: u64) block.Error!void {
        self.used += count;
        if (self.metadata.any(first, count))
            return self.findings.put(.corruption, "grain table", "entry {index} of the grain table at byte {offset} points to byte {value}, over the image's own structures", .{ .offset = table, .index = index, .value = first * sector });
        const size = self.extent.grain_sectors;
        const phase = self.phase orelse first % size;
        self.phase = phase;
        const unit = first / size;
        const aligned = first % size == phase and count == size;
        var taken = self.loose.any(first, count);
        if (aligned) {
            taken = taken or self.units.any(unit, 1);
            self.units.add(unit, 1) catch return error.NoMemory;
        } else {
            // Units that reach into it: those that begin behind the sector one size earlier.
            const behind = first + count;
            const low = if (first > phase) (first - phase) / size else 0;
            const high = if (behind > phase) std.math.divCeil(u64, behind - phase, size) catch unreachable else 0;
            if (high > low) taken = taken or self.units.any(low, high - low);
            self.loose.add(first, count) catch return error.NoMemory;
        }
        if (taken)
            try self.findings.put(.corruption, "grain table", "entry {index} of the grain table at byte {offset} points to byte {value}, which another grain uses", .{ .offset = table, .index = index, .value = first * sector });
    }

    /// Read the markers of the grains that wait for it, in one exit.
    fn flushMarkers(self: *Checker) block.Error!void {
        const waiting = self.pending[0..self.pending_count];
        self.pending_count = 0;
        if (waiting.len == 0) return;
        var reads: [64]block.Read = undefined;
        const device = self.extent.device;
        for (waiting, reads[0..waiting.len]) |*one, *read| {
            @memset(&one.bytes, 0);
            const inside: usize = @intCast(@min(one.bytes.len, device.length -| one.offset));
            read.* = .{ .offset = @min(one.offset, device.length), .buffer = one.bytes[0..inside] };
        }
        try device.readMany(reads[0..waiting.len]);
        for (waiting) |*one| {
            const names = format.grain_marker;
            const lba = std.mem.readInt(u64, one.bytes[names.lba..][0..8], .little);
            const length = std.mem.readInt(u32, one.bytes[names.length..][0..4], .little);
            if (lba != one.lba)
                try self.findings.put(.corruption, "grain marker", "the marker at byte {offset} is of sector {value}, its table says {expected}", .{ .offset = one.offset, .value = lba, .expected = one.lba });
            const most = 2 * self.extent.grainBytes() - names.size;
            if (length == 0 or length > most) {
                try self.findings.put(.corruption, "grain marker", "the grain at byte {offset} has {value} bytes, at most {expected}", .{ .offset = one.offset, .value = length, .expected = most });
                continue;
            }
            const end = one.offset + names.size + length;
            if (end > device.length) {
                try self.findings.put(.corruption, "grain marker", "the grain at byte {offset} ends at byte {value}, file has {expected}", .{ .offset = one.offset, .value = end, .expected = device.length });
                continue;
            }
            const first = one.offset / sector;
            try self.take(first, (end + sector - 1) / sector - first, one.offset, one.lba / self.extent.grain_sectors);
        }
    }

    /// Space between the first grain and the end of the file that no grain uses.
    fn unreferenced(self: *Checker) block.Error!void {
        const extent = self.extent;
        if (extent.kind != .hosted or extent.compressed) return;
        const begin = @max(extent.int(u64, format.header.overhead), self.metadata.end);
        if (begin + self.used < self.sectors)
            try self.findings.put(.note, "file", "{value} bytes behind the metadata belong to no grain", .{ .offset = begin * sector, .value = (self.sectors - begin - self.used) * sector });
    }
};
