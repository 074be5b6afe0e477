//! Growing sparse extents: what is read afterwards, what a crash leaves, and which images are refused.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const steps = @import("../steps.zig");
const format = @import("format.zig");
const grow = @import("grow.zig");

const testing = std.testing;
const header = format.header;
const sector = format.sector;

/// A sparse extent to be written.  Grains of 4 KiB and tables of 4 entries: a table covers 16 KiB.
const Writer = struct {
    capacity: u64,
    redundant: bool = true,
    /// Numbers of grains that are there, filled with their number; the others are holes.
    grains: []const u64 = &.{},
    /// A byte behind the end of the disk in the last grain; when it is not 0, the last tables lead to a grain there, too.
    rest: u8 = 0,
    create_type: []const u8 = "monolithicSparse",
    parent: []const u8 = "ffffffff",
    flags: u32 = 0,
    /// Bytes in front of the geometry.
    comment: usize = 0,

    const grain = 8;
    const entries = 4;
    const directory: u64 = 21;

    fn tables(self: Writer) u64 {
        return std.math.divCeil(u64, self.capacity, grain * entries) catch unreachable;
    }

    fn build(self: Writer, allocator: std.mem.Allocator) ![]u8 {
        const directory_sectors = std.math.divCeil(u64, self.tables() * 4, sector) catch unreachable;
        const copy = directory_sectors + self.tables();
        const copies: u64 = if (self.redundant) 2 else 1;
        const overhead = std.mem.alignForward(u64, directory + copies * copy, grain);
        const bytes = try allocator.alloc(u8, @intCast((overhead + self.grains.len * grain) * sector));
        @memset(bytes, 0);
        @memcpy(bytes[0..4], format.magic);
        put(u32, bytes, header.version, 1);
        put(u32, bytes, header.flags, self.flags | format.flag.newline_test | if (self.redundant) format.flag.redundant else 0);
        put(u64, bytes, header.capacity, self.capacity);
        put(u64, bytes, header.grain_size, grain);
        put(u64, bytes, header.descriptor_offset, 1);
        put(u64, bytes, header.descriptor_size, 20);
        put(u32, bytes, header.table_entries, entries);
        put(u64, bytes, header.redundant_directory, directory);
        put(u64, bytes, header.directory, directory + (copies - 1) * copy);
        put(u64, bytes, header.overhead, overhead);
        const comment = try allocator.alloc(u8, self.comment);
        @memset(comment, 'c');
        _ = try std.fmt.bufPrint(bytes[sector..],
            \\# Disk DescriptorFile
            \\version=1
            \\CID=39ce86a2
            \\parentCID={s}
            \\createType="{s}"
            \\
            \\# Extent description
            \\RW {d} SPARSE "a.vmdk"
            \\
            \\# The Disk Data Base
            \\#DDB {s}
            \\
            \\ddb.geometry.cylinders = "{d}"
            \\ddb.geometry.heads = "16"
            \\ddb.geometry.sectors = "63"
            \\
        , .{ self.parent, self.create_type, self.capacity, comment, self.capacity / 1008 });
        for (0..@intCast(copies)) |which| {
            const first = directory + which * copy;
            for (0..@intCast(self.tables())) |index| put(u32, bytes, @intCast(first * sector + 4 * index), @intCast(first + directory_sectors + index));
            for (self.grains, 0..) |number, index| {
                put(u32, bytes, @intCast((first + directory_sectors + number / entries) * sector + 4 * (number % entries)), @intCast(overhead + index * grain));
            }
            if (self.rest != 0) {
                // Entries of the last table that no grain of the disk has.
                var number = std.math.divCeil(u64, self.capacity, grain) catch unreachable;
                while (number % entries != 0) : (number += 1) {
                    put(u32, bytes, @intCast((first + directory_sectors + number / entries) * sector + 4 * (number % entries)), @intCast(overhead));
                }
            }
        }
        for (self.grains, 0..) |number, index| {
            const start: usize = @intCast((overhead + index * grain) * sector);
            @memset(bytes[start..][0 .. grain * sector], @intCast(number % 251 + 1));
            const inside = (self.capacity - number * grain) * sector;
            if (inside < grain * sector) @memset(bytes[start + @as(usize, @intCast(inside)) ..][0..@intCast(grain * sector - inside)], self.rest);
        }
        return bytes;
    }
};

fn put(comptime T: type, bytes: []u8, at: usize, number: T) void {
    std.mem.writeInt(T, bytes[at..][0..@sizeOf(T)], number, .little);
}

fn get(comptime T: type, bytes: []const u8, at: usize) T {
    return std.mem.readInt(T, bytes[at..][0..@sizeOf(T)], .little);
}

/// The whole disk, by one of the directories.  Independent of the code under test.
fn readDisk(allocator: std.mem.Allocator, file: []const u8, by_redundant: bool) ![]u8 {
    try testing.expectEqualStrings(format.magic, file[0..4]);
    const capacity = get(u64, file, header.capacity);
    const grain = get(u64, file, header.grain_size);
    const entries = get(u32, file, header.table_entries);
    const directory = get(u64, file, if (by_redundant) header.redundant_directory else header.directory);
    try testing.expect(get(u64, file, header.overhead) * sector <= file.len);
    const disk = try allocator.alloc(u8, @intCast(capacity * sector));
    @memset(disk, 0);
    var at: u64 = 0;
    while (at < capacity) : (at += grain) {
        const number = at / grain;
        const table = get(u32, file, @intCast(directory * sector + 4 * (number / entries)));
        if (table == 0) continue;
        const place = get(u32, file, @intCast(@as(u64, table) * sector + 4 * (number % entries)));
        if (place == 0) continue;
        const length: usize = @intCast(@min(grain, capacity - at) * sector);
        const from = file[@intCast(@min(@as(u64, place) * sector, file.len))..];
        const there = @min(length, from.len);
        @memcpy(disk[@intCast(at * sector)..][0..there], from[0..there]);
    }
    return disk;
}

/// One image in an arena, and what the planner says about it.
const Run = struct {
    arena: std.heap.ArenaAllocator,
    diagnostic: block.Diagnostic = .{},
    memory: block.Memory = undefined,

    fn init(writer: Writer) !*Run {
        const self = try testing.allocator.create(Run);
        self.* = .{ .arena = .init(testing.allocator) };
        self.memory = try .init(self.arena.allocator(), try writer.build(self.arena.allocator()));
        return self;
    }

    fn deinit(self: *Run) void {
        self.arena.deinit();
        testing.allocator.destroy(self);
    }

    fn plan(self: *Run, request: messages.ResizeRequest) block.Error!steps.Resize {
        const context: image.Context = .{ .allocator = self.arena.allocator(), .diagnostic = &self.diagnostic };
        return grow.resize(context, self.memory.device(), &request);
    }

    fn file(self: *const Run) []const u8 {
        return self.memory.bytes.items;
    }
};

/// A step, or one sector of it.
const Piece = union(enum) {
    write: block.Write,
    zero: steps.Step.Range,
    length: u64,

    fn apply(self: Piece, allocator: std.mem.Allocator, bytes: *std.ArrayList(u8)) !void {
        const end: u64 = switch (self) {
            .write => |one| one.offset + one.bytes.len,
            .zero => |range| range.offset + range.length,
            .length => |length| length,
        };
        const before = bytes.items.len;
        if (end > before) {
            try bytes.resize(allocator, @intCast(end));
            @memset(bytes.items[before..], 0);
        }
        switch (self) {
            .write => |one| @memcpy(bytes.items[@intCast(one.offset)..][0..one.bytes.len], one.bytes),
            .zero => |range| @memset(bytes.items[@intCast(range.offset)..][0..@intCast(range.length)], 0),
            .length => {},
        }
    }
};

fn pieces(allocator: std.mem.Allocator, group: []const steps.Step) ![]const Piece {
    var list: std.ArrayList(Piece) = .empty;
    for (group) |step| switch (step) {
        .write => |one| {
            var at: usize = 0;
            while (at < one.bytes.len) {
                const next: usize = @intCast(@min(one.bytes.len, ((one.offset + at) / sector + 1) * sector - one.offset));
                try list.append(allocator, .{ .write = .{ .offset = one.offset + at, .bytes = one.bytes[at..next] } });
                at = next;
            }
        },
        .zero => |range| {
            try testing.expect(range.offset % sector == 0 and range.length % sector == 0);
            var at = range.offset;
            while (at < range.offset + range.length) : (at += sector) try list.append(allocator, .{ .zero = .{ .offset = at, .length = sector } });
        },
        // No plan of this format has such a step.
        .fill => unreachable,
        .length => |length| try list.append(allocator, .{ .length = length }),
        .flush => unreachable,
    };
    return list.items;
}

/// Cut the plan off everywhere: each prefix, and what lies between two flushes in any choice.
fn expectCrashSafe(run: *Run, planned: steps.Resize, expected: []const u8) !usize {
    const allocator = run.arena.allocator();
    var settled: std.ArrayList(u8) = .empty;
    try settled.appendSlice(allocator, run.file());
    var random: std.Random.DefaultPrng = .init(42);
    var states: usize = 0;
    var rest = planned.steps;
    while (rest.len > 0) {
        var count: usize = 0;
        while (rest[count] != .flush) count += 1;
        const group = try pieces(allocator, rest[0..count]);
        rest = rest[count + 1 ..];
        const choices: usize = if (group.len <= 6) @as(usize, 1) << @intCast(group.len) else 3 * group.len + 40;
        for (0..choices) |choice| {
            var state: std.ArrayList(u8) = .empty;
            defer state.deinit(testing.allocator);
            try state.appendSlice(testing.allocator, settled.items);
            for (group, 0..) |piece, index| {
                const done = if (group.len <= 6)
                    choice >> @intCast(index) & 1 == 1
                else if (choice < group.len)
                    index <= choice // a prefix
                else if (choice < 2 * group.len)
                    index >= choice - group.len // the other end first
                else if (choice < 3 * group.len)
                    index != choice - 2 * group.len // all but one
                else
                    random.random().boolean();
                if (done) try piece.apply(testing.allocator, &state);
            }
            try expectWhole(state.items, planned, expected);
            states += 1;
        }
        for (group) |piece| try piece.apply(allocator, &settled);
    }
    try expectWhole(settled.items, planned, expected);
    try testing.expectEqual(planned.new_size, get(u64, settled.items, header.capacity) * sector);
    try testing.expectEqual(0, settled.items.len % sector);
    return states;
}

/// The old disk or the new one, by both directories; the new part reads as zero.
fn expectWhole(file: []const u8, planned: steps.Resize, expected: []const u8) !void {
    const redundant = get(u32, file, header.flags) & format.flag.redundant != 0;
    for ([_]bool{ false, true }) |which| {
        if (which and !redundant) continue;
        const disk = try readDisk(testing.allocator, file, which);
        defer testing.allocator.free(disk);
        try testing.expect(disk.len == planned.old_size or disk.len == planned.new_size);
        try testing.expect(std.mem.eql(u8, expected, disk[0..expected.len]));
        const new = disk[expected.len..];
        // Faster than a comparison byte by byte.
        if (new.len > 0) try testing.expect(new[0] == 0 and std.mem.eql(u8, new[0 .. new.len - 1], new[1..]));
    }
}

test "a grown disk is whole after a crash anywhere" {
    // Sectors before and after: in the last grain, in the last table, more tables in the directory's sector, a directory
    // of another sector, and from one that is full.
    const Case = struct { u64, u64 };
    const cases = [_]Case{ .{ 60, 63 }, .{ 60, 64 }, .{ 65, 96 }, .{ 64, 65 }, .{ 61, 4096 }, .{ 61, 4097 }, .{ 4096, 4097 }, .{ 4090, 4200 }, .{ 1, 4500 } };
    for (cases) |case| for ([_]bool{ true, false }) |redundant| {
        // With something behind the end, and a descriptor of two sectors; and without either.
        const rest: u8 = if (redundant) 0x55 else 0;
        const comment: usize = if (redundant) 200 else 0;
        const last = (case[0] - 1) / Writer.grain;
        const all = [_]u64{ 0, 3, 5, last };
        const run: *Run = try .init(.{
            .capacity = case[0],
            .redundant = redundant,
            .grains = if (last > 5) &all else all[3..],
            .rest = rest,
            .comment = comment,
        });
        defer run.deinit();
        const expected = try readDisk(run.arena.allocator(), run.file(), false);
        const planned = try run.plan(.{ .size = case[1] * sector });
        try testing.expectEqual(case[0] * sector, planned.old_size);
        try testing.expectEqual(case[1] * sector, planned.new_size);
        try testing.expect(try expectCrashSafe(run, planned, expected) > 4);

        var device = run.memory.device();
        try steps.execute(planned.steps, &device, testing.allocator, null);
        var line: [64]u8 = undefined;
        const size = try std.fmt.bufPrint(&line, "\nRW {d} SPARSE \"a.vmdk\"\n", .{case[1]});
        try testing.expect(std.mem.find(u8, run.file()[sector..][0..10_240], size) != null);
        const geometry = try std.fmt.bufPrint(&line, "\nddb.geometry.cylinders = \"{d}\"\n", .{case[1] / 1008});
        try testing.expect(std.mem.find(u8, run.file()[sector..][0..10_240], geometry) != null);
        // Nothing is left to do.
        try testing.expectEqual(0, (try run.plan(.{ .size = planned.new_size })).steps.len);
    };
}

test "a descriptor that a crash left behind is written the next time" {
    const run: *Run = try .init(.{ .capacity = 64, .grains = &.{2} });
    defer run.deinit();
    const planned = try run.plan(.{ .size = 2_000_000 });
    var device = run.memory.device();
    // Without the descriptor and the flush behind it.
    try steps.execute(planned.steps[0 .. planned.steps.len - 2], &device, testing.allocator, null);
    try testing.expectEqual(3907, get(u64, run.file(), header.capacity));
    const again = try run.plan(.{ .size = 0, .relative = "grow" });
    try testing.expectEqual(2, again.steps.len);
    try steps.execute(again.steps, &device, testing.allocator, null);
    try testing.expect(std.mem.find(u8, run.file()[sector..][0..512], "RW 3907 SPARSE") != null);
    try testing.expect(std.mem.find(u8, run.file()[sector..][0..512], "cylinders = \"3\"") != null);
}

test "growing in many small steps is growing" {
    const run: *Run = try .init(.{ .capacity = 1, .grains = &.{0}, .rest = 0xee });
    defer run.deinit();
    const expected = try readDisk(run.arena.allocator(), run.file(), false);
    var random: std.Random.DefaultPrng = .init(7);
    var device = run.memory.device();
    var size: u64 = sector;
    for (0..60) |_| {
        const more = random.random().uintLessThan(u64, 300_000);
        const planned = try run.plan(.{ .size = more, .relative = "grow" });
        try testing.expectEqual(std.mem.alignForward(u64, size + more, sector), planned.new_size);
        size = planned.new_size;
        try steps.execute(planned.steps, &device, testing.allocator, null);
        try expectWhole(run.file(), planned, expected);
    }
    try testing.expect(size > 4096 * sector);
}

fn expectRefusal(writer: Writer, request: messages.ResizeRequest, code: block.Diagnostic.Code, text: []const u8) !void {
    const run: *Run = try .init(writer);
    defer run.deinit();
    try testing.expectError(error.Refused, run.plan(request));
    try testing.expectEqualStrings(text, run.diagnostic.message());
    try testing.expectEqual(code, run.diagnostic.code);
}

test "what cannot grow" {
    const more: messages.ResizeRequest = .{ .size = 1 << 20, .relative = "grow" };
    const prefix = "vmdk: only monolithicSparse images can be resized, this one ";
    const small: Writer = .{ .capacity = 64 };
    const smaller = "vmdk: Shrinking images is currently not supported: ";
    try expectRefusal(small, .{ .size = 512 }, .invalid_option, "Use the --shrink option to perform a shrink operation.");
    try expectRefusal(small, .{ .size = 512, .shrink = true }, .unsupported, smaller ++ "512 bytes, the image has 32768");
    try expectRefusal(small, .{ .size = 512, .relative = "shrink", .shrink = true }, .unsupported, smaller ++ "32256 bytes, the image has 32768");
    try expectRefusal(small, .{ .size = 0 }, .invalid_option, "New image size must be positive");
    try expectRefusal(small, .{ .size = 1 << 20, .preallocation = "falloc" }, .invalid_option, "Unsupported preallocation mode: falloc");
    try expectRefusal(small, .{ .size = std.math.maxInt(u64) }, .too_large, "vmdk: virtual size 18446744073709551615 is above 2^63-1");
    try expectRefusal(small, .{ .size = std.math.maxInt(u64), .relative = "grow" }, .too_large, "vmdk: virtual size 18446744073709551615 is above 2^63-1");
    try expectRefusal(small, .{ .size = (1 << 63) - 512 }, .too_large, "vmdk: offset(9223372036854775296) exceeds maximum(9223372035781033984)");
    try expectRefusal(small, .{ .size = (1 << 63) - (1 << 30) }, .too_large, "vmdk: grain directory would be 562949953355776, the limit is 33554432");
    try expectRefusal(.{ .capacity = 64, .flags = format.flag.compressed | format.flag.markers }, more, .unsupported, prefix ++ "is streamOptimized");
    try expectRefusal(.{ .capacity = 64, .create_type = "custom" }, more, .unsupported, prefix ++ "is no monolithicSparse image");
    try expectRefusal(.{ .capacity = 64, .parent = "01234567" }, more, .needs_reference, "vmdk: the new part of an image with a parent would show what the parent has there");
}

test "each field of the header at its limits and beyond" {
    const Case = struct { type, usize, u64, ?block.Diagnostic.Code };
    // Of an extent of 60 sectors: two tables, directories of a sector in 21 and 24, 32 sectors in all.
    inline for ([_]Case{
        .{ u32, 0, 0, .unsupported },
        .{ u32, header.version, 0, .corrupt },
        .{ u32, header.version, 2, null },
        .{ u32, header.version, 3, .unsupported },
        .{ u32, header.version, 4, .corrupt },
        .{ u32, header.version, 0xffff_ffff, .corrupt },
        .{ u32, header.flags, 0xffff_ffff, .unsupported },
        .{ u16, header.compression_algorithm, 1, .unsupported },
        .{ u16, header.compression_algorithm, 0xffff, .unsupported },
        .{ u64, header.capacity, 0, .unsupported },
        .{ u64, header.capacity, 40_960, .out_of_bounds },
        .{ u64, header.capacity, (1 << 54) - 1, .too_large },
        .{ u64, header.capacity, 1 << 54, .too_large },
        .{ u64, header.capacity, std.math.maxInt(u64), .too_large },
        .{ u64, header.grain_size, 0, .corrupt },
        .{ u64, header.grain_size, 3, .corrupt },
        .{ u64, header.grain_size, 0x20_0000, null },
        .{ u64, header.grain_size, 0x20_0001, .corrupt },
        .{ u64, header.grain_size, 0x40_0000, .corrupt },
        .{ u64, header.grain_size, std.math.maxInt(u64), .corrupt },
        .{ u32, header.table_entries, 0, .corrupt },
        .{ u32, header.table_entries, 512, null },
        .{ u32, header.table_entries, 513, .corrupt },
        .{ u32, header.table_entries, 0xffff_ffff, .corrupt },
        .{ u64, header.directory, 0, .out_of_bounds },
        .{ u64, header.directory, 32, .out_of_bounds },
        .{ u64, header.directory, std.math.maxInt(u64) - 1, .out_of_bounds },
        .{ u64, header.directory, std.math.maxInt(u64), .unsupported },
        .{ u64, header.redundant_directory, 0, .out_of_bounds },
        .{ u64, header.redundant_directory, 32, .out_of_bounds },
        .{ u64, header.redundant_directory, std.math.maxInt(u64), .out_of_bounds },
        .{ u64, header.descriptor_offset, 0, .unsupported },
        .{ u64, header.descriptor_offset, 12, null },
        .{ u64, header.descriptor_offset, 13, .out_of_bounds },
        .{ u64, header.descriptor_offset, std.math.maxInt(u64), .out_of_bounds },
        .{ u64, header.descriptor_size, 0, .unsupported },
        .{ u64, header.descriptor_size, 1, null },
        .{ u64, header.descriptor_size, 32, .out_of_bounds },
        .{ u64, header.descriptor_size, 2049, .too_large },
        .{ u64, header.descriptor_size, std.math.maxInt(u64), .too_large },
    }) |case| {
        const run: *Run = try .init(.{ .capacity = 60 });
        defer run.deinit();
        const bytes = run.memory.bytes.items;
        try testing.expectEqual(32 * sector, bytes.len);
        const before = get(u64, bytes, header.descriptor_offset);
        put(case[0], bytes, case[1], case[2]);
        const after = get(u64, bytes, header.descriptor_offset);
        // Where the field leads, the descriptor is.
        if (after != before and after < 20) std.mem.copyBackwards(u8, bytes[@intCast(after * sector)..][0..sector], bytes[sector..][0..sector]);
        const answer = run.plan(.{ .size = 1 << 20 });
        if (case[3]) |code| {
            try testing.expectError(error.Refused, answer);
            try testing.expectEqual(code, run.diagnostic.code);
        } else _ = answer catch |reason| {
            std.debug.print("byte {d}, value {d}: {s}\n", .{ case[1], case[2], run.diagnostic.message() });
            return reason;
        };
    }
}

test "a table behind the end of the file, a file that is cut off, a file that no sector number reaches" {
    const run: *Run = try .init(.{ .capacity = 60 });
    defer run.deinit();
    const bytes = run.memory.bytes.items;
    put(u32, bytes, 24 * sector + 4, 32);
    try testing.expectError(error.Refused, run.plan(.{ .size = 1 << 20 }));
    try testing.expectEqualStrings("grain table", run.diagnostic.structure.?);
    // Itself: read, and refused for nothing worse than that, since nothing but entries is read there.
    put(u32, bytes, 24 * sector + 4, 24);
    _ = try run.plan(.{ .size = 1 << 20 });

    for ([_]usize{ 0, 4, 511, 512, 21 * sector, 24 * sector }) |length| {
        const cut: *Run = try .init(.{ .capacity = 60 });
        defer cut.deinit();
        cut.memory.bytes.items.len = length;
        try testing.expectError(error.Refused, cut.plan(.{ .size = 1 << 20 }));
    }

    const far: *Run = try .init(.{ .capacity = 64 });
    defer far.deinit();
    var device = far.memory.device();
    device.length = (format.max_sectors - Writer.grain) * sector;
    const context: image.Context = .{ .allocator = far.arena.allocator(), .diagnostic = &far.diagnostic };
    try testing.expectError(error.Refused, grow.resize(context, device, &.{ .size = 1 << 20 }));
    try testing.expectEqual(.too_large, far.diagnostic.code);
}

test "any size, and any damage of header and descriptor, is planned or refused" {
    var random: std.Random.DefaultPrng = .init(11);
    const generator = random.random();
    var planned: usize = 0;
    for (0..3000) |round| {
        const run: *Run = try .init(.{ .capacity = 60, .grains = &.{ 0, 7 }, .rest = 1, .comment = if (round % 2 == 0) 0 else 300 });
        defer run.deinit();
        const bytes = run.memory.bytes.items;
        if (round % 3 != 0) for (0..generator.intRangeAtMost(usize, 1, 4)) |_| {
            bytes[generator.uintLessThan(usize, 3 * sector)] = if (generator.boolean()) generator.int(u8) else 0xff;
        };
        // Small enough for the tables of tiny grains to stay in memory, or above every limit.
        const size = if (generator.boolean()) generator.uintLessThan(u64, 1 << 28) else generator.int(u64) | 1 << 62;
        const answer = run.plan(.{ .size = size, .relative = if (generator.boolean()) "grow" else null }) catch |reason| {
            try testing.expectEqual(error.Refused, reason);
            try testing.expect(run.diagnostic.message().len > 0);
            continue;
        };
        planned += 1;
        try testing.expect(answer.new_size >= answer.old_size and answer.new_size % sector == 0);
        for (answer.steps) |step| if (step == .write) try testing.expect(step.write.offset + step.write.bytes.len <= format.max_sectors * sector);
    }
    try testing.expect(planned > 300);
}
