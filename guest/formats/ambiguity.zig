//! Whether bytes that were detected as one format would be taken for another one by somebody else.
//!
//! An operation that writes in place must not guess: a guest can write the header of any format into its raw disk, and
//! whoever then detects that format changes bytes that the format says lie elsewhere (CVE-2026-24708).  Signatures
//! are looked at alone here, without version or type: this reader may know that a version does not exist, the next one
//! may not.

const std = @import("std");
const image = @import("image.zig");
const holds = @import("detect.zig").holds;

const Sign = struct {
    /// What it looks like, as the message names it.
    name: []const u8,
    magic: []const u8,
    at: u16 = 0,
    /// Anywhere in the last bytes instead.
    trailer: bool = false,
};

const signs = [_]Sign{
    .{ .name = "qcow2", .magic = "QFI\xfb" },
    .{ .name = "vmdk", .magic = "KDMV" },
    .{ .name = "vmdk", .magic = "COWD" },
    .{ .name = "vmdk", .magic = "# Disk DescriptorFile" },
    .{ .name = "vmdk", .magic = "\xbe\xba\xfe\xca\x00\x00\x00\x00" },
    .{ .name = "vhdx", .magic = "vhdxfile" },
    .{ .name = "vpc", .magic = "conectix" },
    .{ .name = "vdi", .magic = "\x7f\x10\xda\xbe", .at = 64 },
    .{ .name = "qed", .magic = "QED\x00" },
    .{ .name = "luks", .magic = "LUKS\xba\xbe" },
    .{ .name = "luks", .magic = "SKUL\xba\xbe" },
    .{ .name = "parallels", .magic = "WithoutFreeSpace" },
    .{ .name = "parallels", .magic = "WithouFreSpacExt" },
    .{ .name = "bochs", .magic = "Bochs Virtual HD Image" },
    .{ .name = "cloop", .magic = "#!/bin/sh\n#V2.0 Format\n" },
    .{ .name = "asif", .magic = "shdw" },
    .{ .name = "vpc", .magic = "conectix", .trailer = true },
    .{ .name = "dmg", .magic = "koly", .trailer = true },
};

/// The format whose signature the first sector holds, or the last bytes hold; null where there is none.
pub fn looksLike(probe: *const image.Probe) ?[]const u8 {
    for (&signs) |*sign| {
        const found = if (sign.trailer)
            std.mem.indexOf(u8, probe.tail, sign.magic) != null
        else
            holds(probe.head, sign.at, sign.magic);
        if (found) return sign.name;
    }
    return null;
}

test "every signature is seen, whatever stands beside it" {
    for (signs) |sign| {
        var bytes: [1024]u8 = @splat(0xa5);
        try std.testing.expectEqual(null, looksLike(&.{ .length = 1024, .head = bytes[0..512], .tail = bytes[1..], .device = undefined }));
        const at: usize = if (sign.trailer) 600 else sign.at;
        @memcpy(bytes[at..][0..sign.magic.len], sign.magic);
        const found = looksLike(&.{ .length = 1024, .head = bytes[0..512], .tail = bytes[513..], .device = undefined });
        try std.testing.expectEqualStrings(sign.name, found.?);
        bytes[at] ^= 1;
        try std.testing.expectEqual(null, looksLike(&.{ .length = 1024, .head = bytes[0..512], .tail = bytes[513..], .device = undefined }));
    }
}
