//! The GUID partition table: UEFI Specification 2.10, section 5.3.

const std = @import("std");
const messages = @import("messages");
const block = @import("block");
const image = @import("../image.zig");
const text = @import("../text.zig");
const Disk = @import("disk.zig").Disk;
const mbr = @import("mbr.zig");

pub const signature = "EFI PART";

/// Bytes of an entry array that are read, the specification asks for 16 KiB at least.
const max_entries_bytes = 1 << 20;
/// Partitions reported at most.
const max_partitions = 256;
/// Bytes of the array that are in memory at a time; a multiple of every entry size.
const chunk = 4096;

/// A header whose CRC and bounds are right.
const Header = struct {
    own: u64,
    other: u64,
    entries: u64,
    entry_count: u32,
    entry_size: u32,
    entries_crc: u32,
    guid: [16]u8,

    /// Null unless `bytes` (one sector) is a header that belongs at sector `own`.
    fn parse(bytes: []const u8, own: u64) ?Header {
        if (!std.mem.startsWith(u8, bytes, signature)) return null;
        const size = int(u32, bytes, 12);
        if (size < 92 or size > bytes.len) return null;
        var crc: std.hash.Crc32 = .init();
        crc.update(bytes[0..16]);
        crc.update("\x00\x00\x00\x00");
        crc.update(bytes[20..size]);
        if (crc.final() != int(u32, bytes, 16) or int(u64, bytes, 24) != own) return null;
        const header: Header = .{
            .own = own,
            .other = int(u64, bytes, 32),
            .entries = int(u64, bytes, 72),
            .entry_count = int(u32, bytes, 80),
            .entry_size = int(u32, bytes, 84),
            .entries_crc = int(u32, bytes, 88),
            .guid = bytes[56..72].*,
        };
        // 128 times a power of two, and an array of a size that somebody may have meant.
        if (header.entry_size < 128 or header.entry_size > chunk or !std.math.isPowerOfTwo(header.entry_size)) return null;
        if (@as(u64, header.entry_count) * header.entry_size > max_entries_bytes) return null;
        return header;
    }
};

fn int(comptime T: type, bytes: []const u8, at: usize) T {
    return std.mem.readInt(T, bytes[at..][0..@sizeOf(T)], .little);
}

/// Sector size in bytes of the table whose primary header lies in the disk's first 8192 bytes; null: no signature.
pub fn sectorSize(head: []const u8) ?u32 {
    for ([_]u32{ 512, 4096 }) |size| {
        if (std.mem.startsWith(u8, head[size..], signature)) return size;
    }
    return null;
}

/// Report the table and its partitions.  `head` is the disk's first 8192 bytes.
pub fn report(
    context: image.Context,
    disk: Disk,
    sink: image.Sink,
    head: []const u8,
    sector_size: u32,
    protection: mbr.Protection,
    visitor: *anyopaque,
    visit: mbr.Visit,
) block.Error!void {
    const last = disk.size() / sector_size -| 1;
    const primary: ?Header = .parse(head[sector_size..][0..sector_size], 1);
    const backup = try readBackup(context, disk, sector_size, if (primary) |found| found.other else last);
    const agree = primary != null and backup != null and backup.?.other == 1 and
        primary.?.entries_crc == backup.?.entries_crc and std.mem.eql(u8, &primary.?.guid, &backup.?.guid);
    const used = primary orelse backup orelse {
        return sink.emit(messages.InfoPartitionTable{
            .scheme = "gpt",
            .sector_size = sector_size,
            .header_valid = false,
            .backup_valid = false,
            .protective = protection == .whole,
        });
    };
    var array: Array = .{ .disk = disk, .header = used, .sector_size = sector_size };
    const intact = try array.crc(context);
    var guid: [36]u8 = undefined;
    try sink.emit(messages.InfoPartitionTable{
        .scheme = "gpt",
        .sector_size = sector_size,
        .identifier = text.guid(&guid, &used.guid),
        .header_valid = primary != null,
        .entries_valid = intact,
        .backup_valid = agree,
        .protective = protection == .whole,
    });
    try array.emit(sink, visitor, visit);
}

fn readBackup(context: image.Context, disk: Disk, sector_size: u32, at: u64) block.Error!?Header {
    if (at >= disk.size() / sector_size) return null;
    const bytes = context.allocator.alloc(u8, sector_size) catch return error.NoMemory;
    if (!try disk.read(&.{.{ .offset = at * sector_size, .buffer = bytes }})) return null;
    return .parse(bytes, at);
}

/// The entry array, a chunk at a time.
const Array = struct {
    disk: Disk,
    header: Header,
    sector_size: u32,
    buffer: []u8 = &.{},
    /// Which chunk is in the buffer.
    loaded: ?u64 = null,

    fn size(self: *const Array) u64 {
        return @as(u64, self.header.entry_count) * self.header.entry_size;
    }

    /// The bytes of chunk `index`; null when they are not to be had.
    fn load(self: *Array, index: u64) block.Error!?[]const u8 {
        const at = index * chunk;
        const length: usize = @intCast(@min(chunk, self.size() - at));
        if (self.loaded != index) {
            self.loaded = null;
            const offset = self.header.entries *| self.sector_size +| at;
            if (!try self.disk.read(&.{.{ .offset = offset, .buffer = self.buffer[0..length] }})) return null;
            self.loaded = index;
        }
        return self.buffer[0..length];
    }

    fn crc(self: *Array, context: image.Context) block.Error!bool {
        self.buffer = context.allocator.alloc(u8, chunk) catch return error.NoMemory;
        var sum: std.hash.Crc32 = .init();
        var index: u64 = 0;
        while (index * chunk < self.size()) : (index += 1) sum.update(try self.load(index) orelse return false);
        return sum.final() == self.header.entries_crc;
    }

    fn emit(self: *Array, sink: image.Sink, visitor: *anyopaque, visit: mbr.Visit) block.Error!void {
        const per_chunk = chunk / self.header.entry_size;
        var reported: usize = 0;
        for (0..self.header.entry_count) |index| {
            const bytes = try self.load(index / per_chunk) orelse return;
            const entry = bytes[index % per_chunk * self.header.entry_size ..][0..128];
            if (std.mem.allEqual(u8, entry[0..16], 0)) continue;
            if (reported == max_partitions) {
                return sink.emit(messages.InfoNote{ .code = "gpt-many-partitions", .message = "more partitions than are reported" });
            }
            reported += 1;
            try self.emitOne(sink, index + 1, entry, visitor, visit);
        }
    }

    fn emitOne(self: *Array, sink: image.Sink, index: u64, entry: *const [128]u8, visitor: *anyopaque, visit: mbr.Visit) block.Error!void {
        const first = int(u64, entry, 32);
        const last = int(u64, entry, 40);
        const start = first *| self.sector_size;
        const length = if (last < first) 0 else (last - first +| 1) *| self.sector_size;
        const outside = last < first or start +| length > self.disk.size();
        var kind: [36]u8 = undefined;
        var own: [36]u8 = undefined;
        // Names are at most 36 UTF-16 units, 108 bytes of UTF-8.
        var room: [108]u8 = undefined;
        var fixed: std.heap.FixedBufferAllocator = .init(&room);
        const name = text.fromUtf16(fixed.allocator(), entry[56..128], .little) catch unreachable;
        const type_guid = text.guid(&kind, entry[0..16]);
        try sink.emit(messages.InfoPartition{
            .scheme = "gpt",
            .index = index,
            .kind = "gpt",
            .type = type_guid,
            .type_name = typeName(type_guid),
            .start = start,
            .length = length,
            .active = int(u64, entry, 48) & 4 != 0,
            .name = if (name.len == 0) null else name,
            .identifier = text.guid(&own, entry[16..32]),
            .outside = outside,
        });
        if (!outside) try visit(visitor, start, length);
    }
};

fn typeName(guid: []const u8) ?[]const u8 {
    const known = [_][2][]const u8{
        .{ "c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "EFI system" },
        .{ "21686148-6449-6e6f-744e-656564454649", "BIOS boot" },
        .{ "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7", "Microsoft basic data" },
        .{ "e3c9e316-0b5c-4db8-817d-f92df00215ae", "Microsoft reserved" },
        .{ "de94bba4-06d1-4d40-a16a-bfd50179d6ac", "Windows recovery" },
        .{ "0fc63daf-8483-4772-8e79-3d69d8477de4", "Linux filesystem" },
        .{ "4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "Linux root (x86-64)" },
        .{ "b921b045-1df0-41c3-af44-4c6f280d3fae", "Linux root (ARM64)" },
        .{ "bc13c2ff-59e6-4262-a352-b275fd6f7172", "Linux extended boot" },
        .{ "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f", "Linux swap" },
        .{ "e6d6d379-f507-44c2-a23c-238f2a3df928", "Linux LVM" },
        .{ "a19d880f-05fc-4d3b-a006-743f0f84911e", "Linux RAID" },
        .{ "7c3457ef-0000-11aa-aa11-00306543ecac", "Apple APFS" },
    };
    for (known) |pair| if (std.mem.eql(u8, pair[0], guid)) return pair[1];
    return null;
}
