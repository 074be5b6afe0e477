//! The facts of a VHDX image.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const text = @import("../text.zig");
const format = @import("format.zig");
const Condition = @import("headers.zig").Condition;
const locators = @import("locator.zig");
const Log = @import("log.zig").Log;
const vhdx = @import("vhdx.zig");

pub fn info(context: image.Context, device: block.Device, sink: image.Sink, report: *messages.Info) block.Error!void {
    const loaded = try vhdx.load(context, device);
    const replayed = &loaded.replayed;
    const header = replayed.headers.current();
    const log = &replayed.log;
    const metadata = &loaded.metadata;
    const layout = &loaded.table.layout;
    const totals = &loaded.totals;
    const dirty = log.state == .dirty;

    report.virtual_size = metadata.virtual_size;
    report.cluster_size = metadata.block_size;
    report.dirty_flag = dirty;
    report.end_offset = endOf(&loaded);
    report.vhdx = .{
        .type = metadata.kind(),
        .logical_sector_size = metadata.logical_sector_size,
        .physical_sector_size = metadata.physical_sector_size,
        .disk_id = try guid(context, &metadata.disk_id),
        .creator = try creator(context, device),
        .header = @as(u64, replayed.headers.active) + 1,
        .header_sequence = header.sequence(),
        .header_1 = condition(replayed.headers.copies[0].condition),
        .header_2 = condition(replayed.headers.copies[1].condition),
        .file_write_guid = try guid(context, header.fileWriteGuid()),
        .data_write_guid = try guid(context, header.dataWriteGuid()),
        .log_state = switch (log.state) {
            .empty => "empty",
            .nothing_valid => "nothing-valid",
            .dirty => "dirty",
        },
        .log_offset = log.offset,
        .log_length = log.length,
        .log_guid = if (log.state == .empty) null else try guid(context, header.logGuid()),
        .log_entries = if (dirty) log.entries else null,
        .log_writes = if (dirty) log.patches.len else null,
        .log_sequence = if (dirty) log.sequence else null,
        .region_table = if (loaded.regions.table.offset == format.region_table_offsets[0]) 1 else 2,
        .regions = loaded.regions.table.entryCount(),
        .bat_offset = loaded.regions.bat.offset,
        .bat_length = loaded.regions.bat.length,
        .bat_entries = layout.entries,
        .chunk_ratio = layout.chunk_ratio,
        .metadata_offset = loaded.regions.metadata.offset,
        .metadata_length = loaded.regions.metadata.length,
        .metadata_items = metadata.table.count(),
        .total_blocks = layout.blocks,
        .present_blocks = totals.present,
    };
    if (metadata.isDifferencing()) try parent(context, &loaded, sink, &report.vhdx.?);
    try notes(sink, &loaded);
}

/// The first byte behind the header section, the log, the regions and the blocks.
fn endOf(loaded: *const vhdx.Vhdx) u64 {
    var end: u64 = @max(format.header_section, loaded.totals.end);
    for (loaded.regions.ranges) |range| end = @max(end, range.end);
    return end;
}

fn condition(one: Condition) []const u8 {
    return switch (one) {
        .valid => "valid",
        .bad_checksum => "bad-checksum",
        .bad_signature => "bad-signature",
        .bad_version => "bad-version",
    };
}

fn parent(context: image.Context, loaded: *const vhdx.Vhdx, sink: image.Sink, facts: *messages.InfoVhdx) block.Error!void {
    facts.partial_blocks = loaded.totals.partial;
    facts.bitmap_blocks = loaded.totals.bitmaps;
    const locator: locators.Locator = try .read(context, loaded.device(), &loaded.metadata);
    facts.parent_locator = if (locator.isVhdx()) format.name else try guid(context, locator.kind());
    for (0..locator.seen()) |index| {
        const pair = try locator.pair(context, index) orelse {
            try sink.emit(messages.InfoNote{
                .code = "parent-entry-unreadable",
                .message = "a key or value of the parent locator is empty or lies outside of it",
                .offset = locator.offset,
                .value = index,
            });
            continue;
        };
        // Two texts share a message.
        try sink.emit(messages.InfoParentEntry{ .key = text.shorten(pair.key, 256), .value = locators.shorten(pair.value) });
    }
    if (try locator.find(context, locators.keys.linkage)) |linkage| facts.parent_linkage = locators.shorten(linkage);
    try locator.emitReferences(context, sink);
}

fn notes(sink: image.Sink, loaded: *const vhdx.Vhdx) block.Error!void {
    const replayed = &loaded.replayed;
    if (replayed.log.state == .dirty) try sink.emit(messages.InfoNote{
        .code = "log-replayed",
        .message = "the log holds writes that have not reached their places; the answer is that of the replayed image",
        .offset = replayed.log.offset,
        .length = replayed.log.length,
        .value = replayed.log.entries,
    });
    for (&replayed.headers.copies) |*copy| {
        if (copy.condition != .valid) try sink.emit(messages.InfoNote{
            .code = "header-damaged",
            .message = "one of the two headers is not valid; the other one counts",
            .offset = copy.offset,
        });
    }
    if (loaded.regions.table.offset != format.region_table_offsets[0]) try sink.emit(messages.InfoNote{
        .code = "region-table-damaged",
        .message = "the first region table is damaged; the second one counts",
        .offset = format.region_table_offsets[0],
    });
    const end = endOf(loaded);
    const length = loaded.device().length;
    if (end < length) try sink.emit(messages.InfoNote{
        .code = "unreferenced-data",
        .message = "bytes behind the last block that nothing refers to",
        .offset = end,
        .length = length - end,
    });
}

fn creator(context: image.Context, device: block.Device) block.Error!?[]const u8 {
    const bytes = context.allocator.alloc(u8, format.creator_size) catch return error.NoMemory;
    try device.readPadded(format.creator_offset, bytes);
    const decoded = text.fromUtf16(context.allocator, bytes, .little) catch return error.NoMemory;
    return if (decoded.len == 0) null else decoded;
}

fn guid(context: image.Context, bytes: *const [16]u8) block.Error![]const u8 {
    const out = context.allocator.create([36]u8) catch return error.NoMemory;
    return text.guid(out, bytes);
}
