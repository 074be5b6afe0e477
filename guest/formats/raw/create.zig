//! Raw as a destination: the file is the disk.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const target = @import("../target.zig");
const plans = @import("../plan.zig");
const OptionList = @import("../option_list.zig").OptionList;

const format = "raw";
const accepted = target.mask(&.{"preallocation"});

/// Bytes of a raw disk of `size` bytes: qemu counts in sectors of 512.  2^63-1 becomes 2^63.
fn rounded(size: u64) u64 {
    return std.mem.alignForward(u64, size, 512);
}

/// The whole disk, whatever it holds.
pub fn measure(context: image.Context, source: target.Source, options: *const target.Options) block.Error!target.Sizes {
    try target.onlyOptions(context, format, options, accepted);
    _ = try target.preallocation(context, format, options);
    const size = source.virtualSize();
    if (source == .size) try target.checkSize(context, format, size);
    return .{ .required = rounded(size), .fully_allocated = rounded(size), .virtual_size = rounded(size) };
}

/// A hole, or zeroes with preallocation=full.
pub fn plan(context: image.Context, size: u64, options: *const target.Options, _: target.Seed) block.Error!plans.Plan {
    try target.onlyOptions(context, format, options, accepted);
    const mode = try target.preallocation(context, format, options);
    if (mode == .metadata) return target.refuseOption(context, format, "raw: Unsupported preallocation mode: metadata", .{});
    try target.checkSize(context, format, size);
    const length = rounded(size);
    // No file is that long.
    try target.checkSize(context, format, length);
    var regions: []const plans.Region = &.{};
    if (mode == .full and length > 0) {
        const all = context.allocator.alloc(plans.Region, 1) catch return error.NoMemory;
        all[0] = .{ .offset = 0, .length = length, .content = .{ .pattern = &.{0} } };
        regions = all;
    }
    return .{ .virtual_size = length, .file_length = length, .regions = regions, .options = optionList(context, size, options) catch return error.NoMemory };
}

fn optionList(context: image.Context, size: u64, options: *const target.Options) error{OutOfMemory}![]const @import("messages").CreateOption {
    var list: OptionList = .init(context.allocator);
    try list.number("size", size);
    try list.boolean("nocow", options.nocow);
    try list.text("preallocation", options.preallocation);
    try list.number("extent_size_hint", options.extent_size_hint);
    return list.items();
}

const testing = std.testing;

test "sizes are whole sectors" {
    var diagnostic: block.Diagnostic = .{};
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const context: image.Context = .{ .allocator = arena.allocator(), .diagnostic = &diagnostic };
    try testing.expectEqual(@as(u64, 512), (try measure(context, .{ .size = 1 }, &.{})).required);
    try testing.expectEqual(@as(u64, 1 << 63), (try measure(context, .{ .size = target.max_size }, &.{})).fully_allocated);
    try testing.expectError(error.Refused, measure(context, .{ .size = std.math.maxInt(u64) }, &.{}));
    try testing.expectEqualStrings("raw: virtual size 18446744073709551615 is above 2^63-1", diagnostic.message());
    try testing.expectError(error.Refused, measure(context, .{ .size = 1 }, &.{ .cluster_size = 65536 }));

    const sparse = try plan(context, 513, &.{}, .{});
    try testing.expectEqual(@as(u64, 1024), sparse.file_length);
    try testing.expectEqual(@as(usize, 0), sparse.regions.len);
    const full = try plan(context, 513, &.{ .preallocation = "full" }, .{});
    try testing.expectEqual(@as(u64, 1024), full.regions[0].length);
    try testing.expectError(error.Refused, plan(context, 513, &.{ .preallocation = "metadata" }, .{}));
    try testing.expectError(error.Refused, plan(context, target.max_size, &.{}, .{}));
}
