//! The digests that headers, key derivation and the anti-forensic splitter use, chosen by name when the image is read.

const std = @import("std");
const sha1 = std.crypto.hash.Sha1;
const sha2 = std.crypto.hash.sha2;

pub const max_size = 64;

pub const Algorithm = enum {
    sha1,
    sha256,
    sha512,

    pub fn named(name: []const u8) ?Algorithm {
        return std.meta.stringToEnum(Algorithm, name);
    }

    /// Bytes of a digest.
    pub fn size(self: Algorithm) usize {
        return switch (self) {
            .sha1 => 20,
            .sha256 => 32,
            .sha512 => 64,
        };
    }

    pub fn Type(comptime self: Algorithm) type {
        return switch (self) {
            .sha1 => sha1,
            .sha256 => sha2.Sha256,
            .sha512 => sha2.Sha512,
        };
    }
};

/// The digest of `bytes`, in `out`; answers its part.
pub fn hash(algorithm: Algorithm, bytes: []const u8, out: *[max_size]u8) []const u8 {
    switch (algorithm) {
        inline else => |known| {
            const Hash = known.Type();
            Hash.hash(bytes, out[0..Hash.digest_length], .{});
            return out[0..Hash.digest_length];
        },
    }
}
