//! qcow2 images in memory for tests: a small writer that knows nothing of the reading code but the field offsets.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");

pub const Options = struct {
    version: u32 = 3,
    cluster_bits: u5 = 9,
    size: u64 = 64 << 10,
    refcount_order: u3 = 4,
    incompatible: u64 = 0,
    autoclear: u64 = 0,
    /// Clusters of the file, header, tables and data together.
    clusters: u64 = 32,
};

/// Cluster 0 the header, 1 the refcount table, 2 the refcount block, 3 the L1 table, 4 the L2 table, then data.
pub const Builder = struct {
    memory: block.Memory,
    options: Options,

    pub fn init(allocator: std.mem.Allocator, options: Options) !Builder {
        var memory = try block.Memory.init(allocator, "");
        try memory.bytes.resize(allocator, @intCast(options.clusters << options.cluster_bits));
        @memset(memory.bytes.items, 0);
        var self: Builder = .{ .memory = memory, .options = options };
        self.put(u32, 0, 0x514649fb);
        self.put(u32, 4, options.version);
        self.put(u32, 20, options.cluster_bits);
        self.put(u64, 24, options.size);
        self.put(u32, 36, @intCast(self.l1Entries()));
        self.put(u64, 40, self.at(3));
        self.put(u64, 48, self.at(1));
        self.put(u32, 56, 1);
        if (options.version >= 3) {
            self.put(u64, 72, options.incompatible);
            self.put(u64, 88, options.autoclear);
            self.put(u32, 96, options.refcount_order);
            self.put(u32, 100, 104);
        }
        self.put(u64, self.at(1), self.at(2));
        if (self.l1Entries() > 0) self.put(u64, self.at(3), self.at(4) | 1 << 63);
        for (0..5) |cluster| self.setRefcount(cluster, if (cluster == 4 and self.l1Entries() == 0) 0 else 1);
        return self;
    }

    pub fn deinit(self: *Builder) void {
        self.memory.deinit();
    }

    pub fn at(self: *const Builder, cluster: u64) u64 {
        return cluster << self.options.cluster_bits;
    }

    pub fn l1Entries(self: *const Builder) u64 {
        const entry_bits: u5 = if (self.options.incompatible & 16 != 0) 4 else 3;
        const shift: u6 = @as(u6, self.options.cluster_bits) * 2 - entry_bits;
        return (self.options.size + (@as(u64, 1) << shift) - 1) >> shift;
    }

    pub fn put(self: *Builder, comptime T: type, offset: u64, value: T) void {
        std.mem.writeInt(T, self.memory.bytes.items[@intCast(offset)..][0..@sizeOf(T)], value, .big);
    }

    /// Entry `index` of the L2 table.
    pub fn setL2(self: *Builder, index: u64, word: u64) void {
        self.put(u64, self.at(4) + index * 8, word);
    }

    /// A data cluster at `cluster` of the file with refcount 1.
    pub fn setData(self: *Builder, index: u64, cluster: u64) void {
        self.setL2(index, self.at(cluster) | 1 << 63);
        self.setRefcount(cluster, 1);
    }

    /// Widths of whole bytes only.
    pub fn setRefcount(self: *Builder, cluster: u64, value: u64) void {
        const offset = self.at(2);
        switch (self.options.refcount_order) {
            3 => self.put(u8, offset + cluster, @intCast(value)),
            4 => self.put(u16, offset + cluster * 2, @intCast(value)),
            5 => self.put(u32, offset + cluster * 4, @intCast(value)),
            6 => self.put(u64, offset + cluster * 8, value),
            else => unreachable,
        }
    }
};

/// Swallows messages and counts them.
pub const Counter = struct {
    delivered: usize = 0,

    pub fn sink(self: *Counter) image.Sink {
        return .{ .context = self, .deliver = deliver };
    }

    fn deliver(context: *anyopaque, _: []const u8) block.Error!void {
        const self: *Counter = @ptrCast(@alignCast(context));
        self.delivered += 1;
    }
};
