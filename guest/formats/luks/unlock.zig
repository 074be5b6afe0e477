//! Opening a container with a passphrase: from it to the key of a slot, to the key material, to the master key, which its
//! digest verifies.
//!
//! All of the work is known before it begins, and refused when it is more than a reader should do for a header.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const header_zig = @import("header.zig");
const luks = @import("luks.zig");
const digests = @import("digest.zig");
const kdf = @import("kdf.zig");
const metadata_zig = @import("metadata.zig");
const argon = @import("argon.zig");
const SectorCipher = @import("cipher.zig").SectorCipher;
const Payload = @import("payload.zig").Payload;

const format = header_zig.format;
pub const max_key = 64;

/// Rounds of PBKDF2 for one header, all slots that have to be tried together: a minute or so.
pub const max_rounds = 1 << 26;

/// A master key and the slot that gave it.
pub const Key = struct { bytes: []const u8, slot: u32 };

pub fn unsupported(context: image.Context, what: []const u8, name: []const u8) error{Refused} {
    return context.diagnostic.refuse(
        .unsupported,
        .{ .format = format, .structure = what },
        "luks: unlocking does not support {s} '{s}'",
        .{ what, metadata_zig.shorten(name) },
    );
}

fn wrong(context: image.Context) error{Refused} {
    return context.diagnostic.refuse(.wrong_passphrase, .{ .format = format }, "luks: Invalid password, cannot unlock any keyslot", .{});
}

pub fn checkRounds(context: image.Context, wanted: u64) error{Refused}!void {
    if (wanted > max_rounds) return context.diagnostic.refuse(
        .too_large,
        .{ .format = format, .structure = "key slot", .value = wanted, .limit = max_rounds },
        "luks: trying the key slots takes {d} rounds of PBKDF2, the limit is {d}",
        .{ wanted, max_rounds },
    );
}

/// What decrypts with a key by a header's names.
pub fn cipherFor(context: image.Context, method: header_zig.Method, key: []const u8) error{Refused}!SectorCipher {
    if (method.cipher != .aes) return unsupported(context, "cipher", @tagName(method.cipher));
    const mode: SectorCipher.Mode = switch (method.mode) {
        .xts => .xts,
        .cbc => .cbc,
        else => return unsupported(context, "cipher mode", @tagName(method.mode)),
    };
    if (method.generator == .essiv and method.generator_hash.? != .sha256) return unsupported(context, "ESSIV hash", @tagName(method.generator_hash.?));
    if (key.len != method.cipher_key * @as(u32, if (mode == .xts) 2 else 1)) return unsupported(context, "cipher mode", "with a key of this size");
    return .init(mode, method.generator, key);
}

/// The master key of a LUKS1 header.
pub fn masterKey(context: image.Context, device: block.Device, opened: header_zig.Opened, passphrase: []const u8) block.Error!Key {
    const header = opened.header;
    const size = header.keyBytes();
    const hash = digests.Algorithm.named(@tagName(opened.algorithms.hash)) orelse return unsupported(context, "hash", @tagName(opened.algorithms.hash));
    // `open` made sure of the key sizes: at most 2 * 32 bytes, with an odd one for XTS.
    const key = context.allocator.alloc(u8, size) catch return error.NoMemory;
    @memset(key, 0);
    _ = try cipherFor(context, opened.algorithms.method, key);
    const check = kdf.rounds(hash, header.iterations(), header_zig.digest_size);
    var total: u64 = 0;
    for (0..header_zig.slot_count) |index| {
        const slot = header.slot(index);
        if (slot.active()) total +|= kdf.rounds(hash, slot.iterations(), size) +| check;
    }
    try checkRounds(context, total);
    var work: kdf.Work = .{ .context = context, .total = total };
    const material = context.allocator.alloc(u8, @intCast(header.materialSize(header_zig.stripes))) catch return error.NoMemory;
    for (0..header_zig.slot_count) |index| {
        const slot = header.slot(index);
        if (!slot.active()) continue;
        kdf.pbkdf2(&work, hash, passphrase, slot.salt(), slot.iterations(), key);
        try device.readPadded(header.base + slot.offset(), material);
        const cipher = try cipherFor(context, opened.algorithms.method, key);
        cipher.decrypt(0, header_zig.sector, material);
        kdf.merge(hash, material, key);
        var digest: [header_zig.digest_size]u8 = undefined;
        kdf.pbkdf2(&work, hash, key, header.salt(), header.iterations(), &digest);
        if (std.mem.eql(u8, &digest, header.digest())) return .{ .bytes = key, .slot = @intCast(index) };
    }
    return wrong(context);
}

/// Names such as "aes-xts-plain64" or "aes-cbc-essiv:sha256" for keys of `key_bytes` bytes.
fn methodOf(context: image.Context, spec: []const u8, key_bytes: u64) block.Error!header_zig.Method {
    const what = "encryption";
    const dash = block.search.first(spec, '-') orelse return unsupported(context, what, spec);
    const rest = spec[dash + 1 ..];
    const second = block.search.first(rest, '-') orelse return unsupported(context, what, spec);
    const generator = rest[second + 1 ..];
    const colon = block.search.first(generator, ':');
    const mode = std.meta.stringToEnum(header_zig.Mode, rest[0..second]) orelse return unsupported(context, what, spec);
    const method: header_zig.Method = .{
        .cipher = std.meta.stringToEnum(header_zig.Cipher, spec[0..dash]) orelse return unsupported(context, what, spec),
        .mode = mode,
        .generator = std.meta.stringToEnum(header_zig.Generator, generator[0 .. colon orelse generator.len]) orelse return unsupported(context, what, spec),
        .generator_hash = if (colon) |at| std.meta.stringToEnum(header_zig.Hash, generator[at + 1 ..]) else null,
        .cipher_key = @intCast(@min(key_bytes / @as(u64, if (mode == .xts) 2 else 1), max_key)),
    };
    const known = method.cipher == .aes and header_zig.hasKeySize(.aes, method.cipher_key) and (method.generator != .essiv or method.generator_hash != null);
    return if (known and key_bytes <= max_key) method else unsupported(context, what, spec);
}

fn base64(context: image.Context, digits: []const u8) block.Error![]const u8 {
    const decoder = std.base64.standard.Decoder;
    const size = decoder.calcSizeForSlice(digits) catch return unsupported(context, "base64", digits);
    const out = context.allocator.alloc(u8, size) catch return error.NoMemory;
    decoder.decode(out, digits) catch return unsupported(context, "base64", digits);
    return out;
}

/// The volume key that a digest of a LUKS2 container belongs to.
fn volumeKey(context: image.Context, device: block.Device, metadata: *const metadata_zig.Metadata, digest: *const metadata_zig.Digest, passphrase: []const u8) block.Error!Key {
    if (!std.mem.eql(u8, digest.type, "pbkdf2")) return unsupported(context, "digest", digest.type);
    const digest_hash = try named(context, digest.hash);
    const salt = try base64(context, digest.salt);
    const expected = try base64(context, digest.digest);
    if (expected.len == 0 or expected.len > digests.max_size) return unsupported(context, "digest", "of this size");
    const verifying = kdf.rounds(digest_hash, digest.iterations, expected.len);
    var total: u64 = 0;
    var argon_memory: u64 = 0;
    for (metadata.keyslots) |*slot| {
        if (!tried(slot, digest)) continue;
        const derivation = &slot.kdf.?;
        total +|= verifying;
        if (std.mem.eql(u8, derivation.type, "pbkdf2")) {
            total +|= kdf.rounds(try named(context, derivation.hash), derivation.iterations, slot.area.key_size);
        } else argon_memory = @max(argon_memory, try argon.memory(context, derivation));
    }
    try checkRounds(context, total);
    const room = try argon.room(context, argon_memory);
    var work: kdf.Work = .{ .context = context, .total = total };
    // Preferred slots first.
    for ([_]bool{ true, false }) |preferred| for (metadata.keyslots) |*slot| {
        if (!tried(slot, digest) or (slot.priority == 2) != preferred) continue;
        const key = try slotKey(context, device, &work, slot, passphrase, room);
        var digested: [digests.max_size]u8 = undefined;
        kdf.pbkdf2(&work, digest_hash, key, salt, @intCast(digest.iterations), digested[0..expected.len]);
        if (std.mem.eql(u8, digested[0..expected.len], expected)) return .{ .bytes = key, .slot = slot.id };
    };
    return wrong(context);
}

/// Whether a passphrase may open the slot and it leads to the digest's key.
fn tried(slot: *const metadata_zig.Keyslot, digest: *const metadata_zig.Digest) bool {
    return slot.kdf != null and slot.priority != 0 and digest.keyslots >> @intCast(slot.id) & 1 != 0;
}

fn named(context: image.Context, name: []const u8) error{Refused}!digests.Algorithm {
    return digests.Algorithm.named(name) orelse unsupported(context, "hash", name);
}

/// What a slot gives under a passphrase: a volume key, if it is the right one.
fn slotKey(context: image.Context, device: block.Device, work: *kdf.Work, slot: *const metadata_zig.Keyslot, passphrase: []const u8, room: []u8) block.Error![]const u8 {
    const derivation = &slot.kdf.?;
    const hash = try named(context, slot.af_hash);
    const method = try methodOf(context, slot.area.encryption, slot.area.key_size);
    const salt = try base64(context, derivation.salt);
    var area_key: [max_key]u8 = undefined;
    const derived = area_key[0..@intCast(slot.area.key_size)];
    if (std.mem.eql(u8, derivation.type, "pbkdf2")) {
        // Below max_rounds.
        kdf.pbkdf2(work, try named(context, derivation.hash), passphrase, salt, @intCast(derivation.iterations), derived);
    } else try argon.derive(context, derivation, passphrase, salt, room, derived);
    // The metadata's checks: 4000 stripes of at most 512 bytes, inside the area.
    const size: usize = @intCast(slot.key_size * slot.stripes);
    const material = context.allocator.alloc(u8, std.mem.alignForward(usize, size, header_zig.sector)) catch return error.NoMemory;
    try device.readPadded(slot.area.offset, material);
    const cipher = try cipherFor(context, method, derived);
    cipher.decrypt(0, header_zig.sector, material);
    const key = context.allocator.alloc(u8, @intCast(slot.key_size)) catch return error.NoMemory;
    kdf.merge(hash, material[0..size], key);
    return key;
}

/// The disk of a container, decrypted; with the slot that the passphrase opened.
pub fn unlock(context: image.Context, device: block.Device) block.Error!image.Unlocked {
    const passphrase = context.passphrase orelse "";
    const payload = context.allocator.create(Payload) catch return error.NoMemory;
    payload.* = .{ .device = device };
    const slot = switch (try luks.versionOf(device)) {
        .one => try unlockOne(context, device, passphrase, payload),
        .two => try unlockTwo(context, device, passphrase, payload),
    };
    return .{ .image = try payload.open(context, format), .keyslot = slot };
}

fn unlockOne(context: image.Context, device: block.Device, passphrase: []const u8, payload: *Payload) block.Error!u32 {
    const opened = try header_zig.open(context, device, 0);
    const size = try luks.virtualSize(context, device, opened.header);
    const key = try masterKey(context, device, opened, passphrase);
    const cipher = try cipherFor(context, opened.algorithms.method, key.bytes);
    payload.add(.{ .length = size, .offset = opened.header.payloadOffset(), .cipher = cipher });
    return key.slot;
}

fn unlockTwo(context: image.Context, device: block.Device, passphrase: []const u8, payload: *Payload) block.Error!u32 {
    const container = try luks.container(context, device);
    const metadata = &container.metadata;
    var key: ?Key = null;
    var verified: u32 = 0;
    for (metadata.segments) |*segment| {
        if (segment.backup) continue;
        const size = metadata_zig.sizeOf(segment, device.length).?;
        if (std.mem.eql(u8, segment.type, "linear")) {
            payload.add(.{ .length = size, .offset = segment.offset });
            continue;
        }
        if (!std.mem.eql(u8, segment.type, "crypt")) return unsupported(context, "segment", segment.type);
        if (segment.integrity.len > 0) return unsupported(context, "integrity", segment.integrity);
        const digest = metadata.digestOf(segment.id).?;
        if (key == null) {
            key = try volumeKey(context, device, metadata, digest, passphrase);
            verified = digest.id;
        } else if (verified != digest.id) return unsupported(context, "segment", "with another key than the first one, during a reencryption");
        payload.add(.{
            .length = size,
            .offset = segment.offset,
            .cipher = try cipherFor(context, try methodOf(context, segment.encryption, key.?.bytes.len), key.?.bytes),
            .unit = @intCast(segment.sector_size),
            .first_iv = segment.iv_tweak,
        });
    }
    const found = key orelse return unsupported(context, "segment", "that is not encrypted");
    return found.slot;
}
