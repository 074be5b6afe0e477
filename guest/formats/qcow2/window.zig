//! A sliding window over a device for tables that are read front to back: one device read serves many small ones.
//! Bytes behind the end of the device read as zero, as QEMU's block layer has it for every metadata structure.

const std = @import("std");
const block = @import("block");

pub const Window = struct {
    device: block.Device,
    buffer: []u8,
    start: u64 = 0,
    filled: usize = 0,
    /// Bytes that one miss reads; doubles with each miss that continues where the last one ended.
    ahead: usize,

    /// `buffer` bounds the longest item; the first read fetches `first` bytes (or the item, if that is longer).
    pub fn init(device: block.Device, buffer: []u8, first: usize) Window {
        return .{ .device = device, .buffer = buffer, .ahead = @min(first, buffer.len) };
    }

    /// `length` bytes from byte `offset`, valid until the next call.  `length` is at most the buffer's.
    pub fn bytes(self: *Window, offset: u64, length: usize) block.DeviceError![]const u8 {
        std.debug.assert(length <= self.buffer.len);
        if (self.filled > 0 and offset >= self.start and offset - self.start <= self.filled and length <= self.filled - @as(usize, @intCast(offset - self.start)))
            return self.buffer[@intCast(offset - self.start)..][0..length];
        if (self.filled > 0 and offset >= self.start and offset - self.start <= self.filled)
            self.ahead = @min(self.ahead * 2, self.buffer.len);
        const inside = if (offset < self.device.length) self.device.length - offset else 0;
        const wanted: usize = @intCast(@max(length, @min(self.ahead, inside)));
        self.filled = 0;
        try self.device.readPadded(offset, self.buffer[0..wanted]);
        self.start = offset;
        self.filled = wanted;
        return self.buffer[0..length];
    }

    /// The big-endian 64-bit word at byte `offset`.
    pub fn word(self: *Window, offset: u64) block.DeviceError!u64 {
        if (offset >= self.device.length) return 0;
        return std.mem.readInt(u64, (try self.bytes(offset, 8))[0..8], .big);
    }
};

test "windows pad, slide and read ahead" {
    var memory = try block.Memory.init(std.testing.allocator, "0123456789");
    defer memory.deinit();
    var buffer: [8]u8 = undefined;
    var window = Window.init(memory.device(), &buffer, 4);
    try std.testing.expectEqualStrings("01", try window.bytes(0, 2));
    try std.testing.expectEqualStrings("23", try window.bytes(2, 2));
    try std.testing.expectEqual(@as(u64, 1), memory.reads);
    try std.testing.expectEqualStrings("456", try window.bytes(4, 3));
    try std.testing.expectEqualStrings("789\x00", try window.bytes(7, 4));
    try std.testing.expectEqual(@as(u64, 0), try window.word(10));
    try std.testing.expectEqualStrings("\x00\x00", try window.bytes(1 << 60, 2));
}
