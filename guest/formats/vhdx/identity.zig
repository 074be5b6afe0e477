//! GUIDs, and whatever else is random in an image, made of what the request brought.

const std = @import("std");
const format = @import("format.zig");
const Guid = @import("fields.zig").Guid;

const Sha256 = std.crypto.hash.sha2.Sha256;

fn digest(secret: []const u8, what: []const u8) [Sha256.digest_length]u8 {
    var out: [Sha256.digest_length]u8 = undefined;
    var hash: Sha256 = .init(.{});
    hash.update(secret);
    hash.update(what);
    hash.final(&out);
    return out;
}

/// A GUID for a purpose: random as far as `secret` is, and of version 4 (RFC 9562 section 5.4).
pub fn guid(secret: []const u8, what: []const u8) Guid {
    var uuid: [16]u8 = digest(secret, what)[0..16].*;
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    return ofUuid(uuid);
}

/// A UUID in the order of its text, as it lies in the file.
pub fn ofUuid(uuid: [16]u8) Guid {
    var bytes = uuid;
    std.mem.reverse(u8, bytes[0..4]);
    std.mem.reverse(u8, bytes[4..6]);
    std.mem.reverse(u8, bytes[6..8]);
    return bytes;
}

/// A number for a purpose.
pub fn number(secret: []const u8, what: []const u8) u32 {
    return std.mem.readInt(u32, digest(secret, what)[0..4], .little);
}

/// Length of `text`.
pub const text_length = 38;

/// As text, `{01234567-89ab-...}`.
pub fn text(value: Guid) [text_length]u8 {
    // The order is its own reverse.
    const uuid = ofUuid(value);
    var out: [text_length]u8 = undefined;
    out[0] = '{';
    out[text_length - 1] = '}';
    var at: usize = 1;
    for (uuid, 0..) |byte, i| {
        if (i == 4 or i == 6 or i == 8 or i == 10) {
            out[at] = '-';
            at += 1;
        }
        out[at..][0..2].* = std.fmt.hex(byte);
        at += 2;
    }
    return out;
}

test "GUIDs and their text" {
    try std.testing.expectEqualStrings("{2dc27766-f623-4200-9d64-115e9bfd4a08}", &text(format.guids.bat));
    const one = guid("secret", "a");
    try std.testing.expect(!std.mem.eql(u8, &one, &guid("secret", "b")));
    try std.testing.expect(!std.mem.eql(u8, &one, &guid("other", "a")));
    try std.testing.expectEqual('4', text(one)[15]);
}
