//! How large the files of a VMDK disk are: all of them together, descriptor and extents.
//!
//! Exact for what qemu-img convert writes, in all subformats but streamOptimized.  There the size of a compressed grain is
//! not known before it is compressed: what is answered is the most that zlib can make of it.  docs/formats/vmdk.md.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const target = @import("../target.zig");
const format = @import("format.zig");
const layouts = @import("layout.zig");
const text = @import("descriptor_text.zig");

const name = format.name;
const sector = format.sector;
const grain_size = layouts.grain_size;

/// The name that a descriptor file is measured with: the names of the extents in it are made of its own.
const example_name = "disk.vmdk";
/// Eight digits, as nearly all have.
const example_cid = 0x8000_0000;

/// `required` is what qemu-img convert makes of the source's data, or `qemu-img create` of nothing.
pub fn measure(context: image.Context, source: target.Source, options: *const target.Options) block.Error!target.Sizes {
    const size = source.virtualSize();
    if (source == .size) try target.checkSize(context, name, size);
    const layout = try layouts.layout(context, size, options);
    const data = switch (source) {
        .size => 0,
        .image => |opened| try target.dataSize(context, opened, grain_size),
    };
    const descriptor = try descriptorLength(context, layout);
    // The first data changes the CID: the descriptor is written again then, in whole sectors.
    const final_descriptor = std.mem.alignForward(u64, descriptor, sector);
    const sums = extentSums(layout);
    const written = sums.overhead + dataLength(layout, data);
    const sizes: target.Sizes = .{
        .required = @min(written, sums.limit) + (if (data > 0) final_descriptor else descriptor),
        .fully_allocated = sums.full + (if (size > 0) final_descriptor else descriptor),
        .virtual_size = layout.size,
    };
    // Compressed, it may fit all the same.
    if (written > sums.limit and layout.subformat != .streamOptimized) return context.diagnostic.refuse(
        .too_large,
        .{ .format = name, .structure = "grain table", .value = written, .limit = sums.limit },
        "vmdk: the data would need a file of {d} bytes, grain tables reach {d}",
        .{ written, sums.limit },
    );
    return sizes;
}

/// What a descriptor file takes; 0 where the descriptor is embedded.
fn descriptorLength(context: image.Context, layout: layouts.Layout) block.Error!u64 {
    if (layout.subformat.isEmbedded()) return 0;
    var counted: text.Text = .{};
    text.write(&counted, layout, .{ .name = example_name, .cid = example_cid });
    if (counted.length > layouts.max_descriptor) return context.diagnostic.refuse(
        .too_large,
        .{ .format = name, .structure = "descriptor", .value = counted.length, .limit = layouts.max_descriptor },
        "vmdk: the descriptor of {d} extents would have {d} bytes, readers look at {d}",
        .{ layout.extents(), counted.length, layouts.max_descriptor },
    );
    return counted.length;
}

/// Of all extents together, in bytes.
const Sums = struct {
    /// Without a grain; the whole of a flat extent.
    overhead: u64,
    /// With every grain that can be there.
    full: u64,
    /// The most that a sum of data may come to.
    limit: u64,
};

fn extentSums(layout: layouts.Layout) Sums {
    if (layout.subformat.isFlat()) return .{ .overhead = layout.size, .full = layout.size, .limit = layout.size };
    var sums: Sums = .{ .overhead = 0, .full = 0, .limit = 0 };
    for (0..@intCast(layout.extents())) |index| {
        const places: layouts.Sparse = .init(layout.extentSize(index));
        const overhead = places.overhead() * sector;
        const limit = grainLimit(layout);
        sums.overhead += overhead;
        sums.full += @min(overhead + dataLength(layout, places.grains() * grain_size), limit);
        sums.limit += limit;
    }
    return sums;
}

/// Bytes that a file of sparse extents can become: its last grain begins before sector 2^32.
fn grainLimit(layout: layouts.Layout) u64 {
    const last: u64 = if (layout.subformat == .streamOptimized) layouts.max_compressed_sectors - 1 else 0;
    return (format.max_sectors + last) * sector;
}

/// What `data` bytes in whole grains take in a file, at most.
fn dataLength(layout: layouts.Layout, data: u64) u64 {
    return switch (layout.subformat) {
        .monolithicFlat, .twoGbMaxExtentFlat => 0,
        .monolithicSparse, .twoGbMaxExtentSparse => data,
        .streamOptimized => data / grain_size * (layouts.max_compressed_sectors * sector),
    };
}

const testing = std.testing;

test "category A3: no sum wraps, required is at most what is fully allocated" {
    var diagnostic: block.Diagnostic = .{};
    const context: image.Context = .{ .allocator = testing.allocator, .diagnostic = &diagnostic };
    for (std.enums.values(layouts.Subformat)) |subformat| {
        const options: target.Options = .{ .subformat = @tagName(subformat) };
        for (0..64) |bit| for ([_]i2{ -1, 0, 1 }) |difference| {
            const size = (@as(u64, 1) << @intCast(bit)) +% @as(u64, @bitCast(@as(i64, difference)));
            const sizes = measure(context, .{ .size = size }, &options) catch |reason| {
                try testing.expectEqual(error.Refused, reason);
                try testing.expectEqual(.too_large, diagnostic.code);
                continue;
            };
            try testing.expect(sizes.required <= sizes.fully_allocated);
            try testing.expect(sizes.virtual_size >= size and sizes.virtual_size - size < sector);
            if (subformat.isFlat()) try testing.expect(sizes.required > size);
        };
        try testing.expectError(error.Refused, measure(context, .{ .size = std.math.maxInt(u64) }, &options));
        try testing.expectError(error.Refused, measure(context, .{ .size = (1 << 63) - 512 + 1 }, &options));
    }
}

test "what qemu-img convert makes of seven grains on both sides of 2 GiB" {
    var diagnostic: block.Diagnostic = .{};
    const context: image.Context = .{ .allocator = testing.allocator, .diagnostic = &diagnostic };
    const split = layouts.split_size;
    const last = 5_859_236 * sector;
    var fake: target.Fake = .{ .segments = &.{
        .{ .start = 0, .length = 102_400, .kind = .data },
        .{ .start = 102_400, .length = (2 << 20) - 102_400, .kind = .zero },
        .{ .start = 2 << 20, .length = 512, .kind = .data },
        .{ .start = (2 << 20) + 512, .length = split - 1024 - (2 << 20) - 512, .kind = .zero },
        .{ .start = split - 1024, .length = 3072, .kind = .data },
        .{ .start = split + 2048, .length = last - split - 2048, .kind = .unallocated },
        .{ .start = last, .length = 118 * sector, .kind = .data },
        .{ .start = last + 118 * sector, .length = 3_000_000_000 - last - 118 * sector, .kind = .zero },
    } };
    const Case = struct { []const u8, u64, u64 };
    for ([_]Case{
        .{ "monolithicSparse", 393_216 + 7 * 65_536, 393_216 + 45_777 * 65_536 },
        .{ "twoGbMaxExtentSparse", 327_680 + 131_072 + 7 * 65_536 + 512, 327_680 + 131_072 + 45_777 * 65_536 + 512 },
        .{ "monolithicFlat", 3_000_000_000 + 512, 3_000_000_000 + 512 },
        .{ "twoGbMaxExtentFlat", 3_000_000_000 + 512, 3_000_000_000 + 512 },
        // Made of bytes that do not compress; of these qemu-img made 427 sectors of grains.
        .{ "streamOptimized", 393_216 + 7 * 129 * 512, 393_216 + 45_777 * 129 * 512 },
    }) |case| {
        const sizes = try measure(context, .{ .image = fake.open(false) }, &.{ .subformat = case[0] });
        try testing.expectEqual(case[1], sizes.required);
        try testing.expectEqual(case[2], sizes.fully_allocated);
    }
    try testing.expectError(error.Refused, measure(context, .{ .image = fake.open(true) }, &.{}));
    try testing.expectEqual(.needs_reference, diagnostic.code);
}

test "data that no grain table reaches" {
    var diagnostic: block.Diagnostic = .{};
    const context: image.Context = .{ .allocator = testing.allocator, .diagnostic = &diagnostic };
    var fake: target.Fake = .{ .segments = &.{
        .{ .start = 0, .length = 2 << 40, .kind = .data },
        .{ .start = 2 << 40, .length = 2 << 40, .kind = .zero },
    } };
    try testing.expectError(error.Refused, measure(context, .{ .image = fake.open(false) }, &.{}));
    try testing.expectEqual(.too_large, diagnostic.code);
    const empty = try measure(context, .{ .size = 4 << 40 }, &.{});
    try testing.expectEqual(2 << 40, empty.fully_allocated);
    // Compressed it may fit; split it does.
    _ = try measure(context, .{ .image = fake.open(false) }, &.{ .subformat = "streamOptimized" });
    const split = try measure(context, .{ .image = fake.open(false) }, &.{ .subformat = "twoGbMaxExtentSparse" });
    try testing.expect(split.required > 2 << 40 and split.fully_allocated > 4 << 40);
}
