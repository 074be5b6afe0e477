//! Plans an empty VHD: fixed or dynamic.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const target = @import("../target.zig");
const plans = @import("../plan.zig");
const footers = @import("footer.zig");
const dynamic = @import("dynamic.zig");
const layouts = @import("layout.zig");
const OptionList = @import("../option_list.zig").OptionList;

const format = "vpc";

/// 2000-01-01 00:00 UTC in seconds since 1970.
const epoch = 946_684_800;
/// "Reserved", must always be set.
const features = 2;
/// 1.0
const version = 0x0001_0000;
/// qemu-img's own, 5.3, so that readers apply to the file what they know of qemu's files.
const creator_version = 0x0005_0003;
const creator_host = "Wi2k";

/// Plan an image for a disk of `size` bytes, which is rounded up to what a geometry can say, or to a sector.
pub fn plan(context: image.Context, size: u64, options: *const target.Options, seed: target.Seed) block.Error!plans.Plan {
    try target.checkSize(context, format, size);
    const layout = try layouts.layout(context, size, options);
    const footer = context.allocator.create([footers.size]u8) catch return error.NoMemory;
    footer.* = footerBytes(layout, seed);
    const length = layout.fileLength(0);
    const footer_region: plans.Region = .{ .offset = length - footers.size, .length = footers.size, .content = .{ .bytes = footer } };

    const regions = context.allocator.alloc(plans.Region, 4) catch return error.NoMemory;
    var out: std.ArrayList(plans.Region) = .initBuffer(regions);
    if (!layout.fixed) {
        const header = context.allocator.create([dynamic.size]u8) catch return error.NoMemory;
        header.* = headerBytes(layout);
        out.appendSliceAssumeCapacity(&.{
            .{ .offset = 0, .length = footers.size, .content = .{ .bytes = footer } },
            .{ .offset = footers.size, .length = dynamic.size, .content = .{ .bytes = header } },
            // No block is there; the rest of the last sector looks the same.
            .{ .offset = layouts.Layout.table_offset, .length = layout.tableSize(), .content = .{ .pattern = &.{0xff} } },
        });
    }
    out.appendAssumeCapacity(footer_region);
    return .{
        .virtual_size = layout.size,
        .cluster_size = if (layout.fixed) null else layouts.block_size,
        .file_length = length,
        .regions = out.items,
        .options = optionList(context, size, options) catch return error.NoMemory,
    };
}

fn put(comptime T: type, bytes: []u8, comptime at: usize, value: T) void {
    std.mem.writeInt(T, bytes[at..][0..@sizeOf(T)], value, .big);
}

fn footerBytes(layout: layouts.Layout, seed: target.Seed) [footers.size]u8 {
    var bytes: [footers.size]u8 = @splat(0);
    @memcpy(bytes[0..8], footers.cookie);
    put(u32, &bytes, 8, features);
    put(u32, &bytes, 12, version);
    put(u64, &bytes, 16, if (layout.fixed) std.math.maxInt(u64) else footers.size);
    // The field wraps in 2136, as it does for everybody.
    put(u32, &bytes, 24, @truncate(seed.unix_time -| epoch));
    @memcpy(bytes[28..32], if (layout.force_size) "qem2" else "qemu");
    put(u32, &bytes, 32, creator_version);
    @memcpy(bytes[36..40], creator_host);
    put(u64, &bytes, 40, layout.size);
    put(u64, &bytes, 48, layout.size);
    put(u16, &bytes, 56, layout.geometry.cylinders);
    bytes[58] = layout.geometry.heads;
    bytes[59] = layout.geometry.sectors;
    put(u32, &bytes, 60, @intFromEnum(if (layout.fixed) footers.Type.fixed else footers.Type.dynamic));
    @memcpy(bytes[68..84], &seed.uuid);
    put(u32, &bytes, 64, footers.sumOf(&bytes, 64));
    return bytes;
}

fn headerBytes(layout: layouts.Layout) [dynamic.size]u8 {
    var bytes: [dynamic.size]u8 = @splat(0);
    @memcpy(bytes[0..8], dynamic.cookie);
    put(u64, &bytes, 8, std.math.maxInt(u64));
    put(u64, &bytes, 16, layouts.Layout.table_offset);
    put(u32, &bytes, 24, version);
    // At most 2040 GiB / 2 MiB.
    put(u32, &bytes, 28, @intCast(layout.blocks()));
    put(u32, &bytes, 32, layouts.block_size);
    put(u32, &bytes, 36, footers.sumOf(&bytes, 36));
    return bytes;
}

fn optionList(context: image.Context, size: u64, options: *const target.Options) error{OutOfMemory}![]const messages.CreateOption {
    var list: OptionList = .init(context.allocator);
    try list.number("size", size);
    try list.text("subformat", options.subformat);
    try list.boolean("force_size", options.force_size);
    try list.boolean("nocow", options.nocow);
    try list.text("preallocation", options.preallocation);
    try list.number("extent_size_hint", options.extent_size_hint);
    return list.items();
}

const testing = std.testing;

test "what is planned is read back" {
    var diagnostic: block.Diagnostic = .{};
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const context: image.Context = .{ .allocator = arena.allocator(), .diagnostic = &diagnostic };
    const seed: target.Seed = .{ .unix_time = 1_795_381_934, .uuid = @splat(0xab) };
    for ([_]target.Options{ .{}, .{ .subformat = "fixed" }, .{ .force_size = true } }) |options| {
        const planned = try plan(context, 1 << 20, &options, seed);
        var memory = try block.Memory.init(testing.allocator, "");
        defer memory.deinit();
        var device = memory.device();
        device.read_only = false;
        try plans.execute(&planned, &device, arena.allocator());
        const forced = options.force_size orelse false;
        try testing.expectEqual(@as(u64, if (forced) 1 << 20 else 1_079_296), planned.virtual_size);

        const footer = (try footers.atEnd(arena.allocator(), device)).?;
        try testing.expectEqual(device.length - 512, footer.offset);
        try testing.expect(footer.checksumIsRight());
        try testing.expectEqual(planned.virtual_size / 512, footer.sectors(7));
        try testing.expectEqual(@as(u32, 848_697_134), footer.timestamp());
        try testing.expectEqualSlices(u8, &seed.uuid, footer.uuid());
        if (options.subformat != null) {
            try testing.expectEqual(footers.Type.fixed, footer.diskType());
            continue;
        }
        try testing.expectEqual(@as(u64, 2560), device.length);
        const header: dynamic.Header = try .read(arena.allocator(), device, footer.dataOffset());
        try testing.expect(header.checksumIsRight());
        const layout: dynamic.Layout = try .of(&header, planned.virtual_size, context, device);
        var table: dynamic.Table = try .init(context, device, layout);
        try testing.expectEqual(@as(u64, 0), (try table.totals()).allocated);
    }
}
