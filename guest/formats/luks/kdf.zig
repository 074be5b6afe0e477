//! PBKDF2 and the anti-forensic splitter, with the digest chosen by the image.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const digests = @import("digest.zig");
const Algorithm = digests.Algorithm;

/// Rounds between two words about the progress: a tenth of a second or so.
const told_every = 1 << 17;

/// How far all of the work of one unlocking is.
pub const Work = struct {
    context: image.Context,
    done: u64 = 0,
    total: u64,

    fn add(self: *Work, more: u64) void {
        self.done += more;
        if (self.context.progress) |tell| tell(@min(self.done, self.total), self.total);
    }
};

/// Rounds that PBKDF2 takes for a key of `bytes` bytes.
pub fn rounds(algorithm: Algorithm, iterations: u64, bytes: u64) u64 {
    return iterations *| (std.math.divCeil(u64, bytes, algorithm.size()) catch unreachable);
}

/// RFC 8018, section 5.2, over HMAC (RFC 2104).  std's calculates the pads of the key anew in every round, which is half
/// of all the work.
pub fn pbkdf2(work: *Work, algorithm: Algorithm, password: []const u8, salt: []const u8, iterations: u32, out: []u8) void {
    switch (algorithm) {
        inline else => |known| derive(known.Type(), work, password, salt, iterations, out),
    }
}

fn derive(comptime Hash: type, work: *Work, password: []const u8, salt: []const u8, iterations: u32, out: []u8) void {
    std.debug.assert(iterations > 0);
    const size = Hash.digest_length;
    var pad: [Hash.block_length]u8 = @splat(0);
    if (password.len > pad.len) Hash.hash(password, pad[0..size], .{}) else @memcpy(pad[0..password.len], password);
    for (&pad) |*byte| byte.* ^= 0x36;
    var inner: Hash = .init(.{});
    inner.update(&pad);
    for (&pad) |*byte| byte.* ^= 0x36 ^ 0x5c;
    var outer: Hash = .init(.{});
    outer.update(&pad);

    var index: u32 = 0;
    while (@as(usize, index) * size < out.len) : (index += 1) {
        var number: [4]u8 = undefined;
        std.mem.writeInt(u32, &number, index + 1, .big);
        var first = inner;
        first.update(salt);
        first.update(&number);
        var value: [size]u8 = undefined;
        first.final(&value);
        var sum: [size]u8 = @splat(0);
        var left = iterations;
        while (true) {
            var last = outer;
            last.update(&value);
            last.final(&value);
            for (&sum, value) |*byte, other| byte.* ^= other;
            left -= 1;
            if (left % told_every == 0) work.add(@min(told_every, iterations - left));
            if (left == 0) break;
            var next = inner;
            next.update(&value);
            next.final(&value);
        }
        const part = out[@as(usize, index) * size ..];
        const length = @min(part.len, size);
        @memcpy(part[0..length], sum[0..length]);
    }
}

/// LUKS1 On-Disk Format, section 2.4: put a key together that was split into `stripes`; `material` holds them one behind
/// the other.
pub fn merge(algorithm: Algorithm, material: []const u8, key: []u8) void {
    const last = material.len - key.len;
    chain(algorithm, material[0..last], key);
    for (key, material[last..]) |*byte, other| byte.* ^= other;
}

/// Split a key: `material` is full of random bytes, the last stripe is set so that `merge` gives the key.
pub fn split(algorithm: Algorithm, key: []const u8, material: []u8) void {
    const last = material[material.len - key.len ..];
    chain(algorithm, material[0 .. material.len - key.len], last);
    for (last, key) |*byte, other| byte.* ^= other;
}

/// Each stripe, added to the diffused sum of those before it.
fn chain(algorithm: Algorithm, stripes: []const u8, sum: []u8) void {
    @memset(sum, 0);
    var at: usize = 0;
    while (at < stripes.len) : (at += sum.len) {
        for (sum, stripes[at..][0..sum.len]) |*byte, other| byte.* ^= other;
        diffuse(algorithm, sum);
    }
}

/// Replace each part of a digest's size by the digest of its number and itself.
fn diffuse(algorithm: Algorithm, bytes: []u8) void {
    const size = algorithm.size();
    var index: u32 = 0;
    var at: usize = 0;
    while (at < bytes.len) : (at += size) {
        const part = bytes[at..@min(bytes.len, at + size)];
        var input: [4 + digests.max_size]u8 = undefined;
        std.mem.writeInt(u32, input[0..4], index, .big);
        @memcpy(input[4..][0..part.len], part);
        var out: [digests.max_size]u8 = undefined;
        @memcpy(part, digests.hash(algorithm, input[0 .. 4 + part.len], &out)[0..part.len]);
        index += 1;
    }
}

const testing = std.testing;

test "PBKDF2 is std's" {
    var diagnostic: block.Diagnostic = .{};
    const context: image.Context = .{ .allocator = testing.allocator, .diagnostic = &diagnostic };
    const hmac = std.crypto.auth.hmac;
    inline for (.{ Algorithm.sha1, Algorithm.sha256, Algorithm.sha512 }, .{ hmac.HmacSha1, hmac.sha2.HmacSha256, hmac.sha2.HmacSha512 }) |algorithm, Prf| {
        for ([_]u32{ 1, 2, 77 }) |iterations| for ([_]usize{ 1, 20, 32, 64, 100 }) |size| for ([_][]const u8{ "", "secret", "x" ** 300 }) |password| {
            var mine: [100]u8 = undefined;
            var theirs: [100]u8 = undefined;
            var work: Work = .{ .context = context, .total = rounds(algorithm, iterations, size) };
            pbkdf2(&work, algorithm, password, "salt" ** 8, iterations, mine[0..size]);
            try std.crypto.pwhash.pbkdf2(theirs[0..size], password, "salt" ** 8, iterations, Prf);
            try testing.expectEqualSlices(u8, theirs[0..size], mine[0..size]);
            try testing.expectEqual(work.total, work.done);
        };
    }
}

test "a key that was split is put together" {
    var random: std.Random.DefaultPrng = .init(3);
    for ([_]Algorithm{ .sha1, .sha256, .sha512 }) |algorithm| for ([_]usize{ 16, 32, 48, 64 }) |size| {
        var key: [64]u8 = undefined;
        var merged: [64]u8 = undefined;
        var material: [64 * 10]u8 = undefined;
        random.random().bytes(&key);
        random.random().bytes(&material);
        split(algorithm, key[0..size], material[0 .. size * 10]);
        merge(algorithm, material[0 .. size * 10], merged[0..size]);
        try testing.expectEqualSlices(u8, key[0..size], merged[0..size]);
        material[3] ^= 1;
        merge(algorithm, material[0 .. size * 10], merged[0..size]);
        try testing.expect(!std.mem.eql(u8, key[0..size], merged[0..size]));
    };
}
