//! Text out of images: always valid UTF-8, whatever the image holds.

const std = @import("std");
const cbor = @import("cbor");

/// Decode `bytes` as UTF-8; what cannot be decoded becomes U+FFFD: one for each byte, or for a lead byte and the
/// continuation bytes that it asks for and that follow, as QEMU has it.  The result is `bytes` itself when it is valid,
/// and otherwise lies in `allocator`'s memory, at most three times as long.
pub fn fromUtf8(allocator: std.mem.Allocator, bytes: []const u8) error{OutOfMemory}![]const u8 {
    if (cbor.utf8.valid(bytes)) return bytes;
    const out = try allocator.alloc(u8, bytes.len * 3);
    var used: usize = 0;
    var i: usize = 0;
    while (i < bytes.len) {
        const length = cbor.utf8.sequence(bytes[i..]);
        if (length > 0) {
            @memcpy(out[used..][0..length], bytes[i..][0..length]);
            used += length;
            i += length;
        } else {
            out[used..][0..3].* = std.unicode.replacement_character_utf8;
            used += 3;
            i += brokenLength(bytes[i..]);
        }
    }
    return out[0..used];
}

/// Bytes that one replacement stands for.  Leads of five and six bytes are those of the first UTF-8 (RFC 2279).
fn brokenLength(bytes: []const u8) usize {
    const lead = bytes[0];
    if (lead < 0xc0 or lead >= 0xfe) return 1;
    const wanted = @min(@as(usize, @clz(~lead)), bytes.len);
    var length: usize = 1;
    while (length < wanted and bytes[length] & 0xc0 == 0x80) length += 1;
    return length;
}

/// Decode UTF-16 (an odd last byte is left out) up to the first NUL; unpaired surrogates become U+FFFD.
pub fn fromUtf16(allocator: std.mem.Allocator, bytes: []const u8, endian: std.builtin.Endian) error{OutOfMemory}![]const u8 {
    const units = bytes.len / 2;
    const out = try allocator.alloc(u8, units * 3);
    var used: usize = 0;
    var i: usize = 0;
    while (i < units) : (i += 1) {
        const unit = std.mem.readInt(u16, bytes[2 * i ..][0..2], endian);
        if (unit == 0) break;
        var point: u21 = unit;
        if (unit >= 0xd800 and unit < 0xdc00 and i + 1 < units) {
            const low = std.mem.readInt(u16, bytes[2 * i + 2 ..][0..2], endian);
            if (low >= 0xdc00 and low < 0xe000) {
                point = 0x10000 + ((@as(u21, unit) - 0xd800) << 10) + (low - 0xdc00);
                i += 1;
            }
        }
        if (point >= 0xd800 and point < 0xe000) point = std.unicode.replacement_character;
        used += std.unicode.utf8Encode(point, out[used..]) catch unreachable;
    }
    return out[0..used];
}

/// `00112233-4455-6677-8899-aabbccddeeff`, bytes in the order in which they lie.
pub fn uuid(out: *[36]u8, bytes: *const [16]u8) []const u8 {
    const digits = "0123456789abcdef";
    var at: usize = 0;
    for (bytes, 0..) |byte, i| {
        if (i == 4 or i == 6 or i == 8 or i == 10) {
            out[at] = '-';
            at += 1;
        }
        out[at] = digits[byte >> 4];
        out[at + 1] = digits[byte & 15];
        at += 2;
    }
    return out;
}

/// A GUID as Microsoft stores it: the first three groups little endian.
pub fn guid(out: *[36]u8, bytes: *const [16]u8) []const u8 {
    const order = [16]u8{ 3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15 };
    var swapped: [16]u8 = undefined;
    for (order, 0..) |from, i| swapped[i] = bytes[from];
    return uuid(out, &swapped);
}

/// As much of UTF-8 as `most` bytes hold, cut between characters.
pub fn shorten(value: []const u8, most: usize) []const u8 {
    if (value.len <= most) return value;
    var end = most;
    while (end > 0 and value[end] & 0xc0 == 0x80) end -= 1;
    return value[0..end];
}

test "undecodable bytes become replacement characters" {
    var buffer: [64]u8 = undefined;
    var fixed: std.heap.FixedBufferAllocator = .init(&buffer);
    const plain = "grün";
    try std.testing.expectEqual(plain.ptr, (try fromUtf8(fixed.allocator(), plain)).ptr);
    const cut = try fromUtf8(fixed.allocator(), "a\xffb\xe2\x82\xc3\x80\x80c\xe2\x82");
    try std.testing.expectEqualStrings("a\u{fffd}b\u{fffd}À\u{fffd}c\u{fffd}", cut);
}

test "UTF-16 with surrogates, ends at NUL" {
    var buffer: [64]u8 = undefined;
    var fixed: std.heap.FixedBufferAllocator = .init(&buffer);
    try std.testing.expectEqualStrings("A\u{1f600}", try fromUtf16(fixed.allocator(), "\x00A\xd8\x3d\xde\x00\x00\x00\x00Z", .big));
    try std.testing.expectEqualStrings("\u{fffd}A", try fromUtf16(fixed.allocator(), "\x00\xd8A\x00Q", .little));
}

test "GUIDs swap their first three groups" {
    const bytes = "\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b";
    var out: [36]u8 = undefined;
    try std.testing.expectEqualStrings("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", guid(&out, bytes));
    try std.testing.expectEqualStrings("28732ac1-1ff8-d211-ba4b-00a0c93ec93b", uuid(&out, bytes));
}

test "text is cut between characters" {
    try std.testing.expectEqualStrings("ab", shorten("ab", 2));
    try std.testing.expectEqualStrings("ab", shorten("abc", 2));
    try std.testing.expectEqualStrings("a", shorten("a\u{e9}", 2));
    try std.testing.expectEqualStrings("a\u{e9}", shorten("a\u{e9}b", 3));
    try std.testing.expectEqualStrings("a", shorten("a\u{1f4be}", 4));
    try std.testing.expectEqualStrings("", shorten("\u{1f4be}", 3));
}
