//! The region tables: where BAT and metadata lie.
//!
//! [MS-VHDX] 2.2.3.  qemu reads the first table alone; the second is there for when the first is damaged, and serves then.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const none = @import("../qcow2/template.zig").none;
const format = @import("format.zig");
const refuse = @import("vhdx.zig").refuse;

pub const Region = struct {
    guid: *const [16]u8,
    offset: u64,
    /// Bytes.
    length: u32,
    required: u32,

    pub fn end(self: Region) u64 {
        return self.offset +| self.length;
    }

    pub fn isBat(self: Region) bool {
        return std.mem.eql(u8, self.guid, &format.guids.bat);
    }

    pub fn isMetadata(self: Region) bool {
        return std.mem.eql(u8, self.guid, &format.guids.metadata);
    }

    /// As in findings.
    pub fn name(self: Region) []const u8 {
        if (self.isBat()) return "BAT";
        return if (self.isMetadata()) "metadata region" else "unknown region";
    }
};

/// A table as it lies in the file.
pub const Table = struct {
    bytes: *const [format.region_table_size]u8,
    offset: u64,
    checksum_is_right: bool,

    pub fn read(context: image.Context, device: block.Device, index: u1) block.Error!Table {
        const bytes = context.allocator.create([format.region_table_size]u8) catch return error.NoMemory;
        const offset = format.region_table_offsets[index];
        try device.readPadded(offset, bytes);
        return .{ .bytes = bytes, .offset = offset, .checksum_is_right = format.checksumIsRight(bytes) };
    }

    pub fn checksum(self: *const Table) u32 {
        return format.int(u32, self.bytes, 4);
    }
    pub fn hasSignature(self: *const Table) bool {
        return std.mem.startsWith(u8, self.bytes, format.region_signature);
    }
    pub fn entryCount(self: *const Table) u32 {
        return format.int(u32, self.bytes, 8);
    }
    pub fn reserved(self: *const Table) u32 {
        return format.int(u32, self.bytes, 12);
    }
    pub fn isValid(self: *const Table) bool {
        return self.checksum_is_right and self.hasSignature() and self.entryCount() <= format.max_table_entries;
    }

    /// Entry `index`, below `entryCount` and 2047.
    pub fn region(self: *const Table, index: usize) Region {
        const at = format.region_header_size + index * format.region_entry_size;
        return .{
            .guid = self.bytes[at..][0..16],
            .offset = format.int(u64, self.bytes, at + 16),
            .length = format.int(u32, self.bytes, at + 24),
            .required = format.int(u32, self.bytes, at + 28),
        };
    }

    fn entryOffset(self: *const Table, index: usize) u64 {
        return self.offset + format.region_header_size + index * format.region_entry_size;
    }
};

/// A part of the file that no block may lie in.
pub const Range = struct {
    start: u64,
    end: u64,

    pub fn overlaps(self: Range, start: u64, end: u64) bool {
        return start < self.end and end > self.start;
    }
};

/// What the table in use says.
pub const Regions = struct {
    table: Table,
    bat: Region,
    metadata: Region,
    /// The log and every region, sorted by start; they do not overlap.
    ranges: []const Range,

    /// Read the first table, or the second when the first is damaged, and check its entries against each other and the
    /// log.
    pub fn load(context: image.Context, device: block.Device, log: Range) block.Error!Regions {
        const first: Table = try .read(context, device, 0);
        if (first.isValid()) return of(context, first, log);
        const second: Table = try .read(context, device, 1);
        if (second.isValid()) return of(context, second, log);
        const at = first.offset;
        const diagnostic = context.diagnostic;
        if (!first.checksum_is_right) {
            return refuse(diagnostic, .corrupt, "region table", "checksum {value:x} of the region table at byte {offset}, should be {limit:x}", at, first.checksum(), format.checksumOf(first.bytes));
        }
        if (!first.hasSignature()) return refuse(diagnostic, .corrupt, "region table", "no region table at byte {offset}", at, none, none);
        return refuse(diagnostic, .too_large, "region table", "region table with {value} entries, at most {limit}", at, first.entryCount(), format.max_table_entries);
    }

    /// What a valid table says.
    pub fn of(context: image.Context, table: Table, log: Range) block.Error!Regions {
        const diagnostic = context.diagnostic;
        const count: usize = table.entryCount();
        const ranges = context.allocator.alloc(Range, count + 1) catch return error.NoMemory;
        ranges[0] = log;
        var bat: ?Region = null;
        var metadata: ?Region = null;
        for (0..count) |index| {
            const region = table.region(index);
            const at = table.entryOffset(index);
            ranges[index + 1] = .{ .start = region.offset, .end = region.end() };
            const place = if (region.isBat()) &bat else if (region.isMetadata()) &metadata else {
                if (region.required & 1 == 0) continue;
                return refuse(diagnostic, .unsupported, "region table", "region table entry {value} is of an unknown kind and required", at, index, none);
            };
            if (place.* != null) return refuse(diagnostic, .corrupt, "region table", "region table entry {value} names the BAT or the metadata region a second time", at, index, none);
            place.* = region;
        }
        try disjoint(context, ranges, table.offset);
        return .{
            .table = table,
            .bat = bat orelse return refuse(diagnostic, .corrupt, "region table", "the region table at byte {offset} names no BAT", table.offset, none, none),
            .metadata = metadata orelse return refuse(diagnostic, .corrupt, "region table", "the region table at byte {offset} names no metadata region", table.offset, none, none),
            .ranges = ranges,
        };
    }

    fn disjoint(context: image.Context, ranges: []Range, table_offset: u64) error{Refused}!void {
        std.sort.heap(Range, ranges, {}, before);
        var last: Range = .{ .start = 0, .end = 0 };
        for (ranges) |range| {
            // An empty range has no byte to share; qemu minds it only inside of another.
            if (range.start < last.end and (range.end > range.start or range.start > last.start)) {
                return refuse(context.diagnostic, .corrupt, "region table", "VHDX region at byte {value} overlaps with another that ends at byte {limit}", table_offset, range.start, last.end);
            }
            if (range.end > last.end) last = range;
        }
    }

    fn before(_: void, a: Range, b: Range) bool {
        return a.start < b.start;
    }

    /// The log or region that shares a byte with [start, end).
    pub fn overlapping(self: *const Regions, start: u64, end: u64) ?Range {
        // The last that begins before `end`; those before it end before it begins.
        var low: usize = 0;
        var high = self.ranges.len;
        while (low < high) {
            const middle = low + (high - low) / 2;
            if (self.ranges[middle].start < end) low = middle + 1 else high = middle;
        }
        while (low > 0) {
            low -= 1;
            const range = self.ranges[low];
            if (range.overlaps(start, end)) return range;
            if (range.end > range.start) return null;
        }
        return null;
    }
};
