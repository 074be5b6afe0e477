//! How large a qcow2 file would be: qemu-img's numbers.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const target = @import("../target.zig");
const layout = @import("layout.zig");

/// Bytes of a file for the content of the source, and for every byte written; of its bitmaps when both sides can have
/// them.
pub fn measure(context: image.Context, source: target.Source, options: *const target.Options) block.Error!target.Sizes {
    const parameters = try layout.parameters(context, options, .measure);
    const size = source.virtualSize();
    // qemu-img's limits hold for a size that is asked for; an image that exists is measured whatever its size (a raw one
    // may have 2^63 bytes).  Nothing wraps: tables and refcounts add less than a quarter to at most 2^63 bytes.
    if (source == .size) {
        try target.checkSize(context, "qcow2", size);
        try parameters.checkL1(context, size);
    }

    // Room for refcounts is always that of the full image.
    const full = parameters.fullSize(size);
    const disk = std.mem.alignForward(u64, size, parameters.clusterSize());
    var content: u64 = 0;
    if (parameters.preallocation == .full or parameters.preallocation == .falloc) {
        content = disk;
    } else switch (source) {
        .size => {},
        // Nobody knows how much of the source the backing file already has, so all of it is assumed to be new.
        .image => |opened| content = if (parameters.backing_file != null) disk else try target.dataSize(context, opened, parameters.clusterSize()),
    }
    return .{
        .required = full - disk + content + parameters.encryption_header,
        .fully_allocated = full + parameters.encryption_header,
        .bitmaps = if (parameters.version >= 3) try bitmaps(context, source, parameters.clusterSize()) else null,
        .virtual_size = std.mem.alignForward(u64, size, 512),
    };
}

/// Bytes that the source's persistent bitmaps take in an image of this cluster size: for each its data and a table of
/// 8 bytes a data cluster, and one directory with an entry of 24 bytes and the name for each, all in whole clusters
/// (QEMU docs/interop/qcow2.txt, "Bitmaps").  Bitmaps that were in use when the image was left count like the others.
fn bitmaps(context: image.Context, source: target.Source, cluster_size: u64) block.Error!?u64 {
    const opened = switch (source) {
        .size => return null,
        .image => |opened| opened,
    };
    const present = opened.bitmaps orelse return null;
    var total: u64 = 0;
    var directory: u64 = 0;
    for (present) |bitmap| {
        std.debug.assert(bitmap.granularity > 0 and bitmap.name_length <= std.math.maxInt(u16));
        const bits = std.math.divCeil(u64, opened.virtual_size, bitmap.granularity) catch unreachable;
        const bytes = std.math.divCeil(u64, bits, 8) catch unreachable;
        const clusters = std.math.divCeil(u64, bytes, cluster_size) catch unreachable;
        const table = std.mem.alignForward(u64, clusters * 8, cluster_size);
        total = add(total, add(clusters * cluster_size, table) orelse return tooLarge(context)) orelse return tooLarge(context);
        directory += std.mem.alignForward(u64, 24 + bitmap.name_length, 8);
    }
    return add(total, std.mem.alignForward(u64, directory, cluster_size)) orelse tooLarge(context);
}

fn add(a: u64, b: u64) ?u64 {
    return std.math.add(u64, a, b) catch null;
}

fn tooLarge(context: image.Context) error{Refused} {
    return context.diagnostic.refuse(.too_large, .{ .format = "qcow2", .structure = "bitmaps" }, "qcow2: the bitmaps of the source have more than 2^64-1 bytes", .{});
}

const testing = std.testing;

fn check(size: u64, options: target.Options, required: u64, full: u64) !void {
    var diagnostic: block.Diagnostic = .{};
    const context: image.Context = .{ .allocator = testing.allocator, .diagnostic = &diagnostic };
    const sizes = try measure(context, .{ .size = size }, &options);
    try testing.expectEqual(required, sizes.required);
    try testing.expectEqual(full, sizes.fully_allocated);
    try testing.expectEqual(@as(?u64, null), sizes.bitmaps);
}

test "empty disks: qemu-img 7.2.22's numbers" {
    try check(1 << 20, .{ .cluster_size = 512 }, 22_528, 1_071_104);
    try check(1 << 20, .{ .cluster_size = 4096 }, 20_480, 1_069_056);
    try check(1 << 20, .{}, 327_680, 1_376_256);
    try check(1 << 20, .{ .cluster_size = 2 << 20 }, 10_485_760, 12_582_912);
    try check(64 << 20, .{ .cluster_size = 512 }, 1_337_856, 68_446_720);
    try check(64 << 20, .{ .cluster_size = 4096 }, 180_224, 67_289_088);
    try check(64 << 20, .{}, 327_680, 67_436_544);
    try check(64 << 20, .{ .cluster_size = 2 << 20 }, 10_485_760, 77_594_624);
    try check(2 << 50, .{}, 343_650_009_088, 2_252_143_463_694_336);
    try check(1 << 20, .{ .preallocation = "full" }, 1_376_256, 1_376_256);
    try check(1 << 20, .{ .preallocation = "metadata" }, 327_680, 1_376_256);
    try check(1 << 20, .{ .backing_file = "b" }, 327_680, 1_376_256);
    try check(0, .{}, 196_608, 196_608);
    try check(1, .{}, 327_680, 393_216);
}

test "sources: content, backing file, bitmaps" {
    var diagnostic: block.Diagnostic = .{};
    const context: image.Context = .{ .allocator = testing.allocator, .diagnostic = &diagnostic };
    var fake: target.Fake = .{ .segments = &.{
        .{ .start = 0, .length = 65_537, .kind = .data },
        .{ .start = 65_537, .length = (10 << 20) - 65_537, .kind = .zero },
    } };
    var opened = fake.open(false);
    const plain = try measure(context, .{ .image = opened }, &.{});
    try testing.expectEqual(@as(u64, 327_680 + 2 * 65_536), plain.required);
    try testing.expectEqual(@as(?u64, null), plain.bitmaps);
    const overlay = try measure(context, .{ .image = opened }, &.{ .backing_file = "b" });
    try testing.expectEqual(overlay.fully_allocated, overlay.required);

    opened.bitmaps = &.{
        .{ .granularity = 65_536, .name_length = 2 },
        .{ .granularity = 4096, .name_length = 10 },
        .{ .granularity = 65_536, .name_length = 4 },
    };
    const cases = [_]struct { u64, u64 }{ .{ 65_536, 458_752 }, .{ 512, 3584 }, .{ 2 << 20, 14_680_064 } };
    for (cases) |case| {
        const with = try measure(context, .{ .image = opened }, &.{ .cluster_size = case[0] });
        try testing.expectEqual(@as(?u64, case[1]), with.bitmaps);
    }
    const old = try measure(context, .{ .image = opened }, &.{ .compat = "0.10" });
    try testing.expectEqual(@as(?u64, null), old.bitmaps);
    opened.bitmaps = &.{};
    const none = try measure(context, .{ .image = opened }, &.{});
    try testing.expectEqual(@as(?u64, 0), none.bitmaps);
}

test "sizes that do not fit are refused" {
    var diagnostic: block.Diagnostic = .{};
    const context: image.Context = .{ .allocator = testing.allocator, .diagnostic = &diagnostic };
    for ([_]u64{ 1 << 63, std.math.maxInt(u64), target.max_size, (2 << 50) + 1 }) |size| {
        try testing.expectError(error.Refused, measure(context, .{ .size = size }, &.{}));
        try testing.expectEqual(block.Diagnostic.Code.too_large, diagnostic.code);
    }
    // falloc of 2^63 bytes, where required and full allocation would add up to more than 2^64.
    try testing.expectError(error.Refused, measure(context, .{ .size = 1 << 63 }, &.{ .preallocation = "falloc" }));
    try testing.expectEqualStrings("qcow2: virtual size 9223372036854775808 is above 2^63-1", diagnostic.message());
}
