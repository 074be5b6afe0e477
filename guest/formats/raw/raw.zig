//! Raw: the file is the disk.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const detect = @import("../detect.zig");

pub const driver: image.Driver = .{
    .name = "raw",
    .probe = probe,
    .open = open,
    .info = info,
    .resize = @import("resize.zig").resize,
};

/// qemu counts a disk in sectors of 512 bytes and rounds the file's length up.
const sector = 512;

fn probe(_: *const image.Probe) u8 {
    return detect.score.raw;
}

/// Virtual size in bytes of a file of `length` bytes: up to 511 more.
pub fn virtualSize(length: u64) u64 {
    return std.mem.alignForward(u64, length, sector);
}

/// qemu opens no longer file: the last multiple of 2^30 below 2^63.  Rounding up cannot wrap then.
const max_length: u64 = (1 << 63) - (1 << 30);

pub fn checkLength(context: image.Context, device: block.Device) block.Error!void {
    if (device.length > max_length) return context.diagnostic.refuse(
        .too_large,
        .{ .format = "raw", .value = device.length, .limit = max_length },
        "raw: File too large: {d} bytes, at most {d}",
        .{ device.length, max_length },
    );
}

pub fn open(context: image.Context, device: block.Device) block.Error!image.Image {
    try checkLength(context, device);
    const flat = context.allocator.create(Flat) catch return error.NoMemory;
    flat.* = .{ .device = device, .virtual_size = virtualSize(device.length) };
    return .{
        .driver = "raw",
        .virtual_size = flat.virtual_size,
        .context = flat,
        .segment_at = Flat.segmentAt,
    };
}

fn info(context: image.Context, device: block.Device, _: image.Sink, report: *messages.Info) block.Error!void {
    try checkLength(context, device);
    report.virtual_size = virtualSize(device.length);
}

/// A disk that lies in its file from byte 0 on; fixed VHD is another one.  Holes of the file read as zero, and so does
/// what the virtual disk has past the end of the file.
pub const Flat = struct {
    device: block.Device,
    virtual_size: u64,
    /// Whether the format calls all of it data, holes included.
    holes_are_data: bool = false,
    extents: [batch]block.Extent = undefined,
    known: usize = 0,
    next: usize = 0,

    /// Extents that one call of block_status may answer: a fragmented file costs an exit for each batch.
    const batch = 128;

    pub fn segmentAt(opaque_self: *anyopaque, start: u64) block.Error!image.Segment {
        const self: *Flat = @ptrCast(@alignCast(opaque_self));
        const end = @min(self.virtual_size, self.device.length);
        if (start >= end) return .{
            .start = start,
            .length = self.virtual_size - start,
            .kind = .zero,
            .hole = self.holes_are_data,
            .offset = start,
        };
        const extent = try self.extentAt(start, end);
        // block_status answers no further than asked; what it answers is clipped all the same.
        return .{
            .start = start,
            .length = @min(extent.length - (start - extent.offset), self.virtual_size - start),
            .kind = if (extent.isData()) .data else .zero,
            .hole = self.holes_are_data and !extent.isData(),
            .offset = start,
        };
    }

    fn extentAt(self: *Flat, start: u64, end: u64) block.Error!block.Extent {
        if (self.next < self.known and covers(self.extents[self.next], start)) {
            return self.extents[self.next];
        }
        if (self.next + 1 < self.known and covers(self.extents[self.next + 1], start)) {
            self.next += 1;
            return self.extents[self.next];
        }
        const found = try self.device.blockStatus(start, end - start, &self.extents);
        // The host is not an adversary of the guest, but an endless walk must not be possible either.
        if (found.len == 0 or !covers(found[0], start)) return error.Io;
        self.known = found.len;
        self.next = 0;
        return found[0];
    }

    fn covers(extent: block.Extent, start: u64) bool {
        return start >= extent.offset and start - extent.offset < extent.length;
    }
};

const testing = std.testing;

test "holes are zero, and so is what the last sector lacks" {
    var bytes: [10_000]u8 = @splat(0);
    bytes[4096] = 1;
    bytes[9_999] = 1;
    var memory = try block.Memory.init(testing.allocator, &bytes);
    defer memory.deinit();
    memory.hole_granularity = 4096;
    var diagnostic: block.Diagnostic = .{};
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const opened = try open(.{ .allocator = arena.allocator(), .diagnostic = &diagnostic }, memory.device());
    try testing.expectEqual(@as(u64, 10_240), opened.virtual_size);
    const first = try opened.segmentAt(0);
    try testing.expectEqual(image.Kind.zero, first.kind);
    try testing.expectEqual(@as(u64, 4096), first.length);
    const second = try opened.segmentAt(4096);
    try testing.expectEqual(image.Kind.data, second.kind);
    try testing.expectEqual(@as(u64, 10_000 - 4096), second.length);
    const tail = try opened.segmentAt(10_000);
    try testing.expectEqual(image.Kind.zero, tail.kind);
    try testing.expectEqual(@as(u64, 240), tail.length);
}

test "an empty file is an empty disk" {
    var memory = try block.Memory.init(testing.allocator, "");
    defer memory.deinit();
    var diagnostic: block.Diagnostic = .{};
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const opened = try open(.{ .allocator = arena.allocator(), .diagnostic = &diagnostic }, memory.device());
    try testing.expectEqual(@as(u64, 0), opened.virtual_size);
}
