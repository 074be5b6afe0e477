//! Refcounts that are about to change: clusters are taken behind the end of the file, others given back, and the least
//! number of writes makes it so.  (QEMU docs/interop/qcow2.txt, "Host cluster management".)
//!
//! New refcount blocks come with a new refcount table, which the header's one sector puts in place with everything
//! else; so no block is ever referenced before what it counts, itself included, is written.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const steps = @import("../steps.zig");
const header_zig = @import("header.zig");
const refcount = @import("refcount.zig");
const template = @import("template.zig");
const open = @import("open.zig");
const refuse = template.refuse;
const none = template.none;
const Header = header_zig.Header;
const Step = steps.Step;

pub const Steps = std.ArrayList(Step);

/// Blocks behind the end of the file that are looked at: a writer leaves one or two there.
const most_behind = 4096;
/// Bytes that a miss reads ahead where blocks are small.
const ahead_bytes = 256 << 10;

/// A run of clusters.
pub const Range = struct { first: u64, count: u64 };

const Block = struct {
    /// Null until it is needed.
    bytes: ?[]u8 = null,
    /// The bytes that changed: [low, high).
    low: u32 = std.math.maxInt(u32),
    high: u32 = 0,
    /// A new one that counts 1 everywhere: it is not in memory, and not in the file yet.
    full: bool = false,
    /// Its entry of the table is to become 0.
    dropped: bool = false,
};

pub const Counts = struct {
    context: image.Context,
    device: block.Device,
    header: Header,
    /// The refcount table up to its last entry that is not 0.
    table: []u8,
    blocks: []Block,
    /// Where the table will lie and how many clusters it takes.
    table_offset: u64,
    table_clusters: u32,
    /// Clusters that were free, behind the end of the file: from `start` up to `end` they are taken.
    start: u64,
    end: u64,
    /// What was given back and is not used by anybody now.
    freed: std.ArrayList(Range) = .empty,

    pub fn init(context: image.Context, device: block.Device, header: Header) block.Error!Counts {
        const whole = header.refcountTableEntries();
        const room = context.allocator.alloc(u8, @intCast(whole * 8)) catch return open.noMemory(context, whole * 8);
        try device.readPadded(header.refcount_table_offset, room);
        var count: usize = @intCast(whole);
        while (count > 0 and std.mem.allEqual(u8, room[count * 8 - 8 ..][0..8], 0)) count -= 1;
        const blocks = context.allocator.alloc(Block, count) catch return open.noMemory(context, count * @sizeOf(Block));
        @memset(blocks, .{});
        const clusters = header.clusters(device.length);
        var self: Counts = .{
            .context = context,
            .device = device,
            .header = header,
            .table = room[0 .. count * 8],
            .blocks = blocks,
            .table_offset = header.refcount_table_offset,
            .table_clusters = header.refcount_table_clusters,
            .start = clusters,
            .end = clusters,
        };
        try self.findStart();
        return self;
    }

    /// Some writers count clusters that are not in the file yet: stay behind them.
    fn findStart(self: *Counts) block.Error!void {
        const first = self.start >> self.header.refcountBlockBits();
        if (first >= self.blocks.len) return;
        if (self.blocks.len - first > most_behind)
            return refuse(self.context.diagnostic, .corrupt, "refcount table", "the refcount table counts clusters far behind the end of the file, up to block {value}", none, self.blocks.len, first);
        const used = try self.lastUsed(first) orelse return;
        self.start = @max(self.start, used + 1);
        self.end = self.start;
    }

    fn perBlock(self: *const Counts) u64 {
        return @as(u64, 1) << self.header.refcountBlockBits();
    }

    fn blockOffset(self: *const Counts, index: usize) u64 {
        return std.mem.readInt(u64, self.table[index * 8 ..][0..8], .big) & refcount.table_offset_mask;
    }

    /// The bytes of a block, null where there is none.
    fn load(self: *Counts, index: u64) block.Error!?[]u8 {
        if (index >= self.blocks.len) return null;
        const at: usize = @intCast(index);
        if (self.blocks[at].dropped or self.blockOffset(at) == 0) return null;
        if (self.blocks[at].bytes == null) try self.fetch(at);
        return self.blocks[at].bytes;
    }

    /// Read a block, and those behind it while they are small.
    fn fetch(self: *Counts, first: usize) block.Error!void {
        const size: usize = @intCast(self.header.clusterSize());
        var reads: [32]block.Read = undefined;
        var count: usize = 0;
        for (first..self.blocks.len) |index| {
            if (count == reads.len or (count > 0 and count * size >= ahead_bytes)) break;
            const offset = self.blockOffset(index);
            if (offset == 0 or self.blocks[index].bytes != null or self.blocks[index].full) continue;
            if (self.header.offsetInCluster(offset) != 0 or offset > header_zig.max_offset - size)
                return refuse(self.context.diagnostic, .corrupt, "refcount block", "refcount block offset invalid: {value}", self.header.refcount_table_offset + index * 8, offset, none);
            const bytes = self.context.allocator.alloc(u8, size) catch return open.noMemory(self.context, size);
            const inside: usize = if (offset >= self.device.length) 0 else @intCast(@min(size, self.device.length - offset));
            @memset(bytes[inside..], 0);
            reads[count] = .{ .offset = if (inside == 0) 0 else offset, .buffer = bytes[0..inside] };
            count += 1;
            self.blocks[index].bytes = bytes;
        }
        try self.device.readMany(reads[0..count]);
    }

    pub fn get(self: *Counts, cluster: u64) block.Error!u64 {
        const index = cluster >> self.header.refcountBlockBits();
        if (index < self.blocks.len and self.blocks[@intCast(index)].full) return 1;
        const bytes = try self.load(index) orelse return 0;
        return refcount.get(self.header.refcount_order, bytes, @intCast(cluster & (self.perBlock() - 1)));
    }

    /// `get` finds a block there.
    fn put(self: *Counts, cluster: u64, value: u64) void {
        const order = self.header.refcount_order;
        const entry = &self.blocks[@intCast(cluster >> self.header.refcountBlockBits())];
        const index: usize = @intCast(cluster & (self.perBlock() - 1));
        refcount.set(order, entry.bytes.?, index, value);
        const low: u32 = @intCast((index << order) / 8);
        entry.low = @min(entry.low, low);
        entry.high = @max(entry.high, low + (@as(u32, 1) << (@max(order, 3) - 3)));
    }

    /// Take `count` clusters in a row; the first one.
    pub fn take(self: *Counts, count: u64) u64 {
        defer self.end += count;
        return self.end;
    }

    /// Give a reference to a cluster back; not one that was taken.
    pub fn release(self: *Counts, cluster: u64) block.Error!void {
        const value = try self.get(cluster);
        if (value == 0)
            return refuse(self.context.diagnostic, .corrupt, "refcount block", "cluster at byte {offset} is in use, and its refcount is 0; repair the image first", cluster << self.header.cluster_bits, none, none);
        if (cluster >= self.start and cluster < self.end)
            return refuse(self.context.diagnostic, .corrupt, "refcount block", "cluster at byte {offset} behind the end of the file is in use", cluster << self.header.cluster_bits, none, none);
        self.put(cluster, value - 1);
        if (value == 1) try self.addFreed(cluster);
    }

    fn addFreed(self: *Counts, cluster: u64) error{NoMemory}!void {
        if (self.freed.items.len > 0) {
            const last = &self.freed.items[self.freed.items.len - 1];
            if (last.first + last.count == cluster) {
                last.count += 1;
                return;
            }
        }
        self.freed.append(self.context.allocator, .{ .first = cluster, .count = 1 }) catch return error.NoMemory;
    }

    /// What is taken gets its refcounts: in blocks that exist (`counted`), in new ones with a new table (`fresh`).
    /// Nothing may be taken afterwards.  Answers the clusters of the old table when there is a new one.
    pub fn settle(self: *Counts, fresh: *Steps, counted: *Steps) block.Error!?Range {
        if (self.end == self.start) return null;
        const bits = self.header.refcountBlockBits();
        const payload = self.end;
        var new_blocks: u64 = 0;
        var new_table: u64 = 0;
        while (true) {
            const end = payload + new_blocks + new_table;
            const wanted = self.missing(self.start >> bits, (end - 1) >> bits);
            const table_clusters = if (wanted == 0) 0 else self.header.clusters(@max(self.table.len, (((end - 1) >> bits) + 1) * 8));
            if (wanted == new_blocks and table_clusters == new_table) break;
            new_blocks = wanted;
            new_table = table_clusters;
        }
        self.end = payload + new_blocks + new_table;
        if (self.end > @as(u64, 1) << (56 - self.header.cluster_bits))
            return refuse(self.context.diagnostic, .too_large, "file", "the file would have {value} clusters, its tables can name {limit}", none, self.end, @as(u64, 1) << (56 - self.header.cluster_bits));
        if (new_table << self.header.cluster_bits > header_zig.max_refcount_table_bytes)
            return refuse(self.context.diagnostic, .too_large, "refcount table", "the refcount table would have {value} bytes, the limit is {limit}", none, new_table << self.header.cluster_bits, header_zig.max_refcount_table_bytes);
        // The length first: what no write touches is zero then.
        fresh.insert(self.context.allocator, 0, .{ .length = self.end << self.header.cluster_bits }) catch return error.NoMemory;
        try self.countOld(counted);
        if (new_blocks == 0) return null;
        try self.makeBlocks(fresh, payload, new_blocks, new_table);
        const old: Range = .{ .first = self.table_offset >> self.header.cluster_bits, .count = self.table_clusters };
        self.table_offset = (payload + new_blocks) << self.header.cluster_bits;
        self.table_clusters = @intCast(new_table);
        return old;
    }

    /// Blocks [first, last] that do not exist.
    fn missing(self: *const Counts, first: u64, last: u64) u64 {
        var count: u64 = 0;
        var index = first;
        while (index <= last and index < self.blocks.len) : (index += 1) {
            count += @intFromBool(self.blockOffset(@intCast(index)) == 0);
        }
        return count + (last + 1 - index);
    }

    /// Refcounts of 1 in the blocks that are there.
    fn countOld(self: *Counts, counted: *Steps) block.Error!void {
        var cluster = self.start;
        while (cluster < self.end) {
            const index = cluster >> self.header.refcountBlockBits();
            const stop = @min(self.end, (index + 1) << self.header.refcountBlockBits());
            if (try self.load(index) != null) {
                while (cluster < stop) : (cluster += 1) {
                    if (try self.get(cluster) != 0)
                        return refuse(self.context.diagnostic, .corrupt, "refcount block", "cluster at byte {offset} behind the end of the file is in use", cluster << self.header.cluster_bits, none, none);
                    self.put(cluster, 1);
                }
                try self.writeBlock(@intCast(index), counted);
            }
            cluster = stop;
        }
    }

    /// The changed bytes of a block as they are now.
    fn writeBlock(self: *Counts, index: usize, list: *Steps) block.Error!void {
        const entry = &self.blocks[index];
        if (entry.low >= entry.high) return;
        const low = entry.low / 512 * 512;
        const high = @min(std.mem.alignForward(u32, entry.high, 512), @as(u32, @intCast(entry.bytes.?.len)));
        const bytes = self.context.allocator.dupe(u8, entry.bytes.?[low..high]) catch return open.noMemory(self.context, high - low);
        list.append(self.context.allocator, .{ .write = .{ .offset = self.blockOffset(index) + low, .bytes = bytes } }) catch return error.NoMemory;
        entry.low = std.math.maxInt(u32);
        entry.high = 0;
    }

    /// New blocks from cluster `first` on, behind them the new table.
    fn makeBlocks(self: *Counts, fresh: *Steps, first: u64, count: u64, table_clusters: u64) block.Error!void {
        const allocator = self.context.allocator;
        const bits = self.header.refcountBlockBits();
        const size: usize = @intCast(self.header.clusterSize());
        const new_table = allocator.alloc(u8, @as(usize, @intCast(table_clusters)) * size) catch return open.noMemory(self.context, table_clusters * size);
        @memset(new_table, 0);
        @memcpy(new_table[0..self.table.len], self.table);
        const entries: usize = @intCast(((self.end - 1) >> bits) + 1);
        const blocks = allocator.alloc(Block, @max(entries, self.blocks.len)) catch return open.noMemory(self.context, entries * @sizeOf(Block));
        @memset(blocks, .{});
        @memcpy(blocks[0..self.blocks.len], self.blocks);
        self.blocks = blocks;
        self.table = new_table[0 .. blocks.len * 8];
        var place = first;
        var index: usize = @intCast(self.start >> bits);
        while (index < entries) : (index += 1) {
            if (self.blockOffset(index) != 0) continue;
            const low = @max(self.start, @as(u64, index) << bits);
            const high = @min(self.end, (@as(u64, index) + 1) << bits);
            const offset = place << self.header.cluster_bits;
            std.mem.writeInt(u64, self.table[index * 8 ..][0..8], offset, .big);
            if (high - low == self.perBlock()) {
                self.blocks[index].full = true;
                fresh.append(allocator, .{ .fill = .{ .offset = offset, .length = size, .content = .{ .pattern = refcount.ones(self.header.refcount_order) } } }) catch return error.NoMemory;
            } else {
                const bytes = allocator.alloc(u8, size) catch return open.noMemory(self.context, size);
                @memset(bytes, 0);
                for (@intCast(low & (self.perBlock() - 1))..@intCast(((high - 1) & (self.perBlock() - 1)) + 1)) |i| {
                    refcount.set(self.header.refcount_order, bytes, i, 1);
                }
                fresh.append(allocator, .{ .write = .{ .offset = offset, .bytes = bytes } }) catch return error.NoMemory;
                self.blocks[index].bytes = bytes;
            }
            place += 1;
        }
        std.debug.assert(place == first + count);
        fresh.append(allocator, .{ .write = .{ .offset = place << self.header.cluster_bits, .bytes = new_table } }) catch return error.NoMemory;
    }

    /// The last cluster with a refcount in block `first` or behind it; null when there is none.
    pub fn lastUsed(self: *Counts, first: u64) block.Error!?u64 {
        var index: usize = self.blocks.len;
        while (index > first) {
            index -= 1;
            if (self.blocks[index].full) return ((@as(u64, index) + 1) << self.header.refcountBlockBits()) - 1;
            const bytes = try self.load(index) orelse continue;
            if (std.mem.allEqual(u8, bytes, 0)) continue;
            var at: u64 = self.perBlock();
            while (at > 0) {
                at -= 1;
                if (refcount.get(self.header.refcount_order, bytes, @intCast(at)) != 0) return (@as(u64, index) << self.header.refcountBlockBits()) + at;
            }
        }
        return null;
    }

    /// Everything that was given back, block by block.  Blocks that count nothing but themselves are given up first.
    pub fn writeReleased(self: *Counts, released: *Steps, unlinked: *Steps, give_up_blocks: bool) block.Error!void {
        var places: std.ArrayList(u64) = .empty;
        if (give_up_blocks) try self.giveUp(&places, released);
        for (0..self.blocks.len) |index| {
            if (!self.blocks[index].dropped) try self.writeBlock(index, released);
        }
        for (places.items) |cluster| {
            // One that counted itself is gone with itself.
            if (try self.load(cluster >> self.header.refcountBlockBits()) == null) {
                try self.addFreed(cluster);
            } else try self.release(cluster);
        }
        for (0..self.blocks.len) |index| {
            if (!self.blocks[index].dropped) try self.writeBlock(index, unlinked);
        }
    }

    /// Unlink empty blocks from the table, from the last one on.
    fn giveUp(self: *Counts, places: *std.ArrayList(u64), released: *Steps) block.Error!void {
        const allocator = self.context.allocator;
        var index = self.blocks.len;
        var low = index;
        var high: usize = 0;
        while (index > 1) {
            index -= 1;
            // Only what this run has emptied: others may be kept in reserve.
            if (self.blocks[index].low >= self.blocks[index].high) continue;
            const bytes = self.blocks[index].bytes.?;
            const own = self.blockOffset(index) >> self.header.cluster_bits;
            const counts_itself = own >> self.header.refcountBlockBits() == index;
            if (counts_itself) {
                const at: usize = @intCast(own & (self.perBlock() - 1));
                const value = refcount.get(self.header.refcount_order, bytes, at);
                if (value == 1) refcount.set(self.header.refcount_order, bytes, at, 0);
                if (!std.mem.allEqual(u8, bytes, 0)) {
                    refcount.set(self.header.refcount_order, bytes, at, value);
                    continue;
                }
            } else if (!std.mem.allEqual(u8, bytes, 0)) continue;
            self.blocks[index].dropped = true;
            std.mem.writeInt(u64, self.table[index * 8 ..][0..8], 0, .big);
            places.append(allocator, own) catch return error.NoMemory;
            low = @min(low, index);
            high = @max(high, index + 1);
        }
        if (low >= high) return;
        const bytes = self.table[low * 8 .. high * 8];
        released.append(allocator, .{ .write = .{ .offset = self.table_offset + low * 8, .bytes = bytes } }) catch return error.NoMemory;
    }

    /// Refuse when something that stays in use has no refcount left: the image references a cluster twice.
    pub fn expectUsed(self: *Counts, offset: u64, bytes: u64) block.Error!void {
        if (bytes == 0) return;
        var cluster = offset >> self.header.cluster_bits;
        const last = (offset + bytes - 1) >> self.header.cluster_bits;
        while (cluster <= last) : (cluster += 1) {
            if (try self.get(cluster) == 0)
                return refuse(self.context.diagnostic, .corrupt, "refcount block", "cluster at byte {offset} holds metadata, and its refcount would become 0; repair the image first", cluster << self.header.cluster_bits, none, none);
        }
    }

    /// `expectUsed` of all refcount structures.
    pub fn expectOwn(self: *Counts) block.Error!void {
        try self.expectUsed(self.table_offset, @as(u64, self.table_clusters) << self.header.cluster_bits);
        for (0..self.blocks.len) |index| {
            const offset = self.blockOffset(index);
            if (offset != 0) try self.expectUsed(offset, 1);
        }
    }
};
