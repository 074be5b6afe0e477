//! Chains of images in memory: who answers for which byte, what is read, what is refused.

const std = @import("std");
const block = @import("block");
const formats = @import("formats.zig");
const image = formats.image;
const Builder = @import("qcow2/testing.zig").Builder;
const Disk = @import("content/disk.zig").Disk;
const testing = std.testing;

const registry = formats.Registry(.measure);
const Chain = formats.Chain(registry);

/// Image n's backing file is image n + 1.
const World = struct {
    arena: std.heap.ArenaAllocator,
    diagnostic: block.Diagnostic = .{},
    memories: [20]*block.Memory = undefined,
    count: usize = 0,
    /// Kind of every reference.
    kind: image.ReferenceKind = .backing_file,

    fn init() World {
        return .{ .arena = .init(testing.allocator) };
    }

    fn deinit(self: *World) void {
        self.arena.deinit();
    }

    fn add(self: *World, memory: block.Memory) !void {
        const copy = try self.arena.allocator().create(block.Memory);
        copy.* = memory;
        self.memories[self.count] = copy;
        self.count += 1;
    }

    /// A qcow2 image with a backing file's name where another one follows.
    fn overlay(self: *World, size: u64, data: []const u64, zero: []const u64, backed: bool) !void {
        var builder = try Builder.init(self.arena.allocator(), .{ .size = size });
        for (data, 0..) |cluster, n| {
            builder.setData(cluster, 5 + n);
            @memset(builder.memory.bytes.items[@intCast(builder.at(5 + n))..][0..512], @intCast(0x10 + self.count));
        }
        for (zero) |cluster| builder.setL2(cluster, 1);
        if (backed) {
            builder.put(u64, 8, 400);
            builder.put(u32, 16, 4);
            @memcpy(builder.memory.bytes.items[400..404], "next");
        }
        try self.add(builder.memory);
    }

    fn context(self: *World) image.Context {
        return .{
            .allocator = self.arena.allocator(),
            .diagnostic = &self.diagnostic,
            .files = .{ .context = self, .find = find, .device = deviceOf },
        };
    }

    fn open(self: *World) !image.Image {
        const device = self.memories[0].device();
        return Chain.open(self.context(), device, try registry.detect(self.context(), device));
    }

    fn find(opaque_self: *anyopaque, owner: u32, kind: image.ReferenceKind, index: u32) block.DeviceError!?image.Given {
        const self: *World = @ptrCast(@alignCast(opaque_self));
        const number = owner + 1;
        if (kind != self.kind or index != 0 or number >= self.count) return null;
        return .{ .number = number, .device = self.memories[number].device() };
    }

    fn deviceOf(opaque_self: *anyopaque, number: u32) block.DeviceError!block.Device {
        const self: *World = @ptrCast(@alignCast(opaque_self));
        return if (number < self.count) self.memories[number].device() else error.NoDevice;
    }
};

const Expected = struct { length: u64, kind: image.Kind, device: u32 = 0, depth: u32 = 0, offset: ?u64 = null };

fn expectSegments(opened: image.Image, expected: []const Expected) !void {
    var at: u64 = 0;
    for (expected) |one| {
        const segment = try opened.segmentAt(at);
        try testing.expectEqual(one.length, segment.length);
        try testing.expectEqual(one.kind, segment.kind);
        try testing.expectEqual(one.depth, segment.depth);
        if (one.offset) |offset| {
            try testing.expectEqual(offset, segment.offset.?);
            try testing.expectEqual(one.device, segment.device);
        }
        at += segment.length;
    }
    try testing.expectEqual(opened.virtual_size, at);
}

test "the highest image that knows answers, and nobody below a short one" {
    var world = World.init();
    defer world.deinit();
    try world.overlay(8 * 512, &.{1}, &.{2}, true);
    try world.overlay(6 * 512, &.{ 0, 1, 2, 3 }, &.{}, true);
    try world.add(try .init(world.arena.allocator(), &@as([5 * 512]u8, @splat(0x77))));
    const opened = try world.open();
    try testing.expect(!opened.has_backing);
    try expectSegments(opened, &.{
        .{ .length = 512, .kind = .data, .device = 1, .depth = 1, .offset = 5 * 512 },
        .{ .length = 512, .kind = .data, .device = 0, .depth = 0, .offset = 5 * 512 },
        .{ .length = 512, .kind = .zero, .depth = 0 },
        .{ .length = 512, .kind = .data, .device = 1, .depth = 1, .offset = 8 * 512 },
        // The last image ends after five clusters, the second after six.
        .{ .length = 512, .kind = .data, .device = 2, .depth = 2, .offset = 4 * 512 },
        .{ .length = 512, .kind = .unallocated, .depth = 1 },
        .{ .length = 1024, .kind = .unallocated, .depth = 0 },
    });
}

test "bytes come from the file that holds them" {
    var world = World.init();
    defer world.deinit();
    try world.overlay(4 * 512, &.{1}, &.{2}, true);
    try world.add(try .init(world.arena.allocator(), &@as([4 * 512]u8, @splat(0x77))));
    const opened = try world.open();
    const disk: Disk = .{ .context = world.context(), .image = opened, .device = world.memories[0].device() };
    var bytes: [6 * 512]u8 = @splat(0xff);
    try testing.expect(try disk.read(&.{.{ .offset = 0, .buffer = &bytes }}));
    for ([_]u8{ 0x77, 0x10, 0, 0x77, 0, 0 }, 0..) |value, cluster| {
        try testing.expect(std.mem.allEqual(u8, bytes[cluster * 512 ..][0..512], value));
    }
}

test "an image that is not the first one counts in its own device" {
    var world = World.init();
    defer world.deinit();
    try world.overlay(512, &.{}, &.{}, true);
    try world.overlay(512, &.{0}, &.{}, false);
    var context = world.context();
    context.number = 1;
    const device = world.memories[1].device();
    const opened = try Chain.open(context, device, try registry.detect(context, device));
    try expectSegments(opened, &.{.{ .length = 512, .kind = .data, .device = 1, .depth = 0, .offset = 5 * 512 }});
}

test "without files nothing is followed" {
    var world = World.init();
    defer world.deinit();
    try world.overlay(1024, &.{0}, &.{}, true);
    var context = world.context();
    context.files = null;
    const device = world.memories[0].device();
    const opened = try Chain.open(context, device, try registry.detect(context, device));
    try testing.expect(opened.has_backing);
    try testing.expectEqual(image.Kind.unallocated, (try opened.segmentAt(512)).kind);
}

test "what is missing, too deep or broken says which file it is" {
    var world = World.init();
    defer world.deinit();
    try world.overlay(512, &.{}, &.{}, true);
    try world.overlay(512, &.{}, &.{}, true);
    try testing.expectError(error.Refused, world.open());
    try testing.expectEqual(block.Diagnostic.Code.needs_reference, world.diagnostic.code);
    try testing.expectEqual(@as(?u64, 1), world.diagnostic.device);

    world.diagnostic.clear();
    try world.add(try .init(world.arena.allocator(), "QFI\xfb\x00\x00\x00\x09"));
    try testing.expectError(error.Refused, world.open());
    try testing.expectEqual(@as(?u64, 2), world.diagnostic.device);

    world.diagnostic.clear();
    world.count = 2;
    for (0..15) |_| try world.overlay(512, &.{}, &.{}, true);
    try testing.expectEqual(17, world.count);
    world.count = 16;
    try world.overlay(512, &.{0}, &.{}, false);
    const deepest = try world.open();
    try testing.expectEqual(@as(u32, 16), (try deepest.segmentAt(0)).depth);
    world.count = 16;
    try world.overlay(512, &.{}, &.{}, true);
    try world.overlay(512, &.{0}, &.{}, false);
    try testing.expectError(error.Refused, world.open());
    try testing.expectEqual(block.Diagnostic.Code.too_large, world.diagnostic.code);
    try testing.expectEqual(@as(?u64, 16), world.diagnostic.device);
}

test "a parent stands behind an image like a backing file" {
    var world = World.init();
    defer world.deinit();
    world.kind = .parent;
    try world.overlay(512, &.{}, &.{}, true);
    try world.overlay(512, &.{0}, &.{}, false);
    try testing.expectEqual(@as(u32, 1), (try (try world.open()).segmentAt(0)).device);
    try Chain.openBehind(world.context());
    world.memories[1].bytes.items[20] = 9;
    try testing.expectError(error.Refused, Chain.openBehind(world.context()));
    try testing.expectEqual(@as(?u64, 1), world.diagnostic.device);
}
