//! Entries of the L1 and L2 tables (QEMU docs/interop/qcow2.txt, "Cluster mapping" and "Extended L2 Entries"),
//! taken apart without reading anything.

const std = @import("std");
const header_zig = @import("header.zig");
const Header = header_zig.Header;

/// Set where the refcount of the cluster that the entry points to is exactly 1.
pub const copied: u64 = 1 << 63;
pub const compressed_flag: u64 = 1 << 62;
/// "Reads as zero", version 3, standard L2 entries only.
pub const zero_flag: u64 = 1;
pub const offset_mask: u64 = 0x00ff_ffff_ffff_fe00;
pub const l1_reserved_mask: u64 = 0x7f00_0000_0000_01ff;
pub const l2_reserved_mask: u64 = 0x3f00_0000_0000_01fe;

/// How an L2 entry stores its cluster.
pub const ClusterKind = enum { unallocated, zero_plain, zero_allocated, normal, compressed };

/// An L2 entry; `bitmap` is 0 without extended L2.
pub const Entry = struct {
    word: u64,
    bitmap: u64 = 0,

    /// Read entry `index` of an L2 table's bytes.
    pub fn read(header: Header, table: []const u8, index: usize) Entry {
        if (header.extendedL2()) return .{
            .word = std.mem.readInt(u64, table[index * 16 ..][0..8], .big),
            .bitmap = std.mem.readInt(u64, table[index * 16 + 8 ..][0..8], .big),
        };
        return .{ .word = std.mem.readInt(u64, table[index * 8 ..][0..8], .big) };
    }

    pub fn isEmpty(self: Entry) bool {
        return self.word | self.bitmap == 0;
    }

    pub fn offset(self: Entry) u64 {
        return self.word & offset_mask;
    }

    pub fn kind(self: Entry, header: Header) ClusterKind {
        if (self.word & compressed_flag != 0) return .compressed;
        if (self.word & zero_flag != 0 and !header.extendedL2())
            return if (self.offset() != 0) .zero_allocated else .zero_plain;
        if (self.offset() == 0) {
            // Offset 0 is a valid place in an external data file; there the copied flag tells allocated from not.
            if (header.hasDataFile() and self.word & copied != 0) return .normal;
            return .unallocated;
        }
        return .normal;
    }

    /// One bit a subcluster: data here.
    pub fn allocatedBits(self: Entry) u32 {
        return @truncate(self.bitmap);
    }

    /// One bit a subcluster: reads as zero.
    pub fn zeroBits(self: Entry) u32 {
        return @truncate(self.bitmap >> 32);
    }
};

/// Place of a compressed cluster's data in the file.
pub const Compressed = struct {
    offset: u64,
    /// Bytes up to the end of the last sector; an upper bound of what the data take.
    length: u64,
};

pub fn compressedPlace(header: Header, word: u64) Compressed {
    const offset_bits: u6 = 62 - (header.cluster_bits - 8);
    const offset = word & ((@as(u64, 1) << offset_bits) - 1);
    const sectors = ((word & ~(copied | compressed_flag)) >> offset_bits) + 1;
    return .{ .offset = offset, .length = sectors * 512 - (offset & 511) };
}

/// How a subcluster (or a cluster, where there are none) is stored.
pub const SubclusterKind = enum {
    unallocated,
    /// Unallocated, but the cluster has a place in the file.
    unallocated_allocated,
    zero_plain,
    zero_allocated,
    normal,
    compressed,
    /// The entry contradicts itself.
    invalid,
};

pub fn subclusterKind(header: Header, entry: Entry, subcluster: u5) SubclusterKind {
    const cluster = entry.kind(header);
    if (!header.extendedL2()) return switch (cluster) {
        .unallocated => .unallocated,
        .zero_plain => .zero_plain,
        .zero_allocated => .zero_allocated,
        .normal => .normal,
        .compressed => .compressed,
    };
    const bit = @as(u32, 1) << subcluster;
    switch (cluster) {
        .compressed => return .compressed,
        .normal => {
            if (entry.allocatedBits() & entry.zeroBits() != 0) return .invalid;
            if (entry.zeroBits() & bit != 0) return .zero_allocated;
            if (entry.allocatedBits() & bit != 0) return .normal;
            return .unallocated_allocated;
        },
        else => {
            if (entry.allocatedBits() != 0) return .invalid;
            return if (entry.zeroBits() & bit != 0) .zero_plain else .unallocated;
        },
    }
}

fn testHeader(cluster_bits: u6, incompatible: u64) Header {
    var header = std.mem.zeroes(Header);
    header.cluster_bits = cluster_bits;
    header.incompatible = incompatible;
    return header;
}

test "standard entries" {
    const header = testHeader(16, 0);
    const cases = [_]struct { u64, ClusterKind }{
        .{ 0, .unallocated },
        .{ copied, .unallocated },
        .{ 1, .zero_plain },
        .{ 0x50001, .zero_allocated },
        .{ copied | 0x50000, .normal },
        .{ compressed_flag | 0x50000, .compressed },
    };
    for (cases) |case| try std.testing.expectEqual(case[1], (Entry{ .word = case[0] }).kind(header));
    const external = testHeader(16, header_zig.Incompatible.data_file);
    try std.testing.expectEqual(.normal, (Entry{ .word = copied }).kind(external));
}

test "compressed descriptors: offset width depends on the cluster size" {
    const header = testHeader(16, 0);
    const place = compressedPlace(header, compressed_flag | (@as(u64, 2) << 54) | 0x12345);
    try std.testing.expectEqual(@as(u64, 0x12345), place.offset);
    try std.testing.expectEqual(@as(u64, 3 * 512 - 0x145), place.length);
    // 512-byte clusters: one bit of size.
    const small = compressedPlace(testHeader(9, 0), compressed_flag | (@as(u64, 1) << 61) | 0x200);
    try std.testing.expectEqual(@as(u64, 0x200), small.offset);
    try std.testing.expectEqual(@as(u64, 1024), small.length);
}

test "subclusters" {
    const header = testHeader(16, header_zig.Incompatible.extended_l2);
    const entry: Entry = .{ .word = copied | 0x50000, .bitmap = (1 << 33) | 1 };
    try std.testing.expectEqual(.normal, subclusterKind(header, entry, 0));
    try std.testing.expectEqual(.zero_allocated, subclusterKind(header, entry, 1));
    try std.testing.expectEqual(.unallocated_allocated, subclusterKind(header, entry, 2));
    try std.testing.expectEqual(.invalid, subclusterKind(header, .{ .word = 0x50000, .bitmap = (1 << 32) | 1 }, 5));
    try std.testing.expectEqual(.invalid, subclusterKind(header, .{ .word = 0, .bitmap = 1 }, 5));
    try std.testing.expectEqual(.zero_plain, subclusterKind(header, .{ .word = 0, .bitmap = 1 << 37 }, 5));
    // Bit 0 of the word means nothing with extended L2.
    try std.testing.expectEqual(.unallocated, subclusterKind(header, .{ .word = 1 }, 0));
    try std.testing.expectEqual(.normal, (Entry{ .word = 0x50001 }).kind(header));
}
