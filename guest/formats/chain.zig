//! An image and what stands behind it, as one disk.
//!
//! Each image answers for what it holds; what it leaves unallocated is its backing file's or parent's.  A backing file
//! that is shorter than the image reads as zero behind its end, and a longer one is cut, as in QEMU (block/io.c,
//! bdrv_co_common_block_status_above).

const std = @import("std");
const block = @import("block");
const image = @import("image.zig");

/// Files that a chain may have below its first image; the host opens no more.
pub const max_depth = 16;

/// Chains of images of one registry's formats (`formats.Registry`).
pub fn Chain(comptime registry: type) type {
    return struct {
        /// Open the image on `device` with everything behind it.  Where references are not followed this is the driver's own
        /// `open`; where they are, all of them must be there.
        pub fn open(context: image.Context, device: block.Device, driver: *const image.Driver) block.Error!image.Image {
            const top = try openOne(context, device, driver);
            if (context.files == null or (!top.has_backing and context.number == 0)) return top;
            const disk = context.allocator.create(Disk) catch return error.NoMemory;
            disk.* = .{ .context = context };
            disk.add(top, context.number, device);
            var current = context;
            while (disk.last().image.has_backing) {
                const given = try behind(current) orelse return missing(current, disk.last().image.driver);
                if (disk.count == disk.layers.len) return tooDeep(current, disk.last().image.driver);
                current = current.of(given);
                const next = try driverOf(current, given);
                disk.add(try openOne(current, given.device, next), given.number, given.device);
            }
            return disk.asImage();
        }

        /// Open what stands behind the image that `context` is about, and behind that: for operations which do not
        /// look there, but are not to answer where it is broken.
        pub fn openBehind(context: image.Context) block.Error!void {
            const given = try behind(context) orelse return;
            const below = context.of(given);
            _ = try open(below, given.device, try driverOf(below, given));
        }

        fn driverOf(context: image.Context, given: image.Given) block.Error!*const image.Driver {
            const found = if (given.format) |name| registry.byName(context, formatOf(name)) else registry.detect(context, given.device);
            return found catch |reason| blame(context, reason);
        }

        fn openOne(context: image.Context, device: block.Device, driver: *const image.Driver) block.Error!image.Image {
            const opener = driver.open orelse return blame(context, registry.refuse(context, driver.name));
            var opened = opener(context, device) catch |reason| return blame(context, reason);
            if (opened.read == null) opened.read = driver.read;
            if (!context.as_qemu_sees or !opened.opaque_to_qemu) return opened;
            const kept = context.allocator.create(image.Image) catch return error.NoMemory;
            kept.* = opened;
            return kept.asQemuSees();
        }
    };
}

/// The format that an image states for the file behind it: QEMU's driver of plain files reads them as raw.
pub fn formatOf(name: []const u8) []const u8 {
    return if (std.mem.eql(u8, name, "file")) "raw" else name;
}

fn behind(context: image.Context) block.DeviceError!?image.Given {
    return try context.reference(.backing_file, 0) orelse context.reference(.parent, 0);
}

/// Say whose content was refused.
fn blame(context: image.Context, reason: block.Error) block.Error {
    if (reason == error.Refused and context.number > 0 and context.diagnostic.device == null) context.diagnostic.device = context.number;
    return reason;
}

fn missing(context: image.Context, format: []const u8) error{Refused} {
    context.diagnostic.device = context.number;
    return context.diagnostic.refuse(.needs_reference, .{ .format = format }, "{s}: the file behind this image is not there", .{format});
}

fn tooDeep(context: image.Context, format: []const u8) error{Refused} {
    context.diagnostic.device = context.number;
    return context.diagnostic.refuse(.too_large, .{ .format = format, .limit = max_depth }, "{s}: more than {d} files stand behind the first image", .{ format, max_depth });
}

const Layer = struct {
    image: image.Image,
    number: u32,
    device: block.Device,
};

const Disk = struct {
    context: image.Context,
    layers: [max_depth + 1]Layer = undefined,
    count: usize = 0,

    fn add(self: *Disk, opened: image.Image, number: u32, device: block.Device) void {
        self.layers[self.count] = .{ .image = opened, .number = number, .device = device };
        self.count += 1;
    }

    fn last(self: *const Disk) *const Layer {
        return &self.layers[self.count - 1];
    }

    fn asImage(self: *Disk) image.Image {
        var whole = self.layers[0].image;
        whole.has_backing = false;
        whole.context = self;
        whole.segment_at = segmentAt;
        whole.read = null;
        for (self.layers[0..self.count]) |layer| {
            if (layer.image.read != null) whole.read = read;
        }
        return whole;
    }

    const Found = struct { segment: image.Segment, layer: ?*const Layer };

    fn find(self: *const Disk, start: u64) block.Error!Found {
        var length = self.layers[0].image.virtual_size - start;
        var above: image.Segment = undefined;
        for (self.layers[0..self.count], 0..) |*layer, index| {
            const depth: u32 = @intCast(index);
            if (start >= layer.image.virtual_size) {
                // Absent in the image above, which says so of itself: nobody has anything there.
                return .{ .segment = above, .layer = null };
            }
            var segment = layer.image.segmentAt(start) catch |reason|
                return blame(self.context.of(.{ .number = layer.number, .device = layer.device }), reason);
            segment.length = @min(segment.length, length);
            segment.depth += depth;
            if (segment.device == 0) segment.device = layer.number;
            if (segment.kind != .unallocated or index + 1 == self.count) {
                return .{ .segment = segment, .layer = layer };
            }
            above = segment;
            length = segment.length;
        }
        unreachable;
    }

    fn segmentAt(opaque_self: *anyopaque, start: u64) block.Error!image.Segment {
        const self: *const Disk = @ptrCast(@alignCast(opaque_self));
        return (try self.find(start)).segment;
    }

    fn read(opaque_self: *anyopaque, start: u64, buffer: []u8) block.Error!void {
        const self: *const Disk = @ptrCast(@alignCast(opaque_self));
        var done: usize = 0;
        while (done < buffer.len) {
            const at = start + done;
            const found = try self.find(at);
            const part = buffer[done..][0..@intCast(@min(found.segment.length, buffer.len - done))];
            if (found.segment.kind != .data) {
                @memset(part, 0);
            } else if (found.layer.?.image.read) |inner| {
                try inner(found.layer.?.image.context, at, part);
            } else {
                const offset = found.segment.offset orelse return error.Unsupported;
                if (found.segment.compressed) return error.Unsupported;
                const device = if (found.segment.device == found.layer.?.number) found.layer.?.device else try self.context.deviceAt(found.segment.device);
                try device.readPadded(offset, part);
            }
            done += part.len;
        }
    }
};
