//! What a new VHDX file consists of, for whoever measures and whoever plans: the places that qemu-img chooses.
//!
//! Header section, log, BAT, metadata, five times 1 MiB behind the BAT the payload.  [MS-VHDX] 2.5 for the BAT.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const target = @import("../target.zig");
const vhdx = @import("format.zig");

pub const format = vhdx.name;
pub const sector: u64 = 512;

const mib: u64 = vhdx.mib;
const accepted = target.mask(&.{ "subformat", "block_size", "log_size", "block_state_zero", "preallocation", "backing_file", "backing_format" });

pub const Kind = enum { dynamic, fixed, differencing };

/// A disk as it will be, and the file around it.  Sizes in bytes.
pub const Layout = struct {
    /// Virtual size, whole sectors, at most 64 TiB.
    size: u64,
    block_size: u64,
    log_size: u64,
    kind: Kind,
    /// Blocks begin in state ZERO.  Those of a fixed disk then have no place in the file until they are written.
    state_zero: bool,

    pub const log_offset = vhdx.header_section;

    pub fn blocks(self: Layout) u64 {
        return std.math.divCeil(u64, self.size, self.block_size) catch unreachable;
    }

    /// Payload blocks whose sectors one sector bitmap block covers; behind so many entries of the BAT there is one for it.
    pub fn chunkRatio(self: Layout) u64 {
        return vhdx.sectors_per_chunk * sector / self.block_size;
    }

    /// Entries of the BAT that a reader looks at.
    pub fn entries(self: Layout) u64 {
        const ratio = self.chunkRatio();
        const count = self.blocks();
        if (self.kind == .differencing) return (std.math.divCeil(u64, count, ratio) catch unreachable) * (ratio + 1);
        // qemu counts the chunks in front of the last block in 32 bits, and reads so many entries of a disk of 0 bytes.
        const before_last: u64 = if (count == 0) std.math.maxInt(u32) else count - 1;
        return count + before_last / ratio;
    }

    /// Index in the BAT of a payload block.
    pub fn indexOf(self: Layout, number: u64) u64 {
        return number + number / self.chunkRatio();
    }

    pub fn tableOffset(self: Layout) u64 {
        return log_offset + self.log_size;
    }

    /// The BAT's region.
    pub fn tableSize(self: Layout) u64 {
        return std.mem.alignForward(u64, @max(1, self.entries()) * vhdx.entry_size, mib);
    }

    pub fn metadataOffset(self: Layout) u64 {
        return self.tableOffset() + self.tableSize();
    }

    pub const metadata_size = mib;

    /// Where blocks begin; qemu-img leaves room behind the metadata.
    pub fn payloadOffset(self: Layout) u64 {
        return self.metadataOffset() + 5 * mib;
    }

    /// Bytes that a fixed disk has for its blocks.
    fn room(self: Layout) u64 {
        // Behind the first chunk qemu wants the last block whole, and cannot open what its own writer makes then.
        const whole = !self.state_zero and self.blocks() > self.chunkRatio();
        return if (whole) self.blocks() * self.block_size else self.size;
    }

    /// The file when so many blocks have been written to.
    pub fn fileLength(self: Layout, written: u64) u64 {
        const reserved = self.payloadOffset() + if (self.kind == .fixed) self.room() else 0;
        if (written == 0 or (self.kind == .fixed and !self.state_zero)) return reserved;
        // A block is placed at the end of the file, also when a fixed disk has room for it already.
        return std.mem.alignForward(u64, reserved, mib) + written * self.block_size;
    }
};

/// The layout of a disk of `size` bytes; refuses options that the format does not have and sizes that it cannot hold, as
/// qemu-img does.
pub fn layout(context: image.Context, size: u64, options: *const target.Options) block.Error!Layout {
    try target.onlyOptions(context, format, options, accepted);
    if (try target.preallocation(context, format, options) != .off) {
        return target.refuseOption(context, format, "vhdx: preallocation is not supported; subformat=fixed reserves the whole disk", .{});
    }
    const kind = try kindOf(context, options);
    try target.checkSize(context, format, size);
    if (size > vhdx.max_disk_size) return tooLarge(context, "virtual size", "Image size too large; max of 64TB", size, vhdx.max_disk_size);

    const log_size = options.log_size orelse mib;
    if (log_size > std.math.maxInt(u32) / mib * mib) return tooLarge(context, "log", "Log size must be smaller than 4 GB", log_size, std.math.maxInt(u32));
    if (log_size == 0) return target.refuseOption(context, format, "vhdx: Log size must be a multiple of 1 MB", .{});

    const wanted = options.block_size orelse 0;
    if (wanted > target.max_size) return tooLarge(context, "block", "Block size must not exceed 268435456", wanted, vhdx.max_block_size);
    const block_size = if (wanted == 0) defaultBlock(size) else @min(std.mem.alignForward(u64, wanted, mib), vhdx.max_block_size);
    if (!std.math.isPowerOfTwo(block_size)) return target.refuseOption(context, format, "vhdx: Block size must be a power of two", .{});
    return .{
        .size = std.mem.alignForward(u64, size, sector),
        .block_size = block_size,
        .log_size = std.mem.alignForward(u64, log_size, mib),
        .kind = kind,
        .state_zero = kind != .differencing and options.block_state_zero orelse true,
    };
}

fn kindOf(context: image.Context, options: *const target.Options) error{Refused}!Kind {
    const named = options.subformat orelse "dynamic";
    const kind = std.meta.stringToEnum(Kind, named) orelse .differencing;
    if (kind == .differencing) return target.refuseValue(context, format, "subformat", named);
    const name = options.backing_file orelse {
        if (options.backing_format == null) return kind;
        return target.refuseOption(context, format, "vhdx: Backing format cannot be used without backing file", .{});
    };
    if (name.len == 0) return target.refuseOption(context, format, "vhdx: Expected backing file name, got empty string", .{});
    const backing = options.backing_format orelse
        return target.refuseOption(context, format, "vhdx: Backing file specified without backing format", .{});
    if (!std.mem.eql(u8, backing, format)) {
        return target.refuseOption(context, format, "vhdx: the parent of a differencing disk must be a vhdx image, not '{s}'", .{target.shorten(backing)});
    }
    if (kind == .fixed) return target.refuseOption(context, format, "vhdx: a fixed disk cannot have a backing file", .{});
    if (options.block_state_zero orelse false) {
        return target.refuseOption(context, format, "vhdx: block_state_zero cannot be used with a backing file, it would hide its content", .{});
    }
    return .differencing;
}

/// As qemu-img chooses, so that tables stay small.
fn defaultBlock(size: u64) u64 {
    if (size > 32 << 40) return 64 * mib;
    if (size > 100 << 30) return 32 * mib;
    return if (size > 1 << 30) 16 * mib else 8 * mib;
}

fn tooLarge(context: image.Context, structure: []const u8, text: []const u8, value: u64, limit: u64) error{Refused} {
    return context.diagnostic.refuse(.too_large, .{ .format = format, .structure = structure, .value = value, .limit = limit }, "vhdx: {s}", .{text});
}

const testing = std.testing;

test "files of qemu-img 7.2.22" {
    var diagnostic: block.Diagnostic = .{};
    const context: image.Context = .{ .allocator = testing.allocator, .diagnostic = &diagnostic };
    const gib = 1 << 30;
    const rows = [_]struct { u64, target.Options, u64, u64 }{
        .{ 0, .{}, 8, 74_448_896 },
        .{ 1, .{}, 8, 8_388_608 },
        .{ gib, .{}, 8, 8_388_608 },
        .{ gib + 1, .{}, 16, 8_388_608 },
        .{ 100 * gib, .{}, 16, 8_388_608 },
        .{ 101 * gib, .{}, 32, 8_388_608 },
        .{ 32 << 40, .{}, 32, 16_777_216 },
        .{ 33 << 40, .{}, 64, 12_582_912 },
        .{ 64 << 40, .{}, 64, 16_777_216 },
        .{ 10 << 20, .{ .block_size = 1 }, 1, 8_388_608 },
        .{ 10 << 20, .{ .block_size = 512 << 20 }, 256, 8_388_608 },
        .{ 10 << 20, .{ .log_size = 1500 << 10 }, 8, 9_437_184 },
        .{ 10 << 20, .{ .log_size = 4095 << 20 }, 8, 4_301_258_752 },
        .{ 3_500_000, .{ .subformat = "fixed" }, 8, 11_888_640 },
        .{ 3_500_000, .{ .subformat = "fixed", .block_state_zero = false }, 8, 11_888_640 },
    };
    for (rows) |row| {
        const found = try layout(context, row[0], &row[1]);
        try testing.expectEqual(row[2] * mib, found.block_size);
        try testing.expectEqual(row[3], found.fileLength(0));
    }
}

test "the BAT has an entry for each sector bitmap" {
    const small: Layout = .{ .size = 9 << 30, .block_size = mib, .log_size = mib, .kind = .dynamic, .state_zero = true };
    try testing.expectEqual(4096, small.chunkRatio());
    try testing.expectEqual(9 * 1024 + 2, small.entries());
    try testing.expectEqual(8193 + 2, small.indexOf(8193));
    var child = small;
    child.kind = .differencing;
    try testing.expectEqual(3 * 4097, child.entries());
    child.size = 0;
    try testing.expectEqual(0, child.entries());
    try testing.expectEqual(mib, child.tableSize());
}

test "what is refused" {
    var diagnostic: block.Diagnostic = .{};
    const context: image.Context = .{ .allocator = testing.allocator, .diagnostic = &diagnostic };
    const most = std.math.maxInt(u64);
    const rows = [_]struct { u64, target.Options, []const u8 }{
        .{ (64 << 40) + 1, .{}, "vhdx: Image size too large; max of 64TB" },
        .{ target.max_size, .{}, "vhdx: Image size too large; max of 64TB" },
        .{ most, .{}, "vhdx: virtual size 18446744073709551615 is above 2^63-1" },
        .{ 1, .{ .log_size = 0 }, "vhdx: Log size must be a multiple of 1 MB" },
        .{ 1, .{ .log_size = 4 << 30 }, "vhdx: Log size must be smaller than 4 GB" },
        .{ 1, .{ .log_size = (4095 << 20) + 1 }, "vhdx: Log size must be smaller than 4 GB" },
        .{ 1, .{ .log_size = most }, "vhdx: Log size must be smaller than 4 GB" },
        .{ 1, .{ .block_size = 3 << 20 }, "vhdx: Block size must be a power of two" },
        .{ 1, .{ .block_size = most }, "vhdx: Block size must not exceed 268435456" },
        .{ 1, .{ .subformat = "differencing" }, "vhdx: Parameter 'subformat' does not accept value 'differencing'" },
        .{ 1, .{ .subformat = "" }, "vhdx: Parameter 'subformat' does not accept value ''" },
        .{ 1, .{ .preallocation = "full" }, "vhdx: preallocation is not supported; subformat=fixed reserves the whole disk" },
        .{ 1, .{ .cluster_size = 1 }, "vhdx: Invalid parameter 'cluster_size'" },
        .{ 1, .{ .backing_format = "vhdx" }, "vhdx: Backing format cannot be used without backing file" },
        .{ 1, .{ .backing_file = "", .backing_format = "vhdx" }, "vhdx: Expected backing file name, got empty string" },
        .{ 1, .{ .backing_file = "a" }, "vhdx: Backing file specified without backing format" },
        .{ 1, .{ .backing_file = "a", .backing_format = "raw" }, "vhdx: the parent of a differencing disk must be a vhdx image, not 'raw'" },
        .{ 1, .{ .backing_file = "a", .backing_format = "vhdx", .subformat = "fixed" }, "vhdx: a fixed disk cannot have a backing file" },
        .{ 1, .{ .backing_file = "a", .backing_format = "vhdx", .block_state_zero = true }, "vhdx: block_state_zero cannot be used with a backing file, it would hide its content" },
    };
    for (rows) |row| {
        try testing.expectError(error.Refused, layout(context, row[0], &row[1]));
        try testing.expectEqualStrings(row[2], diagnostic.message());
    }
}
