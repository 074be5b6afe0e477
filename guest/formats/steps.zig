//! What a planner of changes in place answers, and how it is carried out.
//!
//! Steps are carried out in their order.  What lies between two flushes may reach the disk in any order, partly, or not
//! at all: a planner puts a flush wherever the image would not survive that.  What a disk writes at once is a sector of
//! 512 bytes.

const std = @import("std");
const block = @import("block");
const plans = @import("plan.zig");

/// One step.
pub const Step = union(enum) {
    /// Bytes at an offset, which may lie past the end of the device: it becomes longer, at the same moment when the
    /// write is the only one between two flushes.
    write: block.Write,
    /// Content that is made while it is written: too long to be kept, or zeroes that must not be holes.
    fill: plans.Region,
    /// A range inside the device reads as zero afterwards; it may become a hole.
    zero: Range,
    /// Exact length of the device; new bytes read as zero.
    length: u64,
    flush,

    pub const Range = struct { offset: u64, length: u64 };
};

/// Another size of an image.
pub const Resize = struct {
    /// Bytes of virtual disk before and after, the latter as the format rounds it.
    old_size: u64,
    new_size: u64,
    steps: []const Step,
};

/// Writes of one batch; what a virtqueue takes at once.
const batch = 32;

/// Carry out the steps, then a flush; consecutive writes go out together.
///
/// `progress` is told now and then how many steps are done, and of how many.
pub fn execute(steps: []const Step, device: *block.Device, allocator: std.mem.Allocator, progress: @FieldType(plans.Plan, "progress")) block.Error!void {
    var collected: [batch]block.Write = undefined;
    var count: usize = 0;
    for (steps, 0..) |step, done| {
        if (step != .write or count == batch) {
            if (count > 0) try device.writeMany(collected[0..count]);
            count = 0;
            if (done % 256 == 255) if (progress) |tell| tell(done, steps.len);
        }
        switch (step) {
            .write => |write| {
                collected[count] = write;
                count += 1;
            },
            .fill => |region| {
                var pending: plans.Writes = .{ .regions = &.{region}, .length = region.end() };
                try plans.drain(&pending, device, allocator, progress);
            },
            .zero => |range| try device.writeZeroes(range.offset, range.length),
            .length => |length| try device.setLength(length),
            .flush => try device.flush(),
        }
    }
    if (count > 0) try device.writeMany(collected[0..count]);
    try device.flush();
}

test "steps are carried out in their order" {
    var memory = try block.Memory.init(std.testing.allocator, "0123456789");
    defer memory.deinit();
    var device = memory.device();
    var arena: std.heap.ArenaAllocator = .init(std.testing.allocator);
    defer arena.deinit();
    try execute(&.{
        .{ .write = .{ .offset = 2, .bytes = "ab" } },
        .{ .write = .{ .offset = 12, .bytes = "z" } },
        .flush,
        .{ .zero = .{ .offset = 3, .length = 2 } },
        .{ .write = .{ .offset = 4, .bytes = "c" } },
        .{ .length = 14 },
        .{ .fill = .{ .offset = 13, .length = 3, .content = .{ .pattern = "!" } } },
    }, &device, arena.allocator(), null);
    try std.testing.expectEqualStrings("01a\x00c56789\x00\x00z!!!", memory.bytes.items);
    try std.testing.expectEqual(@as(u64, 16), device.length);
}
