//! What a LUKS1 file consists of, for whoever measures and whoever plans: a header, eight areas of key material, the
//! payload.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const target = @import("../target.zig");
const header_zig = @import("header.zig");

const format = header_zig.format;

/// PBKDF2 iterations of the key slot, unless others are asked for.  qemu-img measures the machine for two seconds; a
/// number that is always the same makes the same file.  It is what OWASP asks of PBKDF2 with SHA-256, and takes about a
/// second here.
pub const default_iterations = 600_000;
/// The master key's digest needs fewer: it is random.
const digest_share = 8;
pub const least_iterations = 1000;

const accepted = target.mask(&.{ "cipher_alg", "cipher_mode", "hash_alg", "ivgen_alg", "ivgen_hash_alg", "iterations", "preallocation" });

/// The options, resolved and checked.
pub const Parameters = struct {
    method: header_zig.Method,
    hash: header_zig.Hash,
    iterations: u32,

    /// Bytes of the master key.
    pub fn keyBytes(self: Parameters) u32 {
        return self.method.cipher_key * @as(u32, if (self.method.mode == .xts) 2 else 1);
    }

    pub fn digestIterations(self: Parameters) u32 {
        return @max(self.iterations / digest_share, least_iterations);
    }

    /// Bytes of one slot's key material with its padding.
    pub fn areaSize(self: Parameters) u64 {
        return std.mem.alignForward(u64, @as(u64, self.keyBytes()) * header_zig.stripes, header_zig.alignment);
    }

    /// Bytes from the start of the file.
    pub fn slotOffset(self: Parameters, index: u64) u64 {
        return header_zig.alignment + index * self.areaSize();
    }

    pub fn payloadOffset(self: Parameters) u64 {
        return self.slotOffset(header_zig.slot_count);
    }
};

const Cipher = struct { name: []const u8, cipher: header_zig.Cipher, key: u32 };
const ciphers = [_]Cipher{
    .{ .name = "aes-128", .cipher = .aes, .key = 16 },
    .{ .name = "aes-192", .cipher = .aes, .key = 24 },
    .{ .name = "aes-256", .cipher = .aes, .key = 32 },
    .{ .name = "cast5-128", .cipher = .cast5, .key = 16 },
    .{ .name = "serpent-128", .cipher = .serpent, .key = 16 },
    .{ .name = "serpent-192", .cipher = .serpent, .key = 24 },
    .{ .name = "serpent-256", .cipher = .serpent, .key = 32 },
    .{ .name = "twofish-128", .cipher = .twofish, .key = 16 },
    .{ .name = "twofish-192", .cipher = .twofish, .key = 24 },
    .{ .name = "twofish-256", .cipher = .twofish, .key = 32 },
};

/// Resolve the options as qemu-img does, with its defaults and its refusals.  `owner` is the format that is asked for:
/// luks, or qcow2 with a header inside.
pub fn parameters(context: image.Context, owner: []const u8, options: *const target.Options) error{Refused}!Parameters {
    var out: Parameters = undefined;
    const cipher = options.cipher_alg orelse "aes-256";
    const known = for (&ciphers) |*one| {
        if (std.mem.eql(u8, one.name, cipher)) break one;
    } else {
        for ([_][]const u8{ "des", "3des" }) |name| if (std.mem.eql(u8, name, cipher))
            return target.refuseOption(context, owner, "luks: Algorithm '{s}' not supported", .{name});
        return target.refuseValue(context, owner, "cipher-alg", cipher);
    };
    out.method = .{
        .cipher = known.cipher,
        .cipher_key = known.key,
        .mode = try choice(header_zig.Mode, context, owner, "cipher-mode", options.cipher_mode, .xts),
        .generator = try choice(header_zig.Generator, context, owner, "ivgen-alg", options.ivgen_alg, .plain64),
        .generator_hash = null,
    };
    out.hash = try choice(header_zig.Hash, context, owner, "hash-alg", options.hash_alg, .sha256);
    if (options.ivgen_hash_alg != null or out.method.generator == .essiv)
        out.method.generator_hash = try choice(header_zig.Hash, context, owner, "ivgen-hash-alg", options.ivgen_hash_alg, .sha256);
    if (out.method.generator == .essiv) try header_zig.checkEssiv(context.diagnostic, 0, out.method);
    if (out.method.mode == .xts and known.cipher == .cast5)
        return target.refuseOption(context, owner, "luks: Unsupported cipher mode xts for cast5-128", .{});
    // Material is encrypted in sectors; 24 * 4000 bytes are none.
    if (out.keyBytes() % 16 != 0)
        return target.refuseOption(context, owner, "luks: {s} makes key material that is no multiple of 512 bytes except with cipher-mode=xts", .{known.name});
    const iterations = options.iterations orelse default_iterations;
    if (iterations < least_iterations or iterations > std.math.maxInt(u32)) return context.diagnostic.refuse(
        .invalid_option,
        .{ .format = owner, .structure = "iterations", .value = iterations, .limit = std.math.maxInt(u32) },
        "luks: {d} iterations, at least {d} and at most {d}",
        .{ iterations, least_iterations, std.math.maxInt(u32) },
    );
    out.iterations = @intCast(iterations);
    return out;
}

fn choice(comptime T: type, context: image.Context, owner: []const u8, name: []const u8, given: ?[]const u8, default: T) error{Refused}!T {
    const value = given orelse return default;
    return std.meta.stringToEnum(T, value) orelse target.refuseValue(context, owner, name, value);
}

/// Refuse the options that a LUKS file does not have, and resolve the others.
pub fn own(context: image.Context, options: *const target.Options) error{Refused}!Parameters {
    try target.onlyOptions(context, format, options, accepted);
    return parameters(context, format, options);
}

/// Every byte of the disk is stored, whatever it holds.
pub fn measure(context: image.Context, source: target.Source, options: *const target.Options) block.Error!target.Sizes {
    const wanted = try own(context, options);
    _ = try target.preallocation(context, format, options);
    const size = source.virtualSize();
    if (source == .size) try target.checkSize(context, format, size);
    // At most 2^63 and some megabytes, as in qemu-img.
    const total = wanted.payloadOffset() + size;
    return .{ .required = total, .fully_allocated = total, .virtual_size = size };
}

const testing = std.testing;

test "the header's size: qemu-img 7.2.22's numbers" {
    var diagnostic: block.Diagnostic = .{};
    const context: image.Context = .{ .allocator = testing.allocator, .diagnostic = &diagnostic };
    const cases = [_]struct { target.Options, u64 }{
        .{ .{}, 2_068_480 },
        .{ .{ .cipher_alg = "aes-128" }, 1_052_672 },
        .{ .{ .cipher_alg = "aes-192" }, 1_544_192 },
        .{ .{ .cipher_alg = "aes-128", .cipher_mode = "cbc" }, 528_384 },
        .{ .{ .cipher_alg = "serpent-256", .cipher_mode = "ctr" }, 1_052_672 },
        .{ .{ .cipher_alg = "twofish-192" }, 1_544_192 },
        .{ .{ .cipher_alg = "cast5-128", .cipher_mode = "ecb" }, 528_384 },
        .{ .{ .hash_alg = "ripemd160", .ivgen_alg = "plain", .ivgen_hash_alg = "md5" }, 2_068_480 },
        .{ .{ .ivgen_alg = "essiv" }, 2_068_480 },
    };
    for (cases) |case| for ([_]u64{ 0, 1, 1 << 20, target.max_size }) |size| {
        const sizes = try measure(context, .{ .size = size }, &case[0]);
        try testing.expectEqual(case[1] + size, sizes.required);
        try testing.expectEqual(sizes.required, sizes.fully_allocated);
    };
    const refused = [_]struct { target.Options, []const u8 }{
        .{ .{ .cipher_alg = "bogus" }, "luks: Parameter 'cipher-alg' does not accept value 'bogus'" },
        .{ .{ .cipher_alg = "des" }, "luks: Algorithm 'des' not supported" },
        .{ .{ .cipher_alg = "cast5-128" }, "luks: Unsupported cipher mode xts for cast5-128" },
        .{ .{ .cipher_alg = "aes-192", .cipher_mode = "cbc" }, "luks: aes-192 makes key material that is no multiple of 512 bytes except with cipher-mode=xts" },
        .{ .{ .cipher_mode = "gcm" }, "luks: Parameter 'cipher-mode' does not accept value 'gcm'" },
        .{ .{ .hash_alg = "sha3" }, "luks: Parameter 'hash-alg' does not accept value 'sha3'" },
        .{ .{ .ivgen_alg = "essiv", .ivgen_hash_alg = "sha1" }, "luks: No AES cipher with key size 20 available" },
        .{ .{ .ivgen_alg = "essiv", .cipher_mode = "cbc", .cipher_alg = "cast5-128" }, "luks: Cipher cast5-128 not supported with essiv" },
        .{ .{ .iterations = 999 }, "luks: 999 iterations, at least 1000 and at most 4294967295" },
        .{ .{ .iterations = 1 << 32 }, "luks: 4294967296 iterations, at least 1000 and at most 4294967295" },
        .{ .{ .cluster_size = 512 }, "luks: Invalid parameter 'cluster_size'" },
    };
    for (refused) |case| {
        try testing.expectError(error.Refused, measure(context, .{ .size = 1 }, &case[0]));
        try testing.expectEqualStrings(case[1], diagnostic.message());
    }
    for ([_]u64{ 1 << 63, std.math.maxInt(u64) }) |size| {
        try testing.expectError(error.Refused, measure(context, .{ .size = size }, &.{}));
        try testing.expectEqual(block.Diagnostic.Code.too_large, diagnostic.code);
    }
}
