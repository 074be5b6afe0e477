//! Plans an empty VHD: fixed, dynamic or differencing.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const target = @import("../target.zig");
const plans = @import("../plan.zig");
const footers = @import("footer.zig");
const dynamic = @import("dynamic.zig");
const layouts = @import("layout.zig");
const paths = @import("path.zig");
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
    if (layout.parent != null) if (seed.parent) |parent| if (parent.virtual_size != layout.size) return context.diagnostic.refuse(
        .invalid_option,
        .{ .format = format, .structure = "virtual size", .value = layout.size, .limit = parent.virtual_size },
        "vpc: a differencing disk is as large as its parent: {d} bytes, not {d}",
        .{ parent.virtual_size, layout.size },
    );
    const footer = context.allocator.create([footers.size]u8) catch return error.NoMemory;
    footer.* = footerBytes(layout, seed);
    const length = layout.fileLength(0);
    const footer_region: plans.Region = .{ .offset = length - footers.size, .length = footers.size, .content = .{ .bytes = footer } };

    const regions = context.allocator.alloc(plans.Region, 5) catch return error.NoMemory;
    var out: std.ArrayList(plans.Region) = .initBuffer(regions);
    if (!layout.fixed) {
        const header = context.allocator.create([dynamic.size]u8) catch return error.NoMemory;
        header.* = headerBytes(layout);
        if (layout.parent != null) try nameParent(context, header, layout, options.backing_file.?, seed.parent);
        put(u32, header, 36, footers.sumOf(header, 36));
        out.appendSliceAssumeCapacity(&.{
            .{ .offset = 0, .length = footers.size, .content = .{ .bytes = footer } },
            .{ .offset = footers.size, .length = dynamic.size, .content = .{ .bytes = header } },
            // No block is there; the rest of the last sector looks the same.
            .{ .offset = layouts.Layout.table_offset, .length = layout.tableSize(), .content = .{ .pattern = &.{0xff} } },
        });
        if (layout.parent) |name| out.appendAssumeCapacity(.{ .offset = layout.locatorOffset(), .length = name.len, .content = .{ .bytes = name } });
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
    const kind: footers.Type = if (layout.parent != null) .differencing else if (layout.fixed) .fixed else .dynamic;
    put(u32, &bytes, 60, @intFromEnum(kind));
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
    return bytes;
}

/// "Dynamic Disk Header Format": the parent's identity, time and name, and where its path lies.
fn nameParent(context: image.Context, bytes: *[dynamic.size]u8, layout: layouts.Layout, path: []const u8, found: ?target.Parent) block.Error!void {
    if (found) |parent| {
        if (parent.identity) |identity| switch (identity) {
            .vhd => |uuid| bytes[40..56].* = uuid,
            else => {},
        };
        put(u32, bytes, 56, @truncate(parent.unix_time -| epoch));
    }
    var slash = path.len;
    while (slash > 0 and path[slash - 1] != '/') slash -= 1;
    var name: std.ArrayList(u8) = .empty;
    paths.appendUtf16(&name, context.allocator, path[slash..], .big) catch return error.NoMemory;
    const room = bytes[64..576];
    if (name.items.len > room.len) return context.diagnostic.refuse(
        .too_large,
        .{ .format = format, .structure = "parent name", .value = name.items.len / 2, .limit = room.len / 2 },
        "vpc: the name of the backing file has {d} UTF-16 units, the limit is {d}",
        .{ name.items.len / 2, room.len / 2 },
    );
    @memcpy(room[0..name.items.len], name.items);
    const locator = bytes[576..600];
    @memcpy(locator[0..4], if (paths.isAbsolute(path)) "W2ku" else "W2ru");
    // Bytes, as Windows writes it; the specification speaks of sectors.
    put(u32, locator, 4, @intCast(layout.locatorSize()));
    put(u32, locator, 8, @intCast(layout.parent.?.len));
    put(u64, locator, 16, layout.locatorOffset());
}

fn optionList(context: image.Context, size: u64, options: *const target.Options) error{OutOfMemory}![]const messages.CreateOption {
    var list: OptionList = .init(context.allocator);
    try list.number("size", size);
    try list.text("backing_file", options.backing_file);
    try list.text("backing_fmt", options.backing_format);
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

test "a differencing disk names its parent" {
    var diagnostic: block.Diagnostic = .{};
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const context: image.Context = .{ .allocator = arena.allocator(), .diagnostic = &diagnostic };
    var seed: target.Seed = .{ .unix_time = 1_795_381_934, .uuid = @splat(0xab), .parent = .{
        .format = "vpc",
        .virtual_size = 1 << 20,
        .identity = .{ .vhd = @splat(0xcd) },
        .unix_time = epoch + 7,
    } };
    const options: target.Options = .{ .backing_file = "sub/b\u{fc}.vhd", .backing_format = "vpc" };
    const planned = try plan(context, 1 << 20, &options, seed);
    var memory = try block.Memory.init(testing.allocator, "");
    defer memory.deinit();
    var device = memory.device();
    device.read_only = false;
    try plans.execute(&planned, &device, arena.allocator());
    try testing.expectEqual(1 << 20, planned.virtual_size);
    const footer = (try footers.atEnd(arena.allocator(), device)).?;
    try testing.expect(footer.checksumIsRight());
    try testing.expectEqual(footers.Type.differencing, footer.diskType());
    try testing.expectEqual((1 << 20) / 512, footer.sectors(7));
    const header: dynamic.Header = try .read(arena.allocator(), device, footer.dataOffset());
    try testing.expect(header.checksumIsRight());
    try testing.expectEqualSlices(u8, &@as([16]u8, @splat(0xcd)), header.parentUuid());
    try testing.expectEqual(7, header.parentTimestamp());
    try testing.expectEqualStrings("b\u{fc}.vhd", try header.parentName(arena.allocator()));
    const locator = header.locator(0);
    try testing.expectEqualStrings("W2ru", &locator.platform);
    try testing.expectEqualStrings(".\\sub\\b\u{fc}.vhd", (try locator.name(context, device)).?);
    try testing.expect(!header.locator(1).isUsed());

    try testing.expectError(error.Refused, plan(context, 2 << 20, &options, seed));
    seed.parent = null;
    const unseen = try plan(context, 2 << 20, &options, seed);
    try testing.expectEqual(2 << 20, unseen.virtual_size);
    for ([_]target.Options{
        .{ .backing_file = "a" },
        .{ .backing_format = "vpc" },
        .{ .backing_file = "a", .backing_format = "raw" },
        .{ .backing_file = "", .backing_format = "vpc" },
        .{ .backing_file = "a", .backing_format = "vpc", .subformat = "fixed" },
        .{ .backing_file = "n" ** 257, .backing_format = "vpc" },
    }) |refused| try testing.expectError(error.Refused, plan(context, 1 << 20, &refused, seed));
}
