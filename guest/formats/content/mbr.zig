//! The master boot record and its chain of extended boot records.
//!
//! Sizes are in sectors of 512 bytes; a disk with larger sectors and an MBR cannot be told from one with small ones.

const std = @import("std");
const messages = @import("messages");
const block = @import("block");
const image = @import("../image.zig");
const Disk = @import("disk.zig").Disk;

const sector = 512;
/// Logical partitions reported at most; a chain that is longer, or loops, ends in a note.
const max_logical = 64;

/// One of the four entries of a boot record.
pub const Entry = struct {
    flag: u8,
    kind: u8,
    /// In sectors.
    first: u32,
    count: u32,

    fn of(boot: *const [sector]u8, index: usize) Entry {
        const bytes = boot[446 + index * 16 ..][0..16];
        return .{
            .flag = bytes[0],
            .kind = bytes[4],
            .first = std.mem.readInt(u32, bytes[8..12], .little),
            .count = std.mem.readInt(u32, bytes[12..16], .little),
        };
    }

    fn isExtended(self: Entry) bool {
        return self.kind == 0x05 or self.kind == 0x0f or self.kind == 0x85;
    }

    fn isUsed(self: Entry) bool {
        return self.kind != 0 and self.count != 0;
    }
};

/// The table of the first sector, null when there is none: no signature, a boot flag that is none, or no partition.
pub fn parse(boot: *const [sector]u8) ?[4]Entry {
    if (boot[510] != 0x55 or boot[511] != 0xaa) return null;
    var entries: [4]Entry = undefined;
    var used = false;
    for (&entries, 0..) |*entry, i| {
        entry.* = .of(boot, i);
        if (entry.flag & 0x7f != 0) return null;
        used = used or entry.isUsed();
    }
    return if (used) entries else null;
}

pub const Protection = enum {
    /// No entry of type EE.
    none,
    /// Exactly one entry, type EE, from sector 1 to the end of the disk (UEFI 2.10, 5.2.3).
    whole,
    /// An entry of type EE that does not guard the whole disk, or others beside it.
    partial,
};

pub fn protection(entries: *const [4]Entry, disk_size: u64, sector_size: u64) Protection {
    const sectors = disk_size / sector_size;
    var result: Protection = .none;
    for (entries, 0..) |entry, i| {
        if (entry.kind == 0xee) {
            const whole = i == 0 and entry.first == 1 and (entry.count == 0xffff_ffff or entry.count == sectors -| 1);
            result = if (whole) .whole else .partial;
        }
    }
    for (entries[1..]) |entry| if (result == .whole and entry.isUsed()) return .partial;
    return result;
}

/// What the caller does with a partition that may hold a file system.
pub const Visit = *const fn (context: *anyopaque, offset: u64, length: u64) block.Error!void;

/// Report the table and its partitions.
pub fn report(disk: Disk, sink: image.Sink, boot: *const [sector]u8, entries: *const [4]Entry, visitor: *anyopaque, visit: Visit) block.Error!void {
    var signature: [8]u8 = undefined;
    const number = std.mem.readInt(u32, boot[440..444], .little);
    hex(&signature, number);
    try sink.emit(messages.InfoPartitionTable{
        .scheme = "mbr",
        .sector_size = sector,
        .identifier = if (number == 0) null else &signature,
    });
    var logical: u64 = 5;
    for (entries, 1..) |entry, index| {
        if (!entry.isUsed()) continue;
        const kind = if (entry.isExtended()) "extended" else "primary";
        try emit(disk, sink, entry, index, kind, entry.first);
        if (entry.isExtended()) {
            try extended(disk, sink, entry.first, &logical, visitor, visit);
        } else try visit(visitor, @as(u64, entry.first) * sector, @as(u64, entry.count) * sector);
    }
}

/// Walk the chain of an extended partition that begins at sector `base`.
fn extended(disk: Disk, sink: image.Sink, base: u32, next_index: *u64, visitor: *anyopaque, visit: Visit) block.Error!void {
    var record: u64 = base;
    var boot: [sector]u8 = undefined;
    for (0..max_logical) |_| {
        if (record >= disk.size() / sector) return note(sink, "mbr-chain-outside", "the chain of logical partitions leaves the disk", record);
        if (!try disk.read(&.{.{ .offset = record * sector, .buffer = &boot }})) return;
        if (boot[510] != 0x55 or boot[511] != 0xaa) return note(sink, "mbr-chain-broken", "an extended boot record has no signature", record);
        const partition: Entry = .of(&boot, 0);
        if (partition.isUsed()) {
            const first = record + partition.first;
            try emit(disk, sink, partition, next_index.*, "logical", first);
            try visit(visitor, first * sector, @as(u64, partition.count) * sector);
            next_index.* += 1;
        }
        const link: Entry = .of(&boot, 1);
        if (!link.isUsed()) return;
        const next = @as(u64, base) + link.first;
        // Links are relative to the extended partition and go forward: a loop cannot.
        if (next <= record) return note(sink, "mbr-chain-loop", "the chain of logical partitions goes backwards", record);
        record = next;
    }
    return note(sink, "mbr-chain-long", "more logical partitions than are looked at", record);
}

fn note(sink: image.Sink, code: []const u8, message: []const u8, at: u64) block.Error!void {
    return sink.emit(messages.InfoNote{ .code = code, .message = message, .offset = at *| sector });
}

fn emit(disk: Disk, sink: image.Sink, entry: Entry, index: u64, kind: []const u8, first: u64) block.Error!void {
    const start = first * sector;
    const length = @as(u64, entry.count) * sector;
    var digits: [2]u8 = undefined;
    hex(&digits, entry.kind);
    return sink.emit(messages.InfoPartition{
        .scheme = "mbr",
        .index = index,
        .kind = kind,
        .type = &digits,
        .type_name = typeName(entry.kind),
        .start = start,
        .length = length,
        .active = entry.flag == 0x80,
        .outside = start + length > disk.size(),
    });
}

fn hex(out: []u8, number: u32) void {
    var rest = number;
    var i = out.len;
    while (i > 0) {
        i -= 1;
        out[i] = "0123456789abcdef"[rest & 15];
        rest >>= 4;
    }
}

fn typeName(kind: u8) ?[]const u8 {
    return switch (kind) {
        0x01 => "FAT12",
        0x04, 0x06, 0x0e => "FAT16",
        0x05, 0x0f, 0x85 => "extended",
        0x07 => "NTFS or exFAT",
        0x0b, 0x0c => "FAT32",
        0x27 => "Windows recovery",
        0x82 => "Linux swap",
        0x83 => "Linux",
        0x8e => "Linux LVM",
        0xa5 => "FreeBSD",
        0xa6 => "OpenBSD",
        0xa8, 0xaf => "Apple",
        0xa9 => "NetBSD",
        0xee => "GPT protective",
        0xef => "EFI system",
        0xfb => "VMware VMFS",
        0xfd => "Linux RAID",
        else => null,
    };
}

pub fn testRecord(entries: []const Entry) [sector]u8 {
    var boot: [sector]u8 = @splat(0);
    for (entries, 0..) |entry, i| {
        const bytes = boot[446 + i * 16 ..][0..16];
        bytes[0] = entry.flag;
        bytes[4] = entry.kind;
        std.mem.writeInt(u32, bytes[8..12], entry.first, .little);
        std.mem.writeInt(u32, bytes[12..16], entry.count, .little);
    }
    boot[510..512].* = .{ 0x55, 0xaa };
    return boot;
}

test "a table needs signature, boot flags and a partition" {
    const linux: Entry = .{ .flag = 0x80, .kind = 0x83, .first = 2048, .count = 100 };
    var boot = testRecord(&.{linux});
    try std.testing.expectEqual(linux, parse(&boot).?[0]);
    boot[446] = 0x81;
    try std.testing.expect(parse(&boot) == null);
    boot[446] = 0;
    boot[450] = 0;
    try std.testing.expect(parse(&boot) == null);
    boot[450] = 7;
    boot[510] = 0;
    try std.testing.expect(parse(&boot) == null);
}

test "what a protective entry guards" {
    const guard: Entry = .{ .flag = 0, .kind = 0xee, .first = 1, .count = 99 };
    const none: Entry = .{ .flag = 0, .kind = 0, .first = 0, .count = 0 };
    const other: Entry = .{ .flag = 0, .kind = 7, .first = 50, .count = 1 };
    try std.testing.expectEqual(.whole, protection(&.{ guard, none, none, none }, 100 * 512, 512));
    try std.testing.expectEqual(.partial, protection(&.{ guard, none, none, none }, 101 * 512, 512));
    try std.testing.expectEqual(.partial, protection(&.{ guard, other, none, none }, 100 * 512, 512));
    try std.testing.expectEqual(.partial, protection(&.{ other, guard, none, none }, 100 * 512, 512));
    try std.testing.expectEqual(.none, protection(&.{ other, none, none, none }, 100 * 512, 512));
}
