//! LUKS, qemu's "luks": version 1 as qemu reads it, and version 2, which qemu takes for a raw disk.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const detect = @import("../detect.zig");
const header_zig = @import("header.zig");
const header2 = @import("header2.zig");
const metadata_zig = @import("metadata.zig");
const info1 = @import("info.zig");
const info2 = @import("info2.zig");
const refuse = header_zig.refuse;
const none = @import("../qcow2/template.zig").none;

pub const driver: image.Driver = .{
    .name = header_zig.format,
    .probe = probe,
    .open = open,
    .info = info,
    .check = @import("check.zig").check,
    .unlock = @import("unlock.zig").unlock,
    .resize = @import("resize.zig").resize,
};

/// Version 1 as in qemu; version 2 by the same magic.
fn probe(p: *const image.Probe) u8 {
    const known = detect.holds(p.head, 0, header_zig.magic ++ "\x00\x01") or detect.holds(p.head, 0, header_zig.magic ++ "\x00\x02");
    return if (known) detect.score.magic else detect.score.none;
}

pub const Version = enum { one, two };

/// Which version the device holds.  A LUKS2 container whose first header is gone is told by its second one; where there
/// is none either, reading it as version 1 says what is wrong.
pub fn versionOf(device: block.Device) block.Error!Version {
    var start: [8]u8 = undefined;
    try device.readPadded(0, &start);
    if (std.mem.eql(u8, &start, header_zig.magic ++ "\x00\x02")) return .two;
    if (std.mem.eql(u8, start[0..6], header_zig.magic)) return .one;
    for (header2.sizes) |at| {
        if (at + header2.binary_size > device.length) break;
        try device.read(at, &start);
        if (std.mem.eql(u8, &start, header2.second_magic ++ "\x00\x02")) return .two;
    }
    return .one;
}

/// A LUKS2 container that can be used: the copy that counts, and its metadata.
pub const Container = struct {
    copies: header2.Copies,
    metadata: metadata_zig.Metadata,
    virtual_size: u64,

    pub fn active(self: *const Container) *const header2.Copy {
        return self.copies.active().?;
    }
};

/// Read a LUKS2 container, refusing the first thing that is wrong with it.
pub fn container(context: image.Context, device: block.Device) block.Error!*Container {
    const out = context.allocator.create(Container) catch return error.NoMemory;
    out.copies = try header2.read(context, device);
    const active = out.copies.active() orelse return context.diagnostic.refuse(
        .corrupt,
        .{ .format = header_zig.format, .structure = "header", .offset = 0 },
        "luks: LUKS2 has no usable header: the primary one {s}, the secondary one {s}",
        .{ out.copies.first.problem.?.text(), out.copies.second.problem.?.text() },
    );
    out.metadata = try metadata_zig.read(.{ .context = context }, active, device.length);
    out.virtual_size = out.metadata.virtualSize(device.length) orelse
        return refuse(context.diagnostic, .out_of_bounds, "segment", "LUKS2 segments lie outside the file, which has {limit} bytes", none, none, device.length);
    return out;
}

/// Bytes of the disk of a LUKS1 container: what follows the payload offset; qemu counts a file in whole sectors.
pub fn virtualSize(context: image.Context, device: block.Device, header: header_zig.Header) block.Error!u64 {
    const length = std.mem.alignForward(u64, @min(device.length, std.math.maxInt(i64)), header_zig.sector);
    const payload = header.payloadOffset();
    if (payload > length)
        return refuse(context.diagnostic, .out_of_bounds, "payload", "Could not refresh total sector count: the payload begins at byte {value}, file has {limit}", header_zig.At.payload_offset, payload, device.length);
    return length - payload;
}

/// A disk whose bytes are all stored and none of them to be had without a key.
const Locked = struct {
    virtual_size: u64,

    fn segmentAt(opaque_self: *anyopaque, start: u64) block.Error!image.Segment {
        const self: *const Locked = @ptrCast(@alignCast(opaque_self));
        return .{ .start = start, .length = self.virtual_size - start, .kind = .data };
    }
};

pub fn open(context: image.Context, device: block.Device) block.Error!image.Image {
    const locked = context.allocator.create(Locked) catch return error.NoMemory;
    locked.virtual_size = switch (try versionOf(device)) {
        .one => try virtualSize(context, device, (try header_zig.open(context, device, 0)).header),
        .two => (try container(context, device)).virtual_size,
    };
    return .{ .driver = driver.name, .virtual_size = locked.virtual_size, .context = locked, .segment_at = Locked.segmentAt };
}

fn info(context: image.Context, device: block.Device, sink: image.Sink, report: *messages.Info) block.Error!void {
    report.encrypted = true;
    if (try versionOf(device) == .two) return info2.info(context, device, sink, report);
    const opened = try header_zig.open(context, device, 0);
    report.virtual_size = try virtualSize(context, device, opened.header);
    report.luks = try info1.facts(context, opened);
}

test {
    _ = @import("json.zig");
    _ = @import("cipher.zig");
    _ = @import("kdf.zig");
    _ = @import("layout.zig");
    _ = @import("test_luks.zig");
    _ = @import("test_luks2.zig");
}
