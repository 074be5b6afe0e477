//! Persistent dirty bitmaps: the directory and the bitmap tables (QEMU docs/interop/qcow2.txt, "Bitmaps").
//! QEMU loads every bitmap whenever it opens an image and refuses the image when one is broken; so does `load`.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const header_zig = @import("header.zig");
const Header = header_zig.Header;
const Bitmaps = @import("extensions.zig").Bitmaps;
const template = @import("template.zig");
const refuse = template.refuse;
const none = template.none;
const Window = @import("window.zig").Window;
const big = header_zig.big;

pub const Flags = struct {
    pub const in_use = 1 << 0;
    pub const auto = 1 << 1;
    pub const known: u32 = in_use | auto;
};
pub const max_name = 1023;
pub const max_table_entries = 0x800_0000;
/// Bytes of a bitmap's data.
pub const max_data_bytes = 0x2000_0000;
const reserved_mask: u64 = 0xff00_0000_0000_01fe;
const entry_bytes = 24;

pub const Bitmap = struct {
    table_offset: u64,
    table_entries: u32,
    flags: u32,
    granularity_bits: u6,
    /// Cut at the first NUL; lives as long as the list.
    name: []const u8,

    pub fn inUse(self: Bitmap) bool {
        return self.flags & Flags.in_use != 0;
    }

    /// Whether QEMU's block layer would read the table at all.
    pub fn readable(self: Bitmap) bool {
        return self.table_offset <= header_zig.max_offset - @as(u64, self.table_entries) * 8;
    }
};

/// The directory, every entry checked.
pub fn directory(context: image.Context, device: block.Device, header: Header, place: Bitmaps) block.Error![]const Bitmap {
    const diagnostic = context.diagnostic;
    if (place.directory_size == 0)
        return refuse(diagnostic, .corrupt, "bitmap directory", "bitmap directory size is zero", place.directory_offset, none, none);
    // An entry has at least 24 bytes, so this also bounds the list by what the directory can hold.
    if (place.directory_offset > header_zig.max_offset - place.directory_size)
        return refuse(diagnostic, .out_of_bounds, "bitmap directory", "failed to read bitmap directory at byte {offset}", place.directory_offset, none, none);
    // What lies behind the end of the file reads as zero, and an entry of zeroes is broken: no need to hold it.
    const inside: u64 = if (place.directory_offset < device.length) device.length - place.directory_offset else 0;
    const length: usize = @intCast(@min(place.directory_size, inside + entry_bytes));
    const bytes = context.allocator.alloc(u8, length) catch return noMemory(diagnostic, length);
    try device.readPadded(place.directory_offset, bytes);
    const list = context.allocator.alloc(Bitmap, @min(place.count, length / entry_bytes + 1)) catch return noMemory(diagnostic, place.count * @sizeOf(Bitmap));
    var at: usize = 0;
    var count: usize = 0;
    while (at < place.directory_size) : (count += 1) {
        if (count == place.count)
            return refuse(diagnostic, .corrupt, "bitmap directory", "more bitmaps found than the {limit} specified in header extension", place.directory_offset, none, place.count);
        if (length - at < entry_bytes) return broken(diagnostic, place, at);
        const entry = bytes[at..];
        const name_length: u64 = big(u16, entry, 18);
        const extra_length = big(u32, entry, 20);
        const total = std.mem.alignForward(u64, entry_bytes + name_length + extra_length, 8);
        if (total > place.directory_size - at) return broken(diagnostic, place, at);
        if (extra_length != 0)
            return refuse(diagnostic, .unsupported, "bitmap directory", "bitmap extra data is not supported (bitmap {value})", place.directory_offset, count, none);
        if (total > length - at) return broken(diagnostic, place, at);
        const name = entry[entry_bytes..][0..@intCast(name_length)];
        const found: Bitmap = .{
            .table_offset = big(u64, entry, 0),
            .table_entries = big(u32, entry, 8),
            .flags = big(u32, entry, 12),
            .granularity_bits = @truncate(entry[17]),
            .name = block.search.until(name, 0),
        };
        if (entry[17] < 9 or entry[17] > 31 or entry[16] != 1 or name_length > max_name or !plausible(header, found))
            return refuse(diagnostic, .corrupt, "bitmap directory", "bitmap {value} doesn't satisfy the constraints", place.directory_offset + at, count, none);
        list[count] = found;
        at += @intCast(total);
    }
    if (count != place.count)
        return refuse(diagnostic, .corrupt, "bitmap directory", "less bitmaps found ({value}) than the {limit} specified in header extension", place.directory_offset, count, place.count);
    return list[0..count];
}

fn broken(diagnostic: *block.Diagnostic, place: Bitmaps, at: u64) error{Refused} {
    return refuse(diagnostic, .corrupt, "bitmap directory", "broken bitmap directory at byte {offset}", place.directory_offset +| at, none, none);
}

fn noMemory(diagnostic: *block.Diagnostic, bytes: u64) error{Refused} {
    return refuse(diagnostic, .no_memory, "bitmap directory", "the bitmap directory needs {value} bytes of memory; raise --max-memory", none, bytes, none);
}

fn plausible(header: Header, bitmap: Bitmap) bool {
    if (bitmap.table_entries == 0 or bitmap.table_entries > max_table_entries) return false;
    if (bitmap.table_offset == 0 or header.offsetInCluster(bitmap.table_offset) != 0) return false;
    if (bitmap.flags & ~Flags.known != 0) return false;
    const data_bytes = @as(u64, bitmap.table_entries) << header.cluster_bits;
    if (data_bytes > max_data_bytes) return false;
    // 2^29 bytes of bits with 2^31 bytes a bit: below 2^63.
    return bitmap.inUse() or header.virtualSize() <= (data_bytes * 8) << bitmap.granularity_bits;
}

/// What an entry of a bitmap table says; null where it breaks the rules.
pub fn tableEntry(header: Header, word: u64) ?u64 {
    if (word & reserved_mask != 0) return null;
    const offset = word & 0x00ff_ffff_ffff_fe00;
    if (offset != 0 and (word & 1 != 0 or header.offsetInCluster(offset) != 0)) return null;
    return offset;
}

/// Bytes of bitmap tables that are read at most: every byte of the file twice, as two bitmaps may share a table.
pub fn tableBudget(device: block.Device) u64 {
    return 2 * device.length + (1 << 20);
}

/// What QEMU does on opening: names are unique, and the tables of bitmaps that are not in use are sound.
pub fn load(context: image.Context, device: block.Device, window: *Window, header: Header, list: []const Bitmap) block.Error!void {
    const diagnostic = context.diagnostic;
    try checkNames(context, list);
    var budget = tableBudget(device);
    for (list, 0..) |bitmap, index| {
        if (bitmap.inUse()) continue;
        if (!bitmap.readable())
            return refuse(diagnostic, .out_of_bounds, "bitmap table", "could not read bitmap table from image for bitmap {value}: it lies at byte {offset}", bitmap.table_offset, index, none);
        const bits = std.math.divCeil(u64, header.virtualSize(), @as(u64, 1) << bitmap.granularity_bits) catch unreachable;
        const wanted = header.clusters((bits + 63) / 64 * 8);
        if (wanted != bitmap.table_entries)
            return refuse(diagnostic, .corrupt, "bitmap table", "could not read a bitmap from image: its table has {value} entries, the disk needs {limit}", bitmap.table_offset, bitmap.table_entries, wanted);
        var tables = Table.init(device, window, bitmap);
        if (tables.inside() > budget)
            return refuse(diagnostic, .too_large, "bitmap table", "bitmap tables overlap: more bytes of them than the file has", bitmap.table_offset, tables.inside(), budget);
        budget -= tables.inside();
        while (try tables.next()) |word| {
            if (tableEntry(header, word) == null)
                return refuse(diagnostic, .corrupt, "bitmap table", "could not read bitmap table from image: entry {value:x} in the table at byte {offset}", bitmap.table_offset, word, none);
        }
    }
}

const Named = struct {
    name: []const u8,
    index: usize,

    fn before(_: void, a: Named, b: Named) bool {
        return switch (std.mem.order(u8, a.name, b.name)) {
            .lt => true,
            .gt => false,
            .eq => a.index < b.index,
        };
    }
};

/// Names are unique, but for bitmaps in use, which QEMU passes over when it has one of that name.
fn checkNames(context: image.Context, list: []const Bitmap) block.Error!void {
    const names = context.allocator.alloc(Named, list.len) catch return noMemory(context.diagnostic, list.len * @sizeOf(Named));
    for (names, list, 0..) |*named, bitmap, index| named.* = .{ .name = bitmap.name, .index = index };
    std.sort.heap(Named, names, {}, Named.before);
    for (names, 0..) |named, i| {
        if (i == 0 or list[named.index].inUse() or !std.mem.eql(u8, named.name, names[i - 1].name)) continue;
        return refuse(context.diagnostic, .corrupt, "bitmap directory", "bitmap already exists: bitmap {value} has the name of an earlier one", list[named.index].table_offset, named.index, none);
    }
}

/// The words of a bitmap table that lie inside the file; the rest is zero.
pub const Table = struct {
    window: *Window,
    at: u64,
    end: u64,

    pub fn init(device: block.Device, window: *Window, bitmap: Bitmap) Table {
        const end = bitmap.table_offset +| @as(u64, bitmap.table_entries) * 8;
        return .{ .window = window, .at = @min(bitmap.table_offset, device.length), .end = @min(end, device.length) };
    }

    pub fn inside(self: Table) u64 {
        return self.end - self.at;
    }

    pub fn next(self: *Table) block.DeviceError!?u64 {
        if (self.at >= self.end) return null;
        const word = try self.window.word(self.at);
        self.at += 8;
        return word;
    }
};
