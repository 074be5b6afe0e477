//! What an image says of itself: qemu-img's keys, and the facts of the header that qemu-img does not print.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const bitmaps = @import("bitmaps.zig");
const extensions = @import("extensions.zig");
const header_zig = @import("header.zig");
const luks = @import("luks.zig");
const open = @import("open.zig");
const references = @import("references.zig");
const snapshots = @import("snapshots.zig");

const format = "qcow2";
const utf8 = references.utf8;

/// Lists go to the sink, in the order of the image; `report` is complete when it returns.  Its texts live as long as
/// the context's memory.
pub fn run(context: image.Context, device: block.Device, sink: image.Sink, report: *messages.Info) block.Error!void {
    const opened = try open.Opened.open(context, device, .information);
    const header = opened.header;
    const v3 = header.version >= 3;
    report.format = format;
    report.virtual_size = header.virtualSize();
    report.file_length = device.length;
    report.cluster_size = header.clusterSize();
    report.dirty_flag = header.dirty();
    if (header.crypt_method != 0) report.encrypted = true;
    var facts: messages.InfoQcow2 = .{
        .compat = if (v3) "1.1" else "0.10",
        .compression_type = @tagName(header.compression),
        .refcount_bits = header.refcountBits(),
        .lazy_refcounts = if (v3) header.compatible & header_zig.Compatible.lazy_refcounts != 0 else null,
        .corrupt = if (v3) header.markedCorrupt() else null,
        .extended_l2 = if (v3) header.extendedL2() else null,
        .data_file = if (opened.data_file) |name| try utf8(context, name) else null,
        .data_file_raw = if (header.hasDataFile()) header.dataFileRaw() else null,
        .version = header.version,
        .header_length = header.header_length,
        .incompatible_features = header.incompatible,
        .compatible_features = header.compatible,
        .autoclear_features = header.autoclear,
        .unknown_features = try unknownFeatures(opened),
        .unknown_extensions = try unknownExtensions(opened),
        .l1_offset = header.l1_offset,
        .l1_entries = header.l1_entries,
        .refcount_table_offset = header.refcount_table_offset,
        .refcount_table_clusters = header.refcount_table_clusters,
        .snapshots = 0,
        .bitmaps = 0,
    };
    if (opened.backing_name) |name| {
        report.backing_filename = try utf8(context, name);
        report.backing_filename_format = try references.backingFormat(opened);
    }
    try references.emit(opened, sink);
    switch (@as(header_zig.Crypt, @enumFromInt(header.crypt_method))) {
        .none => {},
        .aes => facts.encrypt_format = "aes",
        .luks => {
            facts.encrypt_format = "luks";
            if (opened.extensions.crypto) |place| facts.encrypt_luks = try luks.read(context, device, place);
        },
    }
    facts.snapshots = try sendSnapshots(opened, sink);
    facts.bitmaps = try sendBitmaps(opened, sink);
    if (opened.extensions.stale_bitmaps)
        try sink.emit(messages.InfoNote{ .code = "stale-bitmaps", .message = "a program without support for bitmaps has modified this image, so all bitmaps are inconsistent" });
    try notes(opened, sink);
    report.qcow2 = facts;
}

/// Structures that lie outside the file are no error for qemu-img, which reads zeroes there; here they are named.
fn notes(opened: open.Opened, sink: image.Sink) block.Error!void {
    const header = opened.header;
    const l1_end = header.l1_offset + @as(u64, header.l1_entries) * 8;
    if (header.l1_entries > 0 and l1_end > opened.device.length)
        try outside(opened, sink, "L1 table", header.l1_offset, l1_end);
    const refcounts_end = header.refcount_table_offset + header.refcountTableEntries() * 8;
    if (refcounts_end > opened.device.length)
        try outside(opened, sink, "refcount table", header.refcount_table_offset, refcounts_end);
}

fn outside(opened: open.Opened, sink: image.Sink, comptime name: []const u8, offset: u64, end: u64) block.Error!void {
    var buffer: [128]u8 = undefined;
    const message = std.fmt.bufPrint(&buffer, name ++ " ends at byte {d}, file has {d}", .{ end, opened.device.length }) catch name ++ " ends outside the file";
    return sink.emit(messages.InfoNote{ .code = "outside-file", .message = message, .offset = offset, .length = end - offset, .value = opened.device.length });
}

fn sendSnapshots(opened: open.Opened, sink: image.Sink) block.Error!u64 {
    // QEMU has no snapshots where there is a data file.
    if (opened.header.hasDataFile()) return 0;
    var iterator = try snapshots.Iterator.init(opened.context, opened.device, opened.header);
    var sent: u64 = 0;
    const nanoseconds = 1_000_000_000;
    while (try iterator.next()) |snapshot| : (sent += 1) {
        try sink.emit(messages.InfoSnapshot{
            .id = try utf8(opened.context, snapshot.id),
            .name = try utf8(opened.context, snapshot.name),
            .vm_state_size = @bitCast(snapshot.vm_state_size),
            .date_sec = snapshot.date_sec,
            .date_nsec = snapshot.date_nsec,
            .vm_clock_sec = snapshot.vm_clock_nsec / nanoseconds,
            .vm_clock_nsec = snapshot.vm_clock_nsec % nanoseconds,
            .icount = if (snapshot.icount) |count| @as(i64, @bitCast(count)) else null,
            .disk_size = snapshot.disk_size,
        });
    }
    return sent;
}

fn sendBitmaps(opened: open.Opened, sink: image.Sink) block.Error!u64 {
    for (opened.bitmaps) |bitmap| {
        var flags: [2][]const u8 = undefined;
        var count: usize = 0;
        if (bitmap.inUse()) {
            flags[count] = "in-use";
            count += 1;
        }
        if (bitmap.flags & bitmaps.Flags.auto != 0) {
            flags[count] = "auto";
            count += 1;
        }
        try sink.emit(messages.InfoBitmap{
            .name = try utf8(opened.context, bitmap.name),
            .granularity = @as(u64, 1) << bitmap.granularity_bits,
            .flags = flags[0..count],
        });
    }
    return opened.bitmaps.len;
}

/// Compatible and autoclear features that the specification does not know (incompatible ones never get here).
fn unknownFeatures(opened: open.Opened) block.Error!?[]const []const u8 {
    const header = opened.header;
    const compatible = header.compatible & ~header_zig.Compatible.known;
    const autoclear = header.autoclear & ~header_zig.Autoclear.known;
    const total: usize = @popCount(compatible) + @popCount(autoclear);
    if (total == 0) return null;
    const context = opened.context;
    const names = context.allocator.alloc([]const u8, total) catch return open.noMemory(context, total * 16);
    var count: usize = 0;
    for ([_]extensions.FeatureKind{ .compatible, .autoclear }, [_]u64{ compatible, autoclear }) |kind, mask| {
        for (0..64) |index| {
            const bit: u6 = @intCast(index);
            if (mask >> bit & 1 == 0) continue;
            const buffer = context.allocator.create([46]u8) catch return open.noMemory(context, 46);
            names[count] = if (try extensions.featureName(opened.window, opened.extensions.feature_names, kind, bit, buffer)) |name|
                try utf8(context, name)
            else
                std.fmt.bufPrint(buffer, "{s}:{d}", .{ @tagName(kind), bit }) catch unreachable;
            count += 1;
        }
    }
    return names;
}

fn unknownExtensions(opened: open.Opened) block.Error!?[]const u64 {
    const count = opened.extensions.unknown_count;
    if (count == 0) return null;
    const list = opened.context.allocator.alloc(u64, count) catch return open.noMemory(opened.context, count * 8);
    for (list, opened.extensions.unknown[0..count]) |*to, from| to.* = from;
    return list;
}
