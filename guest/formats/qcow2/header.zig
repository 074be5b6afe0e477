//! The qcow2 header, versions 2 and 3 (QEMU docs/interop/qcow2.txt, "Header").  Every number that the rest of the
//! format code multiplies, shifts by or allocates from is checked here, once, in the order in which QEMU checks it,
//! so that the first complaint about a broken image is the same one.

const std = @import("std");
const block = @import("block");
const template = @import("template.zig");
const refuse = template.refuse;
const none = template.none;

pub const magic = 0x514649fb; // "QFI\xfb"
/// Bytes of a version 2 header, and of the shortest version 3 header.
pub const v2_length = 72;
pub const v3_length = 104;
/// Bytes that `parse` looks at: all fields that are known today, with the padding behind the compression type.
pub const known_length = 112;

pub const min_cluster_bits = 9;
pub const max_cluster_bits = 21;
/// Bytes; QEMU's limits, which bound what any reader has to hold.
pub const max_l1_bytes = 32 << 20;
pub const max_refcount_table_bytes = 8 << 20;
pub const max_snapshots = 65536;
pub const snapshot_entry_bytes = 40;
/// Bytes; the longest request end that QEMU's block layer accepts (2^63-1 rounded down to 1 GiB).
pub const max_offset: u64 = (1 << 63) - (1 << 30);
pub const max_backing_name = 1023;

pub const Incompatible = struct {
    pub const dirty = 1 << 0;
    pub const corrupt = 1 << 1;
    pub const data_file = 1 << 2;
    pub const compression = 1 << 3;
    pub const extended_l2 = 1 << 4;
    pub const known: u64 = dirty | corrupt | data_file | compression | extended_l2;
};
pub const Compatible = struct {
    pub const lazy_refcounts = 1 << 0;
    pub const known: u64 = lazy_refcounts;
};
pub const Autoclear = struct {
    pub const bitmaps = 1 << 0;
    pub const data_file_raw = 1 << 1;
    pub const known: u64 = bitmaps | data_file_raw;
};

pub const Compression = enum(u8) { zlib = 0, zstd = 1 };
pub const Crypt = enum(u32) { none = 0, aes = 1, luks = 2 };

pub const Header = struct {
    version: u32,
    header_length: u32,
    backing_offset: u64,
    backing_length: u32,
    /// 9..21.
    cluster_bits: u6,
    /// Bytes of the virtual disk as the header states it; `virtualSize` is what counts.
    size: u64,
    crypt_method: u32,
    l1_offset: u64,
    l1_entries: u32,
    refcount_table_offset: u64,
    refcount_table_clusters: u32,
    snapshots_offset: u64,
    snapshot_count: u32,
    incompatible: u64,
    compatible: u64,
    autoclear: u64,
    /// 0..6: a refcount has 2^order bits.
    refcount_order: u3,
    compression: Compression,

    pub fn clusterSize(self: Header) u64 {
        return @as(u64, 1) << self.cluster_bits;
    }

    /// Bytes; whole sectors, as QEMU rounds down.
    pub fn virtualSize(self: Header) u64 {
        return self.size & ~@as(u64, 511);
    }

    pub fn dirty(self: Header) bool {
        return self.incompatible & Incompatible.dirty != 0;
    }

    pub fn markedCorrupt(self: Header) bool {
        return self.incompatible & Incompatible.corrupt != 0;
    }

    pub fn hasDataFile(self: Header) bool {
        return self.incompatible & Incompatible.data_file != 0;
    }

    pub fn dataFileRaw(self: Header) bool {
        return self.autoclear & Autoclear.data_file_raw != 0;
    }

    pub fn extendedL2(self: Header) bool {
        return self.incompatible & Incompatible.extended_l2 != 0;
    }

    /// Binary logarithm of the bytes of an L2 entry: 8, or 16 with subclusters.
    pub fn l2EntryBits(self: Header) u6 {
        return if (self.extendedL2()) 4 else 3;
    }

    /// Binary logarithm of the entries of an L2 table.
    pub fn l2Bits(self: Header) u6 {
        return self.cluster_bits - self.l2EntryBits();
    }

    /// Binary logarithm of the virtual bytes that one L1 entry stands for.
    pub fn l1Shift(self: Header) u6 {
        return self.cluster_bits + self.l2Bits();
    }

    pub fn refcountBits(self: Header) u8 {
        return @as(u8, 1) << self.refcount_order;
    }

    /// The largest refcount that fits the width.
    pub fn refcountMax(self: Header) u64 {
        return @as(u64, std.math.maxInt(u64)) >> @intCast(64 - @as(u7, @intCast(self.refcountBits())));
    }

    /// Binary logarithm of the refcounts in a refcount block.
    pub fn refcountBlockBits(self: Header) u6 {
        return self.cluster_bits + 3 - self.refcount_order;
    }

    pub fn refcountTableEntries(self: Header) u64 {
        return @as(u64, self.refcount_table_clusters) << (self.cluster_bits - 3);
    }

    /// First byte behind the header extensions: the backing file's name, or the end of the first cluster.
    pub fn extensionsEnd(self: Header) u64 {
        return if (self.backing_offset != 0) self.backing_offset else self.clusterSize();
    }

    /// Number of clusters that hold `bytes`.
    pub fn clusters(self: Header, bytes: u64) u64 {
        return (bytes >> self.cluster_bits) + @intFromBool(bytes & (self.clusterSize() - 1) != 0);
    }

    pub fn offsetInCluster(self: Header, offset: u64) u64 {
        return offset & (self.clusterSize() - 1);
    }
};

pub fn big(comptime T: type, bytes: []const u8, offset: usize) T {
    return std.mem.readInt(T, bytes[offset..][0..@sizeOf(T)], .big);
}

/// The header's fields with what only depends on themselves checked: magic, version, cluster size, lengths and the
/// compression type.  Feature bits and tables come after, see `checkTables`.
pub fn parse(diagnostic: *block.Diagnostic, bytes: *const [known_length]u8) error{Refused}!Header {
    if (big(u32, bytes, 0) != magic)
        return refuse(diagnostic, .corrupt, "header", "image is not in qcow2 format", 0, big(u32, bytes, 0), none);
    const version = big(u32, bytes, 4);
    if (version != 2 and version != 3)
        return refuse(diagnostic, .unsupported, "header", "unsupported qcow2 version {value}", 4, version, 3);
    const cluster_bits = big(u32, bytes, 20);
    if (cluster_bits < min_cluster_bits or cluster_bits > max_cluster_bits)
        return refuse(diagnostic, .unsupported, "header", "unsupported cluster size 2^{value}, allowed are 2^9 to 2^21", 20, cluster_bits, max_cluster_bits);
    const cluster_size = @as(u64, 1) << @intCast(cluster_bits);
    const v3 = version >= 3;
    const length: u32 = if (v3) big(u32, bytes, 100) else v2_length;
    if (v3 and length < v3_length)
        return refuse(diagnostic, .corrupt, "header", "header too short: it states {value} bytes, version 3 has at least 104", 100, length, v3_length);
    if (length > cluster_size)
        return refuse(diagnostic, .corrupt, "header", "header exceeds cluster size: {value} bytes, the cluster has {limit}", 100, length, cluster_size);
    const backing_offset = big(u64, bytes, 8);
    if (backing_offset > cluster_size)
        return refuse(diagnostic, .out_of_bounds, "header", "invalid backing file offset {value}, the first cluster ends at {limit}", 8, backing_offset, cluster_size);
    const incompatible = if (v3) big(u64, bytes, 72) else 0;
    const compression: u8 = if (length > v3_length) bytes[104] else 0;
    if (compression > 1)
        return refuse(diagnostic, .unsupported, "header", "unknown compression type: {value}", 104, compression, 1);
    if (compression == 0 and incompatible & Incompatible.compression != 0)
        return refuse(diagnostic, .corrupt, "header", "compression type incompatible feature bit must not be set for compression type 0", 72, compression, none);
    if (compression != 0 and incompatible & Incompatible.compression == 0)
        return refuse(diagnostic, .corrupt, "header", "compression type incompatible feature bit must be set for compression type {value}", 72, compression, none);
    return .{
        .version = version,
        .header_length = length,
        .backing_offset = backing_offset,
        .backing_length = big(u32, bytes, 16),
        .cluster_bits = @intCast(cluster_bits),
        .size = big(u64, bytes, 24),
        .crypt_method = big(u32, bytes, 32),
        .l1_entries = big(u32, bytes, 36),
        .l1_offset = big(u64, bytes, 40),
        .refcount_table_offset = big(u64, bytes, 48),
        .refcount_table_clusters = big(u32, bytes, 56),
        .snapshot_count = big(u32, bytes, 60),
        .snapshots_offset = big(u64, bytes, 64),
        .incompatible = incompatible,
        .compatible = if (v3) big(u64, bytes, 80) else 0,
        .autoclear = if (v3) big(u64, bytes, 88) else 0,
        .refcount_order = if (v3) std.math.cast(u3, big(u32, bytes, 96)) orelse 7 else 4,
        .compression = @enumFromInt(compression),
    };
}

/// Size and place of a table: at most `limit` bytes, on a cluster boundary, its end below QEMU's largest offset.
fn checkTable(diagnostic: *block.Diagnostic, header: Header, comptime name: []const u8, offset: u64, entries: u64, entry_bytes: u64, limit: u64) error{Refused}!void {
    if (entries > limit / entry_bytes)
        return refuse(diagnostic, .too_large, name, name ++ " too large: {value} entries, at most {limit}", offset, entries, limit / entry_bytes);
    const length = entries * entry_bytes;
    if (offset > std.math.maxInt(i64) - length or header.offsetInCluster(offset) != 0)
        return refuse(diagnostic, .out_of_bounds, name, name ++ " offset invalid: {value}", offset, offset, none);
    if (length > 0 and offset > max_offset - length)
        return refuse(diagnostic, .out_of_bounds, name, "could not read " ++ name ++ ": it ends at byte {value}", offset, offset + length, max_offset);
}

/// What an image is opened for; a check looks at broken snapshot and refcount tables that others refuse.
pub const Purpose = enum { content, information, check };

/// The second half of the header's checks, which QEMU does after it knows all feature bits.
pub fn checkTables(diagnostic: *block.Diagnostic, header: Header, purpose: Purpose) error{Refused}!void {
    if (header.extendedL2() and header.cluster_bits < 14)
        return refuse(diagnostic, .unsupported, "header", "unsupported subcluster size: {value}, extended L2 entries need {limit} bytes, which is clusters of at least 16384", 20, header.clusterSize() / 32, 512);
    if (header.refcount_order > 6)
        return refuse(diagnostic, .unsupported, "header", "reference count entry width too large; may not exceed 64 bits", 96, header.refcount_order, 6);
    if (header.refcount_table_clusters == 0 and purpose != .check)
        return refuse(diagnostic, .corrupt, "refcount table", "image does not contain a reference count table", 56, none, none);
    try checkTable(diagnostic, header, "refcount table", header.refcount_table_offset, header.refcount_table_clusters, header.clusterSize(), max_refcount_table_bytes);
    if (purpose != .check)
        try checkSnapshotTable(diagnostic, header);
    try checkTable(diagnostic, header, "active L1 table", header.l1_offset, header.l1_entries, 8, max_l1_bytes);
    // Sizes from 2^63 on are negative for QEMU: it refuses them or reads nonsense.
    const shift = header.l1Shift();
    if (header.size > std.math.maxInt(i64) - ((@as(u64, 1) << shift) - 1) or (header.size >> shift) >= std.math.maxInt(i32))
        return refuse(diagnostic, .too_large, "header", "image is too big: {value} bytes", 24, header.size, std.math.maxInt(i64));
    const needed = (header.size + (@as(u64, 1) << shift) - 1) >> shift;
    if (header.l1_entries < needed)
        return refuse(diagnostic, .corrupt, "active L1 table", "L1 table is too small: {value} entries, the virtual size needs {limit}", 36, header.l1_entries, needed);
    if (header.crypt_method > 2)
        return refuse(diagnostic, .unsupported, "header", "unsupported encryption method {value}", 32, header.crypt_method, 2);
}

pub fn checkSnapshotTable(diagnostic: *block.Diagnostic, header: Header) error{Refused}!void {
    return checkTable(diagnostic, header, "snapshot table", header.snapshots_offset, header.snapshot_count, snapshot_entry_bytes, snapshot_entry_bytes * max_snapshots);
}
