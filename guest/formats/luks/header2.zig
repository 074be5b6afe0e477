//! The binary headers of LUKS2 (LUKS2 On-Disk Format Specification 1.1.4, section 2.1): two copies, each of 4096 bytes
//! with a JSON area behind it, a sequence number and a checksum over both.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const header_zig = @import("header.zig");

pub const magic = header_zig.magic;
pub const second_magic = "SKUL\xba\xbe";
pub const binary_size = 4096;
/// A copy with its JSON area has one of these sizes, and the second one lies at one of these offsets.
pub const sizes = [_]u64{ 16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20 };
const Sha256 = std.crypto.hash.sha2.Sha256;
const checksum_at = 448;
const checksum_bytes = 64;

pub fn isSize(value: u64) bool {
    for (sizes) |one| if (one == value) return true;
    return false;
}

/// What keeps a copy from being used.
pub const Problem = enum {
    /// No magic where the copy should be.
    missing,
    version,
    /// Not one of `sizes`.
    size,
    /// Reaches behind the end of the file.
    truncated,
    /// It says that it lies elsewhere.
    offset,
    /// A checksum of a kind that is not known here.
    algorithm,
    checksum,

    pub fn text(self: Problem) []const u8 {
        return switch (self) {
            .missing => "is missing: no magic",
            .version => "is not of version 2",
            .size => "has an invalid size",
            .truncated => "ends outside the file",
            .offset => "names another place than its own",
            .algorithm => "has a checksum of an unknown kind",
            .checksum => "has a wrong checksum",
        };
    }
};

/// One copy: binary header and JSON area.
pub const Copy = struct {
    /// Byte of the device at which it begins.
    at: u64,
    /// At least the binary header; with the JSON area when `problem` is null.
    bytes: []const u8,
    problem: ?Problem,

    pub fn int(self: Copy, comptime T: type, comptime from: usize) T {
        return std.mem.readInt(T, self.bytes[from..][0..@sizeOf(T)], .big);
    }
    /// Bytes with the JSON area.
    pub fn size(self: Copy) u64 {
        return self.int(u64, 8);
    }
    pub fn sequence(self: Copy) u64 {
        return self.int(u64, 16);
    }
    pub fn label(self: Copy) []const u8 {
        return block.search.until(self.bytes[24..72], 0);
    }
    pub fn checksumAlgorithm(self: Copy) []const u8 {
        return block.search.until(self.bytes[72..104], 0);
    }
    pub fn uuid(self: Copy) []const u8 {
        return block.search.until(self.bytes[168..208], 0);
    }
    pub fn subsystem(self: Copy) []const u8 {
        return block.search.until(self.bytes[208..256], 0);
    }
    pub fn offset(self: Copy) u64 {
        return self.int(u64, 256);
    }
    /// Bytes behind the fields that must be zero.
    pub fn padding(self: Copy) []const u8 {
        return self.bytes[264..448];
    }
    pub fn secondPadding(self: Copy) []const u8 {
        return self.bytes[512..binary_size];
    }
    /// The text, up to its first NUL.
    pub fn json(self: Copy) []const u8 {
        return block.search.until(self.bytes[binary_size..], 0);
    }
    /// What follows the text in its area.
    pub fn behindJson(self: Copy) []const u8 {
        return self.bytes[binary_size + self.json().len ..];
    }
};

/// Both copies, and the one that counts.
pub const Copies = struct {
    first: Copy,
    second: Copy,

    /// The usable copy with the higher sequence number, the first one of equals; null when none is usable.
    pub fn active(self: *const Copies) ?*const Copy {
        const one = self.first.problem == null;
        const other = self.second.problem == null;
        if (one and other) return if (self.second.sequence() > self.first.sequence()) &self.second else &self.first;
        return if (one) &self.first else if (other) &self.second else null;
    }
};

/// Read and verify both copies; never refuses for what they hold.
pub fn read(context: image.Context, device: block.Device) block.Error!Copies {
    const first = try copyAt(context, device, 0, magic);
    if (first.problem == null) return .{ .first = first, .second = try copyAt(context, device, first.size(), second_magic) };
    // What the first copy says of its length counts for nothing: the second one is looked for.
    var found: ?Copy = null;
    for (sizes) |at| {
        var start: [6]u8 = undefined;
        if (at >= device.length) break;
        try device.readPadded(at, &start);
        if (!std.mem.eql(u8, &start, second_magic)) continue;
        found = try copyAt(context, device, at, second_magic);
        if (found.?.problem == null) break;
    }
    return .{ .first = first, .second = found orelse try copyAt(context, device, sizes[0], second_magic) };
}

fn copyAt(context: image.Context, device: block.Device, at: u64, expected: []const u8) block.Error!Copy {
    const binary = context.allocator.alloc(u8, binary_size) catch return error.NoMemory;
    try device.readPadded(at, binary);
    var copy: Copy = .{ .at = at, .bytes = binary, .problem = null };
    copy.problem = try inspect(context, device, &copy, expected);
    return copy;
}

fn inspect(context: image.Context, device: block.Device, copy: *Copy, expected: []const u8) block.Error!?Problem {
    if (!std.mem.eql(u8, copy.bytes[0..6], expected)) return .missing;
    if (copy.int(u16, 6) != 2) return .version;
    if (!isSize(copy.size())) return .size;
    if (copy.offset() != copy.at) return .offset;
    // At most 8 MiB.
    if (copy.at + copy.size() > device.length) return .truncated;
    // No writer uses another one.
    if (!std.mem.eql(u8, copy.checksumAlgorithm(), "sha256")) return .algorithm;
    const bytes = context.allocator.alloc(u8, @intCast(copy.size())) catch return error.NoMemory;
    try device.read(copy.at, bytes);
    const stored: [checksum_bytes]u8 = bytes[checksum_at..][0..checksum_bytes].*;
    @memset(bytes[checksum_at..][0..checksum_bytes], 0);
    var calculated: [Sha256.digest_length]u8 = undefined;
    Sha256.hash(bytes, &calculated, .{});
    bytes[checksum_at..][0..checksum_bytes].* = stored;
    copy.bytes = bytes;
    return if (std.mem.eql(u8, &calculated, stored[0..calculated.len])) null else .checksum;
}
