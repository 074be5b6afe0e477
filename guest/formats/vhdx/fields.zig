//! Where fields lie, for who writes them, and checksums of structures that end in zeroes.
//!
//! [MS-VHDX] 2.2.2 "Headers", 2.2.3 "Region Table", 2.6.1 "Metadata Table", 2.6.2.6 "Parent Locator".

const std = @import("std");
const format = @import("format.zig");

/// A GUID as it lies in the file: its first three fields little-endian.
pub const Guid = [16]u8;

/// Of all structures that have one.
pub const checksum = 4;

pub const header = struct {
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
};

/// Of a region table, and of an entry in it.
pub const region = struct {
    pub const count = 8;
    pub const offset = 16;
    pub const length = 24;
};

/// Of the metadata table, and of an entry in it.
pub const metadata = struct {
    pub const count = 10;
    pub const offset = 16;
    pub const length = 20;
    pub const flags = 24;

    pub const is_user: u32 = 1;
    pub const is_virtual_disk: u32 = 2;
    pub const is_required: u32 = 4;

    /// Bits of the file parameters' second word.
    pub const leave_blocks_allocated: u32 = 1;
    pub const has_parent: u32 = 2;
};

pub const locator = struct {
    pub const header_size = 20;
    pub const count = 18;
    pub const entry_size = 12;
};

pub fn put(comptime T: type, bytes: []u8, at: usize, value: T) void {
    std.mem.writeInt(T, bytes[at..][0..@sizeOf(T)], value, .little);
}

/// The checksum of a structure of `size` bytes that begins with `bytes` and is zero from there on.
pub fn checksumOf(bytes: []const u8, size: usize) u32 {
    var crc: format.Crc = .init();
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

test "a checksum is that of qemu-img 7.2.22" {
    // Its region table for a log of 1 MiB and a BAT of 1 MiB.
    var table: [80]u8 = @splat(0);
    table[0..4].* = format.region_signature.*;
    table[4..8].* = .{ 0x83, 0xce, 0x6f, 0x2c };
    table[8] = 2;
    table[16..32].* = format.guids.bat;
    table[34] = 0x20;
    table[42] = 0x10;
    table[48..64].* = format.guids.metadata;
    table[66] = 0x30;
    table[74] = 0x10;
    try std.testing.expectEqual(0x2c6fce83, checksumOf(&table, format.region_table_size));
    var whole: [format.region_table_size]u8 = @splat(0);
    whole[0..80].* = table;
    try std.testing.expectEqual(0x2c6fce83, format.checksumOf(&whole));
}
