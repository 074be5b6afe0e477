//! Planned images, read back by the reading side: every width and cluster size, each way to preallocate.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const target = @import("../target.zig");
const plans = @import("../plan.zig");
const plan = @import("create.zig").plan;
const measure = @import("measure.zig").measure;
const open = @import("open.zig");
const header = @import("header.zig");
const driver = @import("qcow2.zig").driver;

const testing = std.testing;

const sink: image.Sink = .{ .context = undefined, .deliver = deliver };

fn deliver(_: *anyopaque, _: []const u8) block.Error!void {}

/// A planned image in memory.
const Created = struct {
    arena: std.heap.ArenaAllocator,
    diagnostic: block.Diagnostic = .{},
    memory: block.Memory,
    planned: plans.Plan = undefined,

    fn init(size: u64, options: target.Options) !*Created {
        const self = try testing.allocator.create(Created);
        self.* = .{ .arena = .init(testing.allocator), .memory = try .init(testing.allocator, "") };
        errdefer self.deinit();
        self.planned = try plan(self.context(), size, &options, .{});
        var device = self.memory.device();
        device.read_only = false;
        try plans.execute(&self.planned, &device, self.arena.allocator());
        try testing.expectEqual(self.planned.file_length, self.memory.bytes.items.len);
        return self;
    }

    fn deinit(self: *Created) void {
        self.memory.deinit();
        self.arena.deinit();
        testing.allocator.destroy(self);
    }

    fn context(self: *Created) image.Context {
        return .{ .allocator = self.arena.allocator(), .diagnostic = &self.diagnostic };
    }

    fn check(self: *Created) !messages.Check {
        const device = self.memory.device();
        var report: messages.Check = .{ .format = "", .file_length = device.length, .check_errors = 0, .corruptions = 0, .leaks = 0, .findings_omitted = 0 };
        try driver.check.?(self.context(), device, sink, &report);
        return report;
    }

    fn expectSound(self: *Created, allocated: u64) !void {
        const report = try self.check();
        try testing.expectEqual(@as(u64, 0), report.check_errors + report.corruptions + report.leaks);
        try testing.expectEqual(allocated, report.allocated_clusters orelse 0);
    }
};

test "every cluster size and refcount width is sound" {
    for (9..17) |cluster_bits| for (0..7) |order| for ([_]?[]const u8{ null, "metadata" }) |preallocation| {
        const cluster_size = @as(u64, 1) << @intCast(cluster_bits);
        // More clusters than one refcount block counts, where that is small.
        const size = @min(cluster_size * 3000 + 100, 4 << 20);
        const created: *Created = try .init(size, .{
            .cluster_size = cluster_size,
            .refcount_bits = @as(u64, 1) << @intCast(order),
            .preallocation = preallocation,
        });
        defer created.deinit();
        const clusters = std.math.divCeil(u64, size, cluster_size) catch unreachable;
        try created.expectSound(if (preallocation == null) 0 else clusters);
    };
}

test "preallocation: as long as measure says" {
    for ([_][]const u8{ "metadata", "falloc", "full" }) |mode| for ([_]u64{ 512, 4096, 65_536 }) |cluster_size| {
        const options: target.Options = .{ .preallocation = mode, .cluster_size = cluster_size };
        const created: *Created = try .init(5 << 20, options);
        defer created.deinit();
        const sizes = try measure(created.context(), .{ .size = 5 << 20 }, &options);
        try testing.expectEqual(sizes.fully_allocated, created.planned.file_length);
    };
}

test "the whole disk of a preallocated image is data, of an extended one unallocated" {
    const plain: *Created = try .init(1 << 20, .{ .preallocation = "full" });
    defer plain.deinit();
    const all = try (try driver.open.?(plain.context(), plain.memory.device())).segmentAt(0);
    try testing.expectEqual(image.Kind.data, all.kind);
    try testing.expectEqual(@as(u64, 1 << 20), all.length);
    try plain.expectSound(16);

    const extended: *Created = try .init(1 << 20, .{
        .preallocation = "metadata",
        .extended_l2 = true,
        .backing_file = "base.img",
        .backing_format = "raw",
    });
    defer extended.deinit();
    const none = try (try driver.open.?(extended.context(), extended.memory.device())).segmentAt(0);
    try testing.expectEqual(image.Kind.unallocated, none.kind);
    try extended.expectSound(16);
}

test "names and features are where a reader finds them" {
    const created: *Created = try .init(1 << 20, .{
        .backing_file = "a base, with a comma",
        .backing_format = "qcow2",
        .lazy_refcounts = true,
        .compression_type = "zstd",
        .refcount_bits = 1,
    });
    defer created.deinit();
    const opened = try open.Opened.open(created.context(), created.memory.device(), .information);
    try testing.expectEqualStrings("a base, with a comma", opened.backing_name.?);
    try testing.expectEqualStrings("qcow2", opened.backing_format.?);
    try testing.expectEqual(header.Compression.zstd, opened.header.compression);
    try testing.expectEqual(@as(u64, header.Compatible.lazy_refcounts), opened.header.compatible);
    try testing.expectEqual(@as(u8, 1), opened.header.refcountBits());
    try created.expectSound(0);
    const line = created.planned.options;
    try testing.expectEqualStrings("backing_file", line[4].name);
    try testing.expectEqualStrings("a base, with a comma", line[4].value);

    const old: *Created = try .init(513, .{ .compat = "0.10", .cluster_size = 512, .backing_file = "x", .backing_format = "raw" });
    defer old.deinit();
    const old_opened = try open.Opened.open(old.context(), old.memory.device(), .information);
    try testing.expectEqual(@as(u32, 2), old_opened.header.version);
    try testing.expectEqual(@as(u64, 1024), old_opened.header.virtualSize());
    try testing.expectEqualStrings("x", old_opened.backing_name.?);
}

test "an external data file: tables point into it, its length is the disk's" {
    const created: *Created = try .init(33_000, .{ .data_file = "disk.raw", .data_file_raw = true, .cluster_size = 16_384 });
    defer created.deinit();
    try testing.expectEqual(@as(u64, 49_152), created.planned.others[0].length);
    try testing.expectEqual(@as(u64, 81_920), created.planned.file_length);
    const opened = try open.Opened.open(created.context(), created.memory.device(), .information);
    try testing.expectEqualStrings("disk.raw", opened.data_file.?);
    const lazy: *Created = try .init(33_000, .{ .data_file = "disk.raw" });
    defer lazy.deinit();
    try testing.expectEqual(@as(u64, 33_280), lazy.planned.others[0].length);
}

test "names that do not fit are refused" {
    var diagnostic: block.Diagnostic = .{};
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const context: image.Context = .{ .allocator = arena.allocator(), .diagnostic = &diagnostic };
    const name: [1024]u8 = @splat('n');
    _ = try plan(context, 1, &.{ .backing_file = name[0..1023], .backing_format = "raw" }, .{});
    try testing.expectError(error.Refused, plan(context, 1, &.{ .backing_file = &name, .backing_format = "raw" }, .{}));
    // 112 bytes of header, 16 of format, 8 of end.
    _ = try plan(context, 1, &.{ .cluster_size = 512, .backing_file = name[0..376], .backing_format = "raw" }, .{});
    try testing.expectError(error.Refused, plan(context, 1, &.{ .cluster_size = 512, .backing_file = name[0..377], .backing_format = "raw" }, .{}));
}

test "the largest plans are ascending, inside the file, and small" {
    var diagnostic: block.Diagnostic = .{};
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const context: image.Context = .{ .allocator = arena.allocator(), .diagnostic = &diagnostic };
    const cases = [_]struct { u64, target.Options }{
        .{ 128 << 30, .{ .cluster_size = 512 } },
        .{ 64 << 30, .{ .cluster_size = 512, .refcount_bits = 16, .preallocation = "metadata" } },
        .{ 1 << 50, .{ .preallocation = "metadata" } },
        .{ 1 << 61, .{ .cluster_size = 2 << 20 } },
        .{ 1 << 60, .{ .cluster_size = 2 << 20, .preallocation = "metadata" } },
        .{ 1 << 60, .{ .cluster_size = 2 << 20, .extended_l2 = true, .preallocation = "full" } },
    };
    for (cases) |case| {
        const planned = try plan(context, case[0], &case[1], .{});
        var end: u64 = 0;
        for (planned.regions) |region| {
            try testing.expect(region.offset >= end and region.length > 0);
            end = region.end();
        }
        try testing.expect(end <= planned.file_length);
        try testing.expect(planned.regions.len <= 12);
    }
    for ([_]u64{ (2 << 50) + 1, target.max_size, 1 << 63, std.math.maxInt(u64) }) |size| {
        try testing.expectError(error.Refused, plan(context, size, &.{}, .{}));
        try testing.expectEqual(block.Diagnostic.Code.too_large, diagnostic.code);
    }
    // A refcount table above 8 MiB.
    try testing.expectError(error.Refused, plan(context, 128 << 30, &.{ .cluster_size = 512, .refcount_bits = 64, .preallocation = "metadata" }, .{}));
    try testing.expectEqualStrings("refcount table", diagnostic.structure.?);
}
