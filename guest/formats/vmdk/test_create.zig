//! Plans of new VMDK disks, written to memory and looked at.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const target = @import("../target.zig");
const plans = @import("../plan.zig");
const format = @import("format.zig");
const layouts = @import("layout.zig");
const create = @import("create.zig");

const testing = std.testing;
const plan = create.plan;

const seed: target.Seed = .{ .name = "a.vmdk", .entropy = [_]u8{ 0x2f, 0x2e, 0xba, 0x8c } ++ [_]u8{0} ** 28 };

/// A plan and what it was made with.
const Planned = struct {
    arena: std.heap.ArenaAllocator,
    diagnostic: block.Diagnostic = .{},

    fn init() Planned {
        return .{ .arena = .init(testing.allocator) };
    }

    fn context(self: *Planned) image.Context {
        return .{ .allocator = self.arena.allocator(), .diagnostic = &self.diagnostic };
    }

    /// The bytes of file `index`, whose length fits memory.
    fn bytes(self: *Planned, planned: *const plans.Plan, index: usize) ![]const u8 {
        var memory = try block.Memory.init(self.arena.allocator(), "");
        var device = memory.device();
        device.read_only = false;
        try plans.executeFile(planned, index, &device, self.arena.allocator());
        try testing.expectEqual(planned.file(index).length, memory.bytes.items.len);
        return memory.bytes.items;
    }
};

test "a descriptor is qemu-img's to the letter" {
    var made: Planned = .init();
    defer made.arena.deinit();
    const planned = try plan(made.context(), 5 << 30, &.{ .subformat = "twoGbMaxExtentFlat" }, seed);
    try testing.expectEqualStrings(
        \\# Disk DescriptorFile
        \\version=1
        \\CID=8cba2e2f
        \\parentCID=ffffffff
        \\createType="twoGbMaxExtentFlat"
        \\
        \\# Extent description
        \\RW 4194304 FLAT "a-f001.vmdk" 0
        \\RW 4194304 FLAT "a-f002.vmdk" 0
        \\RW 2097152 FLAT "a-f003.vmdk" 0
        \\
        \\# The Disk Data Base
        \\#DDB
        \\
        \\ddb.virtualHWVersion = "4"
        \\ddb.geometry.cylinders = "10402"
        \\ddb.geometry.heads = "16"
        \\ddb.geometry.sectors = "63"
        \\ddb.adapterType = "ide"
        \\ddb.toolsVersion = "2147483647"
        \\
    , try made.bytes(&planned, 0));
    try testing.expectEqual(@as(usize, 3), planned.others.len);
    for (planned.others, [_][]const u8{ "a-f001.vmdk", "a-f002.vmdk", "a-f003.vmdk" }) |file, name| {
        try testing.expectEqualStrings(name, file.name.?);
    }
    try testing.expectEqual(@as(u64, 1 << 30), planned.others[2].length);

    const overlay = try plan(made.context(), 2 << 20, &.{
        .backing_file = "p.vmdk",
        .backing_format = "vmdk",
        .adapter_type = "lsilogic",
        .toolsversion = "",
        .compat6 = true,
    }, .{ .name = "a.vmdk", .entropy = @splat(0xff), .parent_cid = 0x0390_628c });
    const file = try made.bytes(&overlay, 0);
    const text =
        \\# Disk DescriptorFile
        \\version=1
        \\CID=fffffffe
        \\parentCID=390628c
        \\createType="monolithicSparse"
        \\parentFileNameHint="p.vmdk"
        \\# Extent description
        \\RW 4096 SPARSE "a.vmdk"
        \\
        \\# The Disk Data Base
        \\#DDB
        \\
        \\ddb.virtualHWVersion = "6"
        \\ddb.geometry.cylinders = "0"
        \\ddb.geometry.heads = "255"
        \\ddb.geometry.sectors = "63"
        \\ddb.adapterType = "lsilogic"
        \\ddb.toolsVersion = ""
        \\
    ;
    try testing.expectEqualStrings(text, file[512..][0..text.len]);
    try testing.expect(std.mem.allEqual(u8, file[512 + text.len .. 21 * 512], 0));
}

test "a header and its tables" {
    var made: Planned = .init();
    defer made.arena.deinit();
    const Case = struct { target.Options, []const u8 };
    for ([_]Case{
        .{ .{}, "4b444d5601000000030000000000a00000000000" },
        .{ .{ .zeroed_grain = true }, "4b444d5602000000070000000000a00000000000" },
        .{ .{ .subformat = "streamOptimized" }, "4b444d5603000000030003000000a00000000000" },
        .{ .{ .subformat = "streamOptimized", .zeroed_grain = true }, "4b444d5603000000070003000000a00000000000" },
    }) |case| {
        const planned = try plan(made.context(), 5 << 30, &case[0], seed);
        const file = try made.bytes(&planned, 0);
        try testing.expectEqual(@as(usize, 720_896), file.len);
        var start: [20]u8 = undefined;
        try testing.expectEqualSlices(u8, try std.fmt.hexToBytes(&start, case[1]), file[0..20]);
        var rest: [60]u8 = undefined;
        try testing.expectEqualSlices(u8, try std.fmt.hexToBytes(&rest, "80000000000000000100000000000000140000000000000000020000" ++
            "15000000000000009702000000000000" ++ "8005000000000000" ++ "000a200d0a"), file[20..77]);
        try testing.expectEqual(@as(u8, @intFromBool(case[0].subformat != null)), file[77]);
        for ([_]usize{ 0x15, 0x297 }) |directory| for (0..160) |index| {
            const entry = std.mem.readInt(u32, file[directory * 512 + 4 * index ..][0..4], .little);
            try testing.expectEqual(directory + 2 + 4 * index, entry);
            try testing.expect(std.mem.allEqual(u8, file[entry * 512 ..][0..2048], 0));
        };
    }
}

test "extents of a split disk are sparse extents of their own, all but the last the same" {
    var made: Planned = .init();
    defer made.arena.deinit();
    const planned = try plan(made.context(), (4 << 30) + 1, &.{ .subformat = "twoGbMaxExtentSparse" }, seed);
    try testing.expectEqual(@as(u64, (4 << 30) + 512), planned.virtual_size);
    try testing.expectEqual(@as(?u64, 65_536), planned.cluster_size);
    try testing.expectEqual(@as(usize, 3), planned.others.len);
    const one = try made.bytes(&planned, 1);
    try testing.expectEqualSlices(u8, one, try made.bytes(&planned, 2));
    try testing.expectEqual(@as(u64, 4 << 20), std.mem.readInt(u64, one[12..20], .little));
    const last = try made.bytes(&planned, 3);
    try testing.expectEqual(@as(u64, 1), std.mem.readInt(u64, last[12..20], .little));
    try testing.expectEqual(@as(usize, 65_536), last.len);
    try testing.expect(std.mem.allEqual(u8, last[512 .. 21 * 512], 0));
}

test "preallocation of flat extents" {
    var made: Planned = .init();
    defer made.arena.deinit();
    const full = try plan(made.context(), 100_000, &.{ .subformat = "monolithicFlat", .preallocation = "full" }, seed);
    try testing.expectEqualStrings("a-flat.vmdk", full.others[0].name.?);
    try testing.expectEqual(@as(u64, 100_352), full.others[0].regions[0].length);
    for ([_][]const u8{ "off", "falloc" }) |mode| {
        const planned = try plan(made.context(), 100_000, &.{ .subformat = "monolithicFlat", .preallocation = mode }, seed);
        try testing.expectEqual(@as(usize, 0), planned.others[0].regions.len);
        try testing.expectEqual(@as(?u64, null), planned.cluster_size);
    }
}

test "a disk of no size is refused" {
    var made: Planned = .init();
    defer made.arena.deinit();
    for (std.enums.values(layouts.Subformat)) |subformat| {
        try testing.expectError(error.Refused, plan(made.context(), 0, &.{ .subformat = @tagName(subformat) }, seed));
        try testing.expectEqual(.invalid_option, made.diagnostic.code);
        const planned = try plan(made.context(), 1, &.{ .subformat = @tagName(subformat) }, seed);
        try testing.expectEqual(@as(u64, 512), planned.virtual_size);
    }
}

test "what does not fit a descriptor" {
    var made: Planned = .init();
    defer made.arena.deinit();
    const context = made.context();
    const long: [10_240]u8 = @splat('7');
    const short = try plan(context, 1 << 20, &.{ .toolsversion = "" }, seed);
    const room: usize = @intCast(10_240 - short.regions[1].length);
    _ = try plan(context, 1 << 20, &.{ .toolsversion = long[0..room] }, seed);
    try testing.expectError(error.Refused, plan(context, 1 << 20, &.{ .toolsversion = long[0 .. room + 1] }, seed));
    try testing.expectEqualStrings("descriptor", made.diagnostic.structure.?);
    try testing.expectEqual(@as(?u64, 10_241), made.diagnostic.value);
    // A file of its own is longer.
    _ = try plan(context, 1 << 20, &.{ .toolsversion = &long, .subformat = "monolithicFlat" }, seed);
    try testing.expectError(error.Refused, plan(context, 64 << 40, &.{ .subformat = "twoGbMaxExtentFlat" }, seed));
    try testing.expectEqual(@as(?u64, layouts.max_descriptor), made.diagnostic.limit);

    for ([_][]const u8{ "", "a\".vmdk", "a\nRW 1 FLAT \"b\" 0" }) |name| {
        try testing.expectError(error.Refused, plan(context, 1, &.{}, .{ .name = name }));
        try testing.expectEqual(.invalid_option, made.diagnostic.code);
    }
    try testing.expectError(error.Refused, plan(context, 1, &.{ .backing_file = "p", .backing_format = "vmdk" }, seed));
    try testing.expectEqual(.needs_reference, made.diagnostic.code);
}

test "the largest plans are ascending, inside their files, and small" {
    var made: Planned = .init();
    defer made.arena.deinit();
    for (std.enums.values(layouts.Subformat)) |subformat| {
        const size: u64 = if (subformat.isSplit()) 50 << 40 else if (subformat.isFlat()) (1 << 63) - 512 else layouts.max_sparse_size;
        const planned = try plan(made.context(), size, &.{ .subformat = @tagName(subformat), .preallocation = "full" }, seed);
        for (0..planned.others.len + 1) |index| {
            const file = planned.file(index);
            var end: u64 = 0;
            for (file.regions) |region| {
                try testing.expect(region.offset >= end and region.length > 0);
                end = region.end();
                if (region.content == .progression) {
                    const words = region.content.progression;
                    const last = words.first + words.step * (region.length / words.stride() - 1);
                    try testing.expect(last <= std.math.maxInt(u32) and (last + 4) * 512 <= file.length);
                }
            }
            try testing.expect(end <= file.length and file.regions.len <= 4);
        }
    }
}
