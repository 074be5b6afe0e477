//! Plans an empty LUKS1 container: a master key out of the request's entropy, in key slot 0 under the passphrase.
//!
//! The payload stays a hole: decrypted it is as arbitrary as in qemu-img's own empty file.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const target = @import("../target.zig");
const plans = @import("../plan.zig");
const text = @import("../text.zig");
const header_zig = @import("header.zig");
const layouts = @import("layout.zig");
const digests = @import("digest.zig");
const kdf = @import("kdf.zig");
const SectorCipher = @import("cipher.zig").SectorCipher;
const OptionList = @import("../option_list.zig").OptionList;
const At = header_zig.At;

const format = header_zig.format;

/// Plan a container for a disk of `size` bytes; it is kept exactly, as in qemu-img, whose disk ends with a whole sector.
pub fn plan(context: image.Context, size: u64, options: *const target.Options, seed: target.Seed) block.Error!plans.Plan {
    const wanted = try layouts.own(context, options);
    const mode = try target.preallocation(context, format, options);
    const cipher_mode: SectorCipher.Mode = switch (wanted.method.mode) {
        .xts => .xts,
        .cbc => .cbc,
        else => return unsupported(context, "cipher-mode", @tagName(wanted.method.mode)),
    };
    if (wanted.method.cipher != .aes) return unsupported(context, "cipher-alg", options.cipher_alg.?);
    const hash = digests.Algorithm.named(@tagName(wanted.hash)) orelse return unsupported(context, "hash-alg", @tagName(wanted.hash));
    const passphrase = context.passphrase orelse
        return target.refuseOption(context, format, "luks: a passphrase is required: give it with --luks-passphrase-file", .{});
    const payload = wanted.payloadOffset();
    try target.checkSize(context, format, size);
    try target.checkSize(context, format, size + payload);
    if (std.mem.allEqual(u8, &seed.entropy, 0))
        return target.refuseOption(context, format, "luks: a key needs the request's entropy", .{});

    // Keys, salts and stripes are what std's generator makes of the entropy.
    var random: std.Random.ChaCha = .init(seed.entropy);
    const key_bytes = wanted.keyBytes();
    const header = context.allocator.create([header_zig.size]u8) catch return error.NoMemory;
    const material = context.allocator.alloc(u8, key_bytes * header_zig.stripes) catch return error.NoMemory;
    var key: [64]u8 = undefined;
    var slot_key: [64]u8 = undefined;
    var salts: [2][header_zig.salt_size]u8 = undefined;
    random.fill(&key);
    for (&salts) |*salt| random.fill(salt);
    random.fill(material);

    var work: kdf.Work = .{ .context = context, .total = kdf.rounds(hash, wanted.digestIterations(), header_zig.digest_size) +| kdf.rounds(hash, wanted.iterations, key_bytes) };
    fillHeader(header, wanted, seed, &salts);
    kdf.pbkdf2(&work, hash, key[0..key_bytes], &salts[0], wanted.digestIterations(), header[At.digest..][0..header_zig.digest_size]);
    kdf.pbkdf2(&work, hash, passphrase, &salts[1], wanted.iterations, slot_key[0..key_bytes]);
    kdf.split(hash, key[0..key_bytes], material);
    const cipher: SectorCipher = .init(cipher_mode, wanted.method.generator, slot_key[0..key_bytes]);
    cipher.encrypt(0, header_zig.sector, material);

    const regions = context.allocator.alloc(plans.Region, 3) catch return error.NoMemory;
    regions[0] = .{ .offset = 0, .length = header.len, .content = .{ .bytes = header } };
    regions[1] = .{ .offset = wanted.slotOffset(0), .length = material.len, .content = .{ .bytes = material } };
    regions[2] = .{ .offset = payload, .length = size, .content = .{ .pattern = &.{0} } };
    return .{
        .virtual_size = std.mem.alignForward(u64, size, header_zig.sector),
        .file_length = payload + size,
        .regions = regions[0..if (mode == .full and size > 0) 3 else 2],
        .options = optionList(context, size, options) catch return error.NoMemory,
    };
}

fn unsupported(context: image.Context, name: []const u8, value: []const u8) error{Refused} {
    return context.diagnostic.refuse(.unsupported, .{ .format = format, .structure = name }, "luks: create does not support {s}={s}", .{ name, value });
}

fn put(bytes: []u8, at: usize, value: u32) void {
    std.mem.writeInt(u32, bytes[at..][0..4], value, .big);
}

/// Everything but the digest of the master key.
fn fillHeader(bytes: *[header_zig.size]u8, wanted: layouts.Parameters, seed: target.Seed, salts: *const [2][header_zig.salt_size]u8) void {
    @memset(bytes, 0);
    const method = wanted.method;
    @memcpy(bytes[0..8], header_zig.magic ++ "\x00\x01");
    _ = block.sentence.write(bytes[At.cipher_name..][0..31], "{s}", .{@tagName(method.cipher)});
    if (method.generator_hash) |hash|
        _ = block.sentence.write(bytes[At.cipher_mode..][0..31], "{s}-{s}:{s}", .{ @tagName(method.mode), @tagName(method.generator), @tagName(hash) })
    else
        _ = block.sentence.write(bytes[At.cipher_mode..][0..31], "{s}-{s}", .{ @tagName(method.mode), @tagName(method.generator) });
    _ = block.sentence.write(bytes[At.hash_spec..][0..31], "{s}", .{@tagName(wanted.hash)});
    put(bytes, At.payload_offset, @intCast(wanted.payloadOffset() / header_zig.sector));
    put(bytes, At.key_bytes, wanted.keyBytes());
    bytes[At.salt..][0..header_zig.salt_size].* = salts[0];
    put(bytes, At.iterations, wanted.digestIterations());
    _ = text.uuid(bytes[At.uuid..][0..36], &seed.uuid);
    for (0..header_zig.slot_count) |index| {
        const at = At.slots + index * header_zig.slot_bytes;
        put(bytes, at, if (index == 0) header_zig.State.active else header_zig.State.inactive);
        put(bytes, at + 40, @intCast(wanted.slotOffset(index) / header_zig.sector));
        put(bytes, at + 44, header_zig.stripes);
    }
    put(bytes, At.slots + 4, wanted.iterations);
    bytes[At.slots + 8 ..][0..header_zig.salt_size].* = salts[1];
}

fn optionList(context: image.Context, size: u64, options: *const target.Options) error{OutOfMemory}![]const messages.CreateOption {
    var list: OptionList = .init(context.allocator);
    try list.number("size", size);
    try list.text("cipher-alg", options.cipher_alg);
    try list.text("cipher-mode", options.cipher_mode);
    try list.text("ivgen-alg", options.ivgen_alg);
    try list.text("ivgen-hash-alg", options.ivgen_hash_alg);
    try list.text("hash-alg", options.hash_alg);
    try list.number("iterations", options.iterations);
    try list.boolean("nocow", options.nocow);
    try list.text("preallocation", options.preallocation);
    try list.number("extent_size_hint", options.extent_size_hint);
    return list.items();
}
