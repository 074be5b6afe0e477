//! What a check of a hostile image may cost, counted in reads.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const check = @import("check.zig");
const testing = @import("testing.zig");

test "refcounts looked up in no order cost a read for each page of the file, not for each entry" {
    var builder = try testing.Builder.init(std.testing.allocator, .{ .cluster_bits = 16, .size = 512 << 20 });
    defer builder.deinit();
    var arena: std.heap.ArenaAllocator = .init(std.testing.allocator);
    defer arena.deinit();
    const entries = (64 << 10) / 8;
    var random: std.Random.DefaultPrng = .init(1);
    for (0..entries) |index| {
        // All of the refcount table is in use, every block lies in the file; the clusters are far behind its end.
        builder.put(u64, builder.at(1) + index * 8, builder.at(2 + index % 4));
        builder.setL2(index, builder.at(random.random().uintLessThan(u64, entries << 15)));
    }
    var diagnostic: block.Diagnostic = .{};
    var counter: testing.Counter = .{};
    var report: messages.Check = .{ .format = "", .file_length = 0, .check_errors = 0, .corruptions = 0, .leaks = 0, .findings_omitted = 0 };
    const device = builder.memory.device();
    try check.run(.{ .allocator = arena.allocator(), .diagnostic = &diagnostic }, device, counter.sink(), &report);
    try std.testing.expectEqual(entries, report.allocated_clusters.?);
    try std.testing.expect(report.corruptions >= entries);
    try std.testing.expectEqual(0, report.check_errors);
    // The table has 16 pages and the four blocks have as many each; the rest of the check needs a handful of reads.
    const pages = 5 * 16;
    try std.testing.expect(builder.memory.reads < pages + 40);
}
