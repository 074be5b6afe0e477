//! A device as it is after the writes of a log: what formats read from it is the replayed image, and nothing is written.
//!
//! Only where the writes go is kept in memory; their bytes stay in the log.

const std = @import("std");
const block = @import("block");

/// A write of a log: a sector of 4 KiB, or zeros of any length.
pub const Patch = struct {
    start: u64,
    end: u64,
    /// Where its data sector lies in the device; null: zeros.
    source: ?u64,
    /// Bytes of the sector that are not in the data sector: the first eight and the last four.
    leading: [8]u8,
    trailing: [4]u8,
};

/// Bytes in front of and behind what a data sector holds.
const leading = 8;
const trailing = 4;

pub const Patched = struct {
    under: block.Device,
    length: u64,
    patches: []const Patch,
    /// Ends of pieces in ascending order: piece i is [edges[i], edges[i + 1]).
    edges: []const u64,
    /// The patch that decides a piece, by its index; `untouched` where none does.
    owners: []const u32,

    const untouched = std.math.maxInt(u32);

    /// `patches` in the order in which they are written, each of at least one byte; the result has at least `length` bytes.
    pub fn init(allocator: std.mem.Allocator, under: block.Device, patches: []const Patch, length: u64) block.DeviceError!Patched {
        if (patches.len >= untouched) return error.NoMemory;
        const all = allocator.alloc(u64, patches.len * 2) catch return error.NoMemory;
        var end = @max(under.length, length);
        for (patches, 0..) |patch, i| {
            all[2 * i] = patch.start;
            all[2 * i + 1] = patch.end;
            end = @max(end, patch.end);
        }
        std.sort.heap(u64, all, {}, std.sort.asc(u64));
        const edges = distinct(all);
        const owners = allocator.alloc(u32, edges.len) catch return error.NoMemory;
        const next = allocator.alloc(u32, edges.len) catch return error.NoMemory;
        @memset(owners, untouched);
        for (next, 0..) |*one, i| one.* = @intCast(i);
        // The newest first; what it leaves is the older ones'.  `next` leads to the first piece without an owner.
        var number = patches.len;
        while (number > 0) {
            number -= 1;
            const stop = indexOf(edges, patches[number].end);
            var piece = free(next, indexOf(edges, patches[number].start));
            while (piece < stop) {
                owners[piece] = @intCast(number);
                next[piece] = piece + 1;
                piece = free(next, piece + 1);
            }
        }
        return .{ .under = under, .length = end, .patches = patches, .edges = edges, .owners = owners };
    }

    fn distinct(sorted: []u64) []u64 {
        var count: usize = 0;
        for (sorted) |one| {
            if (count > 0 and sorted[count - 1] == one) continue;
            sorted[count] = one;
            count += 1;
        }
        return sorted[0..count];
    }

    /// The first piece without an owner from `start` on; the last edge begins no piece and is never owned.
    fn free(next: []u32, start: u32) u32 {
        var piece = start;
        while (next[piece] != piece) {
            next[piece] = next[next[piece]];
            piece = next[piece];
        }
        return piece;
    }

    /// Index of the first edge that is not below `offset`.
    fn indexOf(edges: []const u64, offset: u64) u32 {
        var low: usize = 0;
        var high = edges.len;
        while (low < high) {
            const middle = low + (high - low) / 2;
            if (edges[middle] < offset) low = middle + 1 else high = middle;
        }
        return @intCast(low);
    }

    /// The view that formats take; valid while `self` lives and stays where it is.
    pub fn device(self: *Patched) block.Device {
        return .{ .context = self, .vtable = &vtable, .length = self.length, .allocated = self.under.allocated };
    }

    /// Whether a patch touches [start, end).
    pub fn touches(self: *const Patched, start: u64, end: u64) bool {
        var piece = self.pieceAt(start);
        while (piece + 1 < self.edges.len and self.edges[piece] < end) : (piece += 1) {
            if (self.owners[piece] != untouched and self.edges[piece + 1] > start) return true;
        }
        return false;
    }

    /// The last piece that begins at or below `offset`, or the first one.
    fn pieceAt(self: *const Patched, offset: u64) usize {
        const index = indexOf(self.edges, offset +| 1);
        return if (index == 0) 0 else index - 1;
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

    fn read(context: *anyopaque, offset: u64, buffer: []u8) block.DeviceError!void {
        const self: *Patched = @ptrCast(@alignCast(context));
        try self.under.readPadded(offset, buffer);
        const end = offset + buffer.len;
        var batch: Batch = .{ .device = self.under };
        var piece = self.pieceAt(offset);
        while (piece + 1 < self.edges.len and self.edges[piece] < end) : (piece += 1) {
            const owner = self.owners[piece];
            const start = @max(self.edges[piece], offset);
            const stop = @min(self.edges[piece + 1], end);
            if (owner == untouched or start >= stop) continue;
            const out = buffer[@intCast(start - offset)..@intCast(stop - offset)];
            const patch = &self.patches[owner];
            const source = patch.source orelse {
                @memset(out, 0);
                continue;
            };
            try fill(&batch, patch, source, start - patch.start, out);
        }
        try batch.send();
    }

    /// Bytes of a patched sector from `from` on.
    fn fill(batch: *Batch, patch: *const Patch, source: u64, from: u64, out: []u8) block.DeviceError!void {
        const size = patch.end - patch.start;
        const middle = @min(@max(from, leading), from + out.len);
        const middle_end = @max(middle, @min(from + out.len, size - trailing));
        for (out, from..) |*byte, at| {
            if (at < leading) byte.* = patch.leading[at];
            if (at >= size - trailing) byte.* = patch.trailing[@intCast(at - (size - trailing))];
        }
        if (middle < middle_end) try batch.add(source + middle, out[@intCast(middle - from)..@intCast(middle_end - from)]);
    }

    fn readMany(context: *anyopaque, reads: []const block.Read) block.DeviceError!void {
        for (reads) |one| try read(context, one.offset, one.buffer);
    }

    fn write(_: *anyopaque, _: u64, _: []const u8) block.DeviceError!void {
        return error.ReadOnly;
    }
    fn writeMany(_: *anyopaque, _: []const block.Write) block.DeviceError!void {
        return error.ReadOnly;
    }
    fn writeZeroes(_: *anyopaque, _: u64, _: u64) block.DeviceError!void {
        return error.ReadOnly;
    }
    fn flush(_: *anyopaque) block.DeviceError!void {}
    fn setLength(_: *anyopaque, _: u64) block.DeviceError!void {
        return error.ReadOnly;
    }

    /// Where the patches are decides nothing that anybody asks: all of it is data.
    fn blockStatus(_: *anyopaque, offset: u64, length: u64, out: []block.Extent) block.DeviceError![]block.Extent {
        if (out.len == 0) return error.Invalid;
        out[0] = .{ .offset = offset, .length = length, .flags = block.Extent.data_flag };
        return out[0..1];
    }
};

/// Reads that wait for one exit.
const Batch = struct {
    device: block.Device,
    reads: [16]block.Read = undefined,
    count: usize = 0,

    fn add(self: *Batch, offset: u64, buffer: []u8) block.DeviceError!void {
        if (self.count == self.reads.len) try self.send();
        self.reads[self.count] = .{ .offset = offset, .buffer = buffer };
        self.count += 1;
    }

    fn send(self: *Batch) block.DeviceError!void {
        if (self.count > 0) try self.device.readMany(self.reads[0..self.count]);
        self.count = 0;
    }
};

const testing = std.testing;

test "the newest write to a byte counts" {
    var bytes: [3 * 4096]u8 = undefined;
    for (&bytes, 0..) |*byte, i| byte.* = @truncate(i / 4096 + 1);
    var memory: block.Memory = try .init(testing.allocator, &bytes);
    defer memory.deinit();
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const a = "AAAAAAAA".*;
    const z = "ZZZZ".*;
    const none: [8]u8 = @splat(0);
    var view: Patched = try .init(arena.allocator(), memory.device(), &.{
        .{ .start = 4096, .end = 8192, .source = 0, .leading = a, .trailing = z },
        .{ .start = 0, .end = 5 * 4096, .source = null, .leading = none, .trailing = z },
        .{ .start = 8192, .end = 12288, .source = 4096, .leading = a, .trailing = z },
    }, 0);
    const device = view.device();
    try testing.expectEqual(@as(u64, 5 * 4096), device.length);
    var out: [5 * 4096]u8 = undefined;
    try device.read(0, &out);
    try testing.expect(std.mem.allEqual(u8, out[0..8192], 0));
    try testing.expectEqualStrings("AAAAAAAA\x02", out[8192..8201]);
    try testing.expectEqualStrings("\x02ZZZZ\x00", out[12288 - 5 .. 12289]);
    try testing.expect(std.mem.allEqual(u8, out[12288..], 0));
    // Every cut reads the same bytes.
    for (0..64) |seed| {
        var random: std.Random.DefaultPrng = .init(seed);
        const start = random.random().uintLessThan(usize, out.len);
        const length = random.random().uintLessThan(usize, out.len - start);
        var part: [5 * 4096]u8 = undefined;
        try device.read(start, part[0..length]);
        try testing.expectEqualSlices(u8, out[start..][0..length], part[0..length]);
    }
    try testing.expect(view.touches(5 * 4096 - 1, 6 * 4096));
    try testing.expect(!view.touches(5 * 4096, 6 * 4096));
    try testing.expectError(error.Range, device.read(out.len, part1()));
}

fn part1() []u8 {
    const static = struct {
        var byte: [1]u8 = undefined;
    };
    return &static.byte;
}
