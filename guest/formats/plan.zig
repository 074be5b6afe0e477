//! What a planner of new images answers, and how it is carried out.
//!
//! A plan is, for each file of the image, an exact length and the places that are not zero, as regions in ascending
//! order.  A region is described, not stored: a petabyte of preallocated tables is one region, produced piece by piece
//! while it is written.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");

/// Words `first`, `first + step`, ...
pub const Progression = struct {
    first: u64,
    step: u64 = 0,
    word: enum {
        big_64,
        /// Each is followed by a zero word (extended L2).
        big_64_and_zero,
        little_32,
        little_64,
    } = .big_64,

    /// Bytes from one word to the next.
    pub fn stride(self: Progression) u64 {
        return switch (self.word) {
            .little_32 => 4,
            .big_64, .little_64 => 8,
            .big_64_and_zero => 16,
        };
    }
};

pub const Content = union(enum) {
    bytes: []const u8,
    /// The same bytes again and again; the length is a power of two, at most 8.
    pattern: []const u8,
    progression: Progression,
};

/// A byte range of the file and what is written there.
pub const Region = struct {
    /// Byte offset in the file.
    offset: u64,
    /// Bytes; with a progression, a multiple of its stride.
    length: u64,
    content: Content,

    pub fn end(self: Region) u64 {
        return self.offset + self.length;
    }

    /// Fill `out` with the content from byte `position` of the region on.
    fn fill(self: Region, position: u64, out: []u8) void {
        switch (self.content) {
            .bytes => |bytes| @memcpy(out, bytes[@intCast(position)..][0..out.len]),
            .pattern => |pattern| {
                // Pieces begin at multiples of `min_buffer`, so at the start of the pattern.
                var word: [8]u8 = undefined;
                for (&word, 0..) |*byte, i| byte.* = pattern[i % pattern.len];
                var at: usize = 0;
                while (at + 8 <= out.len) : (at += 8) out[at..][0..8].* = word;
                @memcpy(out[at..], word[0 .. out.len - at]);
            },
            .progression => |words| {
                const stride: usize = @intCast(words.stride());
                // The planner checked the last value; between the first and the last nothing wraps.
                var word = words.first + words.step * (position / stride);
                var at: usize = 0;
                while (at < out.len) : (at += stride) {
                    if (words.word == .little_32) {
                        std.mem.writeInt(u32, out[at..][0..4], @intCast(word), .little);
                    } else {
                        std.mem.writeInt(u64, out[at..][0..8], word, if (words.word == .little_64) .little else .big);
                        @memset(out[at + 8 ..][0 .. stride - 8], 0);
                    }
                    // Behind the last word nobody needs another one, which may be too large.
                    word +%= words.step;
                }
            },
        }
    }
};

/// A file that belongs to an image beside the one that is named in the request.
pub const File = struct {
    /// Its name in the directory of the image's own file; null: the request says where it is.
    name: ?[]const u8,
    /// Exact length.
    length: u64,
    /// Ascending, not overlapping, inside the file.
    regions: []const Region = &.{},
};

/// An empty image that is yet to be written.
pub const Plan = struct {
    /// Bytes of virtual disk after the format's rounding.
    virtual_size: u64,
    /// Cluster or block size in bytes; null where the format has none.
    cluster_size: ?u64 = null,
    /// Exact length of the file.
    file_length: u64,
    /// Ascending, not overlapping, inside the file.
    regions: []const Region,
    /// The other files, on the devices behind the first one.
    others: []const File = &.{},
    /// Told now and then how many bytes of content are written, and of how many; null when nobody looks.
    progress: ?*const fn (done: u64, total: u64) callconv(.c) void = null,
    /// As in qemu-img's `Formatting` line.
    options: []const messages.CreateOption,

    /// File `index`: 0 is the one that is named in the request.
    pub fn file(self: *const Plan, index: usize) File {
        if (index > 0) return self.others[index - 1];
        return .{ .name = null, .length = self.file_length, .regions = self.regions };
    }

    /// The writes of the first file, in ascending order.
    pub fn writes(self: *const Plan) Writes {
        return .{ .regions = self.regions, .length = self.file_length };
    }
};

/// Pulls writes out of regions.
pub const Writes = struct {
    regions: []const Region,
    /// Exact length of the file, which no write may pass.
    length: u64,
    index: usize = 0,
    position: u64 = 0,
    written_to: u64 = 0,

    /// Smallest buffer that `next` can work with.
    pub const min_buffer = 16;

    /// The next write, its bytes in `buffer` (at least `min_buffer`) or in the plan; null at the end.
    pub fn next(self: *Writes, buffer: []u8) ?block.Write {
        while (self.index < self.regions.len and self.position == self.regions[self.index].length) {
            self.index += 1;
            self.position = 0;
        }
        if (self.index == self.regions.len) return null;
        const region = self.regions[self.index];
        const room = buffer.len - buffer.len % min_buffer;
        std.debug.assert(room > 0);
        const size: usize = @intCast(@min(room, region.length - self.position));
        const offset = region.offset + self.position;
        std.debug.assert(offset >= self.written_to);
        std.debug.assert(offset + size <= self.length);
        region.fill(self.position, buffer[0..size]);
        self.position += size;
        self.written_to = offset + size;
        return .{ .offset = offset, .bytes = buffer[0..size] };
    }
};

/// Bytes of content that are collected before the device is asked to write them.
const staging_size = 256 * 1024;
/// Bytes that a write may use at least, so that a batch does not end in crumbs.
const min_room = 4096;
/// Bytes between two words about the progress.
const told_every = 16 << 20;
/// Writes of one batch; what a virtqueue takes at once.
const batch = 32;

/// Write the first file of the plan to an empty device.
pub fn execute(planned: *const Plan, device: *block.Device, allocator: std.mem.Allocator) block.Error!void {
    return executeFile(planned, 0, device, allocator);
}

/// Write file `index` of the plan to an empty device: exact length first, so that what no write touches is a hole, then
/// the content in batches, then a flush.
pub fn executeFile(planned: *const Plan, index: usize, device: *block.Device, allocator: std.mem.Allocator) block.Error!void {
    const file = planned.file(index);
    try device.setLength(file.length);
    var pending: Writes = .{ .regions = file.regions, .length = file.length };
    try drain(&pending, device, allocator, planned.progress);
    try device.flush();
}

/// Write what is pending, in batches.
pub fn drain(pending: *Writes, device: *block.Device, allocator: std.mem.Allocator, progress: @FieldType(Plan, "progress")) block.Error!void {
    var total: u64 = 0;
    for (pending.regions) |region| total +|= region.length;
    const wanted = total +| (min_room + Writes.min_buffer * pending.regions.len);
    const staging = allocator.alloc(u8, @intCast(@min(wanted, staging_size))) catch return error.NoMemory;
    var collected: [batch]block.Write = undefined;
    var done: u64 = 0;
    var told: u64 = 0;
    while (true) {
        var count: usize = 0;
        var used: usize = 0;
        while (count < batch and staging.len - used >= min_room) {
            const write = pending.next(staging[used..]) orelse break;
            collected[count] = write;
            count += 1;
            used = std.mem.alignForward(usize, used + write.bytes.len, Writes.min_buffer);
        }
        if (count == 0) return;
        try device.writeMany(collected[0..count]);
        for (collected[0..count]) |write| done += write.bytes.len;
        // A small image is written at once: nobody needs to know how far it is.
        if (done - told < told_every) continue;
        told = done;
        if (progress) |tell| tell(done, total);
    }
}

const testing = std.testing;

test "regions come out in pieces and whole" {
    const regions = [_]Region{
        .{ .offset = 0, .length = 5, .content = .{ .bytes = "hello" } },
        .{ .offset = 16, .length = 48, .content = .{ .progression = .{ .first = 0x100, .step = 0x10, .word = .big_64_and_zero } } },
        .{ .offset = 64, .length = 37, .content = .{ .pattern = &.{ 0, 1 } } },
        .{ .offset = 128, .length = 20, .content = .{ .progression = .{ .first = 0xffff_fff8, .step = 1, .word = .little_32 } } },
        .{ .offset = 160, .length = 16, .content = .{ .progression = .{ .first = 7, .step = 1 } } },
    };
    const planned: Plan = .{ .virtual_size = 0, .file_length = 176, .regions = &regions, .options = &.{} };
    for ([_]usize{ 16, 17, 32, 4096 }) |room| {
        var file: [176]u8 = @splat(0);
        var pending = planned.writes();
        var buffer: [4096]u8 = undefined;
        while (pending.next(buffer[0..room])) |write| {
            @memcpy(file[@intCast(write.offset)..][0..write.bytes.len], write.bytes);
        }
        try testing.expectEqualStrings("hello\x00", file[0..6]);
        for (0..3) |i| {
            try testing.expectEqual(0x100 + 0x10 * i, std.mem.readInt(u64, file[16 + 16 * i ..][0..8], .big));
            try testing.expectEqual(@as(u64, 0), std.mem.readInt(u64, file[24 + 16 * i ..][0..8], .big));
        }
        for (file[64..101], 0..) |byte, i| try testing.expectEqual(i % 2, byte);
        try testing.expect(std.mem.allEqual(u8, file[101..128], 0));
        for (0..5) |i| try testing.expectEqual(0xffff_fff8 + i, std.mem.readInt(u32, file[128 + 4 * i ..][0..4], .little));
        for (0..2) |i| try testing.expectEqual(7 + i, std.mem.readInt(u64, file[160 + 8 * i ..][0..8], .big));
    }
}

test "an executed plan has its exact length" {
    const regions = [_]Region{.{ .offset = 512, .length = 300_000, .content = .{ .pattern = &.{0xff} } }};
    const planned: Plan = .{ .virtual_size = 0, .file_length = 400_001, .regions = &regions, .options = &.{} };
    var memory = try block.Memory.init(testing.allocator, "");
    defer memory.deinit();
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    var device = memory.device();
    device.read_only = false;
    try execute(&planned, &device, arena.allocator());
    const file = memory.bytes.items;
    try testing.expectEqual(@as(usize, 400_001), file.len);
    try testing.expect(std.mem.allEqual(u8, file[0..512], 0));
    try testing.expect(std.mem.allEqual(u8, file[512..300_512], 0xff));
    try testing.expect(std.mem.allEqual(u8, file[300_512..], 0));
}

test "long plans say how far they are" {
    const Seen = struct {
        var calls: u64 = 0;
        var last: u64 = 0;
        fn tell(done: u64, total: u64) callconv(.c) void {
            calls += 1;
            std.debug.assert(done > last and done <= total);
            last = done;
        }
    };
    const size = 40 << 20;
    const regions = [_]Region{.{ .offset = 0, .length = size, .content = .{ .pattern = &.{1} } }};
    const planned: Plan = .{ .virtual_size = 0, .file_length = size, .regions = &regions, .options = &.{}, .progress = Seen.tell };
    var memory = try block.Memory.init(testing.allocator, "");
    defer memory.deinit();
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    var device = memory.device();
    device.read_only = false;
    try execute(&planned, &device, arena.allocator());
    try testing.expectEqual(@as(u64, 2), Seen.calls);
}
