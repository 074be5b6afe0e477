//! Growing a VHDX in place: dynamic and fixed disks.
//!
//! Nothing that readers look at changes before the last write but one of a sector, and each of those goes alone between
//! two flushes:
//!
//! 1. The header that is not in use gets the next sequence number and new write GUIDs ([MS-VHDX] 2.2.2: children find
//!    out that their parent has changed).  Torn, it has a wrong checksum, and the other one counts.
//! 2. What nobody refers to yet: a longer BAT at the end of the file or the entries behind those that are in use, new
//!    blocks of a fixed disk, zeroes in the last block behind the end of the disk.
//! 3. When the BAT has moved: the region table that is not in use, then the one that is.  Both BATs say the same of the
//!    disk as it still is.
//! 4. The virtual disk size, 8 bytes of one sector.
//!
//! After any prefix the image opens with its old size or its new one, and its old content is whole.  The log stays
//! empty: readers that cannot replay one can always open the image.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const resizing = @import("../resizing.zig");
const steps = @import("../steps.zig");
const target = @import("../target.zig");
const format = @import("format.zig");
const fields = @import("fields.zig");
const identity = @import("identity.zig");
const bat = @import("bat.zig");
const vhdx = @import("vhdx.zig");
const Headers = @import("headers.zig").Headers;
const none = @import("../qcow2/template.zig").none;

const mib: u64 = format.mib;
/// What a disk writes at once.
const sector = 512;

/// Plan a larger disk.
///
/// Refuses (`unsupported`): a smaller size, differencing disks, a log that is in use; (`too_large`): above 64 TiB.
pub fn resize(context: image.Context, device: block.Device, request: *const messages.ResizeRequest) block.Error!steps.Resize {
    const loaded = try vhdx.load(context, device);
    const old_size = loaded.metadata.virtual_size;
    const wanted = try resizing.wanted(context, format.name, old_size, request);
    if (wanted.preallocation != .off) return resizing.noSuchMode(context, format.name, wanted.preallocation);
    // At most 2^63.
    const size = std.mem.alignForward(u64, wanted.size, loaded.metadata.logical_sector_size);
    if (size > format.max_disk_size) return vhdx.refuse(
        context.diagnostic,
        .too_large,
        "virtual disk size",
        "Image size too large; max of 64TB: {value} bytes, the limit is {limit}",
        none,
        size,
        format.max_disk_size,
    );
    if (size < old_size) return vhdx.refuse(context.diagnostic, .unsupported, "virtual disk size", "a disk of {value} bytes cannot be made smaller, {limit} bytes", none, old_size, size);
    if (loaded.replayed.log.state != .empty) return vhdx.refuse(
        context.diagnostic,
        .unsupported,
        "log",
        "the log at byte {offset} is in use: what it holds has to be written to its places first",
        loaded.replayed.log.offset,
        none,
        none,
    );
    if (loaded.metadata.isDifferencing()) return vhdx.refuse(context.diagnostic, .unsupported, "file parameters", "a differencing disk is as large as its parent and cannot be resized", none, none, none);
    if (size == old_size) return .{ .old_size = old_size, .new_size = old_size, .steps = &.{} };
    var growth: Growth = .{ .context = context, .device = device, .loaded = loaded, .size = size };
    growth.plan() catch |failure| switch (failure) {
        error.OutOfMemory => return error.NoMemory,
        else => |other| return other,
    };
    return .{ .old_size = old_size, .new_size = size, .steps = growth.out.items };
}

const Growth = struct {
    context: image.Context,
    device: block.Device,
    loaded: vhdx.Vhdx,
    size: u64,
    out: std.ArrayList(steps.Step) = .empty,

    const Failure = block.Error || error{OutOfMemory};

    fn plan(self: *Growth) Failure!void {
        const layout = &self.loaded.table.layout;
        const blocks = std.math.divCeil(u64, self.size, layout.block_size) catch unreachable;
        const entries = blocks + (blocks - 1) / layout.chunk_ratio;
        const fits = entries * format.entry_size <= self.loaded.regions.bat.length;
        const table_offset = if (fits) layout.offset else try self.endOfAll();
        const table_size = std.mem.alignForward(u64, entries * format.entry_size, mib);
        const new_blocks = blocks - layout.blocks;
        const payload = if (fits) try self.endOfAll() else table_offset + table_size;
        const place = if (self.loaded.metadata.isFixed()) payload else null;

        try self.newHeader();
        try self.out.append(self.context.allocator, .flush);
        try self.clearTail();
        if (fits) try self.extendTable(entries, place) else try self.moveTable(table_offset, entries, place);
        // The last block of the old disk may have been cut off at its end.
        const length = @max(self.loaded.totals.end, if (place != null and new_blocks > 0)
            payload + new_blocks * layout.block_size
        else if (fits) 0 else table_offset + table_size);
        if (length > self.device.length) try self.out.append(self.context.allocator, .{ .length = length });
        try self.out.append(self.context.allocator, .flush);
        if (!fits) try self.newRegionTables(table_offset, table_size);
        try self.newSize();
        try self.out.append(self.context.allocator, .flush);
    }

    /// Where new structures and blocks can lie: behind the file and all that the image claims.
    fn endOfAll(self: *const Growth) error{Refused}!u64 {
        var end = @max(self.device.length, self.loaded.totals.end);
        for (self.loaded.regions.ranges) |range| end = @max(end, range.end);
        // Room for 64 TiB and their table.
        const limit = target.max_size - 2 * format.max_disk_size;
        if (end > limit) return vhdx.refuse(self.context.diagnostic, .too_large, "file", "the structures of the image reach byte {value}, growing needs them below byte {limit}", none, end, limit);
        return std.mem.alignForward(u64, end, mib);
    }

    fn write(self: *Growth, offset: u64, bytes: []const u8) error{OutOfMemory}!void {
        try self.out.append(self.context.allocator, .{ .write = .{ .offset = offset, .bytes = bytes } });
    }

    /// GUIDs are made of the old ones and the size: the same change of the same disk makes the same disk.
    fn newHeader(self: *Growth) Failure!void {
        const headers: *const Headers = &self.loaded.replayed.headers;
        const current = headers.current();
        const next = std.math.add(u64, current.sequence(), 1) catch
            return vhdx.refuse(self.context.diagnostic, .too_large, "header", "the sequence number of the header at byte {offset} has reached its limit", current.offset, none, none);
        var secret: [40]u8 = undefined;
        secret[0..16].* = current.fileWriteGuid().*;
        secret[16..32].* = current.dataWriteGuid().*;
        std.mem.writeInt(u64, secret[32..40], self.size, .little);
        const bytes = try self.context.allocator.dupe(u8, current.bytes);
        fields.put(u64, bytes, fields.header.sequence, next);
        bytes[fields.header.file_write_guid..][0..16].* = identity.guid(&secret, "file write");
        bytes[fields.header.data_write_guid..][0..16].* = identity.guid(&secret, "data write");
        fields.put(u32, bytes, fields.checksum, format.checksumOf(bytes));
        try self.write(headers.copies[1 - headers.active].offset, bytes);
    }

    /// What a block holds behind the end of the disk comes to light.
    fn clearTail(self: *Growth) Failure!void {
        const layout = &self.loaded.table.layout;
        const used = layout.virtual_size % layout.block_size;
        if (used == 0) return;
        const entry = try self.loaded.table.entry(layout.payloadEntry(layout.blocks - 1));
        if (format.State.of(entry) != .fully_present) return;
        const start = bat.offsetOf(entry) + used;
        const end = @min(self.device.length, bat.offsetOf(entry) + layout.block_size);
        if (start < end) try self.out.append(self.context.allocator, .{ .zero = .{ .offset = start, .length = end - start } });
    }

    /// The entries from `first` on, of a table of `bytes.len` bytes of them: all zero, or with `place` the blocks there.
    fn fill(self: *const Growth, bytes: []u8, first: u64, place: ?u64) void {
        const layout = &self.loaded.table.layout;
        @memset(bytes, 0);
        const payload = place orelse return;
        var at: usize = 0;
        while (at < bytes.len) : (at += format.entry_size) {
            const index = first + at / format.entry_size;
            if (layout.isBitmap(index)) continue;
            const offset = payload + (layout.blockOf(index) - layout.blocks) * layout.block_size;
            fields.put(u64, bytes, at, offset | @intFromEnum(format.State.fully_present));
        }
    }

    /// The entries behind those in use, in the BAT's region.
    fn extendTable(self: *Growth, entries: u64, place: ?u64) Failure!void {
        const layout = &self.loaded.table.layout;
        const start = layout.offset + layout.entries * format.entry_size;
        const length = (entries - layout.entries) * format.entry_size;
        if (length == 0) return;
        if (place == null) {
            const clear = @min(length, self.device.length -| start);
            if (clear > 0) try self.out.append(self.context.allocator, .{ .zero = .{ .offset = start, .length = clear } });
            if (clear < length) try self.out.append(self.context.allocator, .{ .length = start + length });
            return;
        }
        const bytes = try self.context.allocator.alloc(u8, @intCast(length));
        self.fill(bytes, layout.entries, place);
        try self.write(start, bytes);
    }

    /// A whole BAT elsewhere.
    fn moveTable(self: *Growth, offset: u64, entries: u64, place: ?u64) Failure!void {
        const layout = &self.loaded.table.layout;
        const bytes = try self.context.allocator.alloc(u8, @intCast(entries * format.entry_size));
        const old: usize = @intCast(layout.entries * format.entry_size);
        try self.device.readPadded(layout.offset, bytes[0..old]);
        self.fill(bytes[old..], layout.entries, place);
        try self.write(offset, bytes);
    }

    /// The table that is not in use first: the other one counts until it is whole.
    fn newRegionTables(self: *Growth, offset: u64, length: u64) Failure!void {
        const table = &self.loaded.regions.table;
        const bytes = try self.context.allocator.dupe(u8, table.bytes);
        for (0..table.entryCount()) |index| {
            if (!table.region(index).isBat()) continue;
            const entry = bytes[format.region_header_size + index * format.region_entry_size ..][0..format.region_entry_size];
            fields.put(u64, entry, fields.region.offset, offset);
            // At most 2^26 blocks and 2^14 entries for bitmaps.
            fields.put(u32, entry, fields.region.length, @intCast(length));
        }
        fields.put(u32, bytes, fields.checksum, format.checksumOf(bytes));
        const places = format.region_table_offsets;
        const first = places[0] + places[1] - table.offset;
        try self.write(first, bytes);
        try self.out.append(self.context.allocator, .flush);
        // Of the one in use only what changes, a single sector unless there are many regions.
        var end = bytes.len;
        while (bytes[end - 1] == table.bytes[end - 1]) end -= 1;
        try self.write(table.offset, bytes[0..std.mem.alignForward(usize, end, sector)]);
        try self.out.append(self.context.allocator, .flush);
    }

    fn newSize(self: *Growth) Failure!void {
        const at = self.loaded.metadata.place(.virtual_disk_size);
        if (at % sector > sector - 8) return vhdx.refuse(self.context.diagnostic, .unsupported, "virtual disk size", "the size at byte {offset} lies across two sectors, and cannot be changed at once", at, none, none);
        const bytes = try self.context.allocator.alloc(u8, 8);
        fields.put(u64, bytes, 0, self.size);
        try self.write(at, bytes);
    }
};
