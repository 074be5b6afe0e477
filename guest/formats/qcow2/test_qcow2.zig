//! Tests of the whole qcow2 reader on images built in memory.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const check = @import("check.zig");
const info = @import("info.zig");
const open = @import("open.zig");
const segments = @import("segments.zig");
const testing = @import("testing.zig");
const Builder = testing.Builder;

/// One image and everything a driver function needs.
const Bench = struct {
    arena: std.heap.ArenaAllocator,
    diagnostic: block.Diagnostic = .{},
    builder: Builder,
    counter: testing.Counter = .{},

    fn init(options: testing.Options) !Bench {
        return .{ .arena = .init(std.testing.allocator), .builder = try Builder.init(std.testing.allocator, options) };
    }

    fn deinit(self: *Bench) void {
        self.builder.deinit();
        self.arena.deinit();
    }

    fn context(self: *Bench) image.Context {
        return .{ .allocator = self.arena.allocator(), .diagnostic = &self.diagnostic };
    }

    fn open_(self: *Bench, purpose: open.Purpose) block.Error!open.Opened {
        return open.Opened.open(self.context(), self.builder.memory.device(), purpose);
    }

    fn check_(self: *Bench) block.Error!messages.Check {
        var report: messages.Check = .{ .format = "", .file_length = 0, .check_errors = 0, .corruptions = 0, .leaks = 0, .findings_omitted = 0 };
        try check.run(self.context(), self.builder.memory.device(), self.counter.sink(), &report);
        return report;
    }

    fn info_(self: *Bench) block.Error!messages.Info {
        var report: messages.Info = .{ .format = "", .virtual_size = 0, .file_length = 0, .dirty_flag = false };
        try info.run(self.context(), self.builder.memory.device(), self.counter.sink(), &report);
        return report;
    }

    /// The whole disk as segments, one letter a segment: d data, z zero, u unallocated, c compressed.
    fn walk(self: *Bench, letters: []u8, lengths: []u64) block.Error!usize {
        const opened = try segments.openImage(self.context(), self.builder.memory.device());
        var position: u64 = 0;
        var count: usize = 0;
        while (position < opened.virtual_size) : (count += 1) {
            const segment = try opened.segmentAt(position);
            letters[count] = if (segment.compressed) 'c' else @tagName(segment.kind)[0];
            lengths[count] = segment.length;
            position += segment.length;
        }
        return count;
    }
};

test "bad headers are refused, and say what is wrong" {
    const Case = struct { offset: u64, bytes: []const u8, code: block.Diagnostic.Code, text: []const u8 };
    const cases = [_]Case{
        .{ .offset = 0, .bytes = "QFI\xfa", .code = .corrupt, .text = "not in qcow2 format" },
        .{ .offset = 4, .bytes = "\x00\x00\x00\x01", .code = .unsupported, .text = "version 1" },
        .{ .offset = 4, .bytes = "\x00\x00\x00\x04", .code = .unsupported, .text = "version 4" },
        .{ .offset = 20, .bytes = "\x00\x00\x00\x08", .code = .unsupported, .text = "cluster size 2^8" },
        .{ .offset = 20, .bytes = "\x00\x00\x00\x16", .code = .unsupported, .text = "cluster size 2^22" },
        .{ .offset = 20, .bytes = "\xff\xff\xff\xff", .code = .unsupported, .text = "cluster size" },
        .{ .offset = 100, .bytes = "\x00\x00\x00\x67", .code = .corrupt, .text = "too short" },
        .{ .offset = 100, .bytes = "\x00\x00\x02\x01", .code = .corrupt, .text = "exceeds cluster size" },
        .{ .offset = 8, .bytes = "\x00\x00\x00\x00\x00\x00\x02\x01", .code = .out_of_bounds, .text = "backing file offset 513" },
        .{ .offset = 8, .bytes = "\xff\xff\xff\xff\xff\xff\xff\xff", .code = .out_of_bounds, .text = "backing file offset" },
        .{ .offset = 8, .bytes = "\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01\x01", .code = .too_large, .text = "name too long: 257 bytes" },
        .{ .offset = 24, .bytes = "\x80\x00\x00\x00\x00\x00\x00\x00", .code = .too_large, .text = "too big" },
        .{ .offset = 24, .bytes = "\xff\xff\xff\xff\xff\xff\xff\x00", .code = .too_large, .text = "too big" },
        .{ .offset = 24, .bytes = "\x00\x00\x00\x00\x00\x10\x00\x00", .code = .corrupt, .text = "L1 table is too small" },
        .{ .offset = 32, .bytes = "\x00\x00\x00\x03", .code = .unsupported, .text = "encryption method 3" },
        .{ .offset = 36, .bytes = "\x00\x40\x00\x01", .code = .too_large, .text = "L1 table too large" },
        .{ .offset = 40, .bytes = "\x00\x00\x00\x00\x00\x00\x06\x08", .code = .out_of_bounds, .text = "L1 table offset invalid" },
        .{ .offset = 40, .bytes = "\x80\x00\x00\x00\x00\x00\x00\x00", .code = .out_of_bounds, .text = "L1 table offset invalid" },
        .{ .offset = 48, .bytes = "\x00\x00\x00\x00\x00\x00\x00\x01", .code = .out_of_bounds, .text = "refcount table offset invalid" },
        .{ .offset = 56, .bytes = "\x00\x00\x00\x00", .code = .corrupt, .text = "does not contain a reference count table" },
        .{ .offset = 56, .bytes = "\x00\x00\x40\x01", .code = .too_large, .text = "refcount table too large" },
        .{ .offset = 60, .bytes = "\x00\x01\x00\x01", .code = .too_large, .text = "snapshot table too large" },
        .{ .offset = 72, .bytes = "\x80\x00\x00\x00\x00\x00\x00\x00", .code = .unsupported, .text = "unknown incompatible feature: 8000000000000000" },
        .{ .offset = 79, .bytes = "\x08", .code = .corrupt, .text = "must not be set" },
        .{ .offset = 79, .bytes = "\x10", .code = .unsupported, .text = "subcluster size: 16" },
        .{ .offset = 96, .bytes = "\x00\x00\x00\x07", .code = .unsupported, .text = "64 bits" },
        .{ .offset = 96, .bytes = "\xff\xff\xff\xff", .code = .unsupported, .text = "64 bits" },
        // The extension at byte 104.
        .{ .offset = 104, .bytes = "\x12\x34\x56\x78\x00\x00\x01\x91", .code = .out_of_bounds, .text = "extension too large" },
        .{ .offset = 104, .bytes = "\xe2\x79\x2a\xca\x00\x00\x00\x10", .code = .too_large, .text = "16 bytes, at most 15" },
        .{ .offset = 104, .bytes = "\x05\x37\xbe\x77\x00\x00\x00\x10", .code = .corrupt, .text = "only expected with LUKS" },
        .{ .offset = 104, .bytes = "\x23\x85\x28\x75\x00\x00\x00\x17", .code = .corrupt, .text = "invalid length 23" },
    };
    for (cases) |case| {
        var bench = try Bench.init(.{});
        defer bench.deinit();
        @memcpy(bench.builder.memory.bytes.items[@intCast(case.offset)..][0..case.bytes.len], case.bytes);
        errdefer std.debug.print("case at {d}: {s} -> {s}\n", .{ case.offset, case.text, bench.diagnostic.message() });
        try std.testing.expectError(error.Refused, bench.open_(.content));
        try std.testing.expectEqual(case.code, bench.diagnostic.code);
        try std.testing.expect(std.mem.indexOf(u8, bench.diagnostic.message(), case.text) != null);
    }
}

test "unknown features are named as the image names them" {
    var bench = try Bench.init(.{ .incompatible = 1 << 40 });
    defer bench.deinit();
    const name = "\x68\x03\xf8\x57\x00\x00\x00\x30" ++ "\x00\x28time travel";
    @memcpy(bench.builder.memory.bytes.items[104..][0..name.len], name);
    try std.testing.expectError(error.Refused, bench.open_(.information));
    try std.testing.expect(std.mem.endsWith(u8, bench.diagnostic.message(), "feature(s): time travel"));
}

test "info of versions 2 and 3" {
    var v3 = try Bench.init(.{ .size = 64 << 10 | 100, .refcount_order = 6 });
    defer v3.deinit();
    const report = try v3.info_();
    try std.testing.expectEqual(@as(u64, 64 << 10), report.virtual_size);
    try std.testing.expectEqualStrings("1.1", report.qcow2.?.compat);
    try std.testing.expectEqual(@as(u64, 64), report.qcow2.?.refcount_bits);
    var v2 = try Bench.init(.{ .version = 2 });
    defer v2.deinit();
    const old = try v2.info_();
    try std.testing.expectEqualStrings("0.10", old.qcow2.?.compat);
    try std.testing.expectEqual(null, old.qcow2.?.corrupt);
}

test "a sound image checks clean, in few reads" {
    var bench = try Bench.init(.{});
    defer bench.deinit();
    bench.builder.setData(0, 5);
    bench.builder.setData(1, 6);
    bench.builder.setData(3, 8);
    const report = try bench.check_();
    try std.testing.expectEqual(@as(u64, 0), report.corruptions + report.leaks + report.check_errors);
    try std.testing.expectEqual(@as(u64, 3), report.allocated_clusters.?);
    try std.testing.expectEqual(@as(u64, 1), report.fragmented_clusters.?);
    try std.testing.expectEqual(@as(u64, 128), report.total_clusters.?);
    try std.testing.expectEqual(@as(u64, 9 * 512), report.image_end_offset.?);
    try std.testing.expect(bench.builder.memory.reads <= 5);
}

test "what a check counts" {
    const Change = struct { l2: u64 = 0, word: u64 = 0, cluster: u64 = 0, refcount: u64 = 0, offset: u64 = 0, value: u64 = 0 };
    const Case = struct { change: []const Change, corruptions: u64 = 0, leaks: u64 = 0, errors: u64 = 0 };
    const copied = 1 << 63;
    const at = 512;
    const cases = [_]Case{
        // A refcount without reference.
        .{ .change = &.{.{ .cluster = 9, .refcount = 2 }}, .leaks = 1 },
        // A reference without refcount, and its copied flag.
        .{ .change = &.{.{ .l2 = 5, .word = copied | 9 * at }}, .corruptions = 2 },
        // Twice the same cluster: refcount 1 instead of 2.
        .{ .change = &.{ .{ .l2 = 5, .word = copied | 9 * at }, .{ .l2 = 6, .word = copied | 9 * at }, .{ .cluster = 9, .refcount = 1 } }, .corruptions = 1 },
        // The copied flag is missing.
        .{ .change = &.{ .{ .l2 = 5, .word = 9 * at }, .{ .cluster = 9, .refcount = 1 } }, .corruptions = 1 },
        // A reserved bit.
        .{ .change = &.{.{ .l2 = 5, .word = 1 << 57 }}, .corruptions = 1 },
        // Behind the end of the file.
        .{ .change = &.{.{ .l2 = 5, .word = 1 << 40 }}, .corruptions = 1 },
        // A compressed cluster with the copied flag.
        .{ .change = &.{ .{ .l2 = 5, .word = copied | 1 << 62 | 9 * at }, .{ .cluster = 9, .refcount = 1 } }, .corruptions = 1 },
        // Compressed: two sectors, both counted.
        .{ .change = &.{ .{ .l2 = 5, .word = 1 << 62 | 1 << 61 | 9 * at }, .{ .cluster = 9, .refcount = 1 }, .{ .cluster = 10, .refcount = 1 } } },
        // The L2 table names itself: overlaps, refcount 2 needed.
        .{ .change = &.{.{ .l2 = 5, .word = copied | 4 * at }}, .corruptions = 1 },
        // The refcount block is its own second block.
        .{ .change = &.{.{ .offset = 1 * at + 8, .value = 2 * at }}, .corruptions = 2 },
        // A refcount block outside the file, an unaligned one, reserved bits.
        .{ .change = &.{.{ .offset = 1 * at + 8, .value = 1 << 40 }}, .corruptions = 1 },
        .{ .change = &.{.{ .offset = 1 * at + 8, .value = 2 * at + 1 }}, .corruptions = 1 },
        // The copied flag of an L1 entry is missing; reserved bits in an L1 entry.
        .{ .change = &.{.{ .offset = 3 * at, .value = 4 * at }}, .corruptions = 1 },
        .{ .change = &.{.{ .offset = 3 * at, .value = copied | 4 * at | 1 }}, .corruptions = 1 },
    };
    for (cases, 0..) |case, number| {
        errdefer std.debug.print("case {d}\n", .{number});
        var bench = try Bench.init(.{});
        defer bench.deinit();
        for (case.change) |change| {
            if (change.offset != 0) bench.builder.put(u64, change.offset, change.value);
            if (change.word != 0) bench.builder.setL2(change.l2, change.word);
            if (change.cluster != 0) bench.builder.setRefcount(change.cluster, change.refcount);
        }
        const report = try bench.check_();
        try std.testing.expectEqual(case.corruptions, report.corruptions);
        try std.testing.expectEqual(case.leaks, report.leaks);
        try std.testing.expectEqual(case.errors, report.check_errors);
    }
}

test "the first cluster behind the end of the file is outside" {
    var bench = try Bench.init(.{});
    defer bench.deinit();
    bench.builder.setL2(5, bench.builder.at(32));
    const outside = try bench.check_();
    try std.testing.expectEqual(@as(u64, 1), outside.corruptions);
    try std.testing.expectEqual(@as(u64, 5 * 512), outside.image_end_offset.?);
    // Half of it inside is enough; it then has no refcount.
    bench.builder.memory.bytes.items.len -= 300;
    bench.builder.setL2(5, bench.builder.at(31));
    const half = try bench.check_();
    try std.testing.expectEqual(@as(u64, 1), half.corruptions);
    try std.testing.expectEqual(@as(u64, 32 * 512), half.image_end_offset.?);
}

test "two L2 tables named in turn" {
    var bench = try Bench.init(.{ .size = 4 * 64 * 512 });
    defer bench.deinit();
    const b = &bench.builder;
    for (0..4) |i| b.put(u64, b.at(3) + i * 8, b.at(4 + i % 2));
    b.setRefcount(4, 2);
    b.setRefcount(5, 2);
    b.setL2(0, b.at(6));
    b.setRefcount(6, 2);
    const report = try bench.check_();
    try std.testing.expectEqual(@as(u64, 0), report.corruptions + report.leaks);
    try std.testing.expectEqual(@as(u64, 2), report.allocated_clusters.?);
}

test "bitmaps: what is sound is listed, what is broken is refused" {
    const Case = struct { offset: u64 = 0, bytes: []const u8 = "", text: ?[]const u8 };
    const directory = 6 * 512;
    const cases = [_]Case{
        .{ .text = null },
        .{ .offset = 112 + 3, .bytes = "\x00", .text = "zero bitmaps" },
        .{ .offset = 112 + 3, .bytes = "\x02", .text = "less bitmaps found (1)" },
        .{ .offset = 112 + 15, .bytes = "\x00", .text = "directory size is zero" },
        .{ .offset = 112 + 15, .bytes = "\x1c", .text = "broken bitmap directory" },
        .{ .offset = 112 + 23, .bytes = "\x01", .text = "invalid bitmap directory offset" },
        .{ .offset = directory + 11, .bytes = "\x02", .text = "table has 2 entries" },
        .{ .offset = directory + 16, .bytes = "\x02", .text = "constraints" },
        .{ .offset = directory + 17, .bytes = "\x08", .text = "constraints" },
        .{ .offset = directory + 23, .bytes = "\x01", .text = "extra data" },
        .{ .offset = 7 * 512 + 7, .bytes = "\x02", .text = "entry 1002" },
    };
    for (cases) |case| {
        var bench = try Bench.init(.{ .autoclear = 1 });
        defer bench.deinit();
        const b = &bench.builder;
        const bytes = b.memory.bytes.items;
        @memcpy(bytes[104..][0..8], "\x23\x85\x28\x75\x00\x00\x00\x18");
        b.put(u32, 112, 1);
        b.put(u64, 120, 32);
        b.put(u64, 128, directory);
        b.put(u64, directory, 7 * 512);
        b.put(u32, directory + 8, 1);
        b.put(u16, directory + 16, 1 << 8 | 9);
        b.put(u16, directory + 18, 4);
        @memcpy(bytes[directory + 24 ..][0..4], "name");
        b.put(u64, 7 * 512, 8 * 512);
        for (6..9) |cluster| b.setRefcount(cluster, 1);
        if (case.offset != 0) @memcpy(bytes[@intCast(case.offset)..][0..case.bytes.len], case.bytes);
        errdefer std.debug.print("case {?s}: {s}\n", .{ case.text, bench.diagnostic.message() });
        if (case.text) |text| {
            try std.testing.expectError(error.Refused, bench.info_());
            try std.testing.expect(std.mem.indexOf(u8, bench.diagnostic.message(), text) != null);
        } else {
            try std.testing.expectEqual(@as(u64, 1), (try bench.info_()).qcow2.?.bitmaps);
            const report = try bench.check_();
            try std.testing.expectEqual(@as(u64, 0), report.corruptions + report.leaks);
        }
    }
}

test "every L1 entry names the same L2 table: read once, counted as often" {
    var bench = try Bench.init(.{ .size = 64 * 64 * 512, .clusters = 64 });
    defer bench.deinit();
    for (0..64) |i| bench.builder.put(u64, bench.builder.at(3) + i * 8, bench.builder.at(4));
    for (0..64) |i| bench.builder.setL2(i, bench.builder.at(9));
    bench.builder.setRefcount(4, 64);
    bench.builder.setRefcount(9, 64 * 64);
    const report = try bench.check_();
    try std.testing.expectEqual(@as(u64, 0), report.corruptions + report.leaks + report.check_errors);
    try std.testing.expectEqual(@as(u64, 64 * 64), report.allocated_clusters.?);
    try std.testing.expectEqual(@as(u64, 64 * 63), report.fragmented_clusters.?);
    try std.testing.expect(bench.builder.memory.read_bytes < 32 << 10);
}

test "clusters behind the end of the disk are counted, and said to be behind it" {
    var bench = try Bench.init(.{ .size = 512, .clusters = 128 });
    defer bench.deinit();
    for (0..64) |i| bench.builder.setData(i, 5 + i);
    const report = try bench.check_();
    try std.testing.expectEqual(@as(u64, 64), report.allocated_clusters.?);
    try std.testing.expectEqual(@as(u64, 1), report.clusters_inside.?);
    try std.testing.expectEqual(@as(u64, 1), report.total_clusters.?);
    try std.testing.expectEqual(@as(u64, 0), report.corruptions);
    var letters: [4]u8 = undefined;
    var lengths: [4]u64 = undefined;
    const count = try bench.walk(&letters, &lengths);
    try std.testing.expectEqualStrings("d", letters[0..count]);
    try std.testing.expectEqual(@as(u64, 512), lengths[0]);
}

test "segments partition the disk and merge what is contiguous" {
    // An L2 table of 512 bytes maps 32 KiB: the disk ends in its second, which does not exist.
    var bench = try Bench.init(.{ .size = 33 << 10 });
    defer bench.deinit();
    bench.builder.setData(1, 5);
    bench.builder.setData(2, 6);
    bench.builder.setData(3, 9);
    bench.builder.setL2(4, 1);
    bench.builder.setL2(5, bench.builder.at(10) | 1);
    bench.builder.setL2(6, 1 << 62 | bench.builder.at(11));
    bench.builder.setL2(8, bench.builder.at(100));
    // Data right behind an allocated zero cluster.
    bench.builder.setL2(9, bench.builder.at(20) | 1);
    bench.builder.setL2(10, bench.builder.at(21));
    var letters: [16]u8 = undefined;
    var lengths: [16]u64 = undefined;
    const count = try bench.walk(&letters, &lengths);
    try std.testing.expectEqualStrings("uddzzcudzdu", letters[0..count]);
    try std.testing.expectEqualSlices(u64, &.{ 512, 1024, 512, 512, 512, 512, 512, 512, 512, 512, (33 << 10) - 11 * 512 }, lengths[0..count]);
}

test "broken entries end the walk there, with a reason" {
    const Case = struct { version: u32 = 3, incompatible: u64 = 0, word: u64, text: []const u8 };
    const cases = [_]Case{
        .{ .version = 2, .word = 1, .text = "pre-v3" },
        .{ .incompatible = 4, .word = 1 << 62, .text = "external data file" },
        .{ .incompatible = 4, .word = 1 << 20, .text = "does not match guest" },
    };
    for (cases) |case| {
        var bench = try Bench.init(.{ .version = case.version, .incompatible = case.incompatible });
        defer bench.deinit();
        const name = "\x44\x41\x54\x41\x00\x00\x00\x01x";
        if (case.incompatible != 0) @memcpy(bench.builder.memory.bytes.items[104..][0..name.len], name);
        bench.builder.setL2(2, case.word);
        const opened = try segments.openImage(bench.context(), bench.builder.memory.device());
        try std.testing.expectEqual(@as(u64, 1024), (try opened.segmentAt(0)).length);
        try std.testing.expectError(error.Refused, opened.segmentAt(1024));
        try std.testing.expect(std.mem.indexOf(u8, bench.diagnostic.message(), case.text) != null);
    }
    var unaligned = try Bench.init(.{ .cluster_bits = 12, .clusters = 8 });
    defer unaligned.deinit();
    unaligned.builder.setL2(0, 5 << 12 | 512);
    const opened = try segments.openImage(unaligned.context(), unaligned.builder.memory.device());
    try std.testing.expectError(error.Refused, opened.segmentAt(0));
}

test "a contradiction of subclusters is met at the end of the run before it" {
    var bench = try Bench.init(.{ .cluster_bits = 14, .clusters = 16, .size = 10 << 14, .incompatible = 16 });
    defer bench.deinit();
    const table = bench.builder.at(4);
    bench.builder.put(u64, table + 2 * 16, 7 << 14);
    bench.builder.put(u64, table + 2 * 16 + 8, 0xffff_ffff);
    bench.builder.put(u64, table + 3 * 16, 9 << 14);
    bench.builder.put(u64, table + 3 * 16 + 8, 1 << 32 | 1);
    const opened = try segments.openImage(bench.context(), bench.builder.memory.device());
    try std.testing.expectEqual(@as(u64, 2 << 14), (try opened.segmentAt(0)).length);
    try std.testing.expectError(error.Refused, opened.segmentAt(2 << 14));
    // The run ends before it when its last subcluster is of another kind.
    bench.builder.put(u64, table + 2 * 16 + 8, 0x7fff_ffff);
    const again = try segments.openImage(bench.context(), bench.builder.memory.device());
    try std.testing.expectEqual(@as(u64, 31 << 9), (try again.segmentAt(2 << 14)).length);
}

test "tables outside the file read as zeroes, as they do for qemu" {
    var bench = try Bench.init(.{});
    defer bench.deinit();
    bench.builder.put(u64, 40, 1 << 40);
    var letters: [4]u8 = undefined;
    var lengths: [4]u64 = undefined;
    try std.testing.expectEqual(@as(usize, 1), try bench.walk(&letters, &lengths));
    const report = try bench.check_();
    // The L1 table is nowhere; itself and its L2 table have leaked.
    try std.testing.expectEqual(@as(u64, 1), report.corruptions);
    try std.testing.expectEqual(@as(u64, 2), report.leaks);
}

test "snapshots without end are refused at once" {
    var bench = try Bench.init(.{});
    defer bench.deinit();
    bench.builder.put(u32, 60, 200_000);
    bench.builder.put(u64, 64, bench.builder.at(10));
    try std.testing.expectError(error.Refused, bench.check_());
    try std.testing.expectEqual(.too_large, bench.diagnostic.code);
    // 65536 are allowed; here they are zeroes behind the end of the file, and incomplete.
    bench.builder.put(u32, 60, 65536);
    const report = try bench.check_();
    try std.testing.expectEqual(@as(u64, 65536 + 1), report.corruptions);
    try std.testing.expect(report.findings_omitted > 60_000);
    try std.testing.expect(bench.counter.delivered < 3000);
}

test "a snapshot with too much extra data is refused" {
    var bench = try Bench.init(.{});
    defer bench.deinit();
    bench.builder.put(u32, 60, 1);
    bench.builder.put(u64, 64, bench.builder.at(10));
    bench.builder.put(u32, bench.builder.at(10) + 36, 1024);
    _ = try bench.info_();
    bench.builder.put(u32, bench.builder.at(10) + 36, 1025);
    try std.testing.expectError(error.Refused, bench.info_());
}

test "a snapshot's tables count" {
    var bench = try Bench.init(.{});
    defer bench.deinit();
    const b = &bench.builder;
    b.setL2(0, b.at(9));
    b.setRefcount(9, 2);
    // The snapshot's L1 table at cluster 7 names an L2 table at 8; the table of snapshots lies at 6.
    b.put(u32, 60, 1);
    b.put(u64, 64, b.at(6));
    b.put(u64, b.at(6), b.at(7));
    b.put(u32, b.at(6) + 8, 1);
    b.put(u32, b.at(6) + 36, 16);
    b.put(u64, b.at(7), b.at(8));
    b.put(u64, b.at(8), b.at(9));
    for (6..9) |cluster| b.setRefcount(cluster, 1);
    const report = try bench.check_();
    try std.testing.expectEqual(@as(u64, 0), report.corruptions + report.leaks + report.check_errors);
    try std.testing.expectEqual(@as(u64, 1), report.allocated_clusters.?);
    const found = try bench.info_();
    try std.testing.expectEqual(@as(u64, 1), found.qcow2.?.snapshots);
}

test "too little memory is said, wherever it ends" {
    var size: usize = 64;
    var refused: usize = 0;
    while (size < 1 << 20) : (size += size / 3) {
        var bench = try Bench.init(.{ .cluster_bits = 12, .clusters = 64, .size = 1 << 20 });
        defer bench.deinit();
        for (0..32) |i| bench.builder.setData(i, 5 + i);
        const memory = try std.testing.allocator.alloc(u8, size);
        defer std.testing.allocator.free(memory);
        var fixed: std.heap.FixedBufferAllocator = .init(memory);
        const context: image.Context = .{ .allocator = fixed.allocator(), .diagnostic = &bench.diagnostic };
        var report: messages.Check = .{ .format = "", .file_length = 0, .check_errors = 0, .corruptions = 0, .leaks = 0, .findings_omitted = 0 };
        check.run(context, bench.builder.memory.device(), bench.counter.sink(), &report) catch |reason| {
            try std.testing.expectEqual(error.Refused, reason);
            try std.testing.expectEqual(.no_memory, bench.diagnostic.code);
            try std.testing.expect(std.mem.indexOf(u8, bench.diagnostic.message(), "--max-memory") != null);
            refused += 1;
            continue;
        };
        try std.testing.expectEqual(@as(u64, 0), report.corruptions);
    }
    try std.testing.expect(refused > 5);
}

test "random damage never does more than be found" {
    var random: std.Random.DefaultPrng = .init(0x71636f77);
    for (0..400) |round| {
        var bench = try Bench.init(.{
            .cluster_bits = if (round % 3 == 0) 14 else 9,
            .incompatible = if (round % 6 == 0) 16 else 0,
            .clusters = 24,
            .size = 40 << 10,
        });
        defer bench.deinit();
        const b = &bench.builder;
        for (0..6) |i| if (round % 6 != 0) b.setData(i, 6 + i);
        b.put(u32, 60, @intCast(round % 2));
        b.put(u64, 64, b.at(20));
        const bytes = b.memory.bytes.items;
        for (0..1 + random.random().uintLessThan(usize, 6)) |_| {
            const area: usize = switch (random.random().uintLessThan(u8, 4)) {
                0 => random.random().uintLessThan(usize, 160),
                1 => @intCast(b.at(random.random().uintLessThan(u64, 5)) + random.random().uintLessThan(u64, 80)),
                2 => @intCast(b.at(20) + random.random().uintLessThan(u64, 80)),
                else => random.random().uintLessThan(usize, bytes.len),
            };
            bytes[area] ^= @as(u8, 1) << random.random().int(u3);
        }
        if (round % 5 == 0) b.memory.bytes.items.len = random.random().uintLessThan(usize, bytes.len);
        _ = bench.check_() catch {};
        _ = bench.info_() catch {};
        const opened = segments.openImage(bench.context(), b.memory.device()) catch continue;
        var position: u64 = 0;
        var steps: usize = 0;
        while (position < opened.virtual_size and steps < 1000) : (steps += 1) {
            const segment = opened.segmentAt(position) catch break;
            position += segment.length;
        }
    }
}
