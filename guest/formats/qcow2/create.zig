//! Plans an empty qcow2 image.
//!
//! The file, in clusters: header, refcount table, first refcount block, L1 table, the other refcount blocks; with
//! preallocation all L2 tables and then the data in the order of the disk.  An image without preallocation is the same
//! as qemu-img's as long as one refcount block counts it, which 64 KiB clusters do up to a disk of 2 PiB.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const target = @import("../target.zig");
const plans = @import("../plan.zig");
const layout = @import("layout.zig");
const header = @import("header.zig");
const features = @import("features.zig");
const refcount = @import("refcount.zig");
const tables = @import("tables.zig");
const OptionList = @import("../option_list.zig").OptionList;

const format = "qcow2";

/// Bytes of the version 3 header with the compression type and its padding.
const v3_header = header.known_length;

/// Bytes; longer names of external data files are refused.
const max_header = 8192;

const extension = struct {
    const backing_format = 0xe279_2aca;
    const data_file = 0x4441_5441;
    const feature_names = 0x6803_f857;
};

/// Where everything lies; offsets in bytes.
const Places = struct {
    size: u64,
    table_clusters: u64,
    blocks: u64,
    l1_offset: u64,
    l1_entries: u64,
    /// Refcount blocks but the first one.
    more_blocks_offset: u64,
    l2_offset: u64,
    data_offset: u64,
    /// Clusters that are in use, which is what the refcounts count.
    clusters: u64,

    fn init(wanted: layout.Parameters, size: u64) Places {
        const preallocated = hasTables(wanted);
        const cluster = wanted.clusterSize();
        const l1_clusters = wanted.l1Clusters(size);
        const l2_clusters = if (preallocated) wanted.l2Tables(size) else 0;
        const data_clusters = if (preallocated and wanted.data_file == null) wanted.clusters(size) else 0;
        const others = 1 + l1_clusters + l2_clusters + data_clusters;
        const counts = wanted.refcounts(others);
        const first_block = 1 + counts.table_clusters;
        const l1 = first_block + 1;
        const more = l1 + l1_clusters;
        const l2 = more + counts.blocks - 1;
        return .{
            .size = size,
            .table_clusters = counts.table_clusters,
            .blocks = counts.blocks,
            .l1_offset = if (l1_clusters == 0) 0 else l1 * cluster,
            .l1_entries = wanted.l2Tables(size),
            .more_blocks_offset = more * cluster,
            .l2_offset = l2 * cluster,
            .data_offset = (l2 + l2_clusters) * cluster,
            .clusters = others + counts.table_clusters + counts.blocks,
        };
    }

    fn firstBlockOffset(self: Places, wanted: layout.Parameters) u64 {
        return (1 + self.table_clusters) * wanted.clusterSize();
    }

    /// Exact length of the file: up to the last byte that qemu-img would have written.
    fn fileLength(self: Places, wanted: layout.Parameters) u64 {
        if (hasTables(wanted) and self.size > 0) {
            if (wanted.data_file != null) return self.data_offset;
            const unit = if (wanted.preallocation == .metadata) wanted.subclusterSize() else wanted.clusterSize();
            return self.data_offset + std.mem.alignForward(u64, self.size, unit);
        }
        if (self.blocks > 1 or self.l1_entries == 0) return self.clusters * wanted.clusterSize();
        return self.l1_offset + self.l1_entries * 8;
    }
};

/// A raw external data file has no unmapped ranges, so its tables are complete from the start.
fn hasTables(wanted: layout.Parameters) bool {
    return wanted.preallocation != .off or wanted.data_file_raw;
}

/// Plan an image for a disk of `size` bytes, rounded up to 512.
pub fn plan(context: image.Context, size: u64, options: *const target.Options, _: target.Seed) block.Error!plans.Plan {
    const wanted = try layout.parameters(context, options, .create);
    try target.checkSize(context, format, size);
    const disk = std.mem.alignForward(u64, size, 512);
    try wanted.checkL1(context, disk);
    const places: Places = .init(wanted, disk);
    const table_bytes = places.blocks * 8;
    if (table_bytes > header.max_refcount_table_bytes) return context.diagnostic.refuse(
        .too_large,
        .{ .format = format, .structure = "refcount table", .value = table_bytes, .limit = header.max_refcount_table_bytes },
        "qcow2: The image size is too large (try using a larger cluster size): its refcount table would have {d} bytes, the limit is {d}",
        .{ table_bytes, header.max_refcount_table_bytes },
    );
    return .{
        .virtual_size = disk,
        .cluster_size = wanted.clusterSize(),
        .file_length = places.fileLength(wanted),
        .regions = try regions(context, wanted, places),
        .others = try dataFile(context, wanted, disk),
        .options = optionList(context, wanted, size, options) catch return error.NoMemory,
    };
}

/// The external data file, when there is one: the request says where it is.
fn dataFile(context: image.Context, wanted: layout.Parameters, disk: u64) block.Error![]const plans.File {
    if (wanted.data_file == null) return &.{};
    const length = if (hasTables(wanted)) std.mem.alignForward(u64, disk, wanted.subclusterSize()) else disk;
    const file = context.allocator.create(plans.File) catch return error.NoMemory;
    file.* = .{ .name = null, .length = length };
    if (wanted.preallocation == .full and length > 0) {
        const zeroes = context.allocator.create(plans.Region) catch return error.NoMemory;
        zeroes.* = .{ .offset = 0, .length = length, .content = .{ .pattern = &.{0} } };
        file.regions = zeroes[0..1];
    }
    return file[0..1];
}

fn regions(context: image.Context, wanted: layout.Parameters, places: Places) block.Error![]const plans.Region {
    const list = context.allocator.alloc(plans.Region, 12) catch return error.NoMemory;
    var out: std.ArrayList(plans.Region) = .initBuffer(list);
    const cluster = wanted.clusterSize();
    const head = try headerBytes(context, wanted, places);
    out.appendAssumeCapacity(.{ .offset = 0, .length = head.len, .content = .{ .bytes = head } });

    appendWords(&out, cluster, 1, .{ .first = places.firstBlockOffset(wanted) });
    appendWords(&out, cluster + 8, places.blocks - 1, .{ .first = places.more_blocks_offset, .step = cluster });

    const per_block = cluster * 8 / wanted.refcountBits();
    const in_first = @min(places.clusters, per_block);
    try appendRefcounts(context, &out, wanted, places.firstBlockOffset(wanted), in_first);
    if (hasTables(wanted)) appendWords(&out, places.l1_offset, places.l1_entries, .{ .first = places.l2_offset | tables.copied, .step = cluster });
    try appendRefcounts(context, &out, wanted, places.more_blocks_offset, places.clusters - in_first);
    if (hasTables(wanted)) {
        const data = if (wanted.data_file == null) places.data_offset else 0;
        // The bitmaps of extended entries stay empty: the clusters have their places, and read as unallocated.
        appendWords(&out, places.l2_offset, wanted.clusters(places.size), .{ .first = data | tables.copied, .step = cluster, .word = if (wanted.extended_l2) .big_64_and_zero else .big_64 });
        if (wanted.preallocation == .full and wanted.data_file == null and places.size > 0) {
            out.appendAssumeCapacity(.{
                .offset = data,
                .length = places.fileLength(wanted) - data,
                .content = .{ .pattern = &.{0} },
            });
        }
    }
    return out.items;
}

fn appendWords(out: *std.ArrayList(plans.Region), offset: u64, count: u64, words: plans.Progression) void {
    if (count == 0) return;
    out.appendAssumeCapacity(.{ .offset = offset, .length = count * words.stride(), .content = .{ .progression = words } });
}

/// `count` refcounts of 1.  Widths below a byte start at its least significant bit.
fn appendRefcounts(context: image.Context, out: *std.ArrayList(plans.Region), wanted: layout.Parameters, offset: u64, count: u64) block.Error!void {
    const pattern = refcount.ones(wanted.refcount_order);
    // Exact: a file has fewer than 2^54 clusters of 512 bytes.
    const bits = count * wanted.refcountBits();
    const whole = bits / 8;
    if (whole > 0) out.appendAssumeCapacity(.{ .offset = offset, .length = whole, .content = .{ .pattern = pattern } });
    if (bits % 8 == 0) return;
    const last = context.allocator.alloc(u8, 1) catch return error.NoMemory;
    last[0] = pattern[0] & ((@as(u8, 1) << @intCast(bits % 8)) - 1);
    out.appendAssumeCapacity(.{ .offset = offset + whole, .length = 1, .content = .{ .bytes = last } });
}

/// The header with its extensions and the backing file's name.
fn headerBytes(context: image.Context, wanted: layout.Parameters, places: Places) block.Error![]const u8 {
    const cluster: usize = @intCast(wanted.clusterSize());
    const room = context.allocator.alloc(u8, @min(cluster, max_header)) catch return error.NoMemory;
    var out: std.Io.Writer = .fixed(room);
    const name = wanted.backing_file orelse "";
    if (name.len > header.max_backing_name) return context.diagnostic.refuse(
        .invalid_option,
        .{ .format = format, .structure = "backing file name", .value = name.len, .limit = header.max_backing_name },
        "qcow2: the backing file's name has {d} bytes, the limit is {d}",
        .{ name.len, header.max_backing_name },
    );
    writeHeader(&out, wanted, places, name) catch return tooLong(context, room.len);
    // The names of features are a courtesy; like qemu-img, leave small clusters to what is needed.
    if (wanted.version >= 3 and cluster >= 8192) {
        writeExtension(&out, extension.feature_names, &features.table) catch return tooLong(context, room.len);
    }
    out.splatByteAll(0, 8) catch return tooLong(context, room.len);
    if (name.len > 0) {
        std.mem.writeInt(u64, room[8..16], out.end, .big);
        out.writeAll(name) catch return tooLong(context, room.len);
    }
    return room[0..out.end];
}

fn tooLong(context: image.Context, room: usize) error{Refused} {
    return context.diagnostic.refuse(
        .invalid_option,
        .{ .format = format, .structure = "header", .limit = room },
        "qcow2: the header with the names of other files does not fit {d} bytes",
        .{room},
    );
}

/// Everything in front of the feature names.
fn writeHeader(out: *std.Io.Writer, wanted: layout.Parameters, places: Places, name: []const u8) std.Io.Writer.Error!void {
    try out.writeInt(u32, header.magic, .big);
    try out.writeInt(u32, wanted.version, .big);
    try out.writeInt(u64, 0, .big); // backing file offset, set when the place is known
    try out.writeInt(u32, @intCast(name.len), .big);
    try out.writeInt(u32, wanted.cluster_bits, .big);
    try out.writeInt(u64, places.size, .big);
    try out.writeInt(u32, @intFromEnum(header.Crypt.none), .big);
    try out.writeInt(u32, @intCast(places.l1_entries), .big);
    try out.writeInt(u64, places.l1_offset, .big);
    try out.writeInt(u64, wanted.clusterSize(), .big); // refcount table
    try out.writeInt(u32, @intCast(places.table_clusters), .big);
    try out.writeInt(u32, 0, .big); // snapshots
    try out.writeInt(u64, 0, .big);
    if (wanted.version >= 3) {
        var incompatible: u64 = 0;
        if (wanted.data_file != null) incompatible |= header.Incompatible.data_file;
        if (wanted.compression != .zlib) incompatible |= header.Incompatible.compression;
        if (wanted.extended_l2) incompatible |= header.Incompatible.extended_l2;
        try out.writeInt(u64, incompatible, .big);
        try out.writeInt(u64, if (wanted.lazy_refcounts) header.Compatible.lazy_refcounts else 0, .big);
        try out.writeInt(u64, if (wanted.data_file_raw) header.Autoclear.data_file_raw else 0, .big);
        try out.writeInt(u32, wanted.refcount_order, .big);
        try out.writeInt(u32, v3_header, .big);
        try out.writeByte(@intFromEnum(wanted.compression));
        try out.splatByteAll(0, 7);
    }
    if (wanted.backing_format) |text| try writeExtension(out, extension.backing_format, text);
    if (wanted.data_file) |text| try writeExtension(out, extension.data_file, text);
}

/// Type, length, data, padded to 8 bytes.
fn writeExtension(out: *std.Io.Writer, kind: u32, data: []const u8) std.Io.Writer.Error!void {
    try out.writeInt(u32, kind, .big);
    try out.writeInt(u32, @intCast(data.len), .big);
    try out.writeAll(data);
    try out.splatByteAll(0, std.mem.alignForward(usize, data.len, 8) - data.len);
}

fn optionList(context: image.Context, wanted: layout.Parameters, size: u64, options: *const target.Options) error{OutOfMemory}![]const messages.CreateOption {
    var list: OptionList = .init(context.allocator);
    try list.number("cluster_size", wanted.clusterSize());
    try list.boolean("extended_l2", wanted.extended_l2);
    try list.text("preallocation", options.preallocation);
    try list.text("compression_type", @tagName(wanted.compression));
    try list.number("size", size);
    try list.text("compat", options.compat);
    try list.text("backing_file", wanted.backing_file);
    try list.text("backing_fmt", wanted.backing_format);
    try list.text("data_file", wanted.data_file);
    try list.boolean("data_file_raw", options.data_file_raw);
    try list.boolean("lazy_refcounts", wanted.lazy_refcounts);
    try list.number("refcount_bits", wanted.refcountBits());
    try list.boolean("nocow", options.nocow);
    try list.number("extent_size_hint", options.extent_size_hint);
    return list.items();
}
