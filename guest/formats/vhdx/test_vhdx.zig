//! Small VHDXs in memory: where the data is, and how a log is found.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const format = @import("format.zig");
const vhdx = @import("vhdx.zig");
const testing = std.testing;

const mib = format.mib;

/// A disk as a good writer would have it: log at 1 MiB, metadata at 2 MiB, BAT at 3 MiB, blocks of 1 MiB from 4 MiB on.
pub const Builder = struct {
    bytes: []u8,

    pub const log_offset = mib;
    pub const metadata_offset = 2 * mib;
    pub const bat_offset = 3 * mib;
    pub const first_block = 4 * mib;
    pub const log_guid: [16]u8 = @splat(7);

    pub const Options = struct {
        size: u64 = 4 * mib,
        block_size: u32 = mib,
        sector: u32 = 512,
        /// Bit 0: fixed, bit 1: differencing.
        flags: u32 = 0,
        /// Blocks of 1 MiB behind the BAT.
        blocks: usize = 4,
        /// Whether the header says that the log is in use.
        logged: bool = false,
        log_length: u32 = mib,
    };

    pub fn init(options: Options) !Builder {
        const bytes = try testing.allocator.alloc(u8, first_block + options.blocks * mib);
        @memset(bytes, 0);
        var self: Builder = .{ .bytes = bytes };
        self.put(0, format.file_signature);
        for (format.header_offsets, 1..) |at, sequence| {
            self.put(at, format.header_signature);
            self.int(u64, at + 8, sequence);
            if (options.logged) self.put(at + 48, &log_guid);
            self.int(u16, at + 66, format.header_version);
            self.int(u32, at + 68, options.log_length);
            self.int(u64, at + 72, log_offset);
            self.seal(at, format.header_size);
        }
        for (format.region_table_offsets) |at| {
            self.put(at, format.region_signature);
            self.int(u32, at + 8, 2);
            self.region(at + 16, &format.guids.bat, bat_offset);
            self.region(at + 48, &format.guids.metadata, metadata_offset);
            self.seal(at, format.region_table_size);
        }
        self.put(metadata_offset, format.metadata_signature);
        const items = [_]struct { [16]u8, u32, u64 }{
            .{ format.guids.file_parameters, 8, @as(u64, options.flags) << 32 | options.block_size },
            .{ format.guids.virtual_disk_size, 8, options.size },
            .{ format.guids.virtual_disk_id, 16, 1 },
            .{ format.guids.logical_sector_size, 4, options.sector },
            .{ format.guids.physical_sector_size, 4, 512 },
            .{ format.guids.parent_locator, 20, 0 },
        };
        const count: usize = if (options.flags & 2 != 0) 6 else 5;
        self.int(u16, metadata_offset + 10, @intCast(count));
        for (items[0..count], 1..) |item, index| {
            const at = metadata_offset + 32 * index;
            const place: u32 = @intCast(format.metadata_table_size + 32 * index);
            self.put(at, &item[0]);
            self.int(u32, at + 16, place);
            self.int(u32, at + 20, item[1]);
            self.int(u32, at + 24, 4);
            self.int(u64, metadata_offset + place, item[2]);
        }
        return self;
    }

    pub fn deinit(self: Builder) void {
        testing.allocator.free(self.bytes);
    }

    pub fn put(self: Builder, at: usize, bytes: []const u8) void {
        @memcpy(self.bytes[at..][0..bytes.len], bytes);
    }

    pub fn int(self: Builder, comptime T: type, at: usize, value: T) void {
        std.mem.writeInt(T, self.bytes[at..][0..@sizeOf(T)], value, .little);
    }

    pub fn seal(self: Builder, at: usize, size: usize) void {
        self.int(u32, at + 4, format.checksumOf(self.bytes[at..][0..size]));
    }

    fn region(self: Builder, at: usize, guid: []const u8, offset: u64) void {
        self.put(at, guid);
        self.int(u64, at + 16, offset);
        self.int(u32, at + 24, mib);
        self.int(u32, at + 28, 1);
    }

    /// BAT entry `index`: `place` in MiB.
    pub fn entry(self: Builder, index: usize, place: u64, state: u64) void {
        self.int(u64, bat_offset + 8 * index, place * mib | state);
    }

    /// An entry of the log at sector `at` with one descriptor: what is at `source` of `data`, or zeros.
    pub fn log(self: Builder, at: usize, tail: u32, sequence: u64, offset: u64, data: ?*const [4096]u8) void {
        const start = log_offset + at * 4096;
        const size: usize = if (data == null) 4096 else 8192;
        self.put(start, format.log_signature);
        self.int(u32, start + 8, @intCast(size));
        self.int(u32, start + 12, tail * 4096);
        self.int(u64, start + 16, sequence);
        self.int(u32, start + 24, 1);
        self.put(start + 32, &log_guid);
        self.int(u64, start + 48, self.bytes.len);
        self.int(u64, start + 56, self.bytes.len);
        const descriptor = start + 64;
        self.int(u64, descriptor + 16, offset);
        self.int(u64, descriptor + 24, sequence);
        if (data) |page| {
            self.put(descriptor, format.data_descriptor_signature);
            self.put(descriptor + 4, page[4092..]);
            self.put(descriptor + 8, page[0..8]);
            const sector = start + 4096;
            self.put(sector, format.data_sector_signature);
            self.int(u32, sector + 4, @intCast(sequence >> 32));
            self.put(sector + 8, page[8..4092]);
            self.int(u32, sector + 4092, @truncate(sequence));
        } else {
            self.put(descriptor, format.zero_signature);
            self.int(u64, descriptor + 8, 4096);
        }
        self.seal(start, size);
    }
};

/// Everything that a test of one image needs.
pub const Case = struct {
    memory: block.Memory,
    arena: std.heap.ArenaAllocator,
    diagnostic: block.Diagnostic = .{},

    pub fn init(builder: Builder) !Case {
        return .{ .memory = try .init(testing.allocator, builder.bytes), .arena = .init(testing.allocator) };
    }

    pub fn deinit(self: *Case) void {
        self.memory.deinit();
        self.arena.deinit();
    }

    pub fn context(self: *Case) image.Context {
        return .{ .allocator = self.arena.allocator(), .diagnostic = &self.diagnostic };
    }

    pub fn open(self: *Case) block.Error!image.Image {
        return vhdx.open(self.context(), self.memory.device());
    }
};

const Expected = struct { u64, image.Kind, ?u64 };

fn expectSegments(builder: Builder, expected: []const Expected) !void {
    var case: Case = try .init(builder);
    defer case.deinit();
    const opened = try case.open();
    try expectWalk(opened, expected);
}

fn expectWalk(opened: image.Image, expected: []const Expected) !void {
    var at: u64 = 0;
    for (expected) |one| {
        const segment = try opened.segmentAt(at);
        errdefer std.debug.print("\nat {d}: {any}, expected {any}\n", .{ at, segment, one });
        try testing.expectEqual(one[0], segment.length);
        try testing.expectEqual(one[1], segment.kind);
        try testing.expectEqual(one[2], segment.offset);
        at += segment.length;
    }
    try testing.expectEqual(opened.virtual_size, at);
}

test "each state of a block" {
    const builder: Builder = try .init(.{ .size = 8 * mib - 512 });
    defer builder.deinit();
    for ([_]u64{ 6, 6, 6, 0, 1, 2, 3, 5 }, 0..) |state, index| builder.entry(index, 0, state);
    builder.entry(0, 4, 6);
    builder.entry(1, 5, 6);
    builder.entry(2, 7, 6);
    try expectSegments(builder, &.{
        .{ 2 * mib, .data, 4 * mib },
        .{ mib, .data, 7 * mib },
        .{ mib, .unallocated, null },
        .{ 4 * mib - 512, .zero, null },
    });
    for ([_]u64{ 4, 7 }) |state| {
        builder.entry(3, 6, state);
        var case: Case = try .init(builder);
        defer case.deinit();
        const opened = try case.open();
        try testing.expectError(error.Refused, opened.segmentAt(3 * mib));
    }
}

test "entries of bitmap blocks lie between those of payload blocks" {
    // 256 MiB blocks: 16 of them share a bitmap block.
    const builder: Builder = try .init(.{ .size = (17 << 28) + 512, .block_size = 1 << 28, .blocks = 0 });
    defer builder.deinit();
    builder.entry(15, 0, 2);
    builder.entry(16, 0, 0);
    builder.entry(17, 0, 2);
    try expectSegments(builder, &.{
        .{ 15 << 28, .unallocated, null },
        .{ 2 << 28, .zero, null },
        .{ 512, .unallocated, null },
    });
}

test "qemu is told that everything is data" {
    const builder: Builder = try .init(.{});
    defer builder.deinit();
    var case: Case = try .init(builder);
    defer case.deinit();
    var opened = try case.open();
    try expectWalk(opened.asQemuSees(), &.{.{ 4 * mib, .data, null }});
    try expectWalk(opened, &.{.{ 4 * mib, .unallocated, null }});
}

test "partially present blocks ask their bitmap, the lowest bit first" {
    for ([_]u32{ 512, 4096 }) |sector| {
        const builder: Builder = try .init(.{ .size = 3 * mib, .flags = 2, .sector = sector });
        defer builder.deinit();
        const ratio = (1 << 23) * @as(usize, sector) / mib;
        builder.entry(0, 4, 6);
        builder.entry(1, 5, 7);
        builder.entry(ratio, 6, 6);
        // The bits of block 1 lie behind those of block 0.
        const bits = 6 * mib + mib / sector / 8;
        builder.put(bits, &.{ 0b0000_0111, 0, 0xff, 0xff, 0b1000_0000 });
        var case: Case = try .init(builder);
        defer case.deinit();
        var opened = try case.open();
        try testing.expect(opened.has_backing);
        const rest = 2 * mib - 40 * @as(u64, sector);
        const expected = [_]Expected{
            .{ mib, .data, 4 * mib },
            .{ 3 * sector, .data, 5 * mib },
            .{ 13 * sector, .unallocated, null },
            .{ 16 * sector, .data, 5 * mib + 16 * sector },
            .{ 7 * sector, .unallocated, null },
            .{ sector, .data, 5 * mib + 39 * sector },
            .{ rest - mib, .unallocated, null },
            .{ mib, .unallocated, null },
        };
        try expectWalk(opened, &expected);
        // qemu opens no such disk: there is nothing that it would say.
        try expectWalk(opened.asQemuSees(), &expected);
        // In the middle of a run, too.
        const middle = try opened.segmentAt(mib + 17 * @as(u64, sector));
        try testing.expectEqual(15 * @as(u64, sector), middle.length);
        try testing.expectEqual(5 * mib + 17 * @as(u64, sector), middle.offset.?);
        builder.entry(ratio, 6, 0);
        var broken: Case = try .init(builder);
        defer broken.deinit();
        const without = try broken.open();
        try testing.expectError(error.Refused, without.segmentAt(mib));
    }
}
