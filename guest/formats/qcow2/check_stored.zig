//! The part of a check that reads the stored refcounts: which are 1, whether the refcount table is sound, and whether
//! stored and calculated refcounts agree.

const std = @import("std");
const block = @import("block");
const check = @import("check.zig");
const open = @import("open.zig");
const refcount = @import("refcount.zig");
const Numbers = @import("check_findings.zig").Numbers;
const Checker = check.Checker;

/// Remember the clusters whose stored refcount is 1: the copied flags need them in any order.
pub fn findOnes(c: *Checker) block.Error!void {
    const order = c.header.refcount_order;
    while (try c.stored.next()) |run| switch (run.content) {
        .zero => {},
        .unreadable => c.unreadable = true,
        .bytes => |bytes| for (0..@intCast(run.count)) |i| {
            if (refcount.get(order, bytes, i) == 1)
                c.ones.set(run.first + i) catch return open.noMemory(c.context, 4096);
        },
    };
}

/// Count the references of the refcount table to its blocks.
pub fn refcountBlocks(c: *Checker) block.Error!void {
    const header = c.header;
    const start = header.refcount_table_offset;
    const end = @min(start + header.refcountTableEntries() * 8, c.device.length);
    var at = start;
    while (at < end) : (at += 8) {
        const index = (at - start) / 8;
        const word = try c.stored.tableEntry(index);
        if (word == 0) continue;
        const offset = word & refcount.table_offset_mask;
        const cluster = offset >> header.cluster_bits;
        if (word & refcount.table_reserved_mask != 0) {
            try c.findings.put(.corruption, "refcount table", "refcount table entry {index} has reserved bits set: {value:x}", .{ .offset = at, .index = index, .value = word });
        } else if (header.offsetInCluster(offset) != 0) {
            try c.findings.put(.corruption, "refcount table", "refcount block {index} is not cluster aligned; refcount table entry corrupted", .{ .offset = at, .index = index, .value = offset });
        } else if (cluster >= c.limit) {
            try c.findings.put(.corruption, "refcount table", "refcount block {index} is outside image: byte {value}, file has {expected}", .{ .offset = at, .index = index, .value = offset, .expected = c.device.length });
        } else {
            try c.reference(offset, header.clusterSize(), 1);
            const count = c.counts.get(cluster);
            if (count != 1)
                try c.findings.put(.corruption, "refcount table", "refcount block {index} refcount={value}", .{ .offset = at, .index = index, .value = count, .expected = 1 });
        }
    }
}

/// Compare all refcounts; answers the highest cluster in use by either account.
pub fn compare(c: *Checker) block.Error!u64 {
    var merge: Mismatch = .{ .checker = c };
    var highest: u64 = 0;
    const order = c.header.refcount_order;
    c.stored.rewind();
    while (try c.stored.next()) |run| {
        const end = @min(run.first + run.count, c.limit);
        var cluster = run.first;
        while (cluster < end) {
            // A page without references has nothing to compare unless refcounts are stored.
            const page = c.counts.pageClusters();
            const page_end = @min(end, (cluster / page + 1) * page);
            const empty = c.counts.pageEmpty(cluster);
            switch (run.content) {
                .unreadable => |offset| {
                    try c.findings.put(.check_error, "refcount table", "can't get refcount for {count} clusters from {index} on: refcount block offset {offset:x}", .{ .count = end - cluster, .offset = offset, .index = cluster });
                    cluster = end;
                },
                .zero => {
                    if (!empty) while (cluster < page_end) : (cluster += 1) {
                        const counted = c.counts.get(cluster);
                        if (counted == 0) continue;
                        highest = cluster;
                        try merge.add(cluster, 0, counted);
                    };
                    cluster = page_end;
                },
                .bytes => |bytes| while (cluster < page_end) : (cluster += 1) {
                    const stored = refcount.get(order, bytes, @intCast(cluster - run.first));
                    const counted = if (empty) 0 else c.counts.get(cluster);
                    if (stored | counted == 0) continue;
                    highest = cluster;
                    if (stored != counted) try merge.add(cluster, stored, counted);
                },
            }
        }
    }
    try merge.flush();
    return highest;
}

/// Neighbouring clusters that are wrong in the same way are one finding.
const Mismatch = struct {
    checker: *Checker,
    first: u64 = 0,
    count: u64 = 0,
    stored: u64 = 0,
    counted: u64 = 0,

    fn add(self: *Mismatch, cluster: u64, stored: u64, counted: u64) block.Error!void {
        if (self.count > 0 and cluster == self.first + self.count and stored == self.stored and counted == self.counted) {
            self.count += 1;
            return;
        }
        try self.flush();
        self.* = .{ .checker = self.checker, .first = cluster, .count = 1, .stored = stored, .counted = counted };
    }

    fn flush(self: *Mismatch) block.Error!void {
        if (self.count == 0) return;
        const c = self.checker;
        const numbers: Numbers = .{
            .count = self.count,
            .offset = self.first << c.header.cluster_bits,
            .index = self.first,
            .value = self.stored,
            .expected = self.counted,
        };
        // One cluster in QEMU's words; whoever shows a finding says what kind it is.
        const one = "cluster {index} refcount={value} reference={expected}";
        const many = "{count} clusters from {index} on: refcount={value} reference={expected}";
        if (self.stored > self.counted) {
            if (self.count == 1) try c.findings.put(.leak, "refcount block", one, numbers) else try c.findings.put(.leak, "refcount block", many, numbers);
        } else {
            if (self.count == 1) try c.findings.put(.corruption, "refcount block", one, numbers) else try c.findings.put(.corruption, "refcount block", many, numbers);
        }
        self.count = 0;
    }
};
