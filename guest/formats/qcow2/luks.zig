//! The LUKS1 header that an encrypted image embeds (LUKS On-Disk Format Specification 1.2.3, section 6), as far as
//! qemu-img reports it.  No key is ever derived.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const text = @import("../text.zig");
const CryptoHeader = @import("extensions.zig").CryptoHeader;
const header_zig = @import("header.zig");
const open = @import("open.zig");
const template = @import("template.zig");
const refuse = template.refuse;
const none = template.none;
const big = header_zig.big;

const magic = "LUKS\xba\xbe";
const header_bytes = 592;
const slot_count = 8;
const slot_at = 208;
const slot_bytes = 48;
const slot_active = 0x00ac71f3;
const slot_inactive = 0x0000dead;

pub fn read(context: image.Context, device: block.Device, place: CryptoHeader) block.Error!messages.InfoLuks {
    const diagnostic = context.diagnostic;
    if (place.length < header_bytes or place.offset > header_zig.max_offset - header_bytes)
        return refuse(diagnostic, .out_of_bounds, "encryption header", "unable to read LUKS header: {value} bytes at byte {offset}", place.offset, place.length, none);
    const bytes = context.allocator.alloc(u8, header_bytes) catch return open.noMemory(context, header_bytes);
    try device.readPadded(place.offset, bytes);
    if (!std.mem.eql(u8, bytes[0..6], magic))
        return refuse(diagnostic, .corrupt, "encryption header", "volume is not in LUKS format", place.offset, none, none);
    if (big(u16, bytes, 6) != 1)
        return refuse(diagnostic, .unsupported, "encryption header", "LUKS version {value} is not supported", place.offset, big(u16, bytes, 6), 1);
    const mode = block.search.until(bytes[40..72], 0);
    const dash = block.search.first(mode, '-') orelse
        return refuse(diagnostic, .corrupt, "encryption header", "unexpected cipher mode string format", place.offset, none, none);
    const generator = mode[dash + 1 ..];
    const colon = block.search.first(generator, ':');
    const cipher = block.search.until(bytes[8..40], 0);
    const slots = context.allocator.alloc(messages.InfoLuksSlot, slot_count) catch return open.noMemory(context, 512);
    for (slots, 0..) |*slot, i| {
        const entry = bytes[slot_at + i * slot_bytes ..][0..slot_bytes];
        const state = big(u32, entry, 0);
        if (state != slot_active and state != slot_inactive)
            return refuse(diagnostic, .corrupt, "encryption header", "key slot {value} state (active/disable) is corrupted", place.offset, i, none);
        const in_use = state == slot_active;
        slot.* = .{
            .active = in_use,
            .iters = if (in_use) big(u32, entry, 4) else null,
            .stripes = if (in_use) big(u32, entry, 44) else null,
            .key_offset = @as(u64, big(u32, entry, 40)) * 512,
        };
    }
    return .{
        .cipher_alg = try cipherName(context, cipher, big(u32, bytes, 108), mode[0..dash]),
        .cipher_mode = try utf8(context, mode[0..dash]),
        .hash_alg = try utf8(context, block.search.until(bytes[72..104], 0)),
        .ivgen_alg = try utf8(context, if (colon) |at| generator[0..at] else generator),
        .ivgen_hash_alg = if (colon) |at| try utf8(context, generator[at + 1 ..]) else null,
        .payload_offset = @as(u64, big(u32, bytes, 104)) * 512,
        .master_key_iters = big(u32, bytes, 164),
        .uuid = try utf8(context, block.search.until(bytes[168..208], 0)),
        .slots = slots,
    };
}

fn utf8(context: image.Context, bytes: []const u8) block.Error![]const u8 {
    return text.fromUtf8(context.allocator, bytes) catch open.noMemory(context, bytes.len * 3);
}

/// qemu-img's name: the cipher and the bits of its key, of which XTS has two.
fn cipherName(context: image.Context, cipher: []const u8, key_bytes: u32, mode: []const u8) block.Error![]const u8 {
    const bits = @as(u64, key_bytes) * 8 / @as(u64, if (std.mem.eql(u8, mode, "xts")) 2 else 1);
    const buffer = context.allocator.alloc(u8, cipher.len * 3 + 21) catch return open.noMemory(context, 128);
    const sized = std.mem.eql(u8, cipher, "aes") or std.mem.eql(u8, cipher, "serpent") or std.mem.eql(u8, cipher, "twofish") or std.mem.eql(u8, cipher, "cast5");
    if (!sized) return utf8(context, cipher);
    return std.fmt.bufPrint(buffer, "{s}-{d}", .{ cipher, bits }) catch unreachable;
}
