//! Plans an empty VMDK disk: one file, or a descriptor and the files of its extents.
//!
//! Files are named after the one that was asked for, as qemu-img does it.  An embedded descriptor lies behind the header
//! of a sparse extent; the others are files of their own, and then the file that was asked for.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const target = @import("../target.zig");
const plans = @import("../plan.zig");
const format = @import("format.zig");
const layouts = @import("layout.zig");
const text = @import("descriptor_text.zig");
const OptionList = @import("../option_list.zig").OptionList;

const name = format.name;
const sector = format.sector;
const Sparse = layouts.Sparse;

/// Plan an image for a disk of `size` bytes, at least 1, rounded up to 512.
pub fn plan(context: image.Context, size: u64, options: *const target.Options, seed: target.Seed) block.Error!plans.Plan {
    try target.checkSize(context, name, size);
    const layout = try layouts.layout(context, size, options);
    if (seed.name.len == 0) return target.refuseOption(context, name, "vmdk: the new file has no name, and its descriptor needs one", .{});
    try layouts.checkQuotable(context, "the file's name", seed.name);
    // A header of no sectors is how a descriptor that is embedded alone is told, and a list of no extents is no disk.
    if (layout.size == 0) return target.refuseOption(context, name, "vmdk: a disk of 0 bytes cannot be read again", .{});
    const facts: text.Facts = .{
        .name = seed.name,
        .cid = contentId(seed),
        .parent_cid = try parentId(context, layout, seed),
    };
    const descriptor = try descriptorBytes(context, layout, facts);
    var planned: plans.Plan = .{
        .virtual_size = layout.size,
        .cluster_size = if (layout.subformat.isFlat()) null else layouts.grain_size,
        .file_length = descriptor.len,
        .regions = undefined,
        .options = optionList(context, size, options) catch return error.NoMemory,
    };
    if (layout.subformat.isEmbedded()) {
        const file = try sparseFile(context, layout, layout.size, descriptor);
        planned.file_length = file.length;
        planned.regions = file.regions;
    } else {
        const regions = context.allocator.alloc(plans.Region, 1) catch return error.NoMemory;
        regions[0] = .{ .offset = 0, .length = descriptor.len, .content = .{ .bytes = descriptor } };
        planned.regions = regions;
        planned.others = try extentFiles(context, layout, seed.name);
    }
    return planned;
}

/// Random as far as the request is, and not what stands for having no parent.
fn contentId(seed: target.Seed) u32 {
    return @min(std.mem.readInt(u32, seed.entropy[0..4], .little), format.no_parent - 1);
}

/// A disk whose parent has another identifier than its descriptor says cannot be read: there is no default.
fn parentId(context: image.Context, layout: layouts.Layout, seed: target.Seed) error{Refused}!u32 {
    if (layout.parent == null) return format.no_parent;
    if (seed.parent) |parent| {
        const identity = parent.identity orelse
            return target.refuseOption(context, name, "Invalid backing file format: {s}. Must be vmdk", .{parent.format});
        return switch (identity) {
            .cid => |cid| cid,
            else => target.refuseOption(context, name, "Invalid backing file format: {s}. Must be vmdk", .{parent.format}),
        };
    }
    return seed.parent_cid orelse context.diagnostic.refuse(
        .needs_reference,
        .{ .format = name, .structure = "parentCID" },
        "vmdk: the content identifier of the backing file is written into the image, and that file is not opened",
        .{},
    );
}

fn descriptorBytes(context: image.Context, layout: layouts.Layout, facts: text.Facts) block.Error![]const u8 {
    var counted: text.Text = .{};
    text.write(&counted, layout, facts);
    const limit: usize = if (layout.subformat.isEmbedded()) layouts.max_embedded else layouts.max_descriptor;
    if (counted.length > limit) return context.diagnostic.refuse(
        .too_large,
        .{ .format = name, .structure = "descriptor", .value = counted.length, .limit = limit },
        "vmdk: the descriptor of {d} extents would have {d} bytes, readers look at {d}",
        .{ layout.extents(), counted.length, limit },
    );
    var out: text.Text = .{ .room = context.allocator.alloc(u8, counted.length) catch return error.NoMemory };
    text.write(&out, layout, facts);
    return out.room;
}

/// The files of the extents of a disk whose descriptor is a file of its own.
fn extentFiles(context: image.Context, layout: layouts.Layout, base: []const u8) block.Error![]const plans.File {
    const files = context.allocator.alloc(plans.File, @intCast(layout.extents())) catch return error.NoMemory;
    for (files, 0..) |*file, index| {
        const size = layout.extentSize(index);
        // All extents but the last are the same.
        if (index > 0 and size == layout.extentSize(index - 1)) {
            file.* = files[index - 1];
        } else {
            file.* = if (layout.subformat.isFlat()) try flatFile(context, layout, size) else try sparseFile(context, layout, size, null);
        }
        // The suffix has at most 16 bytes.
        var out: text.Text = .{ .room = context.allocator.alloc(u8, base.len + 16) catch return error.NoMemory };
        text.extentName(&out, layout.subformat, base, index);
        file.name = out.room[0..out.length];
    }
    return files;
}

fn flatFile(context: image.Context, layout: layouts.Layout, size: u64) block.Error!plans.File {
    if (layout.preallocation != .full) return .{ .name = null, .length = size };
    const regions = context.allocator.alloc(plans.Region, 1) catch return error.NoMemory;
    regions[0] = .{ .offset = 0, .length = size, .content = .{ .pattern = &.{0} } };
    return .{ .name = null, .length = size, .regions = regions };
}

/// A sparse extent without a grain.
fn sparseFile(context: image.Context, layout: layouts.Layout, size: u64, descriptor: ?[]const u8) block.Error!plans.File {
    const places: Sparse = .init(size);
    const list = context.allocator.alloc(plans.Region, 4) catch return error.NoMemory;
    var regions: std.ArrayList(plans.Region) = .initBuffer(list);
    const header = context.allocator.create([format.header.size]u8) catch return error.NoMemory;
    header.* = headerBytes(layout, places);
    regions.appendAssumeCapacity(.{ .offset = 0, .length = header.len, .content = .{ .bytes = header } });
    if (descriptor) |bytes| {
        regions.appendAssumeCapacity(.{ .offset = Sparse.descriptor * sector, .length = bytes.len, .content = .{ .bytes = bytes } });
    }
    if (places.tables() > 0) for ([_]u64{ Sparse.redundant_directory, places.directory() }) |directory| {
        regions.appendAssumeCapacity(.{
            .offset = directory * sector,
            .length = places.tables() * format.entry_size,
            .content = .{ .progression = .{ .first = directory + places.directorySectors(), .step = format.table_sectors, .word = .little_32 } },
        });
    };
    return .{ .name = null, .length = places.overhead() * sector, .regions = regions.items };
}

fn put(comptime T: type, bytes: []u8, comptime at: usize, value: T) void {
    std.mem.writeInt(T, bytes[at..][0..@sizeOf(T)], value, .little);
}

fn headerBytes(layout: layouts.Layout, places: Sparse) [format.header.size]u8 {
    const header = format.header;
    const flag = format.flag;
    const compressed = layout.subformat == .streamOptimized;
    var bytes: [header.size]u8 = @splat(0);
    @memcpy(bytes[0..4], format.magic);
    put(u32, &bytes, header.version, if (compressed) 3 else if (layout.zeroed_grain) 2 else 1);
    var flags = flag.newline_test | flag.redundant;
    if (layout.zeroed_grain) flags |= flag.zeroed_grain;
    if (compressed) flags |= flag.compressed | flag.markers;
    put(u32, &bytes, header.flags, flags);
    put(u64, &bytes, header.capacity, places.capacity);
    put(u64, &bytes, header.grain_size, layouts.grain_size / sector);
    // qemu-img reserves the room in every extent, also where the descriptor is a file of its own.
    put(u64, &bytes, header.descriptor_offset, Sparse.descriptor);
    put(u64, &bytes, header.descriptor_size, format.descriptor_sectors);
    put(u32, &bytes, header.table_entries, format.table_entries);
    put(u64, &bytes, header.redundant_directory, Sparse.redundant_directory);
    put(u64, &bytes, header.directory, places.directory());
    put(u64, &bytes, header.overhead, places.overhead());
    @memcpy(bytes[header.newline_test..][0..4], format.newlines);
    put(u16, &bytes, header.compression_algorithm, if (compressed) format.compression.deflate else format.compression.none);
    return bytes;
}

fn optionList(context: image.Context, size: u64, options: *const target.Options) error{OutOfMemory}![]const messages.CreateOption {
    var list: OptionList = .init(context.allocator);
    try list.number("size", size);
    try list.text("adapter_type", options.adapter_type);
    try list.text("backing_file", options.backing_file);
    try list.text("backing_fmt", options.backing_format);
    try list.boolean("compat6", options.compat6 orelse false);
    try list.text("hwversion", options.hwversion orelse "undefined");
    try list.text("toolsversion", options.toolsversion);
    try list.text("subformat", options.subformat);
    try list.boolean("zeroed_grain", options.zeroed_grain);
    try list.boolean("nocow", options.nocow);
    try list.text("preallocation", options.preallocation);
    try list.number("extent_size_hint", options.extent_size_hint);
    return list.items();
}
