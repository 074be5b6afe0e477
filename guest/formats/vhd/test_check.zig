//! What the check finds in small VHDs, sound and damaged.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const Builder = @import("test_vhd.zig").Builder;
const check = @import("check.zig").check;
const testing = std.testing;

const Result = struct { corruptions: u64 = 0, leaks: u64 = 0, says: []const u8 = "" };

/// Keeps the findings' bytes.
const Collector = struct {
    buffer: [4096]u8 = undefined,
    length: usize = 0,

    fn deliver(opaque_self: *anyopaque, message: []const u8) block.Error!void {
        const self: *Collector = @ptrCast(@alignCast(opaque_self));
        if (self.length + message.len > self.buffer.len) return error.TooLarge;
        @memcpy(self.buffer[self.length..][0..message.len], message);
        self.length += message.len;
    }
};

fn expect(expected: Result, bytes: []const u8) !void {
    var memory: block.Memory = try .init(testing.allocator, bytes);
    defer memory.deinit();
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    var diagnostic: block.Diagnostic = .{};
    var collector: Collector = .{};
    var report: messages.Check = .{ .format = "vpc", .file_length = bytes.len, .check_errors = 0, .corruptions = 0, .leaks = 0, .findings_omitted = 0 };
    try check(.{ .allocator = arena.allocator(), .diagnostic = &diagnostic }, memory.device(), .{ .context = &collector, .deliver = Collector.deliver }, &report);
    const said = collector.buffer[0..collector.length];
    errdefer std.debug.print("\nfindings: {f}\nexpected: {s}\n", .{ std.zig.fmtString(said), expected.says });
    try testing.expectEqual(expected.corruptions, report.corruptions);
    try testing.expectEqual(expected.leaks, report.leaks);
    if (expected.says.len == 0) try testing.expectEqual(@as(usize, 0), said.len);
    try testing.expect(std.mem.indexOf(u8, said, expected.says) != null);
}

const length = Builder.dynamic_length;

/// A sound dynamic disk with all bitmap bits of its blocks set.
fn sound(kind: u32) [length]u8 {
    return Builder.dynamicDisk(kind);
}

/// Change the copy of the footer and the footer alike, checksums right.
fn changeFooters(bytes: *[length]u8, comptime T: type, at: usize, value: T) void {
    for ([_]usize{ 0, length - 512 }) |start| {
        Builder.put(T, bytes[start..], at, value);
        Builder.sign(bytes[start..]);
    }
}

test "sound disks have nothing to find" {
    try expect(.{}, &sound(3));
    var fixed: [1_079_296 + 512]u8 = @splat(0);
    Builder.footer(fixed[1_079_296..], 2, 1_079_296, "vpc ");
    try expect(.{}, &fixed);
}

test "footer and copy" {
    var bytes = sound(3);
    bytes[200] = 1;
    try expect(.{ .corruptions = 2, .says = "footer at byte 0: checksum" }, &bytes);
    bytes = sound(3);
    bytes[length - 512 + 40] ^= 1;
    try expect(.{ .corruptions = 2, .says = "footer at byte 12288: checksum" }, &bytes);
    bytes = sound(3);
    bytes[length - 512] = 0;
    try expect(.{ .corruptions = 1, .says = "no footer at the end" }, &bytes);
    bytes = sound(3);
    bytes[0] = 0;
    try expect(.{ .corruptions = 1, .says = "copy of the footer at byte 0 is missing" }, &bytes);
    bytes = sound(3);
    Builder.put(u32, bytes[length - 512 ..], 24, 7);
    Builder.sign(bytes[length - 512 ..]);
    try expect(.{ .corruptions = 1, .says = "and its copy at byte 0 differ" }, &bytes);
    bytes = sound(3);
    changeFooters(&bytes, u32, 60, 7);
    try expect(.{ .corruptions = 2, .says = "disk type 7 is not" }, &bytes);
    bytes = sound(3);
    changeFooters(&bytes, u32, 12, 0x20000);
    try expect(.{ .corruptions = 2, .says = "version 20000 is not 10000" }, &bytes);
    bytes = sound(3);
    changeFooters(&bytes, u32, 8, 0x10);
    try expect(.{ .says = "features 10 have" }, &bytes);
    bytes = sound(3);
    changeFooters(&bytes, u64, 48, 1_000_000);
    try expect(.{ .says = "readers differ about the size" }, &bytes);
    bytes = sound(3);
    changeFooters(&bytes, u16, 56, 0);
    try expect(.{ .corruptions = 1, .says = "the geometry is empty, the current size is 1079296" }, &bytes);
}

test "dynamic header" {
    var bytes = sound(3);
    bytes[512 + 700] = 1;
    try expect(.{ .corruptions = 1, .says = "dynamic header: checksum" }, &bytes);
    bytes = sound(3);
    bytes[512] = 0;
    try expect(.{ .corruptions = 1, .says = "no dynamic disk header at byte 512" }, &bytes);
    bytes = sound(3);
    Builder.put(u32, bytes[512..], 32, 1000);
    try expect(.{ .corruptions = 1, .says = "Invalid block size 1000" }, &bytes);
    bytes = sound(3);
    Builder.put(u32, bytes[512..], 24, 0x50000);
    Builder.signHeader(bytes[512..]);
    try expect(.{ .corruptions = 1, .says = "dynamic header: version 50000 is" }, &bytes);
    bytes = sound(4);
    try expect(.{ .corruptions = 1, .says = "without its parent's identifier" }, &bytes);
}

test "blocks: bounds, overlaps, gaps" {
    const second = (Builder.first_block + 512 + Builder.block_size) / 512;
    var bytes = sound(3);
    Builder.put(u32, &bytes, 1536 + 12, 1000);
    // Beyond the file, and the place where it was belongs to nothing.
    try expect(.{ .corruptions = 1, .leaks = 1, .says = "block 3 ends at byte 516608, file has 12800" }, &bytes);
    bytes = sound(3);
    Builder.put(u32, &bytes, 1536 + 16, second);
    try expect(.{ .corruptions = 1, .says = "data block at byte 7680 overlaps the data block at byte 7680" }, &bytes);
    bytes = sound(3);
    Builder.put(u32, &bytes, 1536 + 12, second + 1);
    try expect(.{ .corruptions = 1, .says = "footer at byte 12288 overlaps the data block at byte 8192" }, &bytes);
    bytes = sound(3);
    Builder.put(u32, &bytes, 1536 + 4, 1);
    try expect(.{ .corruptions = 2, .leaks = 0, .says = "overlaps the data block at byte 512" }, &bytes);
    bytes = sound(3);
    Builder.put(u32, &bytes, 1536 + 12, 0xffff_ffff);
    try expect(.{ .leaks = 1, .says = "4608 bytes of the file belong to nothing, the first of them at byte 7680" }, &bytes);
    bytes = sound(3);
    Builder.put(u32, &bytes, 1536 + 12, 0xffff_ffff);
    Builder.put(u32, &bytes, 1536 + 4 * 264 - 4, second);
    // The last of the 264 entries holds half a block of the disk: inside.
    bytes[second * 512] = 0xff;
    try expect(.{}, &bytes);
    bytes[second * 512] = 0xf7;
    // Sectors behind the end of the disk have no bits that count.
    try expect(.{}, &bytes);
    bytes[second * 512] = 0xef;
    try expect(.{ .says = "1 blocks have sectors that their bitmap does not mark" }, &bytes);
}

test "a fixed disk that is too short or too long" {
    var fixed: [1_079_296 + 1024]u8 = @splat(0);
    Builder.footer(fixed[1_079_296 + 512 ..], 2, 1_079_296, "vpc ");
    try expect(.{ .leaks = 1, .says = "512 bytes between the end of the disk and the footer" }, &fixed);
    Builder.footer(fixed[1_079_296 - 512 ..], 2, 1_079_296, "vpc ");
    try expect(.{ .corruptions = 1, .says = "the data end at byte 1078784, the disk has 1079296" }, fixed[0..1_079_296]);
    Builder.footer(fixed[1_079_296..], 2, 1_079_296, "vpc ");
    try expect(.{ .says = "511 bytes instead of 512" }, fixed[0 .. 1_079_296 + 511]);
}

test "random damage is found or harmless, and never more than that" {
    var random: std.Random.DefaultPrng = .init(0x5eed);
    for (0..2000) |_| {
        var bytes = sound(if (random.random().boolean()) 3 else 4);
        for (0..random.random().uintLessThan(usize, 4) + 1) |_| {
            // The metadata, mostly; resigned so that the checksum does not end everything.
            bytes[random.random().uintLessThan(usize, 3072)] = random.random().int(u8);
        }
        if (random.random().boolean()) Builder.sign(&bytes);
        const cut = random.random().uintLessThan(usize, 600);
        var memory: block.Memory = try .init(testing.allocator, bytes[0 .. bytes.len - cut]);
        defer memory.deinit();
        var arena: std.heap.ArenaAllocator = .init(testing.allocator);
        defer arena.deinit();
        var diagnostic: block.Diagnostic = .{};
        var collector: Collector = .{};
        const context: image.Context = .{ .allocator = arena.allocator(), .diagnostic = &diagnostic };
        var report: messages.Check = .{ .format = "vpc", .file_length = 0, .check_errors = 0, .corruptions = 0, .leaks = 0, .findings_omitted = 0 };
        check(context, memory.device(), .{ .context = &collector, .deliver = Collector.deliver }, &report) catch |reason| switch (reason) {
            error.Refused, error.TooLarge => continue,
            else => return reason,
        };
        // Whatever the check calls sound can be opened and walked.
        const opened = @import("vhd.zig").open(context, memory.device()) catch |reason| {
            if (report.corruptions == 0) return reason;
            continue;
        };
        var position: u64 = 0;
        var steps: usize = 0;
        while (position < opened.virtual_size and steps < 10_000) : (steps += 1) position += (try opened.segmentAt(position)).length;
    }
}
