//! VHDX: fixed, dynamic, differencing.
//!
//! [MS-VHDX], revision 8.0.  What is opened and what is refused is as in qemu; the places where it is not are in
//! docs/differences.md.  A log that is not empty is replayed in memory, and everything is read as after that.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const detect = @import("../detect.zig");
const template = @import("../qcow2/template.zig");
const none = template.none;
const format = @import("format.zig");
const bat = @import("bat.zig");
const Headers = @import("headers.zig").Headers;
const locators = @import("locator.zig");
const Locator = locators.Locator;
const alternatives = @import("../vhd/alternatives.zig");
const logs = @import("log.zig");
const Metadata = @import("metadata.zig").Metadata;
const Patched = @import("patched.zig").Patched;
const regions = @import("regions.zig");
const Segments = @import("segments.zig").Segments;

pub const driver: image.Driver = .{
    .name = format.name,
    .probe = probe,
    .open = open,
    .info = @import("info.zig").info,
    .check = @import("check.zig").check,
    .references = references,
    .size = size,
    .identity = identity,
    .resize = @import("grow.zig").resize,
};

fn probe(p: *const image.Probe) u8 {
    return if (detect.holds(p.head, 0, format.file_signature)) detect.score.magic else detect.score.none;
}

/// Refuse as in template.zig.
pub const refuse = template.Refusals(format.name).refuse;

/// An image as far as its headers and its log: from here on everything is read from `device`.
pub const Replayed = struct {
    headers: Headers,
    log: logs.Log,
    /// The file as it is after the log's writes.
    device: block.Device,
    /// Null when the log writes nothing.
    patched: ?*Patched,

    pub fn load(context: image.Context, device: block.Device) block.Error!Replayed {
        var signature: [8]u8 = undefined;
        try device.readPadded(0, &signature);
        if (!std.mem.eql(u8, &signature, format.file_signature)) {
            return refuse(context.diagnostic, .corrupt, "file type identifier", "invalid VHDX image: no file type identifier at byte {offset}", 0, none, none);
        }
        var headers: Headers = try .read(context, device);
        try headers.pick(context);
        var self: Replayed = .{ .headers = headers, .log = try logs.load(context, device, headers.current()), .device = device, .patched = null };
        if (self.log.state == .dirty) {
            const patched = context.allocator.create(Patched) catch return error.NoMemory;
            patched.* = try .init(context.allocator, device, self.log.patches, self.log.last_file_offset);
            self.patched = patched;
            self.device = patched.device();
        }
        return self;
    }

    pub fn logRange(self: *const Replayed) regions.Range {
        return .{ .start = self.log.offset, .end = self.log.offset +| self.log.length };
    }
};

/// An image that passed the checks that every reader relies on.
pub const Vhdx = struct {
    replayed: Replayed,
    regions: regions.Regions,
    metadata: Metadata,
    table: bat.Table,
    totals: bat.Table.Totals,

    pub fn device(self: *const Vhdx) block.Device {
        return self.replayed.device;
    }
};

/// Read and check headers, log, region table, metadata and BAT.
pub fn load(context: image.Context, device: block.Device) block.Error!Vhdx {
    const replayed: Replayed = try .load(context, device);
    const known: regions.Regions = try .load(context, replayed.device, replayed.logRange());
    const metadata: Metadata = try .load(context, replayed.device, known.metadata);
    const layout: bat.Layout = try .of(context, replayed.device, known.bat, &metadata);
    var table: bat.Table = try .init(context, replayed.device, layout);
    return .{
        .replayed = replayed,
        .regions = known,
        .metadata = metadata,
        .totals = try table.verify(context, &known, metadata.isDifferencing()),
        .table = table,
    };
}

const Opened = struct {
    segments: Segments,
    device: block.Device,

    fn segmentAt(opaque_self: *anyopaque, start: u64) block.Error!image.Segment {
        const self: *Opened = @ptrCast(@alignCast(opaque_self));
        return Segments.segmentAt(&self.segments, start);
    }

    /// The bytes of the disk as after the replay of a log that also writes into blocks; what the parent answers for
    /// reads as zero.
    fn read(opaque_self: *anyopaque, start: u64, buffer: []u8) block.Error!void {
        const self: *Opened = @ptrCast(@alignCast(opaque_self));
        var done: usize = 0;
        while (done < buffer.len) {
            const segment = try Segments.segmentAt(&self.segments, start + done);
            const part = buffer[done..][0..@intCast(@min(segment.length, buffer.len - done))];
            if (segment.kind == .data) try self.device.readPadded(segment.offset.?, part) else @memset(part, 0);
            done += part.len;
        }
    }
};

pub fn open(context: image.Context, device: block.Device) block.Error!image.Image {
    const vhdx = try load(context, device);
    const differencing = vhdx.metadata.isDifferencing();
    if (differencing) try @import("parent.zig").verify(context, vhdx.device(), &vhdx.metadata);
    const opened = context.allocator.create(Opened) catch return error.NoMemory;
    opened.* = .{ .segments = try .init(context, vhdx.table, differencing), .device = vhdx.device() };
    return .{
        .driver = format.name,
        .virtual_size = vhdx.metadata.virtual_size,
        .cluster_size = vhdx.metadata.block_size,
        .has_backing = differencing,
        .opaque_to_qemu = !differencing,
        .context = opened,
        .segment_at = Opened.segmentAt,
        .read = if (vhdx.replayed.patched != null) Opened.read else null,
    };
}

fn size(context: image.Context, device: block.Device) block.Error!u64 {
    return (try load(context, device)).metadata.virtual_size;
}

/// What children name this disk by.
fn identity(context: image.Context, device: block.Device) block.Error!image.Identity {
    var headers: Headers = try .read(context, device);
    try headers.pick(context);
    return .{ .vhdx = headers.current().dataWriteGuid().* };
}

fn references(context: image.Context, device: block.Device, sink: image.Sink) block.Error!void {
    const replayed: Replayed = try .load(context, device);
    const known: regions.Regions = try .load(context, replayed.device, replayed.logRange());
    const metadata: Metadata = try .load(context, replayed.device, known.metadata);
    if (!metadata.isDifferencing()) return;
    const locator: Locator = try .read(context, replayed.device, &metadata);
    // Alternatives for one file; see vhd/references.zig.
    for ([_]bool{ false, true }) |last| {
        for (locators.keys.paths) |key| {
            const path = alternatives.posix(try locator.find(context, key) orelse continue);
            const name = if (last) alternatives.base(path) else path;
            if (name.len > 0) try locator.emitReference(context, sink, key, name);
        }
    }
}

test {
    _ = format;
    _ = bat;
    _ = @import("patched.zig");
    _ = @import("test_vhdx.zig");
    _ = @import("test_log.zig");
    _ = @import("test_check.zig");
    _ = @import("test_grow.zig");
}
