//! What a planner of changes in place answers, and how it is carried out.
//!
//! Steps are carried out in their order.  What lies between two flushes may reach the disk in any order, partly, or not
//! at all: a planner puts a flush wherever the image would not survive that.

const std = @import("std");
const block = @import("block");

/// One step.
pub const Step = union(enum) {
    /// Bytes at an offset, which may lie past the end of the device: it becomes longer.
    write: block.Write,
    /// A range inside the device reads as zero afterwards.
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

/// Carry out the steps; consecutive writes go out together.
pub fn execute(steps: []const Step, device: *block.Device) block.Error!void {
    var collected: [batch]block.Write = undefined;
    var count: usize = 0;
    for (steps) |step| {
        if (step != .write or count == batch) {
            if (count > 0) try device.writeMany(collected[0..count]);
            count = 0;
        }
        switch (step) {
            .write => |write| {
                collected[count] = write;
                count += 1;
            },
            .zero => |range| try device.writeZeroes(range.offset, range.length),
            .length => |length| try device.setLength(length),
            .flush => try device.flush(),
        }
    }
    if (count > 0) try device.writeMany(collected[0..count]);
}

test "steps are carried out in their order" {
    var memory = try block.Memory.init(std.testing.allocator, "0123456789");
    defer memory.deinit();
    var device = memory.device();
    try execute(&.{
        .{ .write = .{ .offset = 2, .bytes = "ab" } },
        .{ .write = .{ .offset = 12, .bytes = "z" } },
        .flush,
        .{ .zero = .{ .offset = 3, .length = 2 } },
        .{ .write = .{ .offset = 4, .bytes = "c" } },
        .{ .length = 14 },
    }, &device);
    try std.testing.expectEqualStrings("01a\x00c56789\x00\x00z\x00", memory.bytes.items);
    try std.testing.expectEqual(@as(u64, 14), device.length);
}
