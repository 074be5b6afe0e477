//! The log: the newest complete sequence of entries, and the writes that it stands for.
//!
//! [MS-VHDX] 2.3.  A log is a ring of sectors of 4 KiB.  An entry is some sectors of descriptors and a sector of data for
//! each data descriptor; a valid one has its signatures, sequence numbers, GUID and checksum right.  The work is one walk
//! over the part of the log that lies in the file: inside of a valid entry there is no sector that could begin another.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const none = @import("../qcow2/template.zig").none;
const format = @import("format.zig");
const Header = @import("headers.zig").Header;
const patched = @import("patched.zig");
const refuse = @import("vhdx.zig").refuse;

const sector_size = format.log_sector;
/// Sectors of an entry behind its data that are let pass: writers for disks of large sectors may align entries.
const max_padding = 15;

/// What was found in a log.
pub const Log = struct {
    /// Where it lies, whether in use or not.
    offset: u64,
    /// Bytes.
    length: u32,
    state: State = .empty,
    /// Entries of the sequence that was replayed, and what they write.
    entries: u64 = 0,
    patches: []const patched.Patch = &.{},
    /// Sequence number of the newest entry.
    sequence: u64 = 0,
    /// From the newest entry: bytes that the file had at least when it was written, and bytes that all structures need.
    flushed_file_offset: u64 = 0,
    last_file_offset: u64 = 0,

    pub const State = enum {
        /// The header's GUID is zero, or the length is.
        empty,
        /// The header says there is something, and no entry is valid: the crash came before the first of them.
        nothing_valid,
        /// Writes that have not reached their places.
        dirty,
    };
};

/// Check the header's view of its log as qemu does, find the active sequence and collect its writes.
pub fn load(context: image.Context, device: block.Device, header: *const Header) block.Error!Log {
    const diagnostic = context.diagnostic;
    const offset = header.logOffset();
    const length = header.logLength();
    if (offset < format.header_section or offset % format.alignment != 0) {
        return refuse(diagnostic, .corrupt, "log", "the log lies at byte {value}, not at a multiple of 1 MiB behind the header section", header.offset, offset, none);
    }
    if (header.logVersion() != format.log_version) {
        return refuse(diagnostic, .unsupported, "log", "log version {value}, only {limit} is known", header.offset, header.logVersion(), format.log_version);
    }
    var log: Log = .{ .offset = offset, .length = length };
    if (std.mem.eql(u8, header.logGuid(), &format.guids.none) or length == 0) return log;
    if (length % format.alignment != 0) {
        return refuse(diagnostic, .corrupt, "log", "the log has {value} bytes, which is no multiple of 1 MiB", header.offset, length, none);
    }
    if (std.math.maxInt(i64) - offset < length) {
        return refuse(diagnostic, .out_of_bounds, "log", "the log of {value} bytes at byte {offset} ends behind 2^63-1", offset, length, none);
    }
    var ring: Ring = try .init(context, device, header, offset, length);
    const found = try ring.search(context);
    const sequence = found orelse {
        log.state = .nothing_valid;
        return log;
    };
    const head = sequence.head;
    if (head.flushedFileOffset() > format.lengthOf(device)) {
        return refuse(diagnostic, .out_of_bounds, "log", "The image has been truncated: its log was written when it had {value} bytes, file has {limit}", offset, head.flushedFileOffset(), device.length);
    }
    if (head.lastFileOffset() > std.math.maxInt(i64)) {
        return refuse(diagnostic, .too_large, "log", "the log wants a file of {value} bytes, the limit is {limit}", offset, head.lastFileOffset(), std.math.maxInt(i64));
    }
    log.state = .dirty;
    log.entries = sequence.entries;
    log.sequence = head.sequence();
    log.flushed_file_offset = head.flushedFileOffset();
    log.last_file_offset = head.lastFileOffset();
    log.patches = try ring.collect(context, sequence);
    return log;
}

/// A log entry's header.
const EntryHeader = struct {
    bytes: [format.log_header_size]u8,

    fn checksum(self: *const EntryHeader) u32 {
        return format.int(u32, &self.bytes, 4);
    }
    /// Bytes of the whole entry.
    fn length(self: *const EntryHeader) u32 {
        return format.int(u32, &self.bytes, 8);
    }
    /// Where the oldest entry lies whose writes were not flushed yet, in bytes from the start of the log.
    fn tail(self: *const EntryHeader) u32 {
        return format.int(u32, &self.bytes, 12);
    }
    fn sequence(self: *const EntryHeader) u64 {
        return format.int(u64, &self.bytes, 16);
    }
    fn descriptors(self: *const EntryHeader) u32 {
        return format.int(u32, &self.bytes, 24);
    }
    fn flushedFileOffset(self: *const EntryHeader) u64 {
        return format.int(u64, &self.bytes, 48);
    }
    fn lastFileOffset(self: *const EntryHeader) u64 {
        return format.int(u64, &self.bytes, 56);
    }
    fn sectors(self: *const EntryHeader) u64 {
        return self.length() / sector_size;
    }
    /// The header takes the room of two descriptors.
    fn descriptorSectors(self: *const EntryHeader) u64 {
        return (@as(u64, self.descriptors()) + 2 + 127) / 128;
    }
};

const Descriptor = struct {
    bytes: *const [format.log_descriptor_size]u8,

    fn isData(self: Descriptor) bool {
        return std.mem.startsWith(u8, self.bytes, format.data_descriptor_signature);
    }
    fn offset(self: Descriptor) u64 {
        return format.int(u64, self.bytes, 16);
    }
    /// Bytes to zero; nothing of the kind in a data descriptor.
    fn zeroLength(self: Descriptor) u64 {
        return format.int(u64, self.bytes, 8);
    }
    fn isValid(self: Descriptor, sequence: u64) bool {
        if (format.int(u64, self.bytes, 24) != sequence or self.offset() % sector_size != 0) return false;
        if (self.isData()) return true;
        return std.mem.startsWith(u8, self.bytes, format.zero_signature) and self.zeroLength() % sector_size == 0;
    }
};

/// The active sequence: from its tail to its head.
const Sequence = struct {
    /// Sector of the first entry to replay.
    first: u64,
    entries: u64,
    head: EntryHeader,
};

const Ring = struct {
    device: block.Device,
    guid: *const [16]u8,
    offset: u64,
    /// Sectors.
    count: u64,
    window: []u8,
    window_first: u64 = 0,
    window_count: u64 = 0,

    /// The usual log of 1 MiB is read once.
    const window_sectors = 256;

    fn init(context: image.Context, device: block.Device, header: *const Header, offset: u64, length: u32) block.Error!Ring {
        return .{
            .device = device,
            .guid = header.logGuid(),
            .offset = offset,
            .count = length / sector_size,
            .window = context.allocator.alloc(u8, window_sectors * sector_size) catch return error.NoMemory,
        };
    }

    /// A sector of the log, until the next one is asked for.
    fn sector(self: *Ring, index: u64) block.Error!*const [sector_size]u8 {
        if (index < self.window_first or index - self.window_first >= self.window_count) {
            const wanted: u64 = @min(window_sectors, self.count - index);
            try self.device.readPadded(self.offset + index * sector_size, self.window[0..@intCast(wanted * sector_size)]);
            self.window_first = index;
            self.window_count = wanted;
        }
        const at: usize = @intCast((index - self.window_first) * sector_size);
        return self.window[at..][0..sector_size];
    }

    fn after(self: *const Ring, start: u64, sectors: u64) u64 {
        return (start + sectors) % self.count;
    }

    /// The newest valid sequence, null when no entry is valid.
    fn search(self: *Ring, context: image.Context) block.Error!?Sequence {
        // What lies behind the end of the file reads as zero, and no entry begins there.
        const inside = @min(self.count, (self.device.length -| self.offset) / sector_size);
        var found: ?Sequence = null;
        var stray: ?EntryHeader = null;
        var tail: u64 = 0;
        while (tail < inside) {
            const run = try self.runFrom(tail);
            if (run.entries == 0) {
                tail += 1;
                continue;
            }
            // A part of a run has the same head: when its tail lies outside of the run, it lies outside of the part.
            if (run.sequence) |sequence| {
                if (found == null or sequence.head.sequence() > found.?.head.sequence()) found = sequence;
            } else stray = run.head;
            tail += run.sectors;
        }
        if (found == null) if (stray) |head| {
            return refuse(context.diagnostic, .corrupt, "log", "the newest log entry says that its sequence begins at byte {value} of the log, where no entry of it lies", self.offset, head.tail(), none);
        };
        return found;
    }

    const Run = struct {
        entries: u64 = 0,
        sectors: u64 = 0,
        head: EntryHeader = undefined,
        sequence: ?Sequence = null,
    };

    /// The longest run of entries from sector `start` on whose numbers count up.
    fn runFrom(self: *Ring, start: u64) block.Error!Run {
        var run: Run = .{};
        while (run.sectors < self.count) {
            const entry = try self.validEntry(self.after(start, run.sectors), self.count - run.sectors) orelse break;
            if (run.entries > 0 and entry.sequence() != run.head.sequence() +% 1) break;
            run.head = entry;
            run.entries += 1;
            run.sectors += entry.sectors();
        }
        if (run.entries == 0) return run;
        // Which of the entries is the tail?
        var position: u64 = 0;
        for (0..@intCast(run.entries)) |index| {
            const here = self.after(start, position);
            if (here * sector_size == run.head.tail()) {
                run.sequence = .{ .first = here, .entries = run.entries - index, .head = run.head };
                break;
            }
            position += format.int(u32, try self.sector(here), 8) / sector_size;
        }
        return run;
    }

    /// The header of the entry at sector `start` when all of the entry is valid; it has `room` sectors at most.
    fn validEntry(self: *Ring, start: u64, room: u64) block.Error!?EntryHeader {
        const first = try self.sector(start);
        if (!std.mem.startsWith(u8, first, format.log_signature)) return null;
        const header: EntryHeader = .{ .bytes = first[0..format.log_header_size].* };
        const sectors = header.sectors();
        const with_descriptors = header.descriptorSectors();
        if (header.length() % sector_size != 0 or sectors > room or sectors < with_descriptors) return null;
        if (header.sequence() == 0 or !format.isGuid(first, 32, self.guid)) return null;

        var crc: format.Crc = .init();
        var data: u64 = 0;
        for (0..@intCast(with_descriptors)) |index| {
            const bytes = try self.sector(self.after(start, index));
            var descriptors: Descriptors = .{ .sector = bytes, .header = &header, .index = index };
            while (descriptors.next()) |descriptor| {
                if (!descriptor.isValid(header.sequence())) return null;
                data += @intFromBool(descriptor.isData());
            }
            if (index == 0) {
                crc.update(bytes[0..4]);
                crc.update(&@as([4]u8, @splat(0)));
                crc.update(bytes[8..]);
            } else crc.update(bytes);
        }
        const used = with_descriptors + data;
        if (sectors < used or sectors - used > max_padding) return null;
        for (@intCast(with_descriptors)..@intCast(sectors)) |index| {
            const bytes = try self.sector(self.after(start, index));
            if (index < used and !isDataSector(bytes, header.sequence())) return null;
            crc.update(bytes);
        }
        return if (crc.final() == header.checksum()) header else null;
    }

    /// The writes of a sequence in their order.
    fn collect(self: *Ring, context: image.Context, sequence: Sequence) block.Error![]const patched.Patch {
        var patches: std.ArrayList(patched.Patch) = .empty;
        var position = sequence.first;
        for (0..@intCast(sequence.entries)) |_| {
            const header: EntryHeader = .{ .bytes = (try self.sector(position))[0..format.log_header_size].* };
            var data = header.descriptorSectors();
            for (0..@intCast(header.descriptorSectors())) |index| {
                var descriptors: Descriptors = .{ .sector = try self.sector(self.after(position, index)), .header = &header, .index = index };
                while (descriptors.next()) |descriptor| {
                    const patch = try self.patchOf(context, descriptor, self.after(position, data));
                    data += @intFromBool(descriptor.isData());
                    if (patch.end > patch.start) patches.append(context.allocator, patch) catch return error.NoMemory;
                }
            }
            position = self.after(position, header.sectors());
        }
        return patches.items;
    }

    fn patchOf(self: *const Ring, context: image.Context, descriptor: Descriptor, data_sector: u64) block.Error!patched.Patch {
        const offset = descriptor.offset();
        const length = if (descriptor.isData()) sector_size else descriptor.zeroLength();
        if (offset > std.math.maxInt(i64) or length > std.math.maxInt(i64) - offset) {
            return refuse(context.diagnostic, .too_large, "log", "the log writes {value} bytes at byte {offset}, behind {limit}", offset, length, std.math.maxInt(i64));
        }
        return .{
            .start = offset,
            .end = offset + length,
            .source = if (descriptor.isData()) self.offset + data_sector * sector_size else null,
            .leading = descriptor.bytes[8..16].*,
            .trailing = descriptor.bytes[4..8].*,
        };
    }
};

/// The descriptors in one sector of an entry.
const Descriptors = struct {
    sector: *const [sector_size]u8,
    header: *const EntryHeader,
    /// Of the sector in the entry.
    index: u64,
    taken: u64 = 0,

    fn next(self: *Descriptors) ?Descriptor {
        const skipped: u64 = if (self.index == 0) 2 else 0;
        const before = if (self.index == 0) 0 else self.index * 128 - 2;
        if (self.taken == 128 - skipped or before + self.taken >= self.header.descriptors()) return null;
        const start: usize = @intCast((skipped + self.taken) * format.log_descriptor_size);
        self.taken += 1;
        return .{ .bytes = self.sector[start..][0..format.log_descriptor_size] };
    }
};

fn isDataSector(bytes: *const [sector_size]u8, sequence: u64) bool {
    return std.mem.startsWith(u8, bytes, format.data_sector_signature) and
        format.int(u32, bytes, 4) == @as(u32, @truncate(sequence >> 32)) and
        format.int(u32, bytes, sector_size - 4) == @as(u32, @truncate(sequence));
}
