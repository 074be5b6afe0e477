//! The bytes of the disk where they are not those of a file: compressed grains.

const std = @import("std");
const block = @import("block");
const format = @import("format.zig");
const segments = @import("segments.zig");
const sparse = @import("sparse.zig");
const refuse = @import("refusal.zig").refuse;

/// Bytes of a compressed grain that is decoded at most.
const max_grain = 16 << 20;

const window_size = std.compress.flate.max_window_len;
/// Zeroes behind a stream: std's decoder must not meet the end of its input inside of one (it may panic there), and with
/// these it does not.  A stored block reads 64 KiB at most, every symbol makes a byte, of which there are a grain's and a
/// window's, and a block that begins in zeroes is none.
fn paddingOf(size: usize) usize {
    return (64 << 10) + size + window_size;
}

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

/// What the last compressed grain held, and the memory that decoding takes.
pub const Decoded = struct {
    stored: []u8,
    window: []u8,
    bytes: []u8,
    /// The grain: byte in the file and number of the device; nothing is decoded when `length` is null.
    offset: u64 = 0,
    device: u32 = 0,
    length: ?usize = null,

    fn init(disk: *segments.Disk, size: usize) block.Error!Decoded {
        const memory = disk.context.allocator.alloc(u8, window_size + 3 * size + paddingOf(size)) catch return error.NoMemory;
        return .{ .window = memory[0..window_size], .bytes = memory[window_size..][0..size], .stored = memory[window_size + size ..] };
    }
};

/// Fill `buffer` with what lies `skip` bytes into the grain that is stored at byte `offset`.  As in qemu, the whole
/// stream has to be good, and to hold no more than a grain and no less than what is asked for.
fn decode(disk: *segments.Disk, extent: *const sparse.Sparse, offset: u64, skip: usize, buffer: []u8) block.Error!void {
    const size = extent.grainBytes();
    if (size > max_grain)
        return refuse(disk.context.diagnostic, .too_large, "grain", "compressed grains of {value} bytes are not decoded, at most {limit}", offset, size, max_grain);
    if (disk.decoded == null or disk.decoded.?.bytes.len < size) disk.decoded = try .init(disk, @intCast(size));
    const held = &disk.decoded.?;
    if (held.length == null or held.offset != offset or held.device != extent.number) {
        held.length = null;
        held.length = try inflate(disk, extent, held, offset, @intCast(size));
        held.offset = offset;
        held.device = extent.number;
    }
    if (skip + buffer.len > held.length.?)
        return refuse(disk.context.diagnostic, .corrupt, "grain", "the grain at byte {offset} has {value} bytes when decompressed, {limit} are needed", offset, held.length.?, skip + buffer.len);
    @memcpy(buffer, held.bytes[skip..][0..buffer.len]);
}

/// Decode the grain at byte `offset`; answers its bytes.
fn inflate(disk: *segments.Disk, extent: *const sparse.Sparse, held: *Decoded, offset: u64, size: usize) block.Error!usize {
    const diagnostic = disk.context.diagnostic;
    const space = held.stored[0 .. 2 * size];
    try extent.device.readPadded(offset, space);
    var start: usize = 0;
    var end: usize = size;
    if (extent.markers) {
        start = format.grain_marker.size;
        const length = std.mem.readInt(u32, space[format.grain_marker.length..][0..4], .little);
        if (length == 0 or length > space.len - start)
            return refuse(diagnostic, .corrupt, "grain marker", "the grain at byte {offset} has {value} bytes, at most {limit}", offset, length, space.len - start);
        end = start + length;
    }
    @memset(held.stored[end..][0 .. 2 * size - end + paddingOf(size)], 0);
    var input: std.Io.Reader = .fixed(held.stored[start..]);
    var stream: std.compress.flate.Decompress = .init(&input, .zlib, held.window);
    const out = held.bytes[0..size];
    const length = stream.reader.readSliceShort(out) catch size + 1;
    var more: [1]u8 = undefined;
    const ended = length < size or (length == size and (stream.reader.readSliceShort(&more) catch 1) == 0);
    const good = ended and input.seek <= end - start and hasZlibHeader(held.stored[start..]) and
        stream.container_metadata.zlib.adler == std.hash.Adler32.hash(out[0..length]);
    if (!good) return refuse(diagnostic, .corrupt, "grain", "the grain at byte {offset}, {value} bytes, cannot be decompressed", offset, end - start, none);
    return length;
}

/// What RFC 1950 asks of the first two bytes and std does not look at: their check bits, and no dictionary.
fn hasZlibHeader(bytes: []const u8) bool {
    return std.mem.readInt(u16, bytes[0..2], .big) % 31 == 0 and bytes[1] & 0x20 == 0;
}

const none = @import("../qcow2/template.zig").none;
