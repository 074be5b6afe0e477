//! Growing, cut off everywhere: after each prefix of the steps, with the last one torn, with writes missing and in part
//! between two flushes, the image opens, has its old size or its new one, and its content is what it was.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const steps = @import("../steps.zig");
const format = @import("format.zig");
const grow = @import("grow.zig");
const vhdx = @import("vhdx.zig");
const Builder = @import("test_vhdx.zig").Builder;
const testing = std.testing;

const mib = format.mib;
const gib = 1 << 30;
const sector = 512;

/// A disk of 3.5 MiB in blocks of 1 MiB: two present, one zero, the last one present with stale bytes behind the end.
fn build(flags: u32) !Builder {
    var builder: Builder = try .init(.{ .size = 3 * mib + mib / 2, .flags = flags });
    builder.entry(0, 5, 6);
    builder.entry(1, 4, 6);
    builder.entry(2, 0, 2);
    builder.entry(3, 6, 6);
    // Entries that were never in use hold anything.
    builder.entry(5, 3, 6);
    for (builder.bytes[Builder.first_block..], 0..) |*byte, i| byte.* = @truncate(i / sector * 7 + i % sector + 1);
    return builder;
}

const Image = struct {
    memory: block.Memory,
    arena: std.heap.ArenaAllocator,
    diagnostic: block.Diagnostic = .{},

    fn init(bytes: []const u8) !Image {
        return .{ .memory = try .init(testing.allocator, bytes), .arena = .init(testing.allocator) };
    }

    fn deinit(self: *Image) void {
        self.memory.deinit();
        self.arena.deinit();
    }

    fn context(self: *Image) image.Context {
        return .{ .allocator = self.arena.allocator(), .diagnostic = &self.diagnostic };
    }

    fn plan(self: *Image, size: u64) block.Error!steps.Resize {
        return grow.resize(self.context(), self.memory.device(), &.{ .size = size });
    }

    /// The size, after the content was compared: `old` first, zeroes behind it.
    fn expect(self: *Image, old: []const u8) !u64 {
        const device = self.memory.device();
        const opened = try vhdx.open(self.context(), device);
        var at: u64 = 0;
        while (at < opened.virtual_size) {
            const segment = try opened.segmentAt(at);
            defer at += segment.length;
            if (segment.kind != .data) {
                if (at < old.len) try testing.expect(std.mem.allEqual(u8, old[@intCast(at)..@intCast(@min(old.len, at + segment.length))], 0));
                continue;
            }
            const bytes = try testing.allocator.alloc(u8, @intCast(segment.length));
            defer testing.allocator.free(bytes);
            try device.readPadded(segment.offset.?, bytes);
            const known: usize = if (at < old.len) @intCast(@min(segment.length, old.len - at)) else 0;
            if (known > 0) try testing.expectEqualSlices(u8, old[@intCast(at)..][0..known], bytes[0..known]);
            try testing.expect(std.mem.allEqual(u8, bytes[known..], 0));
        }
        try testing.expect(opened.virtual_size >= old.len);
        return opened.virtual_size;
    }
};

fn contentOf(builder: Builder) ![]u8 {
    const content = try testing.allocator.alloc(u8, 3 * mib + mib / 2);
    @memset(content, 0);
    for ([_]usize{ 5, 4, 0, 6 }, 0..) |place, number| {
        if (place == 0) continue;
        const part = content[number * mib ..][0..@min(mib, content.len - number * mib)];
        @memcpy(part, builder.bytes[place * mib ..][0..part.len]);
    }
    return content;
}

/// Which part of a step reaches the disk.
const Part = enum { all, first_half, second_half, nothing };

fn apply(device: *block.Device, step: steps.Step, part: Part) !void {
    switch (step) {
        .write => |write| {
            // Sectors are whole or not there.
            const first_end = std.mem.alignBackward(u64, write.offset, sector) + sector;
            const middle = @min(write.bytes.len, first_end - write.offset + (write.bytes.len / 2) / sector * sector);
            switch (part) {
                .all => try device.write(write.offset, write.bytes),
                .first_half => try device.write(write.offset, write.bytes[0..middle]),
                .second_half => if (middle < write.bytes.len) try device.write(write.offset + middle, write.bytes[middle..]),
                .nothing => {},
            }
        },
        .zero => |range| switch (part) {
            .all => try device.writeZeroes(range.offset, range.length),
            .first_half => try device.writeZeroes(range.offset, range.length / 2 / sector * sector),
            .second_half, .nothing => {},
        },
        .length => |length| if (part == .all) try device.setLength(@max(length, device.length)),
        // No plan of this format has such a step.
        .fill => unreachable,
        .flush => {},
    }
}

/// Every state that a crash can leave, by one number: the last flush that was reached, and what of the steps behind it.
fn cutOff(flags: u32, size: u64) !void {
    const builder = try build(flags);
    defer builder.deinit();
    const content = try contentOf(builder);
    defer testing.allocator.free(content);
    var whole: Image = try .init(builder.bytes);
    defer whole.deinit();
    const planned = try whole.plan(size);
    try testing.expectEqual(content.len, planned.old_size);
    var random: std.Random.DefaultPrng = .init(flags + size);
    var seen_old: usize = 0;
    var seen_new: usize = 0;
    var begin: usize = 0;
    while (begin < planned.steps.len) {
        var end = begin;
        while (end < planned.steps.len and planned.steps[end] != .flush) end += 1;
        // Each prefix, its last step torn, and some mixtures.
        for (0..(end - begin + 1) * 3 + 8) |number| {
            var state: Image = try .init(builder.bytes);
            defer state.deinit();
            var device = state.memory.device();
            for (planned.steps[0..begin]) |step| try apply(&device, step, .all);
            for (planned.steps[begin..end], 0..) |step, i| {
                const prefix = number / 3;
                const part: Part = if (prefix > end - begin)
                    random.random().enumValue(Part)
                else if (i < prefix) .all else if (i > prefix) .nothing else ([_]Part{ .nothing, .first_half, .second_half })[number % 3];
                try apply(&device, step, part);
            }
            const found = try state.expect(content);
            if (found == planned.old_size) seen_old += 1 else {
                try testing.expectEqual(planned.new_size, found);
                seen_new += 1;
            }
            // What was begun can be done again from there.
            const again = try state.plan(size);
            try steps.execute(again.steps, &device, state.arena.allocator(), null);
            try testing.expectEqual(planned.new_size, try state.expect(content));
        }
        begin = end + 1;
    }
    try testing.expect(seen_old > 10 and seen_new > 0);
}

test "growing a dynamic disk within its table" {
    try cutOff(0, 7 * mib + 512);
}

test "growing within the last block" {
    try cutOff(0, 3 * mib + mib / 2 + 512);
    try cutOff(1, 4 * mib);
}

test "growing a dynamic disk beyond its table" {
    try cutOff(0, 150 * gib);
}

test "growing a fixed disk within its table" {
    try cutOff(1, 7 * mib + 512);
}

test "the second region table, and the only header" {
    const builder = try build(0);
    defer builder.deinit();
    const content = try contentOf(builder);
    defer testing.allocator.free(content);
    builder.bytes[format.region_table_offsets[0] + 4] ^= 1;
    builder.bytes[format.header_offsets[1] + 4] ^= 1;
    var state: Image = try .init(builder.bytes);
    defer state.deinit();
    const planned = try state.plan(150 * gib);
    for (0..planned.steps.len) |count| {
        var cut: Image = try .init(builder.bytes);
        defer cut.deinit();
        var device = cut.memory.device();
        for (planned.steps[0..count]) |step| try apply(&device, step, .all);
        _ = try cut.expect(content);
    }
    var device = state.memory.device();
    try steps.execute(planned.steps, &device, state.arena.allocator(), null);
    try testing.expectEqual(150 * gib, try state.expect(content));
    const bytes = state.memory.bytes.items;
    try testing.expectEqualSlices(u8, bytes[format.region_table_offsets[0]..][0..format.region_table_size], bytes[format.region_table_offsets[1]..][0..format.region_table_size]);
}

test "what is refused" {
    const Row = struct { u32, messages.ResizeRequest, block.Diagnostic.Code };
    for ([_]Row{
        .{ 0, .{ .size = mib, .shrink = true }, .unsupported },
        .{ 0, .{ .size = mib }, .invalid_option },
        .{ 0, .{ .size = (64 << 40) + 1 }, .too_large },
        .{ 0, .{ .size = std.math.maxInt(u64) }, .too_large },
        .{ 0, .{ .size = std.math.maxInt(u64), .relative = "grow" }, .too_large },
        .{ 0, .{ .size = 8 * mib, .preallocation = "full" }, .invalid_option },
        .{ 2, .{ .size = 8 * mib }, .unsupported },
    }) |row| {
        const builder: Builder = try .init(.{ .flags = row[0] });
        defer builder.deinit();
        var state: Image = try .init(builder.bytes);
        defer state.deinit();
        try testing.expectError(error.Refused, grow.resize(state.context(), state.memory.device(), &row[1]));
        try testing.expectEqual(row[2], state.diagnostic.code);
    }
    const logged: Builder = try .init(.{ .logged = true });
    defer logged.deinit();
    var state: Image = try .init(logged.bytes);
    defer state.deinit();
    try testing.expectError(error.Refused, state.plan(8 * mib));
    try testing.expectEqualStrings("vhdx: the log at byte 1048576 is in use: what it holds has to be written to its places first", state.diagnostic.message());
    const same: Builder = try .init(.{});
    defer same.deinit();
    var unchanged: Image = try .init(same.bytes);
    defer unchanged.deinit();
    try testing.expectEqual(0, (try unchanged.plan(4 * mib)).steps.len);
}
