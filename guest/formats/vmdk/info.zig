//! The facts of a VMDK image.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const text = @import("../text.zig");
const format = @import("format.zig");
const sparse = @import("sparse.zig");
const segments = @import("segments.zig");
const vmdk_zig = @import("vmdk.zig");

pub fn info(context: image.Context, device: block.Device, sink: image.Sink, report: *messages.Info) block.Error!void {
    const vmdk = try vmdk_zig.load(context, device);
    report.virtual_size = vmdk.virtual_size;
    report.cluster_size = segments.clusterSize(&vmdk);
    report.vmdk = .{
        .create_type = try utf8(context, vmdk.create_type),
        .cid = if (vmdk.identity) |its| its.cid else null,
        .parent_cid = if (vmdk.identity) |its| its.parent_cid else null,
        .mixed = if (segments.mixed(&vmdk)) true else null,
        .extents = vmdk.extents.len,
        .extents_ignored = if (vmdk.ignored > 0) vmdk.ignored else null,
    };
    const facts = &report.vmdk.?;
    if (vmdk.identity) |its| if (its.parent) |parent| {
        report.backing_filename = try utf8(context, parent);
        report.backing_filename_format = format.name;
    };
    if (vmdk.descriptor) |descriptor| {
        try database(context, descriptor, facts);
    } else try header(context, device, sink, &vmdk.extents[0].body.sparse, facts);
    for (vmdk.extents, 0..) |*extent, index| try emitExtent(context, sink, extent, index);
    try vmdk_zig.emitReferences(context, &vmdk, sink);
    if (vmdk.ignored > 0) try sink.emit(messages.InfoNote{
        .code = "extents-ignored",
        .message = "extent lines are passed over, as qemu-img does: read-only, not accessible, empty, or of a type without a file; the disk may be longer than this answer",
        .value = vmdk.ignored,
    });
    if (vmdk.identity) |its| if (its.parent == null and its.parent_cid != format.no_parent) try sink.emit(messages.InfoNote{
        .code = "parent-unnamed",
        .message = "the image has a parent and does not name it: what it does not hold reads as zero here",
        .value = its.parent_cid,
    });
}

fn emitExtent(context: image.Context, sink: image.Sink, extent: *const vmdk_zig.Extent, index: usize) block.Error!void {
    var message: messages.InfoVmdkExtent = .{ .index = index, .virtual_size = extent.size, .format = "" };
    if (extent.line) |line| {
        message.name = try utf8(context, line.name);
        message.format = @tagName(line.type);
        if (line.type.isFlat()) message.offset = line.offset * format.sector;
    }
    switch (extent.body) {
        .missing => message.missing = true,
        .flat => {},
        .sparse => |*body| {
            message.cluster_size = body.grainBytes();
            message.compressed = if (body.compressed) true else null;
        },
    }
    return sink.emit(message);
}

/// What the header of the image's own extent says, and its descriptor's disk database.
fn header(context: image.Context, device: block.Device, sink: image.Sink, extent: *const sparse.Sparse, facts: *messages.InfoVmdk) block.Error!void {
    facts.directory_offset = extent.directory;
    facts.directory_entries = extent.directory_entries;
    facts.table_entries = extent.table_entries;
    if (extent.kind != .hosted) return;
    const at = format.header;
    facts.version = extent.int(u32, at.version);
    facts.flags = extent.int(u32, at.flags);
    facts.redundant_directory_offset = extent.redundant;
    if (extent.header[at.unclean] != 0) {
        facts.unclean_shutdown = true;
        try sink.emit(messages.InfoNote{
            .code = "unclean-shutdown",
            .message = "a writer has not closed the image",
            .offset = extent.header_offset + at.unclean,
        });
    }
    const bytes = context.allocator.alloc(u8, format.descriptor_sectors * format.sector) catch return error.NoMemory;
    try device.readPadded(format.sector, bytes);
    try database(context, .init(bytes), facts);
}

fn database(context: image.Context, descriptor: @import("descriptor.zig").Descriptor, facts: *messages.InfoVmdk) block.Error!void {
    if (descriptor.database("ddb.adapterType")) |value| facts.adapter_type = try utf8(context, value);
    if (descriptor.database("ddb.virtualHWVersion")) |value| facts.hardware_version = try utf8(context, value);
}

fn utf8(context: image.Context, bytes: []const u8) block.Error![]const u8 {
    return text.fromUtf8(context.allocator, bytes) catch error.NoMemory;
}
