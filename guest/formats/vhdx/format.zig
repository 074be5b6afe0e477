//! Numbers of the VHDX format: magic values, GUIDs, offsets, limits, the checksum.
//!
//! [MS-VHDX] Virtual Hard Disk v2 (VHDX) File Format, revision 8.0.  Everything is little endian; a GUID is stored with
//! its first three groups swapped.

const std = @import("std");
const block = @import("block");

pub const kib = 1 << 10;
pub const mib = 1 << 20;

/// Driver name, as in qemu.
pub const name = "vhdx";

/// 2.2.1: the file type identifier at byte 0, and the creator's UTF-16 text behind it.
pub const file_signature = "vhdxfile";
pub const creator_offset = 8;
pub const creator_size = 512;

/// 2.2: everything below 1 MiB is the header section.
pub const header_section = mib;
/// 2.2.2: two headers; the checksum covers 4 KiB.
pub const header_offsets = [2]u64{ 64 * kib, 128 * kib };
pub const header_size = 4 * kib;
pub const header_signature = "head";
pub const header_version = 1;
pub const log_version = 0;

/// 2.2.3: two region tables of 64 KiB.
pub const region_table_offsets = [2]u64{ 192 * kib, 256 * kib };
pub const region_table_size = 64 * kib;
pub const region_signature = "regi";
pub const region_header_size = 16;
pub const region_entry_size = 32;
/// Of a region table and of a metadata table.
pub const max_table_entries = 2047;

/// Regions and the log begin and end at multiples of this; so do payload and sector bitmap blocks.
pub const alignment = mib;

/// 2.3: log entries consist of sectors of 4 KiB.
pub const log_sector = 4 * kib;
pub const log_signature = "loge";
pub const log_header_size = 64;
pub const log_descriptor_size = 32;
pub const zero_signature = "zero";
pub const data_descriptor_signature = "desc";
pub const data_sector_signature = "data";

/// 2.6.1: the table at the start of the metadata region.
pub const metadata_signature = "metadata";
pub const metadata_table_size = 64 * kib;
pub const metadata_header_size = 32;
pub const metadata_entry_size = 32;
pub const max_item_size = mib;
pub const max_user_items = 1024;

/// 2.6.2.1: bytes of a payload block, a power of two.
pub const min_block_size = mib;
pub const max_block_size = 256 * mib;
/// 2.6.2.2: 64 TiB.
pub const max_disk_size: u64 = 64 << 40;
/// 2.4: sectors of the virtual disk that a sector bitmap block of 1 MiB describes.
pub const sectors_per_chunk: u64 = 1 << 23;
pub const bitmap_block_size = mib;

/// 2.5.1: a BAT entry is a state and a file offset in MiB.
pub const entry_size = 8;
pub const state_mask: u64 = 7;
pub const reserved_mask: u64 = (mib - 1) & ~state_mask;
pub const offset_mask: u64 = ~@as(u64, mib - 1);

/// 2.5.1.1: states of a payload block.
pub const State = enum(u3) {
    not_present = 0,
    undefined = 1,
    zero = 2,
    unmapped = 3,
    reserved = 4,
    /// What version 0.95 of the specification called unmapped; reserved since, and read as zero by qemu.
    unmapped_old = 5,
    fully_present = 6,
    partially_present = 7,

    pub fn of(entry: u64) State {
        return @enumFromInt(@as(u3, @truncate(entry)));
    }
};
/// 2.5.1.2: states of a sector bitmap block.
pub const bitmap_not_present = 0;
pub const bitmap_present = 6;

pub const guids = struct {
    pub const bat = parse("2DC27766-F623-4200-9D64-115E9BFD4A08");
    pub const metadata = parse("8B7CA206-4790-4B9A-B8FE-575F050F886E");
    pub const file_parameters = parse("CAA16737-FA36-4D43-B3B6-33F0AA44E76B");
    pub const virtual_disk_size = parse("2FA54224-CD1B-4876-B211-5DBED83BF4B8");
    pub const virtual_disk_id = parse("BECA12AB-B2E6-4523-93EF-C309E000C746");
    pub const logical_sector_size = parse("8141BF1D-A96F-4709-BA47-F233A8FAAB5F");
    pub const physical_sector_size = parse("CDA348C7-445D-4471-9CC9-E9885251C556");
    pub const parent_locator = parse("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C");
    /// 2.6.2.6.3: the one locator type that the specification defines.
    pub const vhdx_locator = parse("B04AEFB7-D19E-4A81-B789-25B8E9445913");
    pub const none: [16]u8 = @splat(0);
};

/// A GUID's text as it lies in a file.
pub fn parse(comptime text: *const [36]u8) [16]u8 {
    comptime {
        @setEvalBranchQuota(10_000);
        var digits: [32]u8 = undefined;
        var count = 0;
        for (text) |digit| {
            if (digit == '-') continue;
            digits[count] = digit;
            count += 1;
        }
        var plain: [16]u8 = undefined;
        _ = std.fmt.hexToBytes(&plain, &digits) catch @compileError("no GUID: " ++ text);
        const order = [16]u8{ 3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15 };
        var swapped: [16]u8 = undefined;
        for (order, 0..) |from, i| swapped[i] = plain[from];
        return swapped;
    }
}

/// CRC-32C (Castagnoli).
pub const Crc = std.hash.crc.Crc32Iscsi;

/// The checksum of a structure, its own field (bytes 4 to 8) counted as zero.
pub noinline fn checksumOf(bytes: []const u8) u32 {
    var crc: Crc = .init();
    crc.update(bytes[0..4]);
    crc.update(&@as([4]u8, @splat(0)));
    crc.update(bytes[8..]);
    return crc.final();
}

pub fn checksumIsRight(bytes: []const u8) bool {
    return int(u32, bytes, 4) == checksumOf(bytes);
}

/// A little endian number at byte `at`.
pub fn int(comptime T: type, bytes: []const u8, at: usize) T {
    return std.mem.readInt(T, bytes[at..][0..@sizeOf(T)], .little);
}

/// Bytes of a file as qemu counts: a last sector of 512 bytes that is not whole is filled up with zeros.
pub fn lengthOf(device: block.Device) u64 {
    return std.mem.alignForward(u64, device.length, 512);
}

/// Whether the 16 bytes at `at` are `guid`.
pub fn isGuid(bytes: []const u8, at: usize, guid: *const [16]u8) bool {
    return std.mem.eql(u8, bytes[at..][0..16], guid);
}

test "GUIDs lie with their first groups swapped" {
    try std.testing.expectEqualSlices(u8, "\x66\x77\xc2\x2d\x23\xf6\x00\x42\x9d\x64\x11\x5e\x9b\xfd\x4a\x08", &guids.bat);
}

test "CRC-32C of RFC 3720, B.4" {
    var crc: Crc = .init();
    crc.update(&@as([32]u8, @splat(0)));
    try std.testing.expectEqual(@as(u32, 0x8a9136aa), crc.final());
}
