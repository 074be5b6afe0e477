//! The facts of a LUKS2 container.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const header_zig = @import("header.zig");
const header2 = @import("header2.zig");
const luks = @import("luks.zig");
const metadata_zig = @import("metadata.zig");
const Metadata = metadata_zig.Metadata;
const shorten = metadata_zig.shorten;

/// Texts of one list that are shown.
const max_texts = 32;

pub fn info(context: image.Context, device: block.Device, sink: image.Sink, report: *messages.Info) block.Error!void {
    const container = try luks.container(context, device);
    const active = container.active();
    const metadata = &container.metadata;
    const primary = active == &container.copies.first;
    const other = if (primary) &container.copies.second else &container.copies.first;
    report.virtual_size = container.virtual_size;
    report.recognised = "luks2";
    report.luks2 = .{
        .active_copy = if (primary) "primary" else "secondary",
        .other_copy = if (other.problem) |problem| problem.text() else if (other.sequence() < active.sequence()) "older" else "same",
        .sequence_id = active.sequence(),
        .label = try header_zig.printable(context, active.label()),
        .subsystem = try header_zig.printable(context, active.subsystem()),
        .uuid = try header_zig.printable(context, active.uuid()),
        .checksum_alg = try header_zig.printable(context, active.checksumAlgorithm()),
        .header_size = active.size(),
        .json_length = metadata.text_size,
        .keyslots_size = metadata.keyslots_size,
        .flags = try texts(context, metadata.flags),
        .requirements = try texts(context, metadata.requirements),
        .payload_offset = firstOffset(metadata),
        .reencrypt = reencrypts(metadata),
    };
    if (other.problem != null) try sink.emit(messages.InfoNote{
        .code = "header-copy-damaged",
        .message = "one of the two headers cannot be used",
        .offset = other.at,
    });
    try objects(metadata, sink);
}

fn objects(metadata: *const Metadata, sink: image.Sink) block.Error!void {
    for (metadata.keyslots) |*slot| {
        const kdf: metadata_zig.Kdf = slot.kdf orelse .{};
        const argon = std.mem.startsWith(u8, kdf.type, "argon2");
        const pbkdf = slot.kdf != null and !argon;
        try sink.emit(messages.InfoLuks2Keyslot{
            .id = slot.id,
            .type = shorten(slot.type),
            .key_size = slot.key_size,
            .priority = slot.priority,
            .area_type = shorten(slot.area.type),
            .area_offset = slot.area.offset,
            .area_size = slot.area.size,
            .encryption = optional(slot.area.encryption),
            .kdf = optional(kdf.type),
            .hash = optional(kdf.hash),
            .iterations = if (pbkdf) kdf.iterations else null,
            .passes = if (argon) kdf.time else null,
            .memory = if (argon) kdf.memory else null,
            .lanes = if (argon) kdf.cpus else null,
            .stripes = if (slot.kdf != null) slot.stripes else null,
            .mode = optional(slot.mode),
        });
    }
    for (metadata.segments) |*segment| try sink.emit(messages.InfoLuks2Segment{
        .id = segment.id,
        .type = shorten(segment.type),
        .offset = segment.offset,
        .size = segment.size,
        .encryption = optional(segment.encryption),
        .sector_size = if (segment.encryption.len > 0) segment.sector_size else null,
        .integrity = optional(segment.integrity),
        .backup = segment.backup,
    });
    for (metadata.digests) |*digest| {
        var slots: [32]u64 = undefined;
        var segments: [32]u64 = undefined;
        try sink.emit(messages.InfoLuks2Digest{
            .id = digest.id,
            .type = shorten(digest.type),
            .hash = optional(digest.hash),
            .iterations = if (digest.iterations > 0) digest.iterations else null,
            .keyslots = numbers(digest.keyslots, &slots),
            .segments = numbers(digest.segments, &segments),
        });
    }
    for (metadata.tokens) |*token| {
        var slots: [32]u64 = undefined;
        try sink.emit(messages.InfoLuks2Token{ .id = token.id, .type = shorten(token.type), .keyslots = numbers(token.keyslots, &slots) });
    }
}

fn optional(name: []const u8) ?[]const u8 {
    return if (name.len > 0) shorten(name) else null;
}

/// The numbers of the bits that are set.
fn numbers(bits: u32, out: *[32]u64) []const u64 {
    var count: usize = 0;
    for (0..32) |index| {
        if (bits >> @intCast(index) & 1 == 0) continue;
        out[count] = index;
        count += 1;
    }
    return out[0..count];
}

fn texts(context: image.Context, list: []const []const u8) block.Error![]const []const u8 {
    const out = context.allocator.alloc([]const u8, @min(list.len, max_texts)) catch return error.NoMemory;
    for (out, list[0..out.len]) |*to, from| to.* = shorten(from);
    return out;
}

fn firstOffset(metadata: *const Metadata) u64 {
    for (metadata.segments) |*segment| if (!segment.backup) return segment.offset;
    return 0;
}

pub fn reencrypts(metadata: *const Metadata) bool {
    for (metadata.keyslots) |*slot| if (std.mem.eql(u8, slot.type, "reencrypt")) return true;
    for (metadata.requirements) |one| if (std.mem.indexOf(u8, one, "reencrypt") != null) return true;
    return false;
}
