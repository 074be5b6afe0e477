//! Refcounts as the file stores them: widths of 1 to 64 bits, the refcount table, and refcount blocks read in order
//! (QEMU docs/interop/qcow2.txt, "Host cluster management").

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const header_zig = @import("header.zig");
const Header = header_zig.Header;
const Pages = @import("pages.zig").Pages;
const Window = @import("window.zig").Window;

pub const table_offset_mask: u64 = 0xffff_ffff_ffff_fe00;
pub const table_reserved_mask: u64 = 0x1ff;

/// Refcount `index` of a refcount block's bytes, `order` = log2 of the width in bits.  Widths below a byte count from
/// the least significant bit; wider ones are big endian.
pub fn get(order: u3, bytes: []const u8, index: usize) u64 {
    return switch (order) {
        0 => bytes[index >> 3] >> @intCast(index & 7) & 1,
        1 => bytes[index >> 2] >> @intCast((index & 3) * 2) & 3,
        2 => bytes[index >> 1] >> @intCast((index & 1) * 4) & 15,
        3 => bytes[index],
        4 => std.mem.readInt(u16, bytes[index * 2 ..][0..2], .big),
        5 => std.mem.readInt(u32, bytes[index * 4 ..][0..4], .big),
        6 => std.mem.readInt(u64, bytes[index * 8 ..][0..8], .big),
        7 => unreachable,
    };
}

/// Store refcount `index`; `value` fits the width.
pub fn set(order: u3, bytes: []u8, index: usize, value: u64) void {
    switch (order) {
        0...2 => {
            const width: u4 = @as(u4, 1) << @intCast(order);
            const shift: u3 = @intCast((index << order) & 7);
            const mask = @as(u8, @intCast((@as(u16, 1) << width) - 1)) << shift;
            const byte = &bytes[(index << order) >> 3];
            byte.* = byte.* & ~mask | @as(u8, @intCast(value)) << shift;
        },
        3 => bytes[index] = @intCast(value),
        4 => std.mem.writeInt(u16, bytes[index * 2 ..][0..2], @intCast(value), .big),
        5 => std.mem.writeInt(u32, bytes[index * 4 ..][0..4], @intCast(value), .big),
        6 => std.mem.writeInt(u64, bytes[index * 8 ..][0..8], value, .big),
        7 => unreachable,
    }
}

/// Refcounts of 1, as a pattern to repeat.
pub fn ones(order: u3) []const u8 {
    const patterns = [_][]const u8{ &.{0xff}, &.{0x55}, &.{0x11}, &.{1}, &.{ 0, 1 }, &.{ 0, 0, 0, 1 }, &.{ 0, 0, 0, 0, 0, 0, 0, 1 } };
    return patterns[order];
}

/// Bytes that `count` refcounts take.
pub fn bytesFor(order: u3, count: u64) u64 {
    return ((count << order) + 7) / 8;
}

/// What the refcount table says of one block.
pub const Place = union(enum) {
    /// No block: all its refcounts are 0.
    none,
    /// Byte offset, on a cluster boundary.
    block: u64,
    /// QEMU cannot read a refcount there.
    unreadable: u64,
};

/// A run of clusters whose refcounts are stored in one way.
pub const Run = struct {
    first: u64,
    count: u64,
    content: union(enum) {
        /// All refcounts are 0.
        zero,
        /// Offset of a refcount block that cannot be read.
        unreadable: u64,
        /// `get` finds the refcount of cluster `first + i` at index i.
        bytes: []const u8,
    },
};

/// Bytes of refcount blocks that one batch reads, unless a single block is larger.
const batch_bytes = 128 << 10;
const batch_runs = 64;

/// The stored refcounts of an image.
pub const Stored = struct {
    header: Header,
    device: block.Device,
    /// The clusters 0 to here are what `next` goes through.
    limit: u64,
    /// On the refcount table, in order.
    table: Window,
    /// On the table and its blocks, for clusters out of order.
    pages: Pages,
    buffer: []u8,
    runs: [batch_runs]Run = undefined,
    run_count: usize = 0,
    run_next: usize = 0,
    /// First cluster that no batch has reached.
    position: u64 = 0,
    batches: u64 = 0,

    pub fn init(context: image.Context, device: block.Device, header: Header, limit: u64) error{OutOfMemory}!Stored {
        const table = try context.allocator.alloc(u8, @intCast(std.math.clamp(header.refcountTableEntries() * 8, 64, 16 << 10)));
        const wanted = @min(@max(header.clusterSize(), batch_bytes), bytesFor(header.refcount_order, limit) + 8);
        return .{
            .header = header,
            .device = device,
            .limit = limit,
            .table = Window.init(device, table, 512),
            .pages = .{ .device = device, .allocator = context.allocator },
            .buffer = try context.allocator.alloc(u8, @intCast(wanted)),
        };
    }

    /// Start over.  When everything fits one batch, nothing is read again.
    pub fn rewind(self: *Stored) void {
        self.run_next = 0;
        if (self.batches == 1 and self.position >= self.limit) return;
        self.run_count = 0;
        self.position = 0;
        self.batches = 0;
    }

    /// The next run below `limit`, or null.  Runs follow each other without gaps; their bytes are valid until the
    /// next call.
    pub fn next(self: *Stored) block.DeviceError!?Run {
        if (self.run_next == self.run_count) {
            if (self.position >= self.limit) return null;
            try self.fill();
        }
        defer self.run_next += 1;
        return self.runs[self.run_next];
    }

    fn fill(self: *Stored) block.DeviceError!void {
        const block_bits = self.header.refcountBlockBits();
        var reads: [batch_runs]block.Read = undefined;
        var read_count: usize = 0;
        var used: usize = 0;
        self.run_count = 0;
        self.run_next = 0;
        while (self.position < self.limit and self.run_count < batch_runs) {
            const index = self.position >> block_bits;
            const behind = index >= self.header.refcountTableEntries();
            const count = if (behind) self.limit - self.position else @min(self.limit - self.position, @as(u64, 1) << block_bits);
            var run: Run = .{ .first = self.position, .count = count, .content = .zero };
            switch (self.place(try self.tableEntry(index))) {
                .none => {},
                .unreadable => |offset| run.content = .{ .unreadable = offset },
                .block => |offset| {
                    const length: usize = @intCast(bytesFor(self.header.refcount_order, count));
                    if (length > self.buffer.len - used) break;
                    const bytes = self.buffer[used..][0..length];
                    used += length;
                    const inside: usize = if (offset >= self.device.length) 0 else @intCast(@min(length, self.device.length - offset));
                    @memset(bytes[inside..], 0);
                    reads[read_count] = .{ .offset = if (inside == 0) 0 else offset, .buffer = bytes[0..inside] };
                    read_count += 1;
                    run.content = .{ .bytes = bytes };
                },
            }
            self.position += count;
            if (run.content == .zero and self.run_count > 0 and self.runs[self.run_count - 1].content == .zero) {
                self.runs[self.run_count - 1].count += count;
            } else {
                self.runs[self.run_count] = run;
                self.run_count += 1;
            }
        }
        if (read_count > 0) try self.device.readMany(reads[0..read_count]);
        self.batches += 1;
    }

    /// Entry `index` of the refcount table, 0 behind its end.
    pub fn tableEntry(self: *Stored, index: u64) block.DeviceError!u64 {
        if (index >= self.header.refcountTableEntries()) return 0;
        return self.table.word(self.header.refcount_table_offset + index * 8);
    }

    /// What `word`, an entry of the refcount table, says.
    fn place(self: *const Stored, word: u64) Place {
        const offset = word & table_offset_mask;
        if (offset == 0) return .none;
        if (self.header.offsetInCluster(offset) != 0 or offset > header_zig.max_offset - self.header.clusterSize())
            return .{ .unreadable = offset };
        return .{ .block = offset };
    }

    /// The refcount of any cluster, however far behind the end of the file; null where it cannot be read, or when
    /// too many were read out of order (`pages.exhausted`).
    pub fn lookUp(self: *Stored, cluster: u64) block.DeviceError!?u64 {
        const bits = self.header.refcountBlockBits();
        const table_index = cluster >> bits;
        if (table_index >= self.header.refcountTableEntries()) return 0;
        const entry = try self.pages.word(self.header.refcount_table_offset + table_index * 8) orelse return null;
        const offset = switch (self.place(entry)) {
            .none => return 0,
            .unreadable => return null,
            .block => |offset| offset,
        };
        const order = self.header.refcount_order;
        const index = cluster & ((@as(u64, 1) << bits) - 1);
        const at = (index << order) / 64 * 8;
        var bytes: [8]u8 = undefined;
        std.mem.writeInt(u64, &bytes, try self.pages.word(offset + at) orelse return null, .big);
        const per_word_bits: u6 = 6 - @as(u6, order);
        return get(order, &bytes, @intCast(index & ((@as(u64, 1) << per_word_bits) - 1)));
    }
};

test "what is set is got, and nothing else changes" {
    for (0..7) |order_| {
        const order: u3 = @intCast(order_);
        const count = @as(usize, 16 * 8) >> order;
        for (0..count) |index| {
            var bytes: [16]u8 = @splat(0xff);
            const most = get(order, &bytes, 0);
            for ([_]u64{ 0, 1, most, most / 2 }) |value| {
                set(order, &bytes, index, value);
                for (0..count) |i| try std.testing.expectEqual(if (i == index) value else most, get(order, &bytes, i));
            }
        }
        for (0..count) |index| {
            var bytes: [16]u8 = undefined;
            for (&bytes, 0..) |*byte, i| byte.* = ones(order)[i % ones(order).len];
            try std.testing.expectEqual(1, get(order, &bytes, index));
        }
    }
}

test "all widths" {
    const bytes = [_]u8{ 0b1010_0110, 0x21, 0x43, 0x65, 0x87, 0xa9, 0xcb, 0xed };
    try std.testing.expectEqual(@as(u64, 0), get(0, &bytes, 0));
    try std.testing.expectEqual(@as(u64, 1), get(0, &bytes, 1));
    try std.testing.expectEqual(@as(u64, 1), get(0, &bytes, 8));
    try std.testing.expectEqual(@as(u64, 2), get(1, &bytes, 0));
    try std.testing.expectEqual(@as(u64, 2), get(1, &bytes, 3));
    try std.testing.expectEqual(@as(u64, 1), get(2, &bytes, 2));
    try std.testing.expectEqual(@as(u64, 2), get(2, &bytes, 3));
    try std.testing.expectEqual(@as(u64, 0x43), get(3, &bytes, 2));
    try std.testing.expectEqual(@as(u64, 0x4365), get(4, &bytes, 1));
    try std.testing.expectEqual(@as(u64, 0x87a9cbed), get(5, &bytes, 1));
    try std.testing.expectEqual(@as(u64, 0xa6214365_87a9cbed), get(6, &bytes, 0));
    try std.testing.expectEqual(@as(u64, 1), bytesFor(0, 8));
    try std.testing.expectEqual(@as(u64, 2), bytesFor(0, 9));
    try std.testing.expectEqual(@as(u64, 24), bytesFor(6, 3));
}
