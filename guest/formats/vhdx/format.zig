//! What every part of VHDX agrees on: places, signatures, identities and the checksum.
//!
//! [MS-VHDX] 2.2 "Header Section", 2.4 "Block Allocation Table", 2.5 "BAT", 2.6 "Metadata Region".  All numbers are
//! little-endian.

const std = @import("std");

/// A GUID as it lies in the file: its first three fields little-endian.
pub const Guid = [16]u8;

pub const mib: u64 = 1 << 20;
/// Every region and every block of payload lies at a multiple of this, and regions are as long as multiples of it.
pub const alignment: u64 = mib;
/// Most bytes of virtual disk.
pub const max_size: u64 = 64 << 40;
pub const min_block: u64 = 1 * mib;
pub const max_block: u64 = 256 * mib;
/// Logical sectors whose bits fill a sector bitmap block: its 1 MiB in bits.
pub const sectors_per_bitmap: u64 = 1 << 23;

/// File type identifier (2.2.1): the signature, then up to 512 bytes of UTF-16 that name the creator.
pub const identifier = struct {
    pub const offset: u64 = 0;
    pub const signature = "vhdxfile";
    pub const creator = 8;
    pub const creator_size = 512;
};

/// The two headers (2.2.2); the checksum covers all 4 KiB.
pub const header = struct {
    pub const offsets = [2]u64{ 64 << 10, 128 << 10 };
    pub const size = 4096;
    pub const signature = "head";
    pub const checksum = 4;
    pub const sequence = 8;
    pub const file_write_guid = 16;
    pub const data_write_guid = 32;
    pub const log_guid = 48;
    pub const log_version = 64;
    pub const version = 66;
    pub const log_length = 68;
    pub const log_offset = 72;
    /// End of the fields; the rest is reserved.
    pub const end = 80;
    pub const the_version = 1;
};

/// The two region tables (2.2.3); the checksum covers all 64 KiB.
pub const regions = struct {
    pub const offsets = [2]u64{ 192 << 10, 256 << 10 };
    pub const size = 64 << 10;
    pub const signature = "regi";
    pub const checksum = 4;
    pub const count = 8;
    pub const entries = 16;
    pub const entry_size = 32;
    pub const max_count = 2047;
    /// In an entry: GUID, then these.
    pub const entry_offset = 16;
    pub const entry_length = 24;
    pub const entry_required = 28;

    pub const bat: Guid = .{ 0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08 };
    pub const metadata: Guid = .{ 0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e };
};

/// End of the header section; regions lie behind it.
pub const header_section: u64 = 1 * mib;

/// An entry of the BAT (2.5.1): a state in bits 0 to 2, bytes of file offset in bits 20 to 63.
pub const entry = struct {
    pub const size = 8;
    pub const state_mask: u64 = 7;
    pub const offset_mask: u64 = ~@as(u64, mib - 1);

    pub const not_present = 0;
    pub const undefined_state = 1;
    pub const zero = 2;
    pub const unmapped = 3;
    pub const fully_present = 6;
    pub const partially_present = 7;
};

/// The metadata region (2.6): a table of 64 KiB, then the items.
pub const metadata = struct {
    pub const signature = "metadata";
    pub const table_size = 64 << 10;
    pub const count = 10;
    pub const entries = 32;
    pub const entry_size = 32;
    pub const max_count = 2047;
    /// In an entry: GUID, then these.
    pub const entry_offset = 16;
    pub const entry_length = 20;
    pub const entry_flags = 24;

    pub const is_user: u32 = 1;
    pub const is_virtual_disk: u32 = 2;
    pub const is_required: u32 = 4;

    pub const file_parameters: Guid = .{ 0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b };
    pub const virtual_disk_size: Guid = .{ 0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48, 0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8 };
    pub const virtual_disk_id: Guid = .{ 0xab, 0x12, 0xca, 0xbe, 0xe6, 0xb2, 0x23, 0x45, 0x93, 0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7, 0x46 };
    pub const logical_sector_size: Guid = .{ 0x1d, 0xbf, 0x41, 0x81, 0x6f, 0xa9, 0x09, 0x47, 0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f };
    pub const physical_sector_size: Guid = .{ 0xc7, 0x48, 0xa3, 0xcd, 0x5d, 0x44, 0x71, 0x44, 0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51, 0xc5, 0x56 };
    pub const parent_locator: Guid = .{ 0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c };

    /// Bits of the file parameters' second word.
    pub const leave_blocks_allocated: u32 = 1;
    pub const has_parent: u32 = 2;
};

/// The parent locator (2.6.2.6): a header, a table of keys and values, UTF-16 text.
pub const locator = struct {
    pub const kind: Guid = .{ 0xb7, 0xef, 0x4a, 0xb0, 0x9e, 0xd1, 0x81, 0x4a, 0xb7, 0x89, 0x25, 0xb8, 0xe9, 0x44, 0x59, 0x13 };
    pub const header_size = 20;
    pub const count = 18;
    pub const entry_size = 12;
};

/// CRC-32C (Castagnoli), as checksums of headers, region tables and log entries are made.
pub const Crc32c = std.hash.crc.Crc32Iscsi;

/// The checksum of a structure of `size` bytes that begins with `bytes` and is zero from there on; the four bytes at 4,
/// where it is stored, count as zero.
pub fn checksum(bytes: []const u8, size: usize) u32 {
    var crc: Crc32c = .init();
    crc.update(bytes[0..4]);
    crc.update("\x00\x00\x00\x00");
    crc.update(bytes[8..]);
    const zeros: [512]u8 = @splat(0);
    var left = size - bytes.len;
    while (left > 0) {
        const step = @min(left, zeros.len);
        crc.update(zeros[0..step]);
        left -= step;
    }
    return crc.final();
}

test "checksums are those of qemu-img 7.2.22" {
    // Its region table for a log of 1 MiB and a BAT of 1 MiB.
    var table: [80]u8 = @splat(0);
    table[0..4].* = regions.signature.*;
    table[4..8].* = .{ 0x83, 0xce, 0x6f, 0x2c };
    table[8] = 2;
    table[16..32].* = regions.bat;
    table[34] = 0x20;
    table[42] = 0x10;
    table[48..64].* = regions.metadata;
    table[66] = 0x30;
    table[74] = 0x10;
    try std.testing.expectEqual(0x2c6fce83, checksum(&table, regions.size));
    var whole: [regions.size]u8 = @splat(0);
    whole[0..80].* = table;
    try std.testing.expectEqual(0x2c6fce83, checksum(&whole, regions.size));
}
