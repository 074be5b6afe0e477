//! Disks in memory with partition tables, sound and damaged.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const raw = @import("../raw/raw.zig");
const content = @import("content.zig");
const mbr = @import("mbr.zig");
const testing = std.testing;

/// Runs the report on a raw disk and keeps the messages' bytes.
const Case = struct {
    memory: block.Memory,
    arena: std.heap.ArenaAllocator,
    diagnostic: block.Diagnostic = .{},
    messages: std.ArrayList([]const u8) = .empty,

    fn init(bytes: []const u8) !Case {
        return .{ .memory = try .init(testing.allocator, bytes), .arena = .init(testing.allocator) };
    }

    fn deinit(self: *Case) void {
        self.memory.deinit();
        self.arena.deinit();
    }

    fn deliver(opaque_self: *anyopaque, message: []const u8) block.Error!void {
        const self: *Case = @ptrCast(@alignCast(opaque_self));
        const allocator = self.arena.allocator();
        const copy = allocator.dupe(u8, message) catch return error.NoMemory;
        self.messages.append(allocator, copy) catch return error.NoMemory;
    }

    fn report(self: *Case) !?[]const u8 {
        const context: image.Context = .{ .allocator = self.arena.allocator(), .diagnostic = &self.diagnostic };
        const device = self.memory.device();
        const opened = try raw.open(context, device);
        return content.report(context, opened, device, .{ .context = self, .deliver = deliver });
    }

    /// How many messages hold every one of the byte strings.
    fn count(self: *const Case, parts: []const []const u8) usize {
        var total: usize = 0;
        next: for (self.messages.items) |message| {
            for (parts) |part| if (std.mem.indexOf(u8, message, part) == null) continue :next;
            total += 1;
        }
        return total;
    }

    fn expect(self: *const Case, expected: usize, parts: []const []const u8) !void {
        if (self.count(parts) == expected) return;
        for (self.messages.items) |message| std.debug.print("\n{f}", .{std.zig.fmtString(message)});
        return error.TestUnexpectedMessages;
    }
};

const sectors = 256;
const yes = "\xf5";
const no = "\xf4";

fn put(comptime T: type, out: []u8, at: usize, value: T) void {
    std.mem.writeInt(T, out[at..][0..@sizeOf(T)], value, .little);
}

fn ext4(out: []u8) void {
    out[1080..1082].* = .{ 0x53, 0xef };
    out[1120] = 0x40;
}

test "MBR: primary, extended and logical partitions, and a file system on one" {
    var disk: [sectors * 512]u8 = @splat(0);
    disk[0..512].* = mbr.testRecord(&.{
        .{ .flag = 0x80, .kind = 0x83, .first = 8, .count = 40 },
        .{ .flag = 0, .kind = 0x05, .first = 64, .count = 128 },
        .{ .flag = 0, .kind = 0x83, .first = 200, .count = 57 },
    });
    put(u32, &disk, 440, 0xdeadbeef);
    ext4(disk[8 * 512 ..]);
    disk[64 * 512 ..][0..512].* = mbr.testRecord(&.{
        .{ .flag = 0, .kind = 0x83, .first = 1, .count = 10 },
        .{ .flag = 0, .kind = 0x05, .first = 32, .count = 10 },
    });
    disk[96 * 512 ..][0..512].* = mbr.testRecord(&.{.{ .flag = 0, .kind = 0x82, .first = 1, .count = 10 }});
    var case: Case = try .init(&disk);
    defer case.deinit();
    try testing.expectEqual(null, try case.report());
    try case.expect(1, &.{ "info-partition-table", "mbr", "deadbeef" });
    try case.expect(5, &.{ "info-partition", "eindex" });
    try case.expect(2, &.{"logical"});
    try case.expect(1, &.{ "logical", "eindex\x06", "Linux swap" });
    // Sector 200 and 57 sectors reach one past the end.
    try case.expect(1, &.{ "eindex", "goutside" ++ yes });
    try case.expect(1, &.{ "info-filesystem", "ext4" });
}

test "a chain of logical partitions that loops, leaves the disk or breaks" {
    const links = [_]struct { first: u32, code: []const u8 }{
        .{ .first = 0, .code = "mbr-chain-loop" },
        .{ .first = 250, .code = "mbr-chain-outside" },
        .{ .first = 20, .code = "mbr-chain-broken" },
    };
    for (links) |link| {
        var disk: [sectors * 512]u8 = @splat(0);
        disk[0..512].* = mbr.testRecord(&.{.{ .flag = 0, .kind = 0x0f, .first = 64, .count = 128 }});
        disk[64 * 512 ..][0..512].* = mbr.testRecord(&.{
            .{ .flag = 0, .kind = 0x83, .first = 1, .count = 10 },
            .{ .flag = 0, .kind = 0x05, .first = link.first, .count = 10 },
        });
        var case: Case = try .init(&disk);
        defer case.deinit();
        _ = try case.report();
        try case.expect(1, &.{ "info-note", link.code });
        try case.expect(1, &.{"glogical"});
    }
}

test "a boot sector of a file system is no partition table" {
    var disk: [sectors * 512]u8 = @splat(0);
    disk[0..512].* = mbr.testRecord(&.{.{ .flag = 0, .kind = 0x83, .first = 8, .count = 40 }});
    disk[82..90].* = "FAT32   ".*;
    var case: Case = try .init(&disk);
    defer case.deinit();
    try testing.expectEqualStrings("vfat", (try case.report()).?);
    try case.expect(0, &.{"partition"});
}

/// A GPT disk of 512-byte sectors with one partition, CRCs right.
fn gptDisk() [sectors * 512]u8 {
    var disk: [sectors * 512]u8 = @splat(0);
    disk[0..512].* = mbr.testRecord(&.{.{ .flag = 0, .kind = 0xee, .first = 1, .count = sectors - 1 }});
    const entry = disk[1024..][0..128];
    // EFI system partition.
    entry[0..16].* = "\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b".*;
    entry[16] = 7;
    put(u64, entry, 32, 40);
    put(u64, entry, 40, 79);
    put(u64, entry, 48, 4);
    entry[56..60].* = "b\x00\xfc\x00".*;
    const crc = std.hash.Crc32.hash(disk[1024..][0 .. 128 * 128]);
    header(disk[512..1024], 1, sectors - 1, 2, crc);
    header(disk[(sectors - 1) * 512 ..], sectors - 1, 1, sectors - 33, crc);
    return disk;
}

fn header(out: []u8, own: u64, other: u64, entries: u64, entries_crc: u32) void {
    out[0..8].* = "EFI PART".*;
    put(u32, out, 8, 0x10000);
    put(u32, out, 12, 92);
    put(u64, out, 24, own);
    put(u64, out, 32, other);
    out[56] = 9;
    put(u64, out, 72, entries);
    put(u32, out, 80, 128);
    put(u32, out, 84, 128);
    put(u32, out, 88, entries_crc);
    put(u32, out, 16, 0);
    put(u32, out, 16, std.hash.Crc32.hash(out[0..92]));
}

const Verdict = struct { header: []const u8, entries: []const u8, backup: []const u8, protective: []const u8 };

fn expectTable(disk: []const u8, verdict: Verdict) !void {
    var case: Case = try .init(disk);
    defer case.deinit();
    _ = try case.report();
    try case.expect(1, &.{"info-partition-table"});
    try case.expect(1, &.{ "info-partition-table", verdict.header });
    try case.expect(1, &.{ "info-partition-table", verdict.entries });
    try case.expect(1, &.{ "info-partition-table", verdict.backup });
    try case.expect(1, &.{ "info-partition-table", verdict.protective });
    // The partition is found in every case: one header is always right.
    try case.expect(1, &.{ "EFI system", "gpt", "b\u{fc}", "factive" ++ yes });
}

test "GPT: headers, entries and protection, each alone" {
    const sound: Verdict = .{ .header = "lheader-valid" ++ yes, .entries = "entries-valid" ++ yes, .backup = "backup-valid" ++ yes, .protective = "protective" ++ yes };
    var disk = gptDisk();
    try expectTable(&disk, sound);

    disk[512 + 16] ^= 1;
    // The backup's entries are at the end.
    @memcpy(disk[(sectors - 33) * 512 ..][0 .. 128 * 128], disk[1024..][0 .. 128 * 128]);
    var expected = sound;
    expected.header = "lheader-valid" ++ no;
    expected.backup = "backup-valid" ++ no;
    try expectTable(&disk, expected);

    disk = gptDisk();
    disk[(sectors - 1) * 512 + 16] ^= 1;
    expected = sound;
    expected.backup = "backup-valid" ++ no;
    try expectTable(&disk, expected);

    disk = gptDisk();
    disk[1024 + 17] ^= 1;
    expected = sound;
    expected.entries = "entries-valid" ++ no;
    try expectTable(&disk, expected);

    disk = gptDisk();
    put(u32, &disk, 458, 10);
    expected = sound;
    expected.protective = "protective" ++ no;
    try expectTable(&disk, expected);
}

test "a GPT header with hostile numbers is not followed" {
    var disk = gptDisk();
    header(disk[512..1024], 1, std.math.maxInt(u64), std.math.maxInt(u64), 0);
    var case: Case = try .init(&disk);
    defer case.deinit();
    _ = try case.report();
    try case.expect(1, &.{ "info-partition-table", "entries-valid" ++ no, "backup-valid" ++ no });
    put(u32, disk[512..], 84, 0);
    var second: Case = try .init(&disk);
    defer second.deinit();
    _ = try second.report();
    try second.expect(1, &.{ "info-partition-table", "header-valid" ++ no });
}

test "a protective MBR without a GPT is noted" {
    var disk: [sectors * 512]u8 = @splat(0);
    disk[0..512].* = mbr.testRecord(&.{.{ .flag = 0, .kind = 0xee, .first = 1, .count = sectors - 1 }});
    var case: Case = try .init(&disk);
    defer case.deinit();
    _ = try case.report();
    try case.expect(1, &.{ "info-note", "gpt-header-missing" });
}
