//! Persistent bitmaps of an image that gets another size (QEMU docs/interop/qcow2.txt, "Bitmaps").
//!
//! Each has as many bits as the disk has granules, so its table becomes longer or shorter, and bits behind the smaller
//! of the two ends are 0 afterwards.  What is in place stays as it is: tables, data and directory that change are
//! written to new clusters, and the header's first sector puts the new directory in place together with the new size.
//! Where the bitmaps extension lies behind that sector, it moves to the front of the extensions; the feature name
//! table, which nobody needs in order to read an image, is cut off by the same write and put back after it.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const header_zig = @import("header.zig");
const extensions_zig = @import("extensions.zig");
const bitmaps = @import("bitmaps.zig");
const counts_zig = @import("counts.zig");
const template = @import("template.zig");
const open = @import("open.zig");
const refuse = template.refuse;
const none = template.none;
const Header = header_zig.Header;
const Counts = counts_zig.Counts;
const Steps = counts_zig.Steps;
const big = header_zig.big;
const sector = 512;

/// Refuse what QEMU does not resize: bitmaps that were in use when somebody stopped half-way.
pub fn refuseInUse(context: image.Context, list: []const bitmaps.Bitmap) error{Refused}!void {
    for (list) |bitmap| {
        if (bitmap.inUse()) return context.diagnostic.refuse(
            .corrupt,
            .{ .format = "qcow2", .structure = "bitmap directory" },
            "Bitmap '{s}' is inconsistent and cannot be used",
            .{bitmap.name[0..@min(bitmap.name.len, 256)]},
        );
    }
}

pub const Change = struct {
    context: image.Context,
    device: block.Device,
    header: Header,
    place: extensions_zig.Bitmaps,
    list: []const bitmaps.Bitmap,
    counts: *Counts,
    /// Where the new clusters are written.
    fresh: *Steps,
    /// Clusters that the new header does not need.
    lost: *std.ArrayList(counts_zig.Range),
    /// Where each table will lie, and its entries.
    tables: []Table = &.{},
    directory_offset: u64 = 0,

    const Table = struct { offset: u64, entries: u64 };

    /// Plan everything but the header; answers whether the directory is another one.
    pub fn plan(self: *Change, new_size: u64) block.Error!bool {
        self.directory_offset = self.place.directory_offset;
        self.tables = self.context.allocator.alloc(Table, self.list.len) catch return open.noMemory(self.context, self.list.len * @sizeOf(Table));
        var changed = false;
        for (self.list, self.tables, 0..) |bitmap, *table, index| {
            table.* = .{ .offset = bitmap.table_offset, .entries = bitmap.table_entries };
            if (try self.one(bitmap, table, index, new_size)) changed = true;
        }
        if (!changed) return false;
        const bytes = try self.buffer(self.place.directory_size);
        try self.device.readPadded(self.place.directory_offset, bytes);
        var at: usize = 0;
        for (self.tables) |table| {
            const entry = bytes[at..];
            std.mem.writeInt(u64, entry[0..8], table.offset, .big);
            std.mem.writeInt(u32, entry[8..12], @intCast(table.entries), .big);
            // Extra data are refused on opening.
            at += std.mem.alignForward(usize, 24 + @as(usize, big(u16, entry, 18)), 8);
        }
        self.directory_offset = try self.put(bytes, bytes.len);
        try self.lose(self.place.directory_offset, bytes.len);
        return true;
    }

    fn one(self: *Change, bitmap: bitmaps.Bitmap, table: *Table, index: usize, new_size: u64) block.Error!bool {
        const header = self.header;
        const old: u64 = bitmap.table_entries;
        const new = entriesFor(header, bitmap, new_size);
        const limit = @min(bitmaps.max_table_entries, @as(u64, bitmaps.max_data_bytes) >> header.cluster_bits);
        if (new > limit)
            return refuse(self.context.diagnostic, .too_large, "bitmap table", "the table of a bitmap would have {value} entries, the limit is {limit}; remove the bitmap or give it a larger granularity", bitmap.table_offset, new, limit);
        const kept = @min(old, new);
        const bytes = try self.readTable(bitmap, old);
        var patched = false;
        if (kept * 8 <= bytes.len) {
            const last = bytes[@intCast(kept * 8 - 8)..][0..8];
            const bits = granules(bitmap, @min(header.virtualSize(), new_size));
            if (try self.clearBehind(big(u64, last, 0), bits - ((kept - 1) << header.cluster_bits) * 8)) |word| {
                std.mem.writeInt(u64, last, word, .big);
                patched = true;
            }
        }
        if (new == old and !patched) return false;
        var at: usize = @intCast(@min(kept * 8, bytes.len));
        const prefix = bytes[0..at];
        while (at < bytes.len) : (at += 8) try self.loseData(big(u64, bytes, at));
        // What nobody writes is zero there.
        table.* = .{ .offset = try self.put(prefix, new * 8), .entries = new };
        try self.lose(bitmap.table_offset, old * 8);
        self.context.tick(index, self.list.len);
        return true;
    }

    /// As much of a table as lies in the file; the rest reads as zero.
    fn readTable(self: *Change, bitmap: bitmaps.Bitmap, entries: u64) block.Error![]u8 {
        const inside = self.device.length -| bitmap.table_offset;
        const bytes = try self.buffer(@min(entries * 8, std.mem.alignForward(u64, inside, 8)));
        try self.device.readPadded(bitmap.table_offset, bytes);
        return bytes;
    }

    /// Of the last cluster of a bitmap, the bits from `end` on become 0; answers the new entry when it changes.
    fn clearBehind(self: *Change, word: u64, end: u64) block.Error!?u64 {
        const size = self.header.clusterSize();
        if (end >= size * 8) return null;
        const offset = bitmaps.tableEntry(self.header, word) orelse return null;
        const bytes = try self.buffer(size);
        if (offset != 0) {
            try self.device.readPadded(offset, bytes);
        } else if (word & 1 != 0) @memset(bytes, 0xff) else return null;
        var first: usize = @intCast(end / 8);
        if (end % 8 != 0) {
            const mask = @as(u8, 0xff) << @intCast(end % 8);
            if (bytes[first] & mask == 0 and std.mem.allEqual(u8, bytes[first + 1 ..], 0)) return null;
            bytes[first] &= ~mask;
            first += 1;
        } else if (std.mem.allEqual(u8, bytes[first..], 0)) return null;
        @memset(bytes[first..], 0);
        try self.loseData(word);
        return if (std.mem.allEqual(u8, bytes, 0)) 0 else try self.put(bytes, size);
    }

    fn loseData(self: *Change, word: u64) block.Error!void {
        const offset = bitmaps.tableEntry(self.header, word) orelse return;
        if (offset != 0) try self.lose(offset, self.header.clusterSize());
    }

    fn lose(self: *Change, offset: u64, bytes: u64) error{NoMemory}!void {
        self.lost.append(self.context.allocator, .{ .first = offset >> self.header.cluster_bits, .count = self.header.clusters(bytes) }) catch return error.NoMemory;
    }

    /// New clusters for `length` bytes that begin with these.
    fn put(self: *Change, bytes: []const u8, length: u64) error{NoMemory}!u64 {
        const offset = self.counts.take(self.header.clusters(length)) << self.header.cluster_bits;
        if (bytes.len > 0) self.fresh.append(self.context.allocator, .{ .write = .{ .offset = offset, .bytes = bytes } }) catch return error.NoMemory;
        return offset;
    }

    fn buffer(self: *const Change, bytes: u64) block.Error![]u8 {
        const room = self.context.allocator.alloc(u8, @intCast(bytes)) catch return open.noMemory(self.context, bytes);
        @memset(room, 0);
        return room;
    }

    /// A broken image may name a cluster twice.
    pub fn expectKept(self: *const Change) block.Error!void {
        try self.counts.expectUsed(self.directory_offset, self.place.directory_size);
        for (self.tables) |table| try self.counts.expectUsed(table.offset, table.entries * 8);
    }

    /// Name the new directory in `first`, the header's first sector as it will be.  What `second` and `third` get is to
    /// be written after it, one after the other: the extensions that it had to cut off.
    pub fn addExtension(self: *const Change, first: []u8, second: *Steps, third: *Steps) block.Error!void {
        const header = self.header;
        const end = header.extensionsEnd();
        // Only here are the extensions of interest as bytes; a cluster has at most 2 MiB.
        const old = try self.buffer(end);
        try self.device.readPadded(0, old);
        var at: usize = header.header_length;
        var ours: usize = 0;
        while (at + 8 <= end and big(u32, old, at) != extensions_zig.Type.end) : (at += spanOf(old, at)) {
            if (big(u32, old, at) == extensions_zig.Type.bitmaps) ours = at;
        }
        const stop = at;
        // The last eight bytes of it.
        const field = ours + 24;
        if (field + 8 <= sector) {
            std.mem.writeInt(u64, first[field..][0..8], self.directory_offset, .big);
            return;
        }
        std.mem.writeInt(u64, old[field..][0..8], self.directory_offset, .big);
        const new = try self.buffer(@max(stop, sector));
        @memcpy(new[0..sector], first);
        var used: usize = header.header_length;
        move(new, &used, old, ours);
        at = header.header_length;
        while (at < stop) : (at += spanOf(old, at)) {
            if (at == ours or big(u32, old, at) == extensions_zig.Type.feature_names) continue;
            if (at + spanOf(old, at) <= end) move(new, &used, old, at);
        }
        // The mark of the end lies in the sector too.
        if (used + 8 > sector or stop > end)
            return refuse(self.context.diagnostic, .unsupported, "header extension", "the header and its extensions have {value} bytes, and an image with bitmaps is resized only where they fit {limit}", header.header_length, used, sector - 8);
        @memcpy(first[0..used], new[0..used]);
        @memset(first[used..], 0);
        at = header.header_length;
        while (at < stop) : (at += spanOf(old, at)) {
            if (big(u32, old, at) == extensions_zig.Type.feature_names) move(new, &used, old, at);
        }
        std.debug.assert(used == stop);
        const allocator = self.context.allocator;
        if (stop > sector) second.append(allocator, .{ .write = .{ .offset = sector, .bytes = new[sector..stop] } }) catch return error.NoMemory;
        third.append(allocator, .{ .write = .{ .offset = 0, .bytes = new[0..sector] } }) catch return error.NoMemory;
    }
};

/// Bytes of an extension with its head and padding.
fn spanOf(bytes: []const u8, at: usize) usize {
    return 8 + std.mem.alignForward(usize, big(u32, bytes, at + 4), 8);
}

fn move(new: []u8, used: *usize, old: []const u8, at: usize) void {
    const length = @min(spanOf(old, at), old.len - at, new.len - used.*);
    @memcpy(new[used.*..][0..length], old[at..][0..length]);
    used.* += length;
}

fn granules(bitmap: bitmaps.Bitmap, size: u64) u64 {
    return std.math.divCeil(u64, size, @as(u64, 1) << bitmap.granularity_bits) catch unreachable;
}

/// Entries of the table of a bitmap for a disk of so many bytes.
fn entriesFor(header: Header, bitmap: bitmaps.Bitmap, size: u64) u64 {
    return header.clusters((granules(bitmap, size) + 63) / 64 * 8);
}
