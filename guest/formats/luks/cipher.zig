//! AES in the modes that LUKS containers are written with: XTS and CBC, with IVs plain, plain64 and ESSIV.
//!
//! The rounds are those of std.crypto.core.aes; key schedules of all three sizes, the modes and the IVs are here, since
//! std has no 192-bit keys, no XTS and no CBC.

const std = @import("std");
const header_zig = @import("header.zig");
const Block = std.crypto.core.aes.Block;
const Sha256 = std.crypto.hash.sha2.Sha256;

pub const sector = header_zig.sector;

/// AES with a key of 16, 24 or 32 bytes (FIPS 197).
pub const Aes = struct {
    rounds: usize,
    keys: [15]Block = undefined,
    /// For the equivalent inverse cipher, in the order in which they are used.
    inverse: [15]Block = undefined,

    pub fn init(key: []const u8) Aes {
        std.debug.assert(key.len == 16 or key.len == 24 or key.len == 32);
        const words = key.len / 4;
        var self: Aes = .{ .rounds = words + 6 };
        var expanded: [60][4]u8 = undefined;
        for (0..words) |i| expanded[i] = key[4 * i ..][0..4].*;
        var constant: u8 = 1;
        for (words..4 * (self.rounds + 1)) |i| {
            var word = expanded[i - 1];
            if (i % words == 0) {
                word = substitute(.{ word[1], word[2], word[3], word[0] });
                word[0] ^= constant;
                constant = double(constant);
            } else if (words > 6 and i % words == 4) {
                word = substitute(word);
            }
            for (&word, expanded[i - words]) |*byte, before| byte.* ^= before;
            expanded[i] = word;
        }
        const bytes = std.mem.asBytes(&expanded);
        for (0..self.rounds + 1) |i| self.keys[i] = Block.fromBytes(bytes[16 * i ..][0..16]);
        for (0..self.rounds + 1) |i| {
            const round = self.keys[self.rounds - i];
            self.inverse[i] = if (i == 0 or i == self.rounds) round else mixBack(round);
        }
        return self;
    }

    /// The inverse of MixColumns: of a round of decryption that part is left when the other parts are undone before it.
    /// (std's own function is 16 KiB of code.)
    fn mixBack(block: Block) Block {
        return block.encryptLast(zero).decrypt(zero);
    }

    const zero: Block = .{ .repr = @splat(0) };

    /// The S-box on a word: the last round on a block of four equal words, where shifting rows changes nothing.
    fn substitute(word: [4]u8) [4]u8 {
        const four = word ++ word ++ word ++ word;
        return Block.fromBytes(&four).encryptLast(zero).toBytes()[0..4].*;
    }

    pub fn encrypt(self: *const Aes, in: *const [16]u8) [16]u8 {
        var state = Block.fromBytes(in).xorBlocks(self.keys[0]);
        for (self.keys[1..self.rounds]) |key| state = state.encrypt(key);
        return state.encryptLast(self.keys[self.rounds]).toBytes();
    }

    pub fn decrypt(self: *const Aes, in: *const [16]u8) [16]u8 {
        var state = Block.fromBytes(in).xorBlocks(self.inverse[0]);
        for (self.inverse[1..self.rounds]) |key| state = state.decrypt(key);
        return state.decryptLast(self.inverse[self.rounds]).toBytes();
    }
};

/// A byte times x in GF(2^8).
fn double(byte: u8) u8 {
    return byte << 1 ^ (byte >> 7) * @as(u8, 0x1b);
}

fn xor(to: *[16]u8, from: *const [16]u8) void {
    for (to, from) |*byte, other| byte.* ^= other;
}

/// How IVs are made of sector numbers.
pub const Generator = header_zig.Generator;

/// One key at work on sectors.
pub const SectorCipher = struct {
    mode: Mode,
    generator: Generator,
    data: Aes,
    /// The second key of XTS.
    tweak: Aes = undefined,
    /// Encrypts sector numbers (ESSIV).
    salt: Aes = undefined,

    pub const Mode = enum { xts, cbc };

    /// `key` is 16, 24 or 32 bytes long, twice that for XTS.  ESSIV hashes it with SHA-256.
    pub fn init(mode: Mode, generator: Generator, key: []const u8) SectorCipher {
        const single = if (mode == .xts) key.len / 2 else key.len;
        var self: SectorCipher = .{ .mode = mode, .generator = generator, .data = .init(key[0..single]) };
        if (mode == .xts) self.tweak = .init(key[single..]);
        if (generator == .essiv) {
            var digest: [Sha256.digest_length]u8 = undefined;
            Sha256.hash(key, &digest, .{});
            self.salt = .init(&digest);
        }
        return self;
    }

    fn iv(self: *const SectorCipher, number: u64) [16]u8 {
        var bytes: [16]u8 = @splat(0);
        std.mem.writeInt(u64, bytes[0..8], if (self.generator == .plain) number & 0xffff_ffff else number, .little);
        return if (self.generator == .essiv) self.salt.encrypt(&bytes) else bytes;
    }

    /// Decrypt `bytes`, units of `unit` bytes (a multiple of 512; the last one may be shorter, whole blocks of 16), of
    /// which the first has the IV of sector `number` in units of 512 bytes.
    pub fn decrypt(self: *const SectorCipher, number: u64, unit: usize, bytes: []u8) void {
        self.run(number, unit, bytes, false);
    }

    pub fn encrypt(self: *const SectorCipher, number: u64, unit: usize, bytes: []u8) void {
        self.run(number, unit, bytes, true);
    }

    fn run(self: *const SectorCipher, first: u64, unit: usize, bytes: []u8, encrypting: bool) void {
        std.debug.assert(bytes.len % 16 == 0);
        var done: usize = 0;
        var number = first;
        while (done < bytes.len) {
            const part = bytes[done..@min(bytes.len, done + unit)];
            if (self.mode == .xts) self.xts(number, part, encrypting) else self.cbc(number, part, encrypting);
            done += part.len;
            number +%= unit / sector;
        }
    }

    /// IEEE 1619 on whole blocks.
    fn xts(self: *const SectorCipher, number: u64, bytes: []u8, encrypting: bool) void {
        var t = self.tweak.encrypt(&self.iv(number));
        var at: usize = 0;
        while (at < bytes.len) : (at += 16) {
            const part = bytes[at..][0..16];
            xor(part, &t);
            part.* = if (encrypting) self.data.encrypt(part) else self.data.decrypt(part);
            xor(part, &t);
            // Times x in GF(2^128), little endian.
            const value = std.mem.readInt(u128, &t, .little);
            std.mem.writeInt(u128, &t, value << 1 ^ (value >> 127) * 0x87, .little);
        }
    }

    fn cbc(self: *const SectorCipher, number: u64, bytes: []u8, encrypting: bool) void {
        var chain = self.iv(number);
        var at: usize = 0;
        while (at < bytes.len) : (at += 16) {
            const part = bytes[at..][0..16];
            const before = part.*;
            if (encrypting) {
                xor(part, &chain);
                part.* = self.data.encrypt(part);
                chain = part.*;
            } else {
                part.* = self.data.decrypt(part);
                xor(part, &chain);
                chain = before;
            }
        }
    }
};

const testing = std.testing;

fn unhex(comptime digits: []const u8) [digits.len / 2]u8 {
    var out: [digits.len / 2]u8 = undefined;
    _ = std.fmt.hexToBytes(&out, digits) catch unreachable;
    return out;
}

test "AES with keys of three sizes (FIPS 197, appendix C)" {
    const plain = unhex("00112233445566778899aabbccddeeff");
    const key = unhex("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f");
    const expected = [_][16]u8{
        unhex("69c4e0d86a7b0430d8cdb78070b4c55a"),
        unhex("dda97ca4864cdfe06eaf70a0ec0d7191"),
        unhex("8ea2b7ca516745bfeafc49904b496089"),
    };
    for (expected, [_]usize{ 16, 24, 32 }) |cipher_text, size| {
        const aes: Aes = .init(key[0..size]);
        try testing.expectEqualSlices(u8, &cipher_text, &aes.encrypt(&plain));
        try testing.expectEqualSlices(u8, &plain, &aes.decrypt(&cipher_text));
    }
}

test "XTS-AES-128 (IEEE 1619-2007, vector 2)" {
    const key = @as([16]u8, @splat(0x11)) ++ @as([16]u8, @splat(0x22));
    const cipher: SectorCipher = .init(.xts, .plain64, &key);
    var data: [32]u8 = @splat(0x44);
    cipher.encrypt(0x3333333333, 512, &data);
    try testing.expectEqualSlices(u8, &unhex("c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0"), &data);
    cipher.decrypt(0x3333333333, 512, &data);
    try testing.expectEqualSlices(u8, &@as([32]u8, @splat(0x44)), &data);
}

test "what is encrypted is decrypted, in every mode, with every IV and unit" {
    var random: std.Random.DefaultPrng = .init(7);
    for ([_]SectorCipher.Mode{ .xts, .cbc }) |mode| for (std.enums.values(Generator)) |generator| for ([_]usize{ 16, 24, 32 }) |size| for ([_]usize{ 512, 4096 }) |unit| {
        var key: [64]u8 = undefined;
        random.random().bytes(&key);
        const cipher: SectorCipher = .init(mode, generator, key[0..if (mode == .xts) size * 2 else size]);
        var data: [8192]u8 = undefined;
        random.random().bytes(&data);
        const before = data;
        cipher.encrypt(0x1_0000_0005, unit, &data);
        // The second unit is the same as one that stands alone.
        var alone: [4096]u8 = undefined;
        @memcpy(alone[0..unit], before[unit..][0..unit]);
        cipher.encrypt(0x1_0000_0005 + unit / 512, unit, alone[0..unit]);
        try testing.expectEqualSlices(u8, data[unit..][0..unit], alone[0..unit]);
        cipher.decrypt(0x1_0000_0005, unit, &data);
        try testing.expectEqualSlices(u8, &before, &data);
    };
}
