//! The dynamic disk header and the block allocation table (BAT) of dynamic and differencing disks.
//!
//! Virtual Hard Disk Image Format Specification 1.0, "Dynamic Disk Header Format", "Block Allocation Table and Data
//! Blocks".  Big endian; BAT entries are in sectors of 512 bytes.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const text = @import("../text.zig");
const footers = @import("footer.zig");
const refuse = @import("vhd.zig").refuse;
const none = @import("../qcow2/template.zig").none;

pub const size = 1024;
pub const cookie = "cxsparse";
/// A BAT entry of a block that is not in the file.
pub const absent: u32 = 0xffff_ffff;
const sector = footers.sector;

/// qemu's limit on BAT entries.
const max_entries: u64 = std.math.maxInt(i32) / 4;

/// The header as it lies in the file.
pub const Header = struct {
    bytes: *const [size]u8,
    offset: u64,

    /// Read the header; what lies past the end of the file reads as zero, and is then no header.
    pub fn read(allocator: std.mem.Allocator, device: block.Device, offset: u64) block.Error!Header {
        const bytes = allocator.create([size]u8) catch return error.NoMemory;
        try device.readPadded(offset, bytes);
        return .{ .bytes = bytes, .offset = offset };
    }

    fn int(self: *const Header, comptime T: type, at: usize) T {
        return std.mem.readInt(T, self.bytes[at..][0..@sizeOf(T)], .big);
    }

    pub fn hasCookie(self: *const Header) bool {
        return std.mem.startsWith(u8, self.bytes, cookie);
    }
    pub fn dataOffset(self: *const Header) u64 {
        return self.int(u64, 8);
    }
    pub fn tableOffset(self: *const Header) u64 {
        return self.int(u64, 16);
    }
    pub fn version(self: *const Header) u32 {
        return self.int(u32, 24);
    }
    pub fn tableEntries(self: *const Header) u32 {
        return self.int(u32, 28);
    }
    pub fn blockSize(self: *const Header) u32 {
        return self.int(u32, 32);
    }
    pub fn checksum(self: *const Header) u32 {
        return self.int(u32, 36);
    }
    pub fn checksumIsRight(self: *const Header) bool {
        return self.checksum() == footers.sumOf(self.bytes, 36);
    }
    pub fn parentUuid(self: *const Header) *const [16]u8 {
        return self.bytes[40..56];
    }
    pub fn parentTimestamp(self: *const Header) u32 {
        return self.int(u32, 56);
    }
    /// UTF-16 big endian, up to the first NUL.
    pub fn parentName(self: *const Header, allocator: std.mem.Allocator) error{OutOfMemory}![]const u8 {
        return text.fromUtf16(allocator, self.bytes[64..576], .big);
    }
    pub fn locator(self: *const Header, index: u3) Locator {
        const at = 576 + @as(usize, index) * 24;
        return .{
            .platform = self.bytes[at..][0..4].*,
            .space = self.int(u32, at + 4),
            .length = self.int(u32, at + 8),
            .offset = self.int(u64, at + 16),
        };
    }
    pub fn reserved(self: *const Header) []const u8 {
        return self.bytes[768..];
    }
};

/// Where a platform's name of the parent lies.
pub const Locator = struct {
    /// "W2ru", "W2ku", "MacX" ...; four zeros: not used.
    platform: [4]u8,
    /// Room for the name; the specification says sectors, most writers say bytes.
    space: u32,
    /// Bytes of the name.
    length: u32,
    offset: u64,

    /// Longest name that is looked at, in bytes.
    pub const max_length = 2048;

    pub fn isUsed(self: Locator) bool {
        return !std.mem.allEqual(u8, &self.platform, 0);
    }

    /// The name as UTF-8, null when the platform code is unknown or the name does not lie inside the file.
    pub fn name(self: Locator, context: image.Context, device: block.Device) block.Error!?[]const u8 {
        if (self.length == 0 or self.length > max_length) return null;
        const end = std.math.add(u64, self.offset, self.length) catch return null;
        if (end > device.length) return null;
        const raw = context.allocator.alloc(u8, self.length) catch return error.NoMemory;
        try device.read(self.offset, raw);
        const code = std.mem.readInt(u32, &self.platform, .big);
        const decoded = switch (code) {
            // W2ru, W2ku: Windows path, relative or absolute, UTF-16 little endian.
            0x57327275, 0x57326b75 => text.fromUtf16(context.allocator, raw, .little),
            // Wi2r, Wi2k (deprecated), MacX: bytes.
            0x57693272, 0x5769326b, 0x4d616358 => text.fromUtf8(context.allocator, block.search.until(raw, 0)),
            else => return null,
        };
        return decoded catch error.NoMemory;
    }
};

/// The bounds that every reader relies on, checked once.
pub const Layout = struct {
    block_size: u32,
    /// Bytes of the sector bitmap in front of each block, whole sectors.
    bitmap_size: u32,
    table_offset: u64,
    table_entries: u32,

    /// Check a header as qemu does; `virtual_size` in bytes.
    pub fn of(header: *const Header, virtual_size: u64, context: image.Context, device: block.Device) error{Refused}!Layout {
        const diagnostic = context.diagnostic;
        const at = header.offset;
        if (!header.hasCookie()) {
            return refuse(diagnostic, .corrupt, "dynamic header", "no dynamic disk header at byte {offset}", at, none, none);
        }
        const block_size = header.blockSize();
        if (block_size < sector or !std.math.isPowerOfTwo(block_size)) {
            return refuse(diagnostic, .corrupt, "dynamic header", "Invalid block size {value}", at, block_size, none);
        }
        const entries: u64 = header.tableEntries();
        const most = @min(footers.max_sectors * sector / block_size, max_entries);
        if (entries > most) {
            return refuse(diagnostic, .too_large, "BAT", "Max Table Entries too large ({value}), at most {limit} for blocks of this size", at, entries, most);
        }
        // Neither product can wrap: both factors are below 2^32.
        if (entries * block_size < virtual_size) {
            return refuse(diagnostic, .corrupt, "BAT", "Page table too small: its blocks hold {value} bytes, the disk has {limit}", at, entries * block_size, virtual_size);
        }
        const table_offset = header.tableOffset();
        const end = std.math.add(u64, table_offset, entries * 4) catch std.math.maxInt(u64);
        // Bytes that the last sector of the file lacks read as zero.
        if (end > std.mem.alignForward(u64, device.length, sector)) {
            return refuse(diagnostic, .out_of_bounds, "BAT", "BAT at byte {offset} ends at byte {value}, file has {limit}", table_offset, end, device.length);
        }
        return .{
            .block_size = block_size,
            .bitmap_size = bitmapSize(block_size),
            .table_offset = table_offset,
            .table_entries = @intCast(entries),
        };
    }

    /// File bytes that a block takes, bitmap included.
    pub fn stride(self: Layout) u64 {
        return @as(u64, self.bitmap_size) + self.block_size;
    }
};

/// A bit a sector, rounded up to whole sectors.  Blocks below 4096 bytes have no bitmap at all: the specification does
/// not think of them, and qemu rounds the bits down to bytes first.
pub fn bitmapSize(block_size: u32) u32 {
    return std.mem.alignForward(u32, block_size / (8 * sector), sector);
}

/// The BAT, read through a window so that its size costs no memory.
pub const Table = struct {
    device: block.Device,
    layout: Layout,
    window: []u8,
    /// Index of the first entry in the window, and how many are there.
    first: u32 = 0,
    count: u32 = 0,

    /// Entries in the window at most: 512 KiB, so that the table of up to 256 GiB in the usual 2 MiB blocks is read once.
    const window_entries = 128 * 1024;

    pub fn init(context: image.Context, device: block.Device, layout: Layout) block.Error!Table {
        const entries: usize = @min(layout.table_entries, window_entries);
        const window = context.allocator.alloc(u8, entries * 4) catch return error.NoMemory;
        return .{ .device = device, .layout = layout, .window = window };
    }

    /// The entry at `index` (< table_entries): a sector number, or `absent`.
    pub fn entry(self: *Table, index: u32) block.Error!u32 {
        std.debug.assert(index < self.layout.table_entries);
        if (index < self.first or index - self.first >= self.count) try self.load(index);
        const start = (index - self.first) * 4;
        return std.mem.readInt(u32, self.window[start..][0..4], .big);
    }

    fn load(self: *Table, index: u32) block.Error!void {
        const wanted: u32 = @intCast(@min(self.window.len / 4, self.layout.table_entries - index));
        try self.device.readPadded(self.layout.table_offset + @as(u64, index) * 4, self.window[0 .. wanted * 4]);
        self.first = index;
        self.count = wanted;
    }

    pub const Totals = struct { allocated: u64, end: u64 };

    /// How many blocks there are, and the first byte behind the BAT and the last of them, in whole sectors.
    pub fn totals(self: *Table) block.Error!Totals {
        const table_end = self.layout.table_offset + @as(u64, self.layout.table_entries) * 4;
        var result: Totals = .{ .allocated = 0, .end = std.mem.alignForward(u64, table_end, sector) };
        for (0..self.layout.table_entries) |index| {
            const value = try self.entry(@intCast(index));
            if (value == absent) continue;
            result.allocated += 1;
            result.end = @max(result.end, @as(u64, value) * sector + self.layout.stride());
        }
        return result;
    }
};
