//! Consistency of an image: refcounts calculated from everything that refers to a cluster, compared with the stored
//! ones (QEMU docs/interop/qcow2.txt, "Host cluster management").  Counters and classes are qemu-img's.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const bitmaps = @import("bitmaps.zig");
const counts_zig = @import("check_counts.zig");
const header_zig = @import("header.zig");
const open = @import("open.zig");
const refcount = @import("refcount.zig");
const snapshots = @import("snapshots.zig");
const stored_zig = @import("check_stored.zig");
const tables_zig = @import("check_tables.zig");
const Findings = @import("check_findings.zig").Findings;
const Header = header_zig.Header;
const template = @import("template.zig");
const refuse = template.refuse;
const none = template.none;
const Window = @import("window.zig").Window;

const format = "qcow2";

pub const Checker = struct {
    context: image.Context,
    device: block.Device,
    header: Header,
    report: *messages.Check,
    findings: Findings,
    counts: counts_zig.Counts,
    /// Clusters that are compared: those of the file, and one more once something refers to it.
    limit: u64,
    stored: refcount.Stored,
    /// Clusters whose stored refcount is 1.
    ones: counts_zig.Bits,
    /// Whether some stored refcounts cannot be read.
    unreadable: bool = false,

    /// Count a reference to [offset, offset + length), `times` times.  Anything that ends a cluster or more behind
    /// the end of the file is a corruption and counts nothing.
    pub fn reference(self: *Checker, offset: u64, length: u64, times: u64) block.Error!void {
        if (length == 0 or times == 0) return;
        const cluster_size = self.header.clusterSize();
        if (offset > std.math.maxInt(i64) - length)
            return refuse(self.context.diagnostic, .out_of_bounds, "reference", "check failed: a structure of {value} bytes is said to lie at byte {offset}", offset, length, none);
        const end = offset + length;
        // QEMU rounds a file's length up to whole sectors.
        if (end >= std.mem.alignForward(u64, self.device.length, 512) + cluster_size)
            return self.findings.put(.corruption, "reference", "reference to a region that exceeds the end of the file by one cluster or more: offset {offset} size {value}", .{ .count = times, .offset = offset, .value = length, .expected = self.device.length });
        var cluster = offset >> self.header.cluster_bits;
        const last = (end - 1) >> self.header.cluster_bits;
        self.limit = @max(self.limit, last + 1);
        while (cluster <= last) : (cluster += 1) {
            const lost = self.counts.add(cluster, times) catch return open.noMemory(self.context, 4096);
            if (lost > 0)
                try self.findings.put(.corruption, "reference", "overflow: cluster {index} has more references than its refcount can count", .{ .count = lost, .offset = cluster << self.header.cluster_bits, .index = cluster, .expected = self.header.refcountMax() });
        }
    }

    /// Whether the stored refcount of a cluster is 1; null where it cannot be read.
    pub fn storedIsOne(self: *Checker, cluster: u64) block.Error!?bool {
        if (cluster >= self.stored.limit or self.unreadable) {
            const value = try self.stored.lookUp(cluster) orelse return null;
            return value == 1;
        }
        return self.ones.isSet(cluster);
    }
};

/// The whole check; `report` is complete when it returns.
pub fn run(context: image.Context, device: block.Device, sink: image.Sink, report: *messages.Check) block.Error!void {
    const opened = try open.Opened.open(context, device, .check);
    const header = opened.header;
    report.format = format;
    report.file_length = device.length;
    report.virtual_size = header.virtualSize();
    report.cluster_size = header.clusterSize();
    report.dirty = header.dirty();
    report.corrupt = header.markedCorrupt();
    report.total_clusters = header.clusters(header.virtualSize());
    report.allocated_clusters = 0;
    report.fragmented_clusters = 0;
    report.compressed_clusters = 0;
    report.clusters_inside = 0;

    try header_zig.checkSnapshotTable(context.diagnostic, header);
    const clusters = header.clusters(device.length);
    if (clusters > std.math.maxInt(i32))
        return refuse(context.diagnostic, .too_large, "file", "check failed: file too large: {value} clusters, at most {limit}", none, clusters, std.math.maxInt(i32));
    // References may reach into one cluster behind the end of the file.
    const limit = clusters + 1;
    var checker: Checker = .{
        .context = context,
        .device = device,
        .header = header,
        .report = report,
        .findings = .{ .sink = sink, .report = report },
        .counts = counts_zig.Counts.init(context.allocator, limit, header.refcountMax()) catch return open.noMemory(context, limit / 256),
        .limit = clusters,
        .stored = refcount.Stored.init(context, device, header, limit) catch return open.noMemory(context, header.clusterSize()),
        .ones = counts_zig.Bits.init(context.allocator, limit) catch return open.noMemory(context, limit / 4096),
    };
    try stored_zig.findOnes(&checker);

    const window = try open.newWindow(context, device, 64 << 10);
    var walk: tables_zig.Walk = .{ .checker = &checker, .window = window };
    try checker.reference(0, header.clusterSize(), 1);
    try walk.active();
    try snapshotTables(&checker, &walk);
    try walk.l2Tables();
    try checker.reference(header.refcount_table_offset, header.refcountTableEntries() * 8, 1);
    if (opened.extensions.crypto) |crypto| try checker.reference(crypto.offset, crypto.length, 1);
    try bitmapTables(&checker, opened, window);
    try stored_zig.refcountBlocks(&checker);
    const highest = try stored_zig.compare(&checker);
    if (opened.extensions.crypto) |crypto| try @import("luks.zig").check(context, device, crypto, &checker.findings);

    if (checker.stored.pages.exhausted)
        try checker.findings.put(.check_error, "refcount block", "too many refcounts were looked up in no order, the rest of the copied flags is not checked", .{});
    report.image_end_offset = (highest + 1) << header.cluster_bits;
    if (report.allocated_clusters.? > report.clusters_inside.?)
        try checker.findings.put(.note, "L2 table", "{value} clusters are allocated, {expected} of them on the virtual disk: the others lie behind its end or are named twice", .{ .value = report.allocated_clusters.?, .expected = report.clusters_inside.? });
    if (report.dirty.?)
        try checker.findings.put(.note, "header", "the dirty bit is set: refcounts may be out of date until the image is repaired", .{ .offset = 72 });
    if (report.corrupt.?)
        try checker.findings.put(.note, "header", "the corrupt bit is set: a writer has found the image inconsistent", .{ .offset = 72 });
}

fn snapshotTables(checker: *Checker, walk: *tables_zig.Walk) block.Error!void {
    const header = checker.header;
    if (header.snapshot_count == 0) return;
    const list = checker.context.allocator.alloc(tables_zig.SnapshotTable, header.snapshot_count) catch
        return open.noMemory(checker.context, @as(u64, header.snapshot_count) * @sizeOf(tables_zig.SnapshotTable));
    if (header.hasDataFile())
        try checker.findings.put(.corruption, "snapshot table", "{value} snapshots in image with data file", .{ .value = header.snapshot_count });
    var count: usize = 0;
    var iterator = try snapshots.Iterator.init(checker.context, checker.device, header);
    while (try iterator.next()) |snapshot| {
        if (header.version >= 3 and snapshot.extra_length < 16)
            try checker.findings.put(.corruption, "snapshot table", "snapshot table entry {index} is incomplete: {value} bytes of extra data", .{ .offset = snapshot.offset, .index = snapshot.index, .value = snapshot.extra_length, .expected = 16 });
        if (header.offsetInCluster(snapshot.l1_offset) != 0) {
            try checker.findings.put(.corruption, "snapshot table", "snapshot {index} l1_offset={value:x}: L1 table is not cluster aligned; snapshot table entry corrupted", .{ .offset = snapshot.offset, .index = snapshot.index, .value = snapshot.l1_offset });
        } else if (snapshot.l1_entries > header_zig.max_l1_bytes / 8) {
            try checker.findings.put(.corruption, "snapshot table", "snapshot {index} l1_size={value:x}: L1 table is too large; snapshot table entry corrupted", .{ .offset = snapshot.offset, .index = snapshot.index, .value = snapshot.l1_entries, .expected = header_zig.max_l1_bytes / 8 });
        } else if (snapshot.l1_entries > 0) {
            list[count] = .{ .offset = snapshot.l1_offset, .entries = snapshot.l1_entries };
            count += 1;
        }
    }
    try walk.inactive(list[0..count]);
    try checker.reference(header.snapshots_offset, iterator.table_bytes, 1);
}

fn bitmapTables(checker: *Checker, opened: open.Opened, window: *Window) block.Error!void {
    const place = opened.extensions.bitmaps orelse return;
    const header = checker.header;
    try checker.reference(place.directory_offset, place.directory_size, 1);
    var budget = bitmaps.tableBudget(checker.device);
    for (opened.bitmaps, 0..) |bitmap, index| {
        try checker.reference(bitmap.table_offset, @as(u64, bitmap.table_entries) * 8, 1);
        var table = bitmaps.Table.init(checker.device, window, bitmap);
        if (table.inside() > budget)
            return checker.findings.put(.check_error, "bitmap table", "bitmap tables overlap: more bytes of them than the file has, the rest is not checked", .{ .offset = bitmap.table_offset, .index = index });
        budget -= table.inside();
        const whole = table;
        while (try table.next()) |word| {
            // QEMU gives up on the whole check here.
            if (!bitmap.readable() or bitmaps.tableEntry(header, word) == null)
                return refuse(checker.context.diagnostic, .corrupt, "bitmap table", "check failed: bitmap table entry {value:x} at byte {offset}", table.at - 8, word, none);
        }
        table = whole;
        while (try table.next()) |word| {
            const offset = bitmaps.tableEntry(header, word) orelse continue;
            if (offset != 0) try checker.reference(offset, header.clusterSize(), 1);
        }
    }
}
