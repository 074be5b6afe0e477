//! The bytes of the disk where they are not those of a file: compressed grains.

const std = @import("std");
const block = @import("block");
const format = @import("format.zig");
const segments = @import("segments.zig");
const sparse = @import("sparse.zig");
const refuse = @import("refusal.zig").refuse;

/// Bytes of a compressed grain that is decoded at most.
const max_grain = 16 << 20;

/// See image.Driver.read.
pub fn read(context: *anyopaque, start: u64, buffer: []u8) block.Error!void {
    const disk: *segments.Disk = @ptrCast(@alignCast(context));
    var done: usize = 0;
    while (done < buffer.len) {
        const extent = disk.extentAt(start + done);
        const inside = start + done - extent.start;
        const rest = buffer[done..];
        switch (extent.body) {
            .missing => unreachable, // Refused when it was opened.
            .flat => |*flat| {
                const length: usize = @intCast(@min(rest.len, extent.size - inside));
                try flat.device.readPadded(flat.offset + inside, rest[0..length]);
                done += length;
            },
            .sparse => |*body| done += try sparseRead(disk, body, inside, rest),
        }
    }
}

/// Fill the beginning of `buffer`, one grain at most; answers how much.
fn sparseRead(disk: *segments.Disk, extent: *const sparse.Sparse, inside: u64, buffer: []u8) block.Error!usize {
    try disk.ready(extent);
    var run: u64 = undefined;
    const place = try disk.placeAt(extent, inside, &run);
    const length: usize = @intCast(@min(run, buffer.len));
    const offset = switch (place) {
        .data => |offset| offset,
        else => {
            @memset(buffer[0..length], 0);
            return length;
        },
    };
    if (!extent.compressed) {
        try extent.device.readPadded(offset, buffer[0..length]);
        return length;
    }
    const in_grain: usize = @intCast(inside % extent.grainBytes());
    try decode(disk, extent, offset - in_grain, in_grain, buffer[0..length]);
    return length;
}

/// Fill `buffer` with what lies `skip` bytes into the grain that is stored at byte `offset`.  A grain whose stream is
/// shorter than what is asked for is refused, as in qemu.
fn decode(disk: *segments.Disk, extent: *const sparse.Sparse, offset: u64, skip: usize, buffer: []u8) block.Error!void {
    const context = disk.context;
    const size = extent.grainBytes();
    if (size > max_grain)
        return refuse(context.diagnostic, .too_large, "grain", "compressed grains of {value} bytes are not decoded, at most {limit}", offset, size, max_grain);
    const scratch = try disk.scratch(@intCast(2 * size), std.compress.flate.max_window_len);
    try extent.device.readPadded(offset, scratch.stored);
    var stored: []const u8 = scratch.stored;
    if (extent.markers) {
        const length = std.mem.readInt(u32, stored[format.grain_marker.length..][0..4], .little);
        if (length == 0 or length > stored.len - format.grain_marker.size)
            return refuse(context.diagnostic, .corrupt, "grain marker", "the grain at byte {offset} has {value} bytes, at most {limit}", offset, length, stored.len - format.grain_marker.size);
        stored = stored[format.grain_marker.size..][0..length];
    } else stored = stored[0..@intCast(size)];
    var input: std.Io.Reader = .fixed(stored);
    var stream: std.compress.flate.Decompress = .init(&input, .zlib, scratch.window);
    const whole = inflate(&stream.reader, skip, buffer);
    if (!whole) return refuse(context.diagnostic, .corrupt, "grain", "the grain at byte {offset} cannot be decompressed", offset, stored.len, none);
}

fn inflate(reader: *std.Io.Reader, skip: usize, buffer: []u8) bool {
    reader.discardAll(skip) catch return false;
    reader.readSliceAll(buffer) catch return false;
    return true;
}

const none = @import("../qcow2/template.zig").none;
