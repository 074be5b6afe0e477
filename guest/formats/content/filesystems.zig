//! File systems and volume labels by their superblocks.  Names are those of blkid where it has one.

const std = @import("std");
const messages = @import("messages");
const block = @import("block");
const image = @import("../image.zig");
const text = @import("../text.zig");
const Disk = @import("disk.zig").Disk;

/// The parts of a volume that superblocks lie in.
pub const Volume = struct {
    /// Bytes 0 to 4096.
    head: [4096]u8,
    /// From byte 32768: the primary volume descriptor of ISO 9660 (ECMA-119 8.4).
    iso: [128]u8,
    /// From byte 65536: the btrfs superblock.
    far: [768]u8,

    pub const iso_offset = 32768;
    pub const far_offset = 65536;

    /// Read the parts of the volume that begins at byte `offset` of the disk; false when they are not to be had.
    pub fn read(self: *Volume, disk: Disk, offset: u64) block.Error!bool {
        return disk.read(&.{
            .{ .offset = offset, .buffer = &self.head },
            .{ .offset = offset +| iso_offset, .buffer = &self.iso },
            .{ .offset = offset +| far_offset, .buffer = &self.far },
        });
    }

    const Part = enum { head, iso, far };

    fn part(self: *const Volume, which: Part) []const u8 {
        return switch (which) {
            .head => &self.head,
            .iso => &self.iso,
            .far => &self.far,
        };
    }
};

const Identifier = enum { none, uuid, text40, serial4, serial8 };

/// A superblock: magic, and where label and identifier lie in the same part.
const Sign = struct {
    type: []const u8,
    part: Volume.Part = .head,
    at: u16,
    magic: []const u8,
    label_at: u16 = 0,
    label_length: u16 = 0,
    identifier: Identifier = .none,
    identifier_at: u16 = 0,
};

/// More particular signs stand before less particular ones: the first that fits is reported.
const signs = [_]Sign{
    .{ .type = "crypto_LUKS", .at = 0, .magic = "LUKS\xba\xbe", .identifier = .text40, .identifier_at = 168 },
    .{ .type = "xfs", .at = 0, .magic = "XFSB", .label_at = 108, .label_length = 12, .identifier = .uuid, .identifier_at = 32 },
    .{ .type = "squashfs", .at = 0, .magic = "hsqs" },
    .{ .type = "BitLocker", .at = 3, .magic = "-FVE-FS-" },
    .{ .type = "ntfs", .at = 3, .magic = "NTFS    ", .identifier = .serial8, .identifier_at = 72 },
    .{ .type = "exfat", .at = 3, .magic = "EXFAT   ", .identifier = .serial4, .identifier_at = 100 },
    .{ .type = "vfat", .at = 82, .magic = "FAT32   ", .label_at = 71, .label_length = 11, .identifier = .serial4, .identifier_at = 67 },
    .{ .type = "vfat", .at = 54, .magic = "FAT16   ", .label_at = 43, .label_length = 11, .identifier = .serial4, .identifier_at = 39 },
    .{ .type = "vfat", .at = 54, .magic = "FAT12   ", .label_at = 43, .label_length = 11, .identifier = .serial4, .identifier_at = 39 },
    .{ .type = "apfs", .at = 32, .magic = "NXSB", .identifier = .uuid, .identifier_at = 72 },
    .{ .type = "ext4", .at = 1080, .magic = "\x53\xef", .label_at = 1144, .label_length = 16, .identifier = .uuid, .identifier_at = 1128 },
    .{ .type = "f2fs", .at = 1024, .magic = "\x10\x20\xf5\xf2", .identifier = .uuid, .identifier_at = 1132 },
    .{ .type = "erofs", .at = 1024, .magic = "\xe2\xe1\xf5\xe0", .label_at = 1088, .label_length = 16, .identifier = .uuid, .identifier_at = 1072 },
    .{ .type = "hfsplus", .at = 1024, .magic = "H+\x00\x04" },
    .{ .type = "swap", .at = 4086, .magic = "SWAPSPACE2", .label_at = 1052, .label_length = 16, .identifier = .uuid, .identifier_at = 1036 },
    .{ .type = "swap", .at = 4086, .magic = "SWAP-SPACE" },
    .{ .type = "iso9660", .part = .iso, .at = 1, .magic = "CD001", .label_at = 40, .label_length = 32 },
    .{ .type = "btrfs", .part = .far, .at = 64, .magic = "_BHRfS_M", .label_at = 299, .label_length = 256, .identifier = .uuid, .identifier_at = 32 },
};

/// What was recognised.
pub const Found = struct {
    type: []const u8,
    label: ?[]const u8 = null,
    identifier: ?[]const u8 = null,

    /// A boot sector of one of these ends in 55 AA as an MBR does, without holding a partition table.
    pub fn isBootSector(self: Found) bool {
        for ([_][]const u8{ "vfat", "ntfs", "exfat", "BitLocker" }) |name| {
            if (std.mem.eql(u8, name, self.type)) return true;
        }
        return false;
    }

    pub fn emit(self: Found, sink: image.Sink, offset: u64) block.Error!void {
        return sink.emit(messages.InfoFilesystem{
            .type = self.type,
            .offset = offset,
            .label = self.label,
            .identifier = self.identifier,
        });
    }
};

/// Recognise a volume; texts lie in the arena.
pub fn recognise(context: image.Context, volume: *const Volume) block.Error!?Found {
    for (&signs) |*sign| {
        const part = volume.part(sign.part);
        if (!std.mem.startsWith(u8, part[sign.at..], sign.magic)) continue;
        const kind = if (std.mem.eql(u8, sign.type, "ext4")) extVersion(&volume.head) orelse continue else sign.type;
        return .{
            .type = kind,
            .label = try label(context, part[sign.label_at..][0..sign.label_length]),
            .identifier = try identifier(context, sign, part),
        };
    }
    return lvm(context, &volume.head);
}

/// ext2, ext3 or ext4 by feature bits (Linux, Documentation/filesystems/ext4/super.rst); null when the revision or block
/// size is not one that exists: the magic has only two bytes.
fn extVersion(head: *const [4096]u8) ?[]const u8 {
    const superblock = head[1024..];
    const word = struct {
        fn at(bytes: []const u8, offset: usize) u32 {
            return std.mem.readInt(u32, bytes[offset..][0..4], .little);
        }
    }.at;
    if (word(superblock, 24) > 6 or word(superblock, 76) > 1) return null;
    const has_journal = word(superblock, 92) & 0x4 != 0;
    // What ext3 knows: filetype, recover, journal_dev, meta_bg; sparse_super, large_file, btree_dir.
    const beyond_ext3 = word(superblock, 96) & ~@as(u32, 0x1e) != 0 or word(superblock, 100) & ~@as(u32, 0x7) != 0;
    if (beyond_ext3) return "ext4";
    return if (has_journal) "ext3" else "ext2";
}

/// An LVM2 physical volume: a label in one of the first four sectors, its header 32 bytes behind.
fn lvm(context: image.Context, head: *const [4096]u8) block.Error!?Found {
    for (0..4) |index| {
        const sector = head[index * 512 ..][0..512];
        if (!std.mem.startsWith(u8, sector, "LABELONE") or !std.mem.startsWith(u8, sector[24..], "LVM2 001")) continue;
        // 32 letters and digits, shown in groups as LVM's own tools do.
        var dashed: [38]u8 = undefined;
        var used: usize = 0;
        for (sector[32..64], 0..) |letter, i| {
            if (i == 6 or (i > 6 and i < 28 and (i - 6) % 4 == 0)) {
                dashed[used] = '-';
                used += 1;
            }
            dashed[used] = letter;
            used += 1;
        }
        return .{ .type = "LVM2_member", .identifier = try label(context, dashed[0..used]) };
    }
    return null;
}

fn label(context: image.Context, field: []const u8) block.Error!?[]const u8 {
    const bytes = std.mem.trimEnd(u8, block.search.until(field, 0), " ");
    if (bytes.len == 0) return null;
    const copy = context.allocator.dupe(u8, bytes) catch return error.NoMemory;
    return text.fromUtf8(context.allocator, copy) catch error.NoMemory;
}

fn identifier(context: image.Context, sign: *const Sign, part: []const u8) block.Error!?[]const u8 {
    const at = part[sign.identifier_at..];
    switch (sign.identifier) {
        .none => return null,
        .text40 => return label(context, at[0..40]),
        .uuid => {
            if (std.mem.allEqual(u8, at[0..16], 0)) return null;
            const out = context.allocator.create([36]u8) catch return error.NoMemory;
            return text.uuid(out, at[0..16]);
        },
        // Written as a little-endian number, read by people as upper-case hexadecimal.
        .serial4, .serial8 => {
            const length: usize = if (sign.identifier == .serial4) 4 else 8;
            const out = context.allocator.alloc(u8, length * 2) catch return error.NoMemory;
            const digits = "0123456789ABCDEF";
            for (0..length) |i| {
                const byte = at[length - 1 - i];
                out[2 * i] = digits[byte >> 4];
                out[2 * i + 1] = digits[byte & 15];
            }
            return out;
        },
    }
}

fn testVolume() Volume {
    return .{ .head = @splat(0), .iso = @splat(0), .far = @splat(0) };
}

test "every superblock is recognised" {
    var buffer: [256]u8 = undefined;
    var fixed: std.heap.FixedBufferAllocator = .init(&buffer);
    var diagnostic: block.Diagnostic = .{};
    for (signs) |sign| {
        fixed.reset();
        const context: image.Context = .{ .allocator = fixed.allocator(), .diagnostic = &diagnostic };
        var volume = testVolume();
        try std.testing.expect(try recognise(context, &volume) == null);
        const part: []u8 = switch (sign.part) {
            .head => &volume.head,
            .iso => &volume.iso,
            .far => &volume.far,
        };
        if (sign.label_length > 0) part[sign.label_at..][0..4].* = "NAME".*;
        if (sign.identifier != .none) part[sign.identifier_at] = 0x41;
        @memcpy(part[sign.at..][0..sign.magic.len], sign.magic);
        const found = (try recognise(context, &volume)).?;
        const expected = if (std.mem.eql(u8, sign.type, "ext4")) "ext2" else sign.type;
        try std.testing.expectEqualStrings(expected, found.type);
        if (sign.label_length > 0) try std.testing.expectEqualStrings("NAME", found.label.?);
        try std.testing.expectEqual(sign.identifier != .none, found.identifier != null);
    }
}

test "ext versions by features" {
    var volume = testVolume();
    const superblock = volume.head[1024..];
    try std.testing.expectEqualStrings("ext2", extVersion(&volume.head).?);
    superblock[92] = 4;
    try std.testing.expectEqualStrings("ext3", extVersion(&volume.head).?);
    superblock[96] = 0x42;
    try std.testing.expectEqualStrings("ext4", extVersion(&volume.head).?);
    superblock[24] = 7;
    try std.testing.expect(extVersion(&volume.head) == null);
}

test "an LVM2 label in the second sector" {
    var buffer: [64]u8 = undefined;
    var fixed: std.heap.FixedBufferAllocator = .init(&buffer);
    var diagnostic: block.Diagnostic = .{};
    const context: image.Context = .{ .allocator = fixed.allocator(), .diagnostic = &diagnostic };
    var volume = testVolume();
    volume.head[512..][0..8].* = "LABELONE".*;
    try std.testing.expect(try recognise(context, &volume) == null);
    volume.head[536..][0..8].* = "LVM2 001".*;
    volume.head[544..][0..32].* = "yhF8yJjhG2w7Yt2T9Bz6MVe1ICee4XHf".*;
    const found = (try recognise(context, &volume)).?;
    try std.testing.expectEqualStrings("LVM2_member", found.type);
    try std.testing.expectEqualStrings("yhF8yJ-jhG2-w7Yt-2T9B-z6MV-e1IC-ee4XHf", found.identifier.?);
}
