//! VMDK: one sparse extent with an embedded descriptor, or a descriptor that names extents in other files.
//!
//! VMware Virtual Disk Format 5.0.  What is opened and what is refused is as in qemu; the places where it is not are in
//! docs/differences.md.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const text = @import("../text.zig");
const recognised = @import("../recognised.zig");
const format = @import("format.zig");
const descriptors = @import("descriptor.zig");
const sparse = @import("sparse.zig");
const segments = @import("segments.zig");
const refuse = @import("refusal.zig").refuse;
const none = @import("../qcow2/template.zig").none;

pub const driver: image.Driver = .{
    .name = format.name,
    .probe = probe,
    .open = segments.open,
    .read = @import("grain.zig").read,
    .info = @import("info.zig").info,
    .check = @import("check.zig").check,
    .references = references,
    .size = sizeOf,
    .identity = identify,
    .resize = @import("grow.zig").resize,
};

fn probe(p: *const image.Probe) u8 {
    return recognised.score(p, format.name);
}

const sector = format.sector;

/// Bytes of a disk, and of a place in a file, at most: qemu's, the last multiple of 2^30 below 2^63.
const max_size: u64 = (1 << 63) - (1 << 30);

/// A part of the disk.
pub const Extent = struct {
    /// Byte of the disk where it begins, and how many it has.
    start: u64,
    size: u64,
    /// The line of the descriptor; null: the image itself is the extent.
    line: ?descriptors.Line,
    body: Body,

    pub const Body = union(enum) {
        /// In a file that was not given.
        missing,
        flat: Flat,
        sparse: sparse.Sparse,
    };

    pub const Flat = struct { device: block.Device, number: u32, offset: u64 };
};

/// An image that passed the checks that every reader relies on.
pub const Vmdk = struct {
    create_type: []const u8,
    /// Null: an extent without a descriptor.
    identity: ?descriptors.Identity,
    /// A descriptor that names the extents; null: the image is its own only extent.
    descriptor: ?descriptors.Descriptor = null,
    extents: []Extent,
    /// Extent lines that were passed over.
    ignored: u64 = 0,
    /// Bytes, at most `max_size`.
    virtual_size: u64,

    /// The first extent whose file is not there.
    pub fn missing(self: *const Vmdk) ?u32 {
        for (self.extents, 0..) |extent, index| if (extent.body == .missing) return @intCast(index);
        return null;
    }

    /// Refuse when the file of an extent was not given.
    pub fn needExtents(self: *const Vmdk, context: image.Context) block.Error!void {
        const index = self.missing() orelse return;
        const name = try printable(context, self.extents[index].line.?.name);
        return context.diagnostic.refuse(
            .needs_reference,
            .{ .format = format.name, .structure = "extent", .value = index },
            "vmdk: extent {d} is in the file '{s}', which {s}",
            .{ index, name, if (context.files == null) "is followed only with --chain" else "was not found where it may be followed" },
        );
    }
};

/// As much of a name as fits a sentence, as UTF-8 without control characters.
fn printable(context: image.Context, name: []const u8) block.Error![]const u8 {
    const copy = context.allocator.dupe(u8, name[0..@min(name.len, 200)]) catch return error.NoMemory;
    for (copy) |*byte| if (byte.* < ' ' or byte.* >= 0x7f) {
        byte.* = '?';
    };
    return copy;
}

fn sizeOf(context: image.Context, device: block.Device) block.Error!u64 {
    return (try load(context, device)).virtual_size;
}

/// What children name this disk by.
fn identify(context: image.Context, device: block.Device) block.Error!image.Identity {
    const vmdk = try load(context, device);
    const its = vmdk.identity orelse
        return refuse(context.diagnostic, .corrupt, "descriptor", "the image has no descriptor, and so no content identifier", none, none, none);
    return .{ .cid = its.cid };
}

/// Read and check the headers of the image and of the extents that were given.
pub fn load(context: image.Context, device: block.Device) block.Error!Vmdk {
    const diagnostic = context.diagnostic;
    var magic: [16]u8 = undefined;
    if (device.length < 4)
        return refuse(diagnostic, .corrupt, "file", "File is too small, not a valid image: {value} bytes", none, device.length, 4);
    try device.readPadded(0, &magic);
    if (sparse.isSeSparse(&magic)) return single(context, try sparse.openSeSparse(context, device), "seSparse", null);
    if (!sparse.hasMagic(&magic)) {
        const bytes = try read(context, device, 0);
        var vmdk = try described(context, .init(bytes));
        vmdk.identity = try identity(context, device, 0);
        return vmdk;
    }
    if (try nested(context, device)) |place| {
        const bytes = try read(context, device, place);
        var vmdk = try described(context, .init(bytes));
        vmdk.identity = try identity(context, device, sector);
        return vmdk;
    }
    const extent = try sparse.open(context, device);
    const kind = if (extent.kind == .cowd) "vmfsSparse" else if (extent.compressed) "streamOptimized" else "monolithicSparse";
    return single(context, extent, kind, try identity(context, device, sector));
}

fn single(context: image.Context, extent: sparse.Sparse, create_type: []const u8, its: ?descriptors.Identity) block.Error!Vmdk {
    const list = context.allocator.alloc(Extent, 1) catch return error.NoMemory;
    list[0] = .{ .start = 0, .size = extent.size(), .line = null, .body = .{ .sparse = extent } };
    if (extent.size() > max_size)
        return refuse(context.diagnostic, .too_large, "header", "File too large: a disk of {value} bytes, at most {limit}", none, extent.size(), max_size);
    return .{ .create_type = create_type, .identity = its, .extents = list, .virtual_size = extent.size() };
}

/// A hosted header without a disk that points to a descriptor stands for that descriptor: its first byte.
fn nested(context: image.Context, device: block.Device) block.Error!?u64 {
    var header: [sector]u8 = undefined;
    try device.readPadded(0, &header);
    if (!std.mem.startsWith(u8, &header, format.magic)) return null;
    if (std.mem.readInt(u64, header[format.header.capacity..][0..8], .little) != 0) return null;
    const place = std.mem.readInt(u64, header[format.header.descriptor_offset..][0..8], .little);
    if (place == 0) return null;
    if (place >= device.length / sector + 1)
        return refuse(context.diagnostic, .out_of_bounds, "header", "the descriptor is at sector {value}, file has {limit} bytes", format.header.descriptor_offset, place, device.length);
    return place * sector;
}

/// The bytes of a descriptor.
fn read(context: image.Context, device: block.Device, place: u64) block.Error![]const u8 {
    const length: usize = @intCast(@min(device.length -| place, descriptors.max_size));
    const bytes = context.allocator.alloc(u8, length) catch return error.NoMemory;
    try device.read(place, bytes);
    return bytes;
}

fn identity(context: image.Context, device: block.Device, place: u64) block.Error!descriptors.Identity {
    const head = context.allocator.alloc(u8, descriptors.head_size) catch return error.NoMemory;
    try device.readPadded(place, head);
    const diagnostic = context.diagnostic;
    return descriptors.Identity.parse(head) catch |problem| switch (problem) {
        error.NoCid => refuse(diagnostic, .corrupt, "descriptor", "no CID in the descriptor at byte {offset}: this may be an extent of another image", place, none, none),
        error.NoParentCid => refuse(diagnostic, .corrupt, "descriptor", "no parentCID in the descriptor at byte {offset}", place, none, none),
        error.BadParent => refuse(diagnostic, .corrupt, "descriptor", "the parentFileNameHint in the descriptor at byte {offset} has no end within {limit} bytes", place, none, descriptors.head_size),
    };
}

/// Create types whose descriptor is a file of its own.
const described_types = [_][]const u8{ "monolithicFlat", "vmfs", "vmfsSparse", "seSparse", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat" };

fn described(context: image.Context, descriptor: descriptors.Descriptor) block.Error!Vmdk {
    const diagnostic = context.diagnostic;
    const create_type = descriptor.createType() orelse
        return refuse(diagnostic, .corrupt, "descriptor", "invalid VMDK image descriptor: no createType within {value} bytes", none, descriptor.text.len, none);
    for (described_types) |one| {
        if (std.mem.eql(u8, one, create_type)) break;
    } else return diagnostic.refuse(.unsupported, .{ .format = format.name, .structure = "descriptor" }, "vmdk: Unsupported image type '{s}'", .{try printable(context, create_type)});

    var vmdk: Vmdk = .{ .create_type = create_type, .identity = null, .descriptor = descriptor, .extents = &.{}, .virtual_size = 0 };
    var count: usize = 0;
    var lines = descriptor.lines();
    while (lines.next() catch
        return refuse(diagnostic, .corrupt, "descriptor", "Invalid extent line behind {value} valid ones", none, count, none)) |_| count += 1;
    vmdk.ignored = lines.ignored;
    if (count == 0)
        return refuse(diagnostic, .corrupt, "descriptor", "the descriptor names no extent that can be read, and {value} that cannot", none, lines.ignored, none);
    vmdk.extents = context.allocator.alloc(Extent, count) catch return error.NoMemory;
    lines = descriptor.lines();
    for (vmdk.extents, 0..) |*extent, index| {
        // Parsed before: neither ends nor fails.
        const line = (lines.next() catch unreachable).?;
        if ((line.offset +| line.sectors) *| sector > max_size)
            return refuse(diagnostic, .too_large, "descriptor", "extent {value} ends behind byte {limit}, from sector {offset} of its file on", line.offset, index, max_size);
        extent.* = .{ .start = vmdk.virtual_size, .size = line.sectors *| sector, .line = line, .body = try body(context, line, @intCast(index)) };
        if (extent.body == .sparse) {
            const opened = &extent.body.sparse;
            extent.size = opened.size();
            if (opened.compressed) vmdk.create_type = "streamOptimized";
        }
        vmdk.virtual_size +|= extent.size;
        if (vmdk.virtual_size > max_size)
            return refuse(diagnostic, .too_large, "descriptor", "File too large: extent {value} of the disk ends behind byte {limit}", none, index, max_size);
    }
    return vmdk;
}

fn body(context: image.Context, line: descriptors.Line, index: u32) block.Error!Extent.Body {
    const given = try context.reference(.extent, index) orelse return .missing;
    const inner = context.of(given);
    if (line.type.isFlat()) {
        return .{ .flat = .{ .device = given.device, .number = given.number, .offset = line.offset * sector } };
    }
    if (line.type == .SESPARSE) return .{ .sparse = try sparse.openSeSparse(inner, given.device) };
    if (given.device.length < 4)
        return refuse(context.diagnostic, .corrupt, "extent", "File is too small, not a valid image: extent {value} has {limit} bytes", none, index, given.device.length);
    if (try nested(inner, given.device) != null)
        return refuse(context.diagnostic, .unsupported, "extent", "the file of extent {value} is a descriptor itself", none, index, none);
    return .{ .sparse = try sparse.open(inner, given.device) };
}

/// Name the extents and the parent.
fn references(context: image.Context, device: block.Device, sink: image.Sink) block.Error!void {
    var unfollowed = context;
    unfollowed.files = null;
    const vmdk = try load(unfollowed, device);
    return emitReferences(context, &vmdk, sink);
}

pub fn emitReferences(context: image.Context, vmdk: *const Vmdk, sink: image.Sink) block.Error!void {
    for (vmdk.extents, 0..) |*extent, index| {
        const line = extent.line orelse continue;
        try sink.emit(messages.InfoReference{
            .kind = image.ReferenceKind.extent.text(),
            .index = index,
            .name = text.fromUtf8(context.allocator, line.name) catch return error.NoMemory,
            // The driver of the file as such: a sparse extent is no image by itself.
            .format = "raw",
            .source = @tagName(line.type),
        });
    }
    const its = vmdk.identity orelse return;
    const name = text.fromUtf8(context.allocator, its.parent orelse return) catch return error.NoMemory;
    try sink.emitReference(context, .{
        .kind = image.ReferenceKind.parent.text(),
        .name = name,
        .format = format.name,
        .source = "parentFileNameHint",
    });
}

test {
    _ = descriptors;
    _ = sparse;
    _ = segments;
    _ = @import("sector_set.zig");
    _ = @import("grain.zig");
}
