//! A device in memory, for host tests and fuzzers: a growable byte array with optional holes.

const std = @import("std");
const block = @import("block.zig");

pub const Memory = struct {
    allocator: std.mem.Allocator,
    bytes: std.ArrayList(u8),
    read_only: bool = false,
    /// Granularity in bytes at which all-zero runs are reported as holes by block_status; 0 reports everything as data.
    hole_granularity: u64 = 0,
    /// Counters that tests read: batches and bytes.
    reads: u64 = 0,
    read_bytes: u64 = 0,

    pub fn init(allocator: std.mem.Allocator, content: []const u8) !Memory {
        var bytes: std.ArrayList(u8) = .empty;
        try bytes.appendSlice(allocator, content);
        return .{ .allocator = allocator, .bytes = bytes };
    }

    pub fn deinit(self: *Memory) void {
        self.bytes.deinit(self.allocator);
    }

    /// The view that formats take; valid while `self` lives and stays where it is.
    pub fn device(self: *Memory) block.Device {
        return .{ .context = self, .vtable = &vtable, .length = self.bytes.items.len, .read_only = self.read_only };
    }

    const vtable: block.Device.VTable = .{
        .read = read,
        .read_many = readMany,
        .write = write,
        .write_many = writeMany,
        .write_zeroes = writeZeroes,
        .flush = flush,
        .set_length = setLength,
        .block_status = blockStatus,
    };

    fn from(context: *anyopaque) *Memory {
        return @ptrCast(@alignCast(context));
    }

    fn read(context: *anyopaque, offset: u64, buffer: []u8) block.DeviceError!void {
        const self = from(context);
        self.reads += 1;
        self.read_bytes += buffer.len;
        const end = std.math.add(u64, offset, buffer.len) catch return error.Range;
        if (end > self.bytes.items.len) return error.Range;
        @memcpy(buffer, self.bytes.items[@intCast(offset)..@intCast(end)]);
    }

    fn readMany(context: *anyopaque, reads: []const block.Read) block.DeviceError!void {
        const self = from(context);
        for (reads) |r| try read(context, r.offset, r.buffer);
        if (reads.len > 1) self.reads -= reads.len - 1;
    }

    fn grow(self: *Memory, length: u64) block.DeviceError!void {
        const wanted = std.math.cast(usize, length) orelse return error.NoSpace;
        const old = self.bytes.items.len;
        self.bytes.resize(self.allocator, wanted) catch return error.NoSpace;
        if (wanted > old) @memset(self.bytes.items[old..], 0);
    }

    fn write(context: *anyopaque, offset: u64, bytes: []const u8) block.DeviceError!void {
        const self = from(context);
        const end = std.math.add(u64, offset, bytes.len) catch return error.Range;
        if (end > self.bytes.items.len) try self.grow(end);
        @memcpy(self.bytes.items[@intCast(offset)..@intCast(end)], bytes);
    }

    fn writeMany(context: *anyopaque, writes: []const block.Write) block.DeviceError!void {
        for (writes) |w| try write(context, w.offset, w.bytes);
    }

    fn writeZeroes(context: *anyopaque, offset: u64, length: u64) block.DeviceError!void {
        const self = from(context);
        const end = std.math.add(u64, offset, length) catch return error.Range;
        if (end > self.bytes.items.len) return error.Range;
        @memset(self.bytes.items[@intCast(offset)..@intCast(end)], 0);
    }

    fn flush(_: *anyopaque) block.DeviceError!void {}

    fn setLength(context: *anyopaque, length: u64) block.DeviceError!void {
        return from(context).grow(length);
    }

    fn blockStatus(context: *anyopaque, offset: u64, length: u64, out: []block.Extent) block.DeviceError![]block.Extent {
        const self = from(context);
        if (out.len == 0) return error.Invalid;
        if (self.hole_granularity == 0) {
            out[0] = .{ .offset = offset, .length = length, .flags = block.Extent.data_flag };
            return out[0..1];
        }
        const end = offset + length;
        var count: usize = 0;
        var position = offset;
        while (position < end) {
            const unit_end = @min(end, (position / self.hole_granularity + 1) * self.hole_granularity);
            const zero = std.mem.allEqual(u8, self.bytes.items[@intCast(position)..@intCast(unit_end)], 0);
            const flags: u64 = if (zero) 0 else block.Extent.data_flag;
            if (count > 0 and out[count - 1].flags == flags) {
                out[count - 1].length += unit_end - position;
            } else {
                if (count == out.len) break;
                out[count] = .{ .offset = position, .length = unit_end - position, .flags = flags };
                count += 1;
            }
            position = unit_end;
        }
        return out[0..count];
    }
};

test "reads are exact and bounded" {
    var memory = try Memory.init(std.testing.allocator, "0123456789");
    defer memory.deinit();
    const device = memory.device();
    var buffer: [4]u8 = undefined;
    try device.read(6, &buffer);
    try std.testing.expectEqualStrings("6789", &buffer);
    try std.testing.expectError(error.Range, device.read(7, &buffer));
    try std.testing.expectError(error.Range, device.read(std.math.maxInt(u64), &buffer));
    try device.readPadded(8, &buffer);
    try std.testing.expectEqualStrings("89\x00\x00", &buffer);
}

test "a write past the end grows the device, holes are reported" {
    var memory = try Memory.init(std.testing.allocator, "");
    defer memory.deinit();
    memory.hole_granularity = 512;
    var device = memory.device();
    try device.write(1024, "x");
    try std.testing.expectEqual(@as(u64, 1025), device.length);
    var extents: [4]block.Extent = undefined;
    const found = try device.blockStatus(0, 1025, &extents);
    try std.testing.expectEqual(@as(usize, 2), found.len);
    try std.testing.expectEqual(@as(u64, 1024), found[0].length);
    try std.testing.expect(found[1].isData());
}
