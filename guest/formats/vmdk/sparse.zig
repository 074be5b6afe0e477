//! A sparse extent: hosted ("KDMV"), ESX ("COWD") or seSparse.  A directory of tables of grains, all three of them.
//!
//! VMware Virtual Disk Format 5.0, "Hosted Sparse Extents" and "ESX Server Sparse Extents"; seSparse is not published,
//! what is known of it is what qemu reads.  What is opened and what is refused is as in qemu.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const format = @import("format.zig");
const refuse = @import("refusal.zig").refuse;
const none = @import("../qcow2/template.zig").none;

const sector = format.sector;

pub const Kind = enum { hosted, cowd, sesparse };

/// Sectors of a grain at most: 1 GiB.
const max_grain_sectors = 0x200000;
/// Entries of a directory at most.
const max_directory = 32 << 20;
/// Entries of a hosted extent's table at most.
const max_table = 512;
/// Entries of an ESX extent's table.
const cowd_table = 4096;
/// Places are at most this sector, so that none wraps in bytes: qemu reads nothing behind it.
const max_place = ((1 << 63) - (1 << 30)) / sector;

/// The header of an ESX extent (COWDisk_Header): byte offsets of 32-bit numbers.
pub const cowd = struct {
    pub const version = 4;
    pub const flags = 8;
    pub const capacity = 12;
    pub const grain_size = 16;
    pub const directory = 20;
    pub const directory_entries = 24;
    pub const free_sector = 28;
    /// Sectors.
    pub const header_sectors = 4;
};

/// The constant header of a seSparse extent: byte offsets of 64-bit numbers; places and sizes are in sectors.
pub const sesparse = struct {
    pub const magic: u64 = 0x0000_0000_cafe_babe;
    pub const version_2_1: u64 = 0x0000_0002_0000_0001;
    pub const version = 8;
    pub const capacity = 16;
    pub const grain_size = 24;
    pub const table_size = 32;
    pub const flags = 40;
    pub const reserved = 48;
    pub const volatile_header = 80;
    pub const journal_header = 96;
    pub const journal = 112;
    pub const directory = 128;
    pub const tables = 144;
    pub const free_bitmap = 160;
    pub const backmap = 176;
    pub const grains = 192;
    pub const padding = 208;

    pub const volatile_magic: u64 = 0x0000_0000_cafe_cafe;
    pub const replay_journal = 24;
    pub const volatile_padding = 32;

    const grain_sectors = 8;
    const table_sectors = 64;
};

/// An entry of a grain table.
pub const Place = union(enum) {
    unallocated,
    zero,
    /// First byte in the extent's file.
    data: u64,
    /// No such entry exists.
    invalid,
};

pub const Sparse = struct {
    device: block.Device,
    /// Number of the device.
    number: u32,
    kind: Kind,
    /// The header that counts: the footer of a stream whose directory is at the end.
    header: *const [sector]u8,
    /// Byte offset of the header that counts.
    header_offset: u64 = 0,
    /// Sectors of disk.
    sectors: u64,
    grain_sectors: u64,
    /// Entries of a table.
    table_entries: u32,
    /// Byte offset of the directory, and how many entries it has.
    directory: u64,
    directory_entries: u64,
    /// Byte offset of the redundant directory; hosted only.
    redundant: ?u64 = null,
    compressed: bool = false,
    markers: bool = false,
    zeroed_grain: bool = false,
    /// First sectors of tables and grains; seSparse only.
    tables: u64 = 0,
    grains: u64 = 0,

    pub fn int(self: *const Sparse, comptime T: type, at: usize) T {
        return std.mem.readInt(T, self.header[at..][0..@sizeOf(T)], .little);
    }

    /// Bytes of an entry of directory or table.
    pub fn entryBytes(self: *const Sparse) u8 {
        return if (self.kind == .sesparse) 8 else format.entry_size;
    }

    pub fn tableBytes(self: *const Sparse) usize {
        return @as(usize, self.table_entries) * self.entryBytes();
    }

    pub fn grainBytes(self: *const Sparse) u64 {
        return self.grain_sectors * sector;
    }

    /// Bytes of disk that an entry of the directory stands for; below 2^43.
    pub fn tableSpan(self: *const Sparse) u64 {
        return self.grainBytes() * self.table_entries;
    }

    /// Bytes of disk.
    pub fn size(self: *const Sparse) u64 {
        return self.sectors * sector;
    }

    /// The number in the first bytes of `bytes`, an entry.
    pub fn entry(self: *const Sparse, bytes: []const u8) u64 {
        if (self.kind == .sesparse) return std.mem.readInt(u64, bytes[0..8], .little);
        return std.mem.readInt(u32, bytes[0..4], .little);
    }

    /// The table that an entry of the directory names: its first byte.
    pub fn table(self: *const Sparse, value: u64) Place {
        if (value == 0) return .unallocated;
        if (self.kind != .sesparse) return .{ .data = value * sector };
        // The top nibble is 1, and no disk is so large that the next 28 bits are needed.
        if (value >> 32 != 0x1000_0000) return .invalid;
        const first = self.tables + (value & 0xffff_ffff) * sesparse.table_sectors;
        if (first > 0xffff_ffff) return .invalid;
        return if (first == 0) .unallocated else .{ .data = first * sector };
    }

    /// The grain that an entry of a table names.
    pub fn grain(self: *const Sparse, value: u64) Place {
        if (self.kind != .sesparse) {
            if (value == 0) return .unallocated;
            if (value == format.zeroed_entry and self.zeroed_grain) return .zero;
            return .{ .data = value * sector };
        }
        switch (value >> 60) {
            0 => return if (value == 0) .unallocated else .invalid,
            // Unmapped by SCSI, and zero.
            1, 2 => return .zero,
            3 => {
                const index = (value >> 48 & 0xfff) | (value & 0xffff_ffff_ffff) << 12;
                const first = std.math.mul(u64, index, sesparse.grain_sectors) catch return .invalid;
                const place = std.math.add(u64, first, self.grains) catch return .invalid;
                return if (place > max_place) .invalid else .{ .data = place * sector };
            },
            else => return .invalid,
        }
    }
};

fn readHeader(context: image.Context, device: block.Device, offset: u64) block.Error!*const [sector]u8 {
    const bytes = context.allocator.create([sector]u8) catch return error.NoMemory;
    try device.readPadded(offset, bytes);
    return bytes;
}

/// Whether `bytes` begin with the magic of a hosted or ESX extent.
pub fn hasMagic(bytes: []const u8) bool {
    return std.mem.startsWith(u8, bytes, format.magic) or std.mem.startsWith(u8, bytes, format.cowd_magic);
}

/// Whether `bytes` begin with the magic and version of a seSparse extent.
pub fn isSeSparse(bytes: []const u8) bool {
    return bytes.len >= 16 and std.mem.readInt(u64, bytes[0..8], .little) == sesparse.magic and
        std.mem.readInt(u64, bytes[8..16], .little) == sesparse.version_2_1;
}

/// Open a hosted or ESX extent.
pub fn open(context: image.Context, device: block.Device) block.Error!Sparse {
    const header = try readHeader(context, device, 0);
    if (std.mem.startsWith(u8, header, format.cowd_magic)) return openCowd(context, device, header);
    if (std.mem.startsWith(u8, header, format.magic)) return openHosted(context, device, header);
    return refuse(context.diagnostic, .corrupt, "header", "Image not in VMDK format: a sparse extent without a magic", 0, std.mem.readInt(u32, header[0..4], .little), none);
}

fn openHosted(context: image.Context, device: block.Device, first: *const [sector]u8) block.Error!Sparse {
    const at = format.header;
    var result: Sparse = .{
        .device = device,
        .number = context.number,
        .kind = .hosted,
        .header = first,
        .sectors = 0,
        .grain_sectors = 0,
        .table_entries = 0,
        .directory = 0,
        .directory_entries = 0,
    };
    if (result.int(u64, at.directory) == format.directory_at_end) try useFooter(context, &result);
    const diagnostic = context.diagnostic;
    const version = result.int(u32, at.version);
    if (version > 3)
        return refuse(diagnostic, .unsupported, "header", "Unsupported VMDK version {value}", result.header_offset + at.version, version, 3);
    result.table_entries = result.int(u32, at.table_entries);
    if (result.table_entries > max_table)
        return refuse(diagnostic, .too_large, "header", "L2 table size too big: {value} entries, at most {limit}", result.header_offset + at.table_entries, result.table_entries, max_table);
    result.grain_sectors = result.int(u64, at.grain_size);
    if (result.table_entries == 0 or result.grain_sectors == 0)
        return refuse(diagnostic, .corrupt, "header", "L1 entry size is invalid: {value} grains of {limit} sectors", result.header_offset + at.grain_size, result.table_entries, result.grain_sectors);
    const overhead = result.int(u64, at.overhead);
    if (overhead > std.mem.alignForward(u64, device.length, sector) / sector)
        return refuse(diagnostic, .out_of_bounds, "header", "File truncated, expecting at least {value} sectors, file has {limit} bytes", result.header_offset + at.overhead, overhead, device.length);
    try checkGrain(context, &result, at.grain_size);
    result.sectors = result.int(u64, at.capacity);
    try checkCapacity(context, &result, at.capacity);
    result.directory_entries = std.math.divCeil(u64, result.sectors, result.grain_sectors * result.table_entries) catch unreachable;
    const flags = result.int(u32, at.flags);
    result.directory = try placeOf(context, &result, at.directory);
    if (flags & format.flag.redundant != 0 and result.int(u64, at.redundant_directory) != 0)
        result.redundant = try placeOf(context, &result, at.redundant_directory);
    try checkDirectory(context, &result);
    result.compressed = result.int(u16, at.compression_algorithm) == format.compression.deflate;
    result.markers = flags & format.flag.markers != 0;
    result.zeroed_grain = flags & format.flag.zeroed_grain != 0;
    return result;
}

/// The last three sectors: footer marker, footer, end-of-stream marker.  The footer takes the place of the header.
fn useFooter(context: image.Context, result: *Sparse) block.Error!void {
    const end = std.mem.alignForward(u64, result.device.length, sector);
    if (end < 3 * sector)
        return refuse(context.diagnostic, .out_of_bounds, "footer", "Failed to read footer: the file has {value} bytes", none, result.device.length, 3 * sector);
    const start = end - 3 * sector;
    const bytes = context.allocator.create([3 * sector]u8) catch return error.NoMemory;
    try result.device.readPadded(start, bytes);
    const marker = format.metadata_marker;
    const before = bytes[0..sector];
    const after = bytes[2 * sector ..];
    const kind = std.mem.readInt(u32, before[marker.kind..][0..4], .little);
    const good = std.mem.startsWith(u8, bytes[sector..], format.magic) and
        std.mem.readInt(u32, before[marker.length..][0..4], .little) == 0 and
        kind == @intFromEnum(format.MarkerKind.footer) and
        std.mem.allEqual(u8, after[0..16], 0);
    if (!good) return refuse(context.diagnostic, .corrupt, "footer", "Invalid footer at byte {offset}", start + sector, kind, @intFromEnum(format.MarkerKind.footer));
    result.header = bytes[sector..][0..sector];
    result.header_offset = start + sector;
}

fn openCowd(context: image.Context, device: block.Device, header: *const [sector]u8) block.Error!Sparse {
    var result: Sparse = .{
        .device = device,
        .number = context.number,
        .kind = .cowd,
        .header = header,
        .sectors = 0,
        .grain_sectors = 0,
        .table_entries = cowd_table,
        .directory = 0,
        .directory_entries = 0,
    };
    result.sectors = result.int(u32, cowd.capacity);
    result.grain_sectors = result.int(u32, cowd.grain_size);
    result.directory = @as(u64, result.int(u32, cowd.directory)) * sector;
    result.directory_entries = result.int(u32, cowd.directory_entries);
    if (result.grain_sectors == 0)
        return refuse(context.diagnostic, .corrupt, "header", "Invalid granularity, image may be corrupt: grains of {value} sectors", cowd.grain_size, 0, none);
    try checkGrain(context, &result, cowd.grain_size);
    try checkDirectory(context, &result);
    return result;
}

/// Open a seSparse extent.
pub fn openSeSparse(context: image.Context, device: block.Device) block.Error!Sparse {
    const diagnostic = context.diagnostic;
    var result: Sparse = .{
        .device = device,
        .number = context.number,
        .kind = .sesparse,
        .header = try readHeader(context, device, 0),
        .sectors = 0,
        .grain_sectors = sesparse.grain_sectors,
        .table_entries = sesparse.table_sectors * sector / 8,
        .directory = 0,
        .directory_entries = 0,
    };
    const magic = result.int(u64, 0);
    if (magic != sesparse.magic)
        return refuse(diagnostic, .corrupt, "constant header", "Bad const header magic: {value:x}, should be {limit:x}", 0, magic, sesparse.magic);
    const fixed = [_]struct { at: u8, value: u64, text: []const u8 }{
        .{ .at = sesparse.version, .value = sesparse.version_2_1, .text = "version" },
        .{ .at = sesparse.grain_size, .value = sesparse.grain_sectors, .text = "grain size" },
        .{ .at = sesparse.table_size, .value = sesparse.table_sectors, .text = "grain table size" },
        .{ .at = sesparse.flags, .value = 0, .text = "flags" },
        .{ .at = sesparse.reserved, .value = 0, .text = "reserved bits" },
        .{ .at = sesparse.reserved + 8, .value = 0, .text = "reserved bits" },
        .{ .at = sesparse.reserved + 16, .value = 0, .text = "reserved bits" },
        .{ .at = sesparse.reserved + 24, .value = 0, .text = "reserved bits" },
    };
    for (fixed) |one| {
        const value = result.int(u64, one.at);
        if (value != one.value) return diagnostic.refuse(
            .unsupported,
            .{ .format = format.name, .structure = "constant header", .offset = one.at, .value = value, .limit = one.value },
            "vmdk: Unsupported {s}: {x}, should be {x}",
            .{ one.text, value, one.value },
        );
    }
    if (!std.mem.allEqual(u8, result.header[sesparse.padding..], 0))
        return refuse(diagnostic, .unsupported, "constant header", "Unsupported non-zero const header padding", sesparse.padding, none, none);

    const second = try placeOf(context, &result, sesparse.volatile_header);
    const changing = try readHeader(context, device, second);
    const its_magic = std.mem.readInt(u64, changing[0..8], .little);
    if (its_magic != sesparse.volatile_magic)
        return refuse(diagnostic, .corrupt, "volatile header", "Bad volatile header magic: {value:x}, should be {limit:x}", second, its_magic, sesparse.volatile_magic);
    const replay = std.mem.readInt(u64, changing[sesparse.replay_journal..][0..8], .little);
    if (replay != 0)
        return refuse(diagnostic, .unsupported, "volatile header", "Image is dirty, Replaying journal not supported", second + sesparse.replay_journal, replay, 0);
    if (!std.mem.allEqual(u8, changing[sesparse.volatile_padding..], 0))
        return refuse(diagnostic, .unsupported, "volatile header", "Unsupported non-zero volatile header padding", second + sesparse.volatile_padding, none, none);

    result.sectors = result.int(u64, sesparse.capacity);
    try checkCapacity(context, &result, sesparse.capacity);
    result.directory = try placeOf(context, &result, sesparse.directory);
    const directory_sectors = result.int(u64, sesparse.directory + 8);
    result.directory_entries = directory_sectors *| (sector / 8);
    try checkDirectory(context, &result);
    result.tables = try placeOf(context, &result, sesparse.tables) / sector;
    result.grains = try placeOf(context, &result, sesparse.grains) / sector;
    return result;
}

/// Byte offset of the structure whose first sector is in the header at `at`.
fn placeOf(context: image.Context, result: *const Sparse, at: usize) error{Refused}!u64 {
    const first = result.int(u64, at);
    if (first > max_place)
        return refuse(context.diagnostic, .out_of_bounds, "header", "a structure at sector {value}, the file has {limit} bytes", result.header_offset + at, first, result.device.length);
    return first * sector;
}

fn checkGrain(context: image.Context, result: *const Sparse, at: usize) error{Refused}!void {
    if (result.grain_sectors > max_grain_sectors)
        return refuse(context.diagnostic, .too_large, "header", "Invalid granularity, image may be corrupt: grains of {value} sectors, at most {limit}", result.header_offset + at, result.grain_sectors, max_grain_sectors);
}

fn checkCapacity(context: image.Context, result: *const Sparse, at: usize) error{Refused}!void {
    if (result.sectors > max_place)
        return refuse(context.diagnostic, .too_large, "header", "a disk of {value} sectors is above the limit of {limit}", result.header_offset + at, result.sectors, max_place);
}

fn checkDirectory(context: image.Context, result: *const Sparse) error{Refused}!void {
    if (result.directory_entries > max_directory)
        return refuse(context.diagnostic, .too_large, "grain directory", "L1 size too big: {value} entries, at most {limit}", result.directory, result.directory_entries, max_directory);
    const last = @max(result.directory, result.redundant orelse 0);
    if (last + result.directory_entries * result.entryBytes() > max_place * sector)
        return refuse(context.diagnostic, .out_of_bounds, "grain directory", "Could not read l1 table: {value} entries at byte {offset}, file has {limit}", last, result.directory_entries, result.device.length);
}
