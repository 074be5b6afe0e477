//! CBOR (RFC 8949) as host and guest speak it: the deterministic subset of section 4.2.1 without floats and tags.
//!
//! Messages and requests are plain structs, generated from calltable/definition/messages.  A field `virtual_size` has
//! the key "virtual-size"; an optional field that is null is left out; `[]const u8` is text, `Bytes` a byte string,
//! `Any` an item that is already encoded, another slice an array, another struct a map, an enum the text of its name.
//!
//! Text from an image may be any bytes, CBOR text must be UTF-8.  What is not UTF-8 is escaped without loss: each
//! byte that is part of no valid sequence becomes `\xNN` (two lower-case hexadecimal digits), and a backslash of the
//! original in front of something that reads as such an escape becomes `\x5c`.  Replacing every `\xNN` of the result
//! by its byte therefore gives the original, and text that is valid and holds no `\xNN` is unchanged.

pub const utf8 = @import("utf8.zig");

pub const Encoder = @import("encode.zig").Encoder;
pub const EncodeError = @import("encode.zig").EncodeError;
pub const encode = @import("encode.zig").encode;
pub const encodeMessage = @import("encode.zig").encodeMessage;

pub const DecodeError = @import("decode.zig").DecodeError;
pub const Problem = @import("decode.zig").Problem;
pub const decode = @import("decode.zig").decode;
pub const decodeReporting = @import("decode.zig").decodeReporting;

/// A byte string, where `[]const u8` alone would be text.
pub const Bytes = struct {
    bytes: []const u8,
};

/// One item that is already encoded, passed on as it is.
pub const Any = struct {
    encoded: []const u8,
};

/// How a field is called on the wire.
pub fn keyOf(comptime name: []const u8) []const u8 {
    comptime {
        var key: [name.len]u8 = name[0..name.len].*;
        for (&key) |*c| {
            if (c.* == '_') c.* = '-';
        }
        const final = key;
        return &final;
    }
}

/// The shortest head of an item (RFC 8949 section 3): its bytes are `bytes[0..length]`.
pub const Head = struct {
    bytes: [9]u8,
    length: u4,

    pub fn init(major: u3, argument: u64) Head {
        var head: Head = .{ .bytes = undefined, .length = undefined };
        const extra: u4 = if (argument < 24) 0 else if (argument <= 0xff) 1 else if (argument <= 0xffff) 2 else if (argument <= 0xffff_ffff) 4 else 8;
        const short: u8 = switch (extra) {
            0 => @intCast(argument),
            1 => 24,
            2 => 25,
            4 => 26,
            else => 27,
        };
        head.bytes[0] = @as(u8, major) << 5 | short;
        var rest = argument;
        var i: u4 = extra;
        while (i > 0) : (i -= 1) {
            head.bytes[i] = @truncate(rest);
            rest >>= 8;
        }
        head.length = extra + 1;
        return head;
    }
};

test {
    _ = @import("encode.zig");
    _ = @import("decode.zig");
    _ = @import("vectors.zig");
    _ = utf8;
}
