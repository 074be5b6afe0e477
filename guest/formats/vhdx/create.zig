//! Plans an empty VHDX: dynamic, fixed, or differencing.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const target = @import("../target.zig");
const plans = @import("../plan.zig");
const vhdx = @import("format.zig");
const fields = @import("fields.zig");
const identity = @import("identity.zig");
const layouts = @import("layout.zig");
const linkage = @import("linkage.zig");
const OptionList = @import("../option_list.zig").OptionList;

const put = fields.put;

/// In the file type identifier, for people.
const creator = std.unicode.utf8ToUtf16LeStringLiteral("pyvmm");

/// Offset of the first item behind the metadata table, as of all that follow: relative to the metadata region.
const items_offset = vhdx.metadata_table_size;

/// Plan an image for a disk of `size` bytes, which is rounded up to a sector.
pub fn plan(context: image.Context, size: u64, options: *const target.Options, seed: target.Seed) block.Error!plans.Plan {
    const layout = try layouts.layout(context, size, options);
    return planLaidOut(context, layout, size, options, seed) catch |failure| switch (failure) {
        error.OutOfMemory => error.NoMemory,
        else => |other| other,
    };
}

fn planLaidOut(context: image.Context, layout: layouts.Layout, size: u64, options: *const target.Options, seed: target.Seed) (block.Error || error{OutOfMemory})!plans.Plan {
    const allocator = context.allocator;
    const locator: []const u8 = if (options.backing_file) |name|
        try linkage.bytes(context, name, linkOf(seed))
    else
        "";
    const table = regionTable(layout);
    var out: std.ArrayList(plans.Region) = .empty;
    try append(&out, allocator, 0, &(vhdx.file_signature.* ++ std.mem.sliceAsBytes(creator)[0 .. creator.len * 2].*));
    for (vhdx.header_offsets, 0..) |offset, number| try append(&out, allocator, offset, &header(layout, seed, number));
    for (vhdx.region_table_offsets) |offset| try append(&out, allocator, offset, &table);
    try appendBlocks(&out, allocator, layout);
    try append(&out, allocator, layout.metadataOffset(), &metadataTable(locator.len));
    try append(&out, allocator, layout.metadataOffset() + items_offset, &items(layout, seed));
    if (locator.len > 0) try append(&out, allocator, layout.metadataOffset() + items_offset + items_size, locator);
    return .{
        .virtual_size = layout.size,
        .cluster_size = layout.block_size,
        .file_length = layout.fileLength(0),
        .regions = out.items,
        .options = try optionList(context, size, layout, options),
    };
}

noinline fn append(out: *std.ArrayList(plans.Region), allocator: std.mem.Allocator, offset: u64, bytes: []const u8) error{OutOfMemory}!void {
    const kept = try allocator.dupe(u8, bytes);
    try out.append(allocator, .{ .offset = offset, .length = kept.len, .content = .{ .bytes = kept } });
}

/// The BAT: nothing to write where entries are zero, one region for the blocks of each chunk otherwise.
fn appendBlocks(out: *std.ArrayList(plans.Region), allocator: std.mem.Allocator, layout: layouts.Layout) error{OutOfMemory}!void {
    const fixed = layout.kind == .fixed and !layout.state_zero;
    if (!fixed and !layout.state_zero) return;
    const ratio = layout.chunkRatio();
    var number: u64 = 0;
    while (number < layout.blocks()) : (number += ratio) {
        const count = @min(ratio, layout.blocks() - number);
        try out.append(allocator, .{
            .offset = layout.tableOffset() + layout.indexOf(number) * vhdx.entry_size,
            .length = count * vhdx.entry_size,
            .content = if (fixed) .{
                .progression = .{
                    // At most 64 TiB behind a log of 4 GiB.
                    .first = layout.payloadOffset() + number * layout.block_size + @intFromEnum(vhdx.State.fully_present),
                    .step = layout.block_size,
                    .word = .little_64,
                },
            } else .{ .pattern = &.{ @intFromEnum(vhdx.State.zero), 0, 0, 0, 0, 0, 0, 0 } },
        });
    }
}

/// The parent's identity, zeroes when it was not read.
fn linkOf(seed: target.Seed) fields.Guid {
    const parent = seed.parent orelse return @splat(0);
    return switch (parent.identity orelse return @splat(0)) {
        .vhdx => |guid| guid,
        else => @splat(0),
    };
}

/// The fields of header `number`; the second one is newer.
noinline fn header(layout: layouts.Layout, seed: target.Seed, number: usize) [fields.header.end]u8 {
    const at = fields.header;
    var bytes: [at.end]u8 = @splat(0);
    @memcpy(bytes[0..4], vhdx.header_signature);
    put(u64, &bytes, at.sequence, @as(u64, identity.number(&seed.entropy, "sequence")) + number);
    bytes[at.file_write_guid..][0..16].* = identity.guid(&seed.entropy, "file write");
    bytes[at.data_write_guid..][0..16].* = identity.guid(&seed.entropy, "data write");
    put(u16, &bytes, at.version, vhdx.header_version);
    put(u32, &bytes, at.log_length, @intCast(layout.log_size));
    put(u64, &bytes, at.log_offset, layouts.Layout.log_offset);
    put(u32, &bytes, fields.checksum, fields.checksumOf(&bytes, vhdx.header_size));
    return bytes;
}

fn regionTable(layout: layouts.Layout) [vhdx.region_header_size + 2 * vhdx.region_entry_size]u8 {
    const at = fields.region;
    var bytes: [vhdx.region_header_size + 2 * vhdx.region_entry_size]u8 = @splat(0);
    @memcpy(bytes[0..4], vhdx.region_signature);
    put(u32, &bytes, at.count, 2);
    const areas = [_]struct { fields.Guid, u64, u64 }{
        .{ vhdx.guids.bat, layout.tableOffset(), layout.tableSize() },
        .{ vhdx.guids.metadata, layout.metadataOffset(), layouts.Layout.metadata_size },
    };
    for (areas, 0..) |row, i| {
        const entry = bytes[vhdx.region_header_size + i * vhdx.region_entry_size ..][0..vhdx.region_entry_size];
        entry[0..16].* = row[0];
        put(u64, entry, at.offset, row[1]);
        // At most 1 GiB: 2^26 blocks of 1 MiB, and an entry more for each 4096.
        put(u32, entry, at.length, @intCast(row[2]));
    }
    put(u32, &bytes, fields.checksum, fields.checksumOf(&bytes, vhdx.region_table_size));
    return bytes;
}

/// GUID, bytes, flags of each item, in the order of their places.
const rows = blk: {
    const at = fields.metadata;
    const guids = vhdx.guids;
    break :blk [_]struct { fields.Guid, u32, u32 }{
        .{ guids.file_parameters, 8, at.is_required },
        .{ guids.virtual_disk_size, 8, at.is_required | at.is_virtual_disk },
        .{ guids.virtual_disk_id, 16, at.is_required | at.is_virtual_disk },
        .{ guids.logical_sector_size, 4, at.is_required | at.is_virtual_disk },
        .{ guids.physical_sector_size, 4, at.is_required | at.is_virtual_disk },
        .{ guids.parent_locator, 0, at.is_required },
    };
};

const items_size = blk: {
    var size = 0;
    for (rows) |row| size += row[1];
    break :blk size;
};

fn metadataTable(locator_size: usize) [vhdx.metadata_header_size + rows.len * vhdx.metadata_entry_size]u8 {
    const at = fields.metadata;
    var bytes: [vhdx.metadata_header_size + rows.len * vhdx.metadata_entry_size]u8 = @splat(0);
    @memcpy(bytes[0..8], vhdx.metadata_signature);
    const count = rows.len - @intFromBool(locator_size == 0);
    put(u16, &bytes, at.count, @intCast(count));
    var offset: u32 = items_offset;
    for (rows[0..count], 0..) |row, i| {
        const entry = bytes[vhdx.metadata_header_size + i * vhdx.metadata_entry_size ..][0..vhdx.metadata_entry_size];
        entry[0..16].* = row[0];
        put(u32, entry, at.offset, offset);
        put(u32, entry, at.length, if (row[1] == 0) @intCast(locator_size) else row[1]);
        put(u32, entry, at.flags, row[2]);
        offset += row[1];
    }
    return bytes;
}

fn items(layout: layouts.Layout, seed: target.Seed) [items_size]u8 {
    var bytes: [items_size]u8 = @splat(0);
    put(u32, &bytes, 0, @intCast(layout.block_size));
    put(u32, &bytes, 4, switch (layout.kind) {
        .dynamic => 0,
        .fixed => fields.metadata.leave_blocks_allocated,
        .differencing => fields.metadata.has_parent,
    });
    put(u64, &bytes, 8, layout.size);
    bytes[16..32].* = identity.ofUuid(seed.uuid);
    put(u32, &bytes, 32, layouts.sector);
    put(u32, &bytes, 36, layouts.sector);
    return bytes;
}

fn optionList(context: image.Context, size: u64, layout: layouts.Layout, options: *const target.Options) error{OutOfMemory}![]const messages.CreateOption {
    var list: OptionList = .init(context.allocator);
    try list.number("size", size);
    try list.text("backing_file", options.backing_file);
    try list.text("backing_fmt", options.backing_format);
    try list.number("log_size", options.log_size orelse layout.log_size);
    try list.number("block_size", options.block_size orelse 0);
    try list.text("subformat", options.subformat);
    try list.boolean("block_state_zero", options.block_state_zero);
    try list.boolean("nocow", options.nocow);
    try list.text("preallocation", options.preallocation);
    try list.number("extent_size_hint", options.extent_size_hint);
    return list.items();
}
