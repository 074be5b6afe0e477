//! The facts of a VHD image.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const text = @import("../text.zig");
const footers = @import("footer.zig");
const dynamic = @import("dynamic.zig");
const vhd = @import("vhd.zig");

pub fn info(context: image.Context, device: block.Device, sink: image.Sink, report: *messages.Info) block.Error!void {
    const loaded = try vhd.load(context, device);
    const footer = &loaded.footer;
    const at_end = if (loaded.sparse == null) loaded.footer else try footers.atEnd(context.allocator, device);

    report.virtual_size = loaded.virtual_size;
    const facts = messages.InfoVhd{
        .type = "fixed",
        .size_rule = switch (footer.sizeRule(context.qemu_major)) {
            .chs => "chs",
            .current_size => "current-size",
        },
        .current_size = footer.currentSize(),
        .original_size = footer.originalSize(),
        .cylinders = footer.cylinders(),
        .heads = footer.heads(),
        .sectors_per_track = footer.sectorsPerTrack(),
        .creator_application = try letters(context, footer.creator()),
        .creator_version = footer.creatorVersion(),
        .creator_host_os = try letters(context, footer.creatorHost()),
        .timestamp = footer.timestamp(),
        .features = footer.features(),
        .saved_state = footer.savedState() != 0,
        .uuid = try uuid(context, footer.uuid()),
        .footer_offset = if (at_end) |found| found.offset else null,
        .footer_length = if (at_end) |found| found.length else null,
    };
    report.vhd = facts;
    const filled = &report.vhd.?;
    if (loaded.sparse) |sparse| {
        filled.type = if (sparse.differencing) "differencing" else "dynamic";
        filled.footer_copy = if (at_end != null and sameFooter(footer, &at_end.?)) "same" else "differs";
        filled.block_size = sparse.table.layout.block_size;
        filled.table_offset = sparse.table.layout.table_offset;
        filled.table_entries = sparse.table.layout.table_entries;
        filled.allocated_blocks = sparse.totals.allocated;
        report.cluster_size = sparse.table.layout.block_size;
        var end = @max(sparse.totals.end, sparse.header.offset + dynamic.size);
        if (sparse.differencing) end = @max(end, try parent(context, device, sink, &sparse.header, filled));
        report.end_offset = end + if (at_end) |found| found.length else 0;
        try footerNotes(sink, device, at_end, filled.footer_copy.?, end);
    } else {
        report.end_offset = footer.offset + footer.length;
    }
}

/// A difference in the one reserved byte that a short footer lacks is none.
pub fn sameFooter(copy: *const footers.Footer, at_end: *const footers.Footer) bool {
    return std.mem.eql(u8, copy.bytes[0..at_end.length], at_end.bytes[0..at_end.length]);
}

fn footerNotes(sink: image.Sink, device: block.Device, at_end: ?footers.Footer, copy: []const u8, end: u64) block.Error!void {
    const found = at_end orelse return sink.emit(messages.InfoNote{
        .code = "footer-missing",
        .message = "there is no footer at the end of the file, only its copy at byte 0",
        .offset = device.length,
    });
    if (!std.mem.eql(u8, copy, "same")) try sink.emit(messages.InfoNote{
        .code = "footer-copy-differs",
        .message = "the footer at the end of the file and its copy at byte 0 differ",
        .offset = found.offset,
    });
    if (found.offset > end) try sink.emit(messages.InfoNote{
        .code = "unreferenced-data",
        .message = "bytes between the last block and the footer that nothing refers to",
        .offset = end,
        .length = found.offset - end,
    });
}

/// Name the parent, by the header's own field and by every locator that can be decoded.  Answers the first sector behind
/// the locators' texts.
fn parent(context: image.Context, device: block.Device, sink: image.Sink, header: *const dynamic.Header, facts: *messages.InfoVhd) block.Error!u64 {
    var end: u64 = 0;
    facts.parent_uuid = try uuid(context, header.parentUuid());
    facts.parent_timestamp = header.parentTimestamp();
    const name = header.parentName(context.allocator) catch return error.NoMemory;
    try sink.emit(messages.InfoReference{ .kind = "parent", .name = name, .source = "dynamic-header" });
    for (0..8) |index| {
        const locator = header.locator(@intCast(index));
        if (!locator.isUsed()) continue;
        const locator_end = locator.offset +| locator.length;
        if (locator_end <= device.length) end = @max(end, std.mem.alignForward(u64, locator_end, footers.sector));
        const platform = try letters(context, &locator.platform);
        if (try locator.name(context, device)) |path| {
            try sink.emitReference(context, .{ .kind = "parent", .name = path, .source = platform });
        } else try sink.emit(messages.InfoNote{
            .code = "parent-locator-unreadable",
            .message = "a parent locator is of an unknown platform or lies outside the file",
            .offset = header.offset + 576 + index * 24,
            .length = locator.length,
        });
    }
    return end;
}

fn uuid(context: image.Context, bytes: *const [16]u8) block.Error![]const u8 {
    const out = context.allocator.create([36]u8) catch return error.NoMemory;
    return text.uuid(out, bytes);
}

/// Four characters, with NULs and blanks at the end left out.
fn letters(context: image.Context, four: *const [4]u8) block.Error![]const u8 {
    const copy = context.allocator.dupe(u8, std.mem.trimEnd(u8, four, "\x00 ")) catch return error.NoMemory;
    return text.fromUtf8(context.allocator, copy) catch error.NoMemory;
}
