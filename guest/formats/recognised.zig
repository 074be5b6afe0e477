//! Formats that this version recognises and names, and refuses by name: probes only.
//!
//! Magics are from each format's own description; where qemu-img also looks at a version or type field to decide, the
//! same field is looked at here.

const std = @import("std");
const block = @import("block");
const image = @import("image.zig");
const detect = @import("detect.zig");
const holds = detect.holds;

/// One way to tell a format: byte strings at fixed places, or a function.
const Sign = struct {
    /// qemu's driver name.
    name: []const u8,
    magic: []const u8 = "",
    at: u16 = 0,
    /// Count `at` from the end of the file instead.
    from_end: bool = false,
    matches: ?*const fn (head: []const u8) bool = null,
};

/// A sign, and a name for the report that is more precise than the driver's.
const Known = struct { []const u8, Sign };

const known = [_]Known{
    // "QFI\xfb", version 1, big endian (docs/interop/qcow2: version 1 is the older qcow).
    .{ "qcow-v1", .{ .name = "qcow", .magic = "QFI\xfb\x00\x00\x00\x01" } },
    // VMware Virtual Disk Format 5.0: hosted sparse extent, COWD (ESX sparse), text descriptor.
    .{ "vmdk4", .{ .name = "vmdk", .magic = "KDMV" } },
    .{ "vmdk3", .{ .name = "vmdk", .magic = "COWD" } },
    .{ "vmdk-descriptor", .{ .name = "vmdk", .matches = isVmdkDescriptor } },
    // seSparse constant header: magic 0x00000000cafebabe, version 2.1, little endian.
    .{ "sesparse", .{ .name = "vmdk", .magic = "\xbe\xba\xfe\xca\x00\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00" } },
    // VirtualBox VDI 1.1: signature behind 64 bytes of text.
    .{ "vdi", .{ .name = "vdi", .magic = "\x7f\x10\xda\xbe", .at = 64 } },
    // MS-VHDX 2.2.1, file type identifier.
    .{ "vhdx", .{ .name = "vhdx", .magic = "vhdxfile" } },
    .{ "qed", .{ .name = "qed", .magic = "QED\x00" } },
    // LUKS On-Disk Format 1.2.3 and 2.1.4: magic, version.
    .{ "luks1", .{ .name = "luks", .magic = "LUKS\xba\xbe\x00\x01" } },
    .{ "luks2", .{ .name = "luks", .magic = "LUKS\xba\xbe\x00\x02" } },
    // Parallels expandable image: two magics, version 2 (docs/interop/parallels).
    .{ "parallels-v1", .{ .name = "parallels", .magic = "WithoutFreeSpace\x02\x00\x00\x00" } },
    .{ "parallels-v2", .{ .name = "parallels", .magic = "WithouFreSpacExt\x02\x00\x00\x00" } },
    .{ "bochs", .{ .name = "bochs", .magic = "Bochs Virtual HD Image\x00", .matches = isGrowingRedolog } },
    // All 83 bytes: a shell script that merely starts alike is not a cloop image.
    .{ "cloop", .{
        .name = "cloop",
        .magic = "#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n",
    } },
    // UDIF trailer: "koly", version 4, 512 bytes long, at the very end.
    .{ "udif", .{ .name = "dmg", .magic = "koly\x00\x00\x00\x04\x00\x00\x02\x00", .at = 512, .from_end = true } },
    // Apple sparse image format of macOS 26.
    .{ "asif", .{ .name = "asif", .magic = "shdw" } },
};

/// The signs alone: an operation that only asks for the driver does not carry the other names.
const signs: [known.len]Sign = blk: {
    var list: [known.len]Sign = undefined;
    for (known, &list) |one, *sign| sign.* = one[1];
    break :blk list;
};

const variants: [known.len][]const u8 = blk: {
    var list: [known.len][]const u8 = undefined;
    for (known, &list) |one, *name| name.* = one[0];
    break :blk list;
};

/// Formats with a driver of their own: only their variants are told here.
const built = [_][]const u8{ "vhdx", "vmdk", "luks" };

fn isBuilt(name: []const u8) bool {
    for (built) |one| if (std.mem.eql(u8, one, name)) return true;
    return false;
}

const names = blk: {
    @setEvalBranchQuota(10_000);
    var list: []const []const u8 = &.{};
    for (signs) |sign| {
        if (isBuilt(sign.name)) continue;
        const last = if (list.len == 0) "" else list[list.len - 1];
        if (!std.mem.eql(u8, last, sign.name)) list = list ++ [_][]const u8{sign.name};
    }
    break :blk list;
};

/// One probe-only driver for each format, in the order of the table above.
pub const drivers: [names.len]image.Driver = blk: {
    var list: [names.len]image.Driver = undefined;
    for (names, 0..) |name, i| list[i] = .{ .name = name, .probe = Prober(name).probe };
    break :blk list;
};

fn Prober(comptime name: []const u8) type {
    return struct {
        fn probe(p: *const image.Probe) u8 {
            return score(p, name);
        }
    };
}

/// A function of its own: what it does need not be repeated for each format.
pub noinline fn score(p: *const image.Probe, name: []const u8) u8 {
    const index = find(p, name) orelse return detect.score.none;
    return if (signs[index].from_end) detect.score.trailer else detect.score.magic;
}

/// A name that is more precise than the driver's ("luks2"), null when the content does not look like `name`.
pub fn variant(p: *const image.Probe, name: []const u8) ?[]const u8 {
    return variants[find(p, name) orelse return null];
}

/// Formats for which qemu-img's `check` ends with status 63 as well.
pub fn hasNoChecks(name: []const u8) bool {
    const without = [_][]const u8{ "raw", "qcow", "bochs", "cloop", "dmg", "asif" };
    for (without) |one| if (std.mem.eql(u8, one, name)) return true;
    return false;
}

fn find(p: *const image.Probe, name: []const u8) ?usize {
    for (&signs, 0..) |*sign, index| {
        if (std.mem.eql(u8, sign.name, name) and fits(sign, p)) return index;
    }
    return null;
}

fn fits(sign: *const Sign, p: *const image.Probe) bool {
    if (sign.from_end) {
        return p.tail.len >= sign.at and holds(p.tail, p.tail.len - sign.at, sign.magic);
    }
    if (!holds(p.head, sign.at, sign.magic)) return false;
    return if (sign.matches) |matches| matches(p.head) else true;
}

/// A growing redolog of version 1 or 2, as the Bochs `bximage` tool writes it.
fn isGrowingRedolog(head: []const u8) bool {
    return holds(head, 32, "Redolog\x00") and holds(head, 48, "Growing\x00") and
        (holds(head, 64, "\x00\x00\x01\x00") or holds(head, 64, "\x00\x00\x02\x00"));
}

/// A VMDK text descriptor: comments and lines of blanks, then `version=` 1, 2 or 3 on a line of its own.  Empty lines do
/// not count as blank for qemu-img, and what does not begin like this is raw.
fn isVmdkDescriptor(head: []const u8) bool {
    var rest = head;
    while (block.search.first(rest, '\n')) |end| {
        var line = rest[0..end];
        rest = rest[end + 1 ..];
        if (line.len > 0 and line[0] == '#') continue;
        if (std.mem.endsWith(u8, line, "\r")) line = line[0 .. line.len - 1];
        if (line.len > 0 and std.mem.allEqual(u8, line, ' ')) continue;
        return line.len == 9 and std.mem.startsWith(u8, line, "version=") and line[8] >= '1' and line[8] <= '3';
    }
    return false;
}

fn expectName(expected: ?[]const u8, bytes: []const u8) !void {
    const device: block.Device = undefined;
    const tail = bytes[bytes.len - @min(bytes.len, detect.tail_size) ..];
    const p: image.Probe = .{ .length = bytes.len, .head = bytes[0..@min(bytes.len, detect.head_size)], .tail = tail, .device = device };
    for (signs) |sign| {
        if (score(&p, sign.name) == detect.score.none) continue;
        return std.testing.expectEqualStrings(expected orelse return error.TestUnexpectedMatch, variant(&p, sign.name).?);
    }
    return std.testing.expectEqual(expected, null);
}

test "every sign is found, and none with a byte changed" {
    for (signs, variants) |sign, name| {
        if (sign.matches != null or isBuilt(sign.name)) continue;
        var bytes: [1024]u8 = @splat(0);
        const at: usize = if (sign.from_end) bytes.len - sign.at else sign.at;
        @memcpy(bytes[at..][0..sign.magic.len], sign.magic);
        try expectName(name, &bytes);
        for (0..sign.magic.len) |i| {
            bytes[at + i] ^= 0x80;
            try expectName(null, &bytes);
            bytes[at + i] ^= 0x80;
        }
    }
}

test "a VMDK descriptor is told by its version line" {
    try expectName("vmdk-descriptor", "# Disk DescriptorFile\nversion=1\nCID=1\n");
    try expectName("vmdk-descriptor", "#\r\n  \r\n \nversion=3\r\n");
    try expectName(null, "# Disk DescriptorFile\nversion=4\n");
    try expectName(null, "# Disk DescriptorFile\n version=1\n");
    try expectName(null, "# Disk DescriptorFile\nversion=1");
    try expectName(null, "CID=1\nversion=1\n");
    try expectName(null, "#\n\nversion=1\n");
}

test "a Bochs image needs its type and version" {
    var bytes: [512]u8 = @splat(0);
    bytes[0..22].* = "Bochs Virtual HD Image".*;
    bytes[32..39].* = "Redolog".*;
    bytes[48..55].* = "Growing".*;
    bytes[66] = 2;
    try expectName("bochs", &bytes);
    bytes[66] = 3;
    try expectName(null, &bytes);
    bytes[66] = 1;
    bytes[48] = 'V';
    try expectName(null, &bytes);
}
