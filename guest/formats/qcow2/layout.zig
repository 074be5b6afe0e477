//! How many clusters of what a qcow2 file has: one description for whoever measures and whoever plans.
//!
//! QEMU docs/interop/qcow2.txt: "Header", "Host cluster management", "Cluster mapping".  The limits and the meaning of
//! the options are those of qemu-img 7.2.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const target = @import("../target.zig");
const header = @import("header.zig");

const format = "qcow2";

/// What the image is asked to be, resolved and checked.
pub const Parameters = struct {
    version: u32 = 3,
    cluster_bits: u6 = 16,
    /// A refcount has 2^order bits.
    refcount_order: u3 = 4,
    extended_l2: bool = false,
    lazy_refcounts: bool = false,
    compression: header.Compression = .zlib,
    preallocation: target.Preallocation = .off,
    backing_file: ?[]const u8 = null,
    backing_format: ?[]const u8 = null,
    data_file: ?[]const u8 = null,
    data_file_raw: bool = false,
    /// Bytes of the LUKS header and its key material, whole clusters.
    encryption_header: u64 = 0,

    pub fn clusterSize(self: Parameters) u64 {
        return @as(u64, 1) << self.cluster_bits;
    }

    pub fn refcountBits(self: Parameters) u64 {
        return @as(u64, 1) << self.refcount_order;
    }

    /// Bytes of an L2 entry.
    pub fn entrySize(self: Parameters) u64 {
        return if (self.extended_l2) 16 else 8;
    }

    pub fn entriesPerTable(self: Parameters) u64 {
        return self.clusterSize() / self.entrySize();
    }

    /// Bytes; what can be allocated on its own.
    pub fn subclusterSize(self: Parameters) u64 {
        return if (self.extended_l2) self.clusterSize() / 32 else self.clusterSize();
    }

    pub fn clusters(self: Parameters, bytes: u64) u64 {
        return divideUp(bytes, self.clusterSize());
    }

    /// The L2 tables that a disk of `size` bytes needs when all of them exist; also its number of L1 entries.
    pub fn l2Tables(self: Parameters, size: u64) u64 {
        return divideUp(self.clusters(size), self.entriesPerTable());
    }

    /// Clusters of the L1 table of a disk of `size` bytes.
    pub fn l1Clusters(self: Parameters, size: u64) u64 {
        return self.clusters(self.l2Tables(size) * 8);
    }

    /// Refuse a disk (size <= 2^63-1, in bytes) whose L1 table is above QEMU's limit of 32 MiB.  Nothing that is
    /// computed from a size that passes can wrap: 2^22 tables of 2^18 clusters of 2^21 bytes are 2^61 bytes.
    pub fn checkL1(self: Parameters, context: image.Context, size: u64) error{Refused}!void {
        const bytes = self.l2Tables(size) * 8;
        if (bytes > header.max_l1_bytes) return context.diagnostic.refuse(
            .too_large,
            .{ .format = format, .structure = "L1 table", .value = bytes, .limit = header.max_l1_bytes },
            "qcow2: The image size is too large (try using a larger cluster size): its L1 table would have {d} bytes, the limit is {d}",
            .{ bytes, header.max_l1_bytes },
        );
    }

    pub const Refcounts = struct { table_clusters: u64, blocks: u64 };

    /// The refcount structures that count `others` clusters (>= 1) and themselves: the least numbers that suffice.
    pub fn refcounts(self: Parameters, others: u64) Refcounts {
        const per_block = self.clusterSize() * 8 / self.refcountBits();
        var found: Refcounts = .{ .table_clusters = 0, .blocks = 0 };
        while (true) {
            const blocks = divideUp(others + found.table_clusters + found.blocks, per_block);
            const table_clusters = self.clusters(blocks * 8);
            // Both only grow, and a block counts at least 64 clusters: a few rounds.
            if (blocks == found.blocks and table_clusters == found.table_clusters) return found;
            found = .{ .table_clusters = table_clusters, .blocks = blocks };
        }
    }

    /// Bytes of a file with every cluster of a disk of `size` bytes and all tables.
    pub fn fullSize(self: Parameters, size: u64) u64 {
        const others = 1 + self.l1Clusters(size) + self.l2Tables(size) + self.clusters(size);
        const counts = self.refcounts(others);
        return (others + counts.table_clusters + counts.blocks) * self.clusterSize();
    }
};

fn divideUp(value: u64, divisor: u64) u64 {
    return value / divisor + @intFromBool(value % divisor != 0);
}

/// qemu-img's `measure` looks at fewer options than its `create`.
pub const Purpose = enum { measure, create };

const accepted = target.mask(&.{
    "cluster_size",   "refcount_bits",  "extended_l2",      "compat",
    "preallocation",  "lazy_refcounts", "backing_file",     "backing_format",
    "data_file",      "data_file_raw",  "compression_type", "encryption",
    "cipher_alg",     "cipher_mode",    "hash_alg",         "ivgen_alg",
    "ivgen_hash_alg", "iterations",
});

/// Resolve the options as qemu-img does, with its defaults and its refusals.
pub fn parameters(context: image.Context, options: *const target.Options, purpose: Purpose) error{Refused}!Parameters {
    try target.onlyOptions(context, format, options, accepted);
    var wanted: Parameters = .{
        .extended_l2 = options.extended_l2 orelse false,
        .lazy_refcounts = options.lazy_refcounts orelse false,
        .preallocation = try target.preallocation(context, format, options),
        .backing_file = options.backing_file,
        .backing_format = options.backing_format,
        .data_file = options.data_file,
        .data_file_raw = options.data_file_raw orelse false,
    };
    if (purpose == .create and encrypts(options)) {
        return context.diagnostic.refuse(.unsupported, .{ .format = format }, "qcow2: encrypted images are measured and not created", .{});
    }
    if (options.compat) |text| wanted.version = try version(context, text, purpose);

    const cluster_size = options.cluster_size orelse 65536;
    if (cluster_size < 1 << header.min_cluster_bits or cluster_size > 1 << header.max_cluster_bits or !std.math.isPowerOfTwo(cluster_size)) {
        return context.diagnostic.refuse(
            .invalid_option,
            .{ .format = format, .structure = "cluster_size", .value = cluster_size, .limit = 1 << header.max_cluster_bits },
            "qcow2: Cluster size must be a power of two between 512 and 2048k, not {d}",
            .{cluster_size},
        );
    }
    wanted.cluster_bits = @intCast(@ctz(cluster_size));
    if (encrypts(options)) wanted.encryption_header = std.mem.alignForward(u64, try encryptionHeader(context, options), cluster_size);

    if (wanted.extended_l2 and cluster_size < 16384) {
        return target.refuseOption(context, format, "qcow2: Extended L2 entries are only supported with cluster sizes of at least 16384 bytes", .{});
    }
    const bits = options.refcount_bits orelse 16;
    if (bits == 0 or bits > 64 or !std.math.isPowerOfTwo(bits)) {
        return target.refuseOption(context, format, "qcow2: Refcount width must be a power of two and may not exceed 64 bits, not {d}", .{bits});
    }
    wanted.refcount_order = @intCast(@ctz(bits));
    if (wanted.version < 3 and bits != 16) return needsVersion3(context, "Different refcount widths than 16 bits require");
    if (purpose == .create) try checkTogether(context, options, &wanted);
    return wanted;
}

/// Whether any option asks for encryption.
fn encrypts(options: *const target.Options) bool {
    return options.encryption != null or options.cipher_alg != null or options.cipher_mode != null or options.hash_alg != null or
        options.ivgen_alg != null or options.ivgen_hash_alg != null or options.iterations != null;
}

/// Bytes that LUKS needs in front of the data; the older method has no header.
fn encryptionHeader(context: image.Context, options: *const target.Options) error{Refused}!u64 {
    const method = options.encryption orelse "";
    if (std.mem.eql(u8, method, "luks")) return (try @import("../luks/layout.zig").parameters(context, format, options)).payloadOffset();
    if (!std.mem.eql(u8, method, "aes"))
        return target.refuseOption(context, format, "qcow2: encryption needs encrypt.format=luks (or aes), not '{s}'", .{target.shorten(method)});
    return 0;
}

/// `measure` does not know the newer names of the levels.
fn version(context: image.Context, text: []const u8, purpose: Purpose) error{Refused}!u32 {
    const names = [_]struct { []const u8, u32 }{ .{ "0.10", 2 }, .{ "1.1", 3 }, .{ "v2", 2 }, .{ "v3", 3 } };
    const known = names[0..if (purpose == .measure) 2 else names.len];
    for (known) |name| if (std.mem.eql(u8, name[0], text)) return name[1];
    return target.refuseOption(context, format, "qcow2: Invalid compatibility level: '{s}'", .{target.shorten(text)});
}

fn needsVersion3(context: image.Context, comptime what: []const u8) error{Refused} {
    return target.refuseOption(context, format, "qcow2: " ++ what ++ " compatibility level 1.1 or above (use compat=1.1)", .{});
}

/// What only `create` refuses.
fn checkTogether(context: image.Context, options: *const target.Options, wanted: *Parameters) error{Refused}!void {
    if (options.compression_type) |text| {
        wanted.compression = std.meta.stringToEnum(header.Compression, text) orelse
            return target.refuseValue(context, format, "compression_type", text);
    }
    if (wanted.version < 3) {
        if (wanted.lazy_refcounts) return needsVersion3(context, "Lazy refcounts need");
        if (wanted.extended_l2) return needsVersion3(context, "Extended L2 entries need");
        if (wanted.data_file != null) return needsVersion3(context, "External data files need");
        if (wanted.compression != .zlib) return needsVersion3(context, "A compression type other than zlib needs");
    }
    if (wanted.data_file) |name| {
        if (name.len == 0) return target.refuseOption(context, format, "qcow2: Expected data file name, got empty string", .{});
    } else if (wanted.data_file_raw) {
        return target.refuseOption(context, format, "qcow2: data-file-raw requires data-file", .{});
    }
    if (wanted.backing_file) |name| {
        if (name.len == 0) return target.refuseOption(context, format, "qcow2: Expected backing file name, got empty string", .{});
        if (wanted.backing_format == null) return target.refuseOption(context, format, "qcow2: Backing file specified without backing format", .{});
        if (wanted.data_file_raw) return target.refuseOption(context, format, "qcow2: Backing file and data-file-raw cannot be used at the same time", .{});
        if (wanted.preallocation != .off and !wanted.extended_l2) {
            return target.refuseOption(context, format, "qcow2: Backing file and preallocation can only be used at the same time if extended_l2 is on", .{});
        }
    } else if (wanted.backing_format != null) {
        return target.refuseOption(context, format, "qcow2: Backing format cannot be used without backing file", .{});
    }
}

const testing = std.testing;

test "refcount structures count themselves" {
    const small: Parameters = .{ .cluster_bits = 9 };
    // 256 refcounts a block, 64 blocks a table cluster.
    try testing.expectEqual(Parameters.Refcounts{ .table_clusters = 1, .blocks = 1 }, small.refcounts(254));
    try testing.expectEqual(Parameters.Refcounts{ .table_clusters = 1, .blocks = 2 }, small.refcounts(255));
    try testing.expectEqual(Parameters.Refcounts{ .table_clusters = 1, .blocks = 64 }, small.refcounts(64 * 255 - 1));
    try testing.expectEqual(Parameters.Refcounts{ .table_clusters = 2, .blocks = 65 }, small.refcounts(64 * 255));
}

test "options are resolved and refused as qemu-img does" {
    var diagnostic: block.Diagnostic = .{};
    const context: image.Context = .{ .allocator = testing.allocator, .diagnostic = &diagnostic };
    const defaults = try parameters(context, &.{}, .create);
    try testing.expectEqual(@as(u64, 65536), defaults.clusterSize());
    try testing.expectEqual(@as(u64, 16), defaults.refcountBits());

    const refused = [_]target.Options{
        .{ .cluster_size = 0 },
        .{ .cluster_size = 256 },
        .{ .cluster_size = 100_000 },
        .{ .cluster_size = 4 << 20 },
        .{ .cluster_size = 1 << 63 },
        .{ .refcount_bits = 0 },
        .{ .refcount_bits = 5 },
        .{ .refcount_bits = 128 },
        .{ .refcount_bits = 8, .compat = "0.10" },
        .{ .extended_l2 = true, .cluster_size = 8192 },
        .{ .compat = "1.2" },
        .{ .preallocation = "some" },
        .{ .encryption = "serpent" },
        .{ .cipher_alg = "aes-128" },
        .{ .subformat = "fixed" },
    };
    for (refused) |options| {
        try testing.expectError(error.Refused, parameters(context, &options, .measure));
        try testing.expectError(error.Refused, parameters(context, &options, .create));
    }
    const refused_by_create = [_]target.Options{
        .{ .lazy_refcounts = true, .compat = "0.10" },
        .{ .extended_l2 = true, .compat = "0.10" },
        .{ .compression_type = "zstd", .compat = "0.10" },
        .{ .compression_type = "lzma" },
        .{ .data_file = "d", .compat = "0.10" },
        .{ .data_file_raw = true },
        .{ .backing_file = "b" },
        .{ .backing_format = "raw" },
        .{ .backing_file = "", .backing_format = "raw" },
        .{ .backing_file = "b", .backing_format = "raw", .preallocation = "metadata" },
        .{ .backing_file = "b", .backing_format = "raw", .data_file = "d", .data_file_raw = true },
    };
    for (refused_by_create) |options| {
        _ = try parameters(context, &options, .measure);
        try testing.expectError(error.Refused, parameters(context, &options, .create));
    }
}

test "names of versions" {
    var diagnostic: block.Diagnostic = .{};
    const context: image.Context = .{ .allocator = testing.allocator, .diagnostic = &diagnostic };
    try testing.expectEqual(@as(u32, 2), (try parameters(context, &.{ .compat = "v2" }, .create)).version);
    try testing.expectEqual(@as(u32, 3), (try parameters(context, &.{ .compat = "v3" }, .create)).version);
    try testing.expectError(error.Refused, parameters(context, &.{ .compat = "v3" }, .measure));
    try testing.expectEqualStrings("qcow2: Invalid compatibility level: 'v3'", diagnostic.message());
}

test "the largest disks" {
    var diagnostic: block.Diagnostic = .{};
    const context: image.Context = .{ .allocator = testing.allocator, .diagnostic = &diagnostic };
    const small: Parameters = .{ .cluster_bits = 9 };
    try small.checkL1(context, 128 << 30);
    try testing.expectError(error.Refused, small.checkL1(context, (128 << 30) + 1));
    const usual: Parameters = .{};
    try usual.checkL1(context, 2 << 50);
    try testing.expectError(error.Refused, usual.checkL1(context, (2 << 50) + 1));
    const large: Parameters = .{ .cluster_bits = 21, .refcount_order = 6 };
    try testing.expectError(error.Refused, large.checkL1(context, target.max_size));
    try large.checkL1(context, 1 << 61);
    try testing.expect(large.fullSize(1 << 61) > 1 << 61);
}
