//! What a VMDK disk consists of, for whoever measures and whoever plans: options, extents, places in a sparse extent.
//!
//! VMware Virtual Disk Format 5.0; choices that it leaves open (grain size, reserved sectors, order of the tables) are
//! qemu-img's, so that the files are the same.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const target = @import("../target.zig");
const format = @import("format.zig");

const name = format.name;
const sector = format.sector;

/// Bytes of a grain.
pub const grain_size = 64 * 1024;
const grain_sectors = grain_size / sector;

/// Bytes of disk in an extent of the formats that are split.
pub const split_size: u64 = 2 << 30;

/// Sectors that a compressed grain takes at most: zlib's bound for a stream of 64 KiB (five bytes for each stored block
/// of 16 KiB and a few more), behind its marker.
pub const max_compressed_sectors = (format.grain_marker.size + grain_size + (grain_size >> 12) + (grain_size >> 14) + 13 + sector - 1) / sector;

/// Bytes of disk in a sparse extent.  qemu-img counts grains in 32 bits and rounds that number up to whole tables, so
/// that from 256 TiB less 32 MiB on its extents have no tables for their disk.
pub const max_sparse_size: u64 = ((1 << 32) - format.table_entries) * grain_size;

/// Bytes of a descriptor file that qemu-img looks at.
pub const max_descriptor = (1 << 20) - 1;
/// Bytes of an embedded descriptor; a longer one would end in the grain directory.
pub const max_embedded = format.descriptor_sectors * sector;
/// No line of a descriptor that describes an extent is shorter.
const shortest_line = "RW 4194304 FLAT \"-f001\" 0\n".len;

/// `createType` of a descriptor.
pub const Subformat = enum {
    monolithicSparse,
    monolithicFlat,
    twoGbMaxExtentSparse,
    twoGbMaxExtentFlat,
    streamOptimized,

    pub fn isFlat(self: Subformat) bool {
        return self == .monolithicFlat or self == .twoGbMaxExtentFlat;
    }

    pub fn isSplit(self: Subformat) bool {
        return self == .twoGbMaxExtentSparse or self == .twoGbMaxExtentFlat;
    }

    /// Whether the descriptor lies in the one file that there is.
    pub fn isEmbedded(self: Subformat) bool {
        return self == .monolithicSparse or self == .streamOptimized;
    }
};

/// `ddb.adapterType` of a descriptor.
pub const Adapter = enum {
    ide,
    buslogic,
    lsilogic,
    legacyESX,

    /// Of the geometry in the descriptor.
    pub fn heads(self: Adapter) u64 {
        return if (self == .ide) 16 else 255;
    }
};

/// Places in a hosted sparse extent: header, descriptor, redundant directory and tables, directory and tables, grains.
/// All in sectors.
pub const Sparse = struct {
    /// Of the disk.
    capacity: u64,

    pub const descriptor: u64 = 1;
    pub const redundant_directory: u64 = descriptor + format.descriptor_sectors;

    /// Of a disk of `size` bytes, at most `max_sparse_size`.
    pub fn init(size: u64) Sparse {
        std.debug.assert(size <= max_sparse_size and size % sector == 0);
        return .{ .capacity = size / sector };
    }

    pub fn grains(self: Sparse) u64 {
        return std.math.divCeil(u64, self.capacity, grain_sectors) catch unreachable;
    }

    pub fn tables(self: Sparse) u64 {
        return std.math.divCeil(u64, self.grains(), format.table_entries) catch unreachable;
    }

    /// Of one directory.
    pub fn directorySectors(self: Sparse) u64 {
        return std.math.divCeil(u64, self.tables() * format.entry_size, sector) catch unreachable;
    }

    /// Of a directory and its tables, which follow it.
    pub fn metadataSectors(self: Sparse) u64 {
        return self.directorySectors() + self.tables() * format.table_sectors;
    }

    pub fn directory(self: Sparse) u64 {
        return redundant_directory + self.metadataSectors();
    }

    /// In front of the first grain.
    pub fn overhead(self: Sparse) u64 {
        return std.mem.alignForward(u64, self.directory() + self.metadataSectors(), grain_sectors);
    }
};

/// A disk as it will be.
pub const Layout = struct {
    /// Virtual size in bytes, whole sectors.
    size: u64,
    subformat: Subformat,
    adapter: Adapter,
    hardware_version: []const u8,
    tools_version: []const u8,
    zeroed_grain: bool,
    preallocation: target.Preallocation,
    /// Name of the parent, for the descriptor.
    parent: ?[]const u8,

    /// How many extents the disk has.
    pub fn extents(self: Layout) u64 {
        if (self.subformat.isSplit()) return std.math.divCeil(u64, self.size, split_size) catch unreachable;
        // qemu-img's flat disk of no size has no extent either.
        return if (self.subformat.isFlat() and self.size == 0) 0 else 1;
    }

    /// Bytes of disk in extent `index`, which counts from 0.
    pub fn extentSize(self: Layout, index: u64) u64 {
        if (!self.subformat.isSplit()) return self.size;
        return @min(split_size, self.size - index * split_size);
    }

    pub fn cylinders(self: Layout) u64 {
        return self.size / (63 * self.adapter.heads() * sector);
    }
};

const accepted = target.mask(&.{
    "adapter_type", "backing_file", "backing_format", "compat6",       "hwversion",
    "toolsversion", "subformat",    "zeroed_grain",   "preallocation",
});

/// Resolve the options for a disk of `size` bytes as qemu-img does.
pub fn layout(context: image.Context, size: u64, options: *const target.Options) block.Error!Layout {
    try target.onlyOptions(context, name, options, accepted);
    if (options.backing_file != null and options.backing_format == null) {
        return target.refuseOption(context, name, "vmdk: Backing file specified without backing format", .{});
    }
    if (options.backing_format) |text| if (!std.mem.eql(u8, text, name)) {
        return target.refuseOption(context, name, "vmdk: backing_file must be a vmdk image", .{});
    };
    const preallocation = try choice(target.Preallocation, context, options.preallocation, .off);
    if (preallocation == .metadata) return target.refuseOption(context, name, "vmdk: Unsupported preallocation mode: metadata", .{});
    const adapter = try choice(Adapter, context, options.adapter_type, .ide);
    const subformat = try choice(Subformat, context, options.subformat, .monolithicSparse);
    const compat6 = options.compat6 orelse false;
    // What the option's default is called is as good as no option.
    const chosen = if (options.hwversion) |text| (if (std.mem.eql(u8, text, "undefined")) null else text) else null;
    if (compat6 and chosen != null) return target.refuseOption(context, name, "vmdk: compat6 cannot be enabled with hwversion set", .{});
    const zeroed_grain = options.zeroed_grain orelse false;
    if (subformat.isFlat()) {
        if (options.backing_file != null) return target.refuseOption(context, name, "vmdk: Flat image can't have backing file", .{});
        if (zeroed_grain) return target.refuseOption(context, name, "vmdk: Flat image can't enable zeroed grain", .{});
    }
    const wanted: Layout = .{
        .size = try diskSize(context, size, subformat),
        .subformat = subformat,
        .adapter = adapter,
        .hardware_version = chosen orelse if (compat6) "6" else "4",
        .tools_version = options.toolsversion orelse "2147483647",
        .zeroed_grain = zeroed_grain,
        .preallocation = preallocation,
        .parent = options.backing_file,
    };
    try checkQuotable(context, "hwversion", wanted.hardware_version);
    try checkQuotable(context, "toolsversion", wanted.tools_version);
    if (wanted.parent) |text| try checkQuotable(context, "backing_file", text);
    return wanted;
}

fn choice(comptime T: type, context: image.Context, text: ?[]const u8, default: T) error{Refused}!T {
    const given = text orelse return default;
    return std.meta.stringToEnum(T, given) orelse
        target.refuseOption(context, name, "vmdk: invalid parameter value: {s}", .{target.shorten(given)});
}

/// The size in whole sectors, when the subformat can have it.
fn diskSize(context: image.Context, size: u64, subformat: Subformat) error{Refused}!u64 {
    const limit = switch (subformat) {
        .monolithicSparse, .streamOptimized => max_sparse_size,
        .monolithicFlat => target.max_size - (sector - 1),
        // Exact numbers depend on the names; the descriptor's length is checked when it is known.
        .twoGbMaxExtentSparse, .twoGbMaxExtentFlat => split_size * (max_descriptor / shortest_line),
    };
    if (size > limit) return context.diagnostic.refuse(
        .too_large,
        .{ .format = name, .structure = "virtual size", .value = size, .limit = limit },
        "vmdk: virtual size {d} is above {d}, the limit of {s}",
        .{ size, limit, @tagName(subformat) },
    );
    return std.mem.alignForward(u64, size, sector);
}

/// A text that stands between quotes in a descriptor has neither quotes nor line breaks: it would become other lines.
pub fn checkQuotable(context: image.Context, what: []const u8, text: []const u8) error{Refused}!void {
    for (text) |byte| if (byte < ' ' or byte == '"' or byte == 0x7f) {
        return target.refuseOption(context, name, "vmdk: {s} must not contain quotes or control characters", .{what});
    };
}

const testing = std.testing;

test "places in a sparse extent are qemu-img's" {
    const Case = struct { size: u64, directory: u64, overhead: u64 };
    for ([_]Case{
        .{ .size = 0, .directory = 0x15, .overhead = 0x80 },
        .{ .size = 512, .directory = 0x1a, .overhead = 0x80 },
        .{ .size = 5 << 30, .directory = 0x297, .overhead = 0x580 },
        .{ .size = 2 << 40, .directory = 0x40215, .overhead = 0x80480 },
        .{ .size = 128 << 40, .directory = 0x1008015, .overhead = 0x2010080 },
    }) |case| {
        const places: Sparse = .init(case.size);
        try testing.expectEqual(case.directory, places.directory());
        try testing.expectEqual(case.overhead, places.overhead());
    }
    const largest: Sparse = .init(max_sparse_size);
    try testing.expectEqual(@as(u64, (1 << 32) - 512), largest.grains());
    // Directory entries are 32 bits wide.
    try testing.expect(largest.overhead() < format.max_sectors);
    try testing.expectEqual(129, max_compressed_sectors);
}

test "options that do not go together" {
    var diagnostic: block.Diagnostic = .{};
    const context: image.Context = .{ .allocator = testing.allocator, .diagnostic = &diagnostic };
    const Case = struct { target.Options, []const u8 };
    for ([_]Case{
        .{ .{ .adapter_type = "IDE" }, "vmdk: invalid parameter value: IDE" },
        .{ .{ .subformat = "sparse" }, "vmdk: invalid parameter value: sparse" },
        .{ .{ .preallocation = "none" }, "vmdk: invalid parameter value: none" },
        .{ .{ .preallocation = "metadata" }, "vmdk: Unsupported preallocation mode: metadata" },
        .{ .{ .compat6 = true, .hwversion = "5" }, "vmdk: compat6 cannot be enabled with hwversion set" },
        .{ .{ .subformat = "monolithicFlat", .zeroed_grain = true }, "vmdk: Flat image can't enable zeroed grain" },
        .{ .{ .subformat = "twoGbMaxExtentFlat", .backing_file = "p", .backing_format = "vmdk" }, "vmdk: Flat image can't have backing file" },
        .{ .{ .backing_file = "p" }, "vmdk: Backing file specified without backing format" },
        .{ .{ .backing_file = "p", .backing_format = "raw" }, "vmdk: backing_file must be a vmdk image" },
        .{ .{ .cluster_size = 512 }, "vmdk: Invalid parameter 'cluster_size'" },
        .{ .{ .hwversion = "4\"\nRW 1 FLAT \"/etc/passwd\" 0" }, "vmdk: hwversion must not contain quotes or control characters" },
        .{ .{ .toolsversion = "\x00" }, "vmdk: toolsversion must not contain quotes or control characters" },
        .{ .{ .backing_file = "a\"", .backing_format = "vmdk" }, "vmdk: backing_file must not contain quotes or control characters" },
    }) |case| {
        try testing.expectError(error.Refused, layout(context, 1 << 20, &case[0]));
        try testing.expectEqualStrings(case[1], diagnostic.message());
        try testing.expectEqual(.invalid_option, diagnostic.code);
    }
    const six = try layout(context, 1, &.{ .compat6 = true, .hwversion = "undefined" });
    try testing.expectEqualStrings("6", six.hardware_version);
    try testing.expectEqual(@as(u64, 512), six.size);
}

test "category A1: sizes on both sides of each limit, up to 2^64-1" {
    var diagnostic: block.Diagnostic = .{};
    const context: image.Context = .{ .allocator = testing.allocator, .diagnostic = &diagnostic };
    const Case = struct { []const u8, u64 };
    for ([_]Case{
        .{ "monolithicSparse", max_sparse_size },
        .{ "streamOptimized", max_sparse_size },
        .{ "monolithicFlat", (1 << 63) - 512 },
        .{ "twoGbMaxExtentSparse", split_size * 40329 },
        .{ "twoGbMaxExtentFlat", split_size * 40329 },
    }) |case| {
        const options: target.Options = .{ .subformat = case[0] };
        const largest = try layout(context, case[1], &options);
        try testing.expectEqual(case[1], largest.size);
        const others = [_]u64{ case[1] + 1, 1 << 63, 0xffff_ffff_ffff_0001, 0xffff_ffff_ffff_f001, std.math.maxInt(u64) };
        for (others) |size| {
            try testing.expectError(error.Refused, layout(context, size, &options));
            try testing.expectEqual(.too_large, diagnostic.code);
            try testing.expectEqual(size, diagnostic.value.?);
            try testing.expectEqual(case[1], diagnostic.limit.?);
        }
    }
}
