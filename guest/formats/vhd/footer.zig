//! The hard disk footer, and the copy of it at byte 0 of dynamic and differencing disks.
//!
//! Virtual Hard Disk Image Format Specification 1.0 (Microsoft, 2006), "Hard Disk Footer Format".  Big endian.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");

pub const size = 512;
/// Virtual PC before 2004 wrote one byte less; the missing one is reserved.
pub const old_size = 511;
pub const cookie = "conectix";

/// `disk type` values that the specification does not reserve or deprecate.
pub const Type = enum(u32) { fixed = 2, dynamic = 3, differencing = 4, _ };

/// Cylinders, heads, sectors a track when the geometry is at its maximum: it says nothing about the size then.
pub const max_geometry: u64 = 65535 * 16 * 255;
/// The largest size that qemu and Hyper-V handle, 2040 GiB, in sectors.
pub const max_sectors: u64 = 0xff00_0000;
pub const sector = 512;

/// A footer as it lies in the file, and where it lies.
pub const Footer = struct {
    bytes: *const [size]u8,
    /// Byte offset in the file.
    offset: u64,
    /// 512, or 511 for old Virtual PC.
    length: u32,

    /// Read `length` (at most 512) bytes at `offset`; what is not there is zero.
    pub fn read(allocator: std.mem.Allocator, device: block.Device, offset: u64, length: u32) block.Error!Footer {
        const bytes = allocator.create([size]u8) catch return error.NoMemory;
        try device.readPadded(offset, bytes[0..length]);
        @memset(bytes[length..], 0);
        return .{ .bytes = bytes, .offset = offset, .length = length };
    }

    fn int(self: *const Footer, comptime T: type, comptime at: usize) T {
        return std.mem.readInt(T, self.bytes[at..][0..@sizeOf(T)], .big);
    }

    pub fn hasCookie(self: *const Footer) bool {
        return std.mem.startsWith(u8, self.bytes, cookie);
    }

    /// Bit 1 must be set, bit 0 means temporary, all others are zero.
    pub fn features(self: *const Footer) u32 {
        return self.int(u32, 8);
    }
    /// Major * 65536 + minor: 1.0.
    pub fn version(self: *const Footer) u32 {
        return self.int(u32, 12);
    }
    /// Where the dynamic header lies; all ones for fixed disks.
    pub fn dataOffset(self: *const Footer) u64 {
        return self.int(u64, 16);
    }
    /// Seconds since 2000-01-01 00:00 UTC.
    pub fn timestamp(self: *const Footer) u32 {
        return self.int(u32, 24);
    }
    pub fn creator(self: *const Footer) *const [4]u8 {
        return self.bytes[28..32];
    }
    pub fn creatorVersion(self: *const Footer) u32 {
        return self.int(u32, 32);
    }
    pub fn creatorHost(self: *const Footer) *const [4]u8 {
        return self.bytes[36..40];
    }
    /// Bytes.
    pub fn originalSize(self: *const Footer) u64 {
        return self.int(u64, 40);
    }
    /// Bytes.
    pub fn currentSize(self: *const Footer) u64 {
        return self.int(u64, 48);
    }
    pub fn cylinders(self: *const Footer) u16 {
        return self.int(u16, 56);
    }
    pub fn heads(self: *const Footer) u8 {
        return self.bytes[58];
    }
    pub fn sectorsPerTrack(self: *const Footer) u8 {
        return self.bytes[59];
    }
    pub fn diskType(self: *const Footer) Type {
        return @enumFromInt(self.int(u32, 60));
    }
    pub fn checksum(self: *const Footer) u32 {
        return self.int(u32, 64);
    }
    pub fn uuid(self: *const Footer) *const [16]u8 {
        return self.bytes[68..84];
    }
    pub fn savedState(self: *const Footer) u8 {
        return self.bytes[84];
    }
    pub fn reserved(self: *const Footer) []const u8 {
        return self.bytes[85..];
    }
    /// Sectors by cylinders, heads and sectors a track.
    pub fn geometrySectors(self: *const Footer) u64 {
        return @as(u64, self.cylinders()) * self.heads() * self.sectorsPerTrack();
    }

    pub fn checksumIsRight(self: *const Footer) bool {
        return self.checksum() == sumOf(self.bytes, 64);
    }

    /// What gives the virtual size.
    pub fn sizeRule(self: *const Footer, qemu_major: u32) SizeRule {
        if (self.geometrySectors() == max_geometry) return .current_size;
        return rule(self.creator(), qemu_major);
    }

    /// Sectors of the virtual disk, a part of a sector left out, as qemu counts.
    pub fn sectors(self: *const Footer, qemu_major: u32) u64 {
        return switch (self.sizeRule(qemu_major)) {
            .chs => self.geometrySectors(),
            .current_size => self.currentSize() / sector,
        };
    }
};

pub const SizeRule = enum { chs, current_size };

/// Who wrote the image says which of its two sizes is meant: Virtual PC (and qemu, to be read by it) means the
/// geometry, the others the current size.  Up to qemu 9 an unknown creator was taken for a Virtual PC; from qemu 10 on
/// for one of the others.
fn rule(creator: *const [4]u8, qemu_major: u32) SizeRule {
    const virtual_pc = [_]*const [4]u8{ "vpc ", "qemu" };
    const others = [_]*const [4]u8{ "win ", "qem2", "d2v ", "tap\x00", "CTXS" };
    for (virtual_pc) |name| if (std.mem.eql(u8, name, creator)) return .chs;
    for (others) |name| if (std.mem.eql(u8, name, creator)) return .current_size;
    return if (qemu_major >= 10) .current_size else .chs;
}

/// One's complement of the sum of all bytes but the four of the checksum itself.
pub noinline fn sumOf(bytes: []const u8, checksum_at: usize) u32 {
    var total: u32 = 0;
    for (bytes, 0..) |byte, i| {
        if (i < checksum_at or i >= checksum_at + 4) total +%= byte;
    }
    return ~total;
}

/// Where a footer may begin at the end of a file of `length` bytes, likeliest first: 512 bytes before the end, 511 (old
/// Virtual PC), and at the start of the last sector that is not whole (a file that was cut, or padded, to a byte).
pub const Place = struct { offset: u64, length: u32 };

pub fn places(length: u64, out: *[3]Place) []const Place {
    var count: usize = 0;
    if (length >= size) {
        out[count] = .{ .offset = length - size, .length = size };
        count += 1;
    }
    if (length >= old_size) {
        out[count] = .{ .offset = length - old_size, .length = old_size };
        count += 1;
    }
    const partial = length % sector;
    // 85 bytes hold every field.
    if (partial >= 85 and partial != old_size) {
        out[count] = .{ .offset = length - partial, .length = @intCast(partial) };
        count += 1;
    }
    return out[0..count];
}

/// The footer at the end of the file, if any of the places has the cookie.
pub fn atEnd(allocator: std.mem.Allocator, device: block.Device) block.Error!?Footer {
    var room: [3]Place = undefined;
    for (places(device.length, &room)) |place| {
        const footer: Footer = try .read(allocator, device, place.offset, place.length);
        if (footer.hasCookie()) return footer;
    }
    return null;
}

/// Whether the bytes at the end of a probe hold a footer's cookie in one of its places.
pub fn inTail(probe: *const image.Probe) bool {
    var room: [3]Place = undefined;
    for (places(probe.length, &room)) |place| {
        const from_end: usize = @intCast(probe.length - place.offset);
        if (from_end > probe.tail.len) continue;
        if (std.mem.startsWith(u8, probe.tail[probe.tail.len - from_end ..], cookie)) return true;
    }
    return false;
}

test "the creator decides between geometry and size" {
    try std.testing.expectEqual(SizeRule.chs, rule("vpc ", 7));
    try std.testing.expectEqual(SizeRule.chs, rule("qemu", 10));
    try std.testing.expectEqual(SizeRule.current_size, rule("win ", 7));
    try std.testing.expectEqual(SizeRule.chs, rule("pvhd", 7));
    try std.testing.expectEqual(SizeRule.current_size, rule("pvhd", 10));
    try std.testing.expectEqual(SizeRule.chs, rule("wa\x00\x00", 9));
    try std.testing.expectEqual(SizeRule.current_size, rule("wa\x00\x00", 10));
}

test "places of a footer in files of any length" {
    var room: [3]Place = undefined;
    try std.testing.expectEqual(@as(usize, 0), places(84, &room).len);
    try std.testing.expectEqual(@as(usize, 1), places(85, &room).len);
    try std.testing.expectEqual(@as(usize, 1), places(511, &room).len);
    try std.testing.expectEqual(@as(usize, 2), places(1024, &room).len);
    const odd = places(1024 + 100, &room);
    try std.testing.expectEqual(@as(u64, 1024), odd[2].offset);
    try std.testing.expectEqual(@as(u32, 100), odd[2].length);
}
