//! What a VHD file consists of, for whoever measures and whoever plans.
//!
//! Virtual Hard Disk Image Format Specification 1.0, "Fixed Hard Disk Image", "Dynamic Hard Disk Image", "Differencing
//! Hard Disk Image".

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const target = @import("../target.zig");
const footers = @import("footer.zig");
const dynamic = @import("dynamic.zig");
const geometry = @import("geometry.zig");
const paths = @import("path.zig");

const format = "vpc";
const sector = footers.sector;

/// Bytes; what qemu-img writes and the specification recommends.
pub const block_size = 2 << 20;

const accepted = target.mask(&.{ "subformat", "force_size", "preallocation", "backing_file", "backing_format" });

/// A disk as it will be, and the file around it.  Sizes in bytes.
pub const Layout = struct {
    /// Virtual size, whole sectors, at most 2040 GiB.
    size: u64,
    geometry: geometry.Geometry,
    fixed: bool,
    force_size: bool,
    /// The name of a differencing disk's parent, as its locator holds it; null for other disks.
    parent: ?[]const u8 = null,

    pub const table_offset = footers.size + dynamic.size;

    pub fn blocks(self: Layout) u64 {
        return std.math.divCeil(u64, self.size, block_size) catch unreachable;
    }

    /// The BAT, padded to whole sectors.
    pub fn tableSize(self: Layout) u64 {
        return std.mem.alignForward(u64, self.blocks() * 4, sector);
    }

    pub fn locatorOffset(self: Layout) u64 {
        return table_offset + self.tableSize();
    }

    /// The parent's name, padded to whole sectors.
    pub fn locatorSize(self: Layout) u64 {
        const name = self.parent orelse return 0;
        return std.mem.alignForward(u64, name.len, sector);
    }

    /// The file with this many of its blocks.
    pub fn fileLength(self: Layout, allocated: u64) u64 {
        if (self.fixed) return self.size + footers.size;
        return self.locatorOffset() + self.locatorSize() + allocated * (dynamic.bitmapSize(block_size) + block_size) + footers.size;
    }
};

/// Resolve the options for a disk of `size` bytes as qemu-img does.
pub fn layout(context: image.Context, size: u64, options: *const target.Options) block.Error!Layout {
    try target.onlyOptions(context, format, options, accepted);
    if (try target.preallocation(context, format, options) != .off) {
        return target.refuseOption(context, format, "vpc: preallocation is not supported, subformat=fixed has all of its blocks", .{});
    }
    const fixed = try isFixed(context, options.subformat orelse "dynamic");
    // A raw image close below 2^63 has a virtual size of 2^63, which is above the limit of the format as well.
    const sectors = std.math.divCeil(u64, size, sector) catch unreachable;
    if (sectors > footers.max_sectors) return context.diagnostic.refuse(
        .too_large,
        .{ .format = format, .structure = "virtual size", .value = size, .limit = footers.max_sectors * sector },
        "vpc: The image size is too large for file format 'vpc': {d} bytes, the limit is {d}",
        .{ size, footers.max_sectors * sector },
    );
    const parent = try parentName(context, fixed, options);
    // A child is as large as its parent, whatever geometry that has.
    const force_size = options.force_size orelse (parent != null);
    const found = if (force_size) null else geometry.holding(sectors);
    return .{
        .size = if (found) |chs| chs.total() * sector else sectors * sector,
        .geometry = found orelse .maximum,
        .fixed = fixed,
        .force_size = force_size,
        .parent = parent,
    };
}

fn parentName(context: image.Context, fixed: bool, options: *const target.Options) block.Error!?[]const u8 {
    const name = options.backing_file orelse {
        if (options.backing_format == null) return null;
        return target.refuseOption(context, format, "vpc: Backing format cannot be used without backing file", .{});
    };
    const backing = options.backing_format orelse
        return target.refuseOption(context, format, "vpc: Backing file specified without backing format", .{});
    if (!std.mem.eql(u8, backing, format)) {
        return target.refuseOption(context, format, "vpc: the parent of a differencing disk must be a vpc image, not '{s}'", .{target.shorten(backing)});
    }
    if (fixed) return target.refuseOption(context, format, "vpc: a fixed disk cannot have a backing file", .{});
    var out: std.ArrayList(u8) = .empty;
    const path = paths.windows(context, format, name) catch |failure| return switch (failure) {
        error.Refused => error.Refused,
        error.OutOfMemory => error.NoMemory,
    };
    paths.appendUtf16(&out, context.allocator, path, .little) catch return error.NoMemory;
    return out.items;
}

fn isFixed(context: image.Context, subformat: []const u8) error{Refused}!bool {
    if (std.mem.eql(u8, subformat, "fixed")) return true;
    if (std.mem.eql(u8, subformat, "dynamic")) return false;
    return target.refuseValue(context, format, "subformat", subformat);
}

/// `required` is the file that qemu-img's writer makes of the source's data: blocks that hold some.
pub fn measure(context: image.Context, source: target.Source, options: *const target.Options) block.Error!target.Sizes {
    const size = source.virtualSize();
    if (source == .size) try target.checkSize(context, format, size);
    const wanted = try layout(context, size, options);
    const full = wanted.fileLength(wanted.blocks());
    const allocated = switch (source) {
        .size => 0,
        .image => |opened| if (wanted.fixed) 0 else try target.dataSize(context, opened, block_size) / block_size,
    };
    return .{ .required = wanted.fileLength(allocated), .fully_allocated = full, .virtual_size = wanted.size };
}

const testing = std.testing;

test "measure: dynamic and fixed" {
    var diagnostic: block.Diagnostic = .{};
    const context: image.Context = .{ .allocator = testing.allocator, .diagnostic = &diagnostic };
    const empty = try measure(context, .{ .size = 1 << 20 }, &.{});
    try testing.expectEqual(@as(u64, 2560), empty.required);
    try testing.expectEqual(@as(u64, 2560 + 512 + (2 << 20)), empty.fully_allocated);
    try testing.expectEqual(@as(u64, 1_079_296), empty.virtual_size);
    const fixed = try measure(context, .{ .size = 34_817 }, &.{ .subformat = "fixed", .force_size = true });
    try testing.expectEqual(@as(u64, 35_840), fixed.required);
    try testing.expectEqual(fixed.required, fixed.fully_allocated);
    try testing.expectEqual(@as(u64, 2048), (try measure(context, .{ .size = 0 }, &.{})).required);
    try testing.expectEqual(@as(u64, 4_179_968), (try measure(context, .{ .size = 2040 << 30 }, &.{})).required);
    for ([_]u64{ (2040 << 30) + 1, target.max_size, 1 << 63, std.math.maxInt(u64) - 512 }) |size| {
        try testing.expectError(error.Refused, measure(context, .{ .size = size }, &.{ .subformat = "fixed" }));
        try testing.expectEqual(block.Diagnostic.Code.too_large, diagnostic.code);
    }
    try testing.expectError(error.Refused, measure(context, .{ .size = 1 }, &.{ .subformat = "differencing" }));
    try testing.expectError(error.Refused, measure(context, .{ .size = 1 }, &.{ .preallocation = "full" }));

    var fake: target.Fake = .{ .segments = &.{
        .{ .start = 0, .length = 512, .kind = .data },
        .{ .start = 512, .length = (6 << 20) - 1024, .kind = .zero },
        .{ .start = (6 << 20) - 512, .length = 1024, .kind = .data },
    } };
    const source = try measure(context, .{ .image = fake.open(false) }, &.{});
    try testing.expectEqual(@as(u64, 2560 + 3 * (512 + (2 << 20))), source.required);
}
