//! What the parts of LUKS2 metadata say of each other and of the file: sizes, areas, references.

const std = @import("std");
const block = @import("block");
const header_zig = @import("header.zig");
const header2 = @import("header2.zig");
const metadata_zig = @import("metadata.zig");
const Metadata = metadata_zig.Metadata;
const Problems = metadata_zig.Problems;

const sector = header_zig.sector;

/// Every check; `length` is that of the device.
pub fn check(problems: Problems, copy: *const header2.Copy, metadata: *const Metadata, length: u64) block.Error!void {
    const json_size = copy.size() - header2.binary_size;
    if (metadata.json_size != json_size)
        try problems.say("config", null, metadata.json_size, "LUKS2 config: json_size is {d}, the JSON area has {d} bytes", .{ metadata.json_size, json_size });
    if (metadata.keyslots_size % header_zig.alignment != 0 or metadata.keyslots_size > metadata_zig.max_keyslots_size)
        try problems.say("config", null, metadata.keyslots_size, "LUKS2 config: keyslots_size {d} is not a multiple of {d} of at most {d}", .{ metadata.keyslots_size, header_zig.alignment, metadata_zig.max_keyslots_size });
    try areas(problems, copy, metadata);
    try segments(problems, metadata, length);
    try references(problems, metadata);
}

/// Key material lies behind both copies and in front of the end of the key slots' area, and is nobody else's.
fn areas(problems: Problems, copy: *const header2.Copy, metadata: *const Metadata) block.Error!void {
    const begin = 2 * copy.size();
    const end = begin + @min(metadata.keyslots_size, metadata_zig.max_keyslots_size);
    for (metadata.keyslots, 0..) |*slot, index| {
        const area = &slot.area;
        const name = "keyslot area";
        if (std.mem.eql(u8, slot.type, "luks2") and (slot.key_size == 0 or slot.key_size > metadata_zig.max_key_bytes))
            try problems.say("keyslot", null, slot.key_size, "LUKS2 keyslot {d}: a key of {d} bytes", .{ slot.id, slot.key_size });
        if (std.mem.eql(u8, area.type, "raw") and (area.key_size == 0 or area.key_size > metadata_zig.max_key_bytes))
            try problems.say(name, area.offset, area.key_size, "LUKS2 keyslot {d}: its area is encrypted with a key of {d} bytes", .{ slot.id, area.key_size });
        const area_end = std.math.add(u64, area.offset, area.size) catch {
            try problems.say(name, area.offset, area.size, "LUKS2 keyslot {d}: its area of {d} bytes at byte {d} ends above 2^64", .{ slot.id, area.size, area.offset });
            continue;
        };
        if (area.offset < begin)
            try problems.say(name, area.offset, begin, "LUKS2 keyslot {d}: its area begins at byte {d}, the headers end at {d}", .{ slot.id, area.offset, begin })
        else if (area_end > end)
            try problems.say(name, area.offset, area_end, "LUKS2 keyslot {d}: its area ends at byte {d}, the area of all key slots at {d}", .{ slot.id, area_end, end });
        if (slot.kdf != null) {
            if (slot.stripes != header_zig.stripes)
                try problems.say("keyslot af", null, slot.stripes, "LUKS2 keyslot {d}: {d} stripes instead of {d}", .{ slot.id, slot.stripes, header_zig.stripes });
            const material = slot.key_size *| slot.stripes;
            if (material > area.size)
                try problems.say(name, area.offset, area.size, "LUKS2 keyslot {d}: its area has {d} bytes, the key material {d}", .{ slot.id, area.size, material });
        }
        for (metadata.keyslots[index + 1 ..]) |*other| {
            const other_end = other.area.offset +| other.area.size;
            if (area.offset < other_end and other.area.offset < area_end)
                try problems.say(name, area.offset, other.area.offset, "LUKS2 keyslots {d} and {d}: their areas overlap at bytes {d} and {d}", .{ slot.id, other.id, area.offset, other.area.offset });
        }
    }
    for (metadata.segments) |*segment| {
        // A detached header has its data elsewhere, from byte 0 on.
        if (segment.offset != 0 and segment.offset < end and !segment.backup)
            try problems.say("segment", segment.offset, end, "LUKS2 segment {d}: begins at byte {d}, the area of the key slots ends at {d}", .{ segment.id, segment.offset, end });
    }
}

fn segments(problems: Problems, metadata: *const Metadata, length: u64) block.Error!void {
    const name = "segment";
    var current: ?*const metadata_zig.Segment = null;
    for (metadata.segments) |*segment| {
        const aligned = segment.offset % segment.sector_size == 0 and (segment.size orelse 0) % segment.sector_size == 0;
        if (!aligned)
            try problems.say(name, segment.offset, segment.sector_size, "LUKS2 segment {d}: offset and size are no multiples of its sector size {d}", .{ segment.id, segment.sector_size });
        const end = if (segment.size) |size| std.math.add(u64, segment.offset, size) catch std.math.maxInt(u64) else segment.offset;
        if (end > length and !segment.backup)
            try problems.say(name, segment.offset, end, "LUKS2 segment {d}: ends at byte {d}, file has {d}", .{ segment.id, end, length });
        if (segment.backup) continue;
        if (current) |previous| if (previous.size == null)
            try problems.say(name, segment.offset, null, "LUKS2 segment {d}: follows segment {d}, which reaches to the end of the device", .{ segment.id, previous.id });
        current = segment;
        if (std.mem.eql(u8, segment.type, "crypt") and metadata.digestOf(segment.id) == null)
            try problems.say(name, segment.offset, null, "LUKS2 segment {d}: no digest belongs to it", .{segment.id});
    }
    if (current == null) try problems.say(name, null, null, "LUKS2 metadata: no segment is part of the disk", .{});
}

/// Digests and tokens name objects that exist.
fn references(problems: Problems, metadata: *const Metadata) block.Error!void {
    var known_slots: u32 = 0;
    var known_segments: u32 = 0;
    for (metadata.keyslots) |*slot| known_slots |= @as(u32, 1) << @intCast(slot.id);
    for (metadata.segments) |*segment| known_segments |= @as(u32, 1) << @intCast(segment.id);
    for (metadata.digests) |*digest| {
        try missing(problems, "digest", digest.id, "keyslot", digest.keyslots & ~known_slots);
        try missing(problems, "digest", digest.id, "segment", digest.segments & ~known_segments);
    }
    for (metadata.tokens) |*token| try missing(problems, "token", token.id, "keyslot", token.keyslots & ~known_slots);
}

fn missing(problems: Problems, what: []const u8, id: u32, of: []const u8, bits: u32) block.Error!void {
    if (bits != 0)
        try problems.say(what, null, @ctz(bits), "LUKS2 {s} {d}: names {s} {d}, which does not exist", .{ what, id, of, @as(u32, @ctz(bits)) });
}
