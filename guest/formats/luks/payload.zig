//! A decrypted disk: ranges of the device one behind the other, each with what decrypts it.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const SectorCipher = @import("cipher.zig").SectorCipher;

const sector = @import("header.zig").sector;
/// Bytes that are read at once; a multiple of every sector size.
const scratch_size = 16384;
const max_parts = @import("metadata.zig").max_objects;

pub const Part = struct {
    /// Bytes; whole units.
    length: u64,
    /// Byte of the device.
    offset: u64,
    /// Null: not encrypted.
    cipher: ?SectorCipher = null,
    /// Bytes that are encrypted together.
    unit: u32 = sector,
    /// IV of the first sector of 512 bytes.
    first_iv: u64 = 0,
};

pub const Payload = struct {
    device: block.Device,
    parts: [max_parts]Part = undefined,
    count: usize = 0,
    scratch: []u8 = &.{},

    pub fn add(self: *Payload, part: Part) void {
        self.parts[self.count] = part;
        self.count += 1;
    }

    fn size(self: *const Payload) u64 {
        var total: u64 = 0;
        for (self.parts[0..self.count]) |*part| total += part.length;
        return total;
    }

    pub fn open(self: *Payload, context: image.Context, driver: []const u8) block.Error!image.Image {
        self.scratch = context.allocator.alloc(u8, scratch_size) catch return error.NoMemory;
        return .{ .driver = driver, .virtual_size = self.size(), .context = self, .segment_at = segmentAt, .read = read };
    }

    fn segmentAt(opaque_self: *anyopaque, start: u64) block.Error!image.Segment {
        const self: *const Payload = @ptrCast(@alignCast(opaque_self));
        return .{ .start = start, .length = self.size() - start, .kind = .data };
    }

    fn read(opaque_self: *anyopaque, start: u64, buffer: []u8) block.Error!void {
        const self: *Payload = @ptrCast(@alignCast(opaque_self));
        var begin: u64 = 0;
        for (self.parts[0..self.count]) |*part| {
            const end = begin + part.length;
            const from = @max(begin, start);
            const to = @min(end, start + buffer.len);
            if (from < to) try self.readPart(part, from - begin, buffer[@intCast(from - start)..@intCast(to - start)]);
            begin = end;
        }
    }

    fn readPart(self: *Payload, part: *const Part, start: u64, buffer: []u8) block.Error!void {
        const cipher = if (part.cipher) |*cipher| cipher else return self.device.readPadded(part.offset + start, buffer);
        var done: usize = 0;
        while (done < buffer.len) {
            const at = start + done;
            const aligned = std.mem.alignBackward(u64, at, part.unit);
            const skip: usize = @intCast(at - aligned);
            const wanted = std.mem.alignForward(u64, skip + buffer.len - done, part.unit);
            const bytes = self.scratch[0..@intCast(@min(wanted, self.scratch.len))];
            try self.device.readPadded(part.offset + aligned, bytes);
            cipher.decrypt(part.first_iv +% aligned / sector, part.unit, bytes);
            const length = @min(bytes.len - skip, buffer.len - done);
            @memcpy(buffer[done..][0..length], bytes[skip..][0..length]);
            done += length;
        }
    }
};
