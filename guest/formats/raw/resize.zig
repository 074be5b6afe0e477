//! Resizing a raw disk: its length is its size.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const resizing = @import("../resizing.zig");
const steps = @import("../steps.zig");
const raw = @import("raw.zig");

const format = "raw";

/// Plan the length.  `preallocation`: full writes zeroes; falloc is the host's to do, since no block device has a request
/// for it.
pub fn resize(context: image.Context, device: block.Device, request: *const messages.ResizeRequest) block.Error!steps.Resize {
    try raw.checkLength(context, device);
    const old_size = raw.virtualSize(device.length);
    const wanted = try resizing.wanted(context, format, old_size, request);
    if (wanted.preallocation == .metadata) return resizing.noSuchMode(context, format, .metadata);
    var plan: std.ArrayList(steps.Step) = .empty;
    plan.ensureTotalCapacity(context.allocator, 3) catch return error.NoMemory;
    if (wanted.size != device.length) plan.appendAssumeCapacity(.{ .length = wanted.size });
    if (wanted.preallocation == .full and wanted.size > device.length) {
        // Zeroes that arrived before the length did would be another length.
        plan.appendAssumeCapacity(.flush);
        plan.appendAssumeCapacity(.{ .fill = .{
            .offset = device.length,
            .length = wanted.size - device.length,
            .content = .{ .pattern = &.{0} },
        } });
    }
    return .{ .old_size = old_size, .new_size = raw.virtualSize(wanted.size), .steps = plan.items };
}

test "a raw disk becomes longer, shorter, and stays" {
    var memory = try block.Memory.init(std.testing.allocator, "0123456789");
    defer memory.deinit();
    var diagnostic: block.Diagnostic = .{};
    var arena: std.heap.ArenaAllocator = .init(std.testing.allocator);
    defer arena.deinit();
    const context: image.Context = .{ .allocator = arena.allocator(), .diagnostic = &diagnostic };
    var device = memory.device();
    const rows = [_]struct { messages.ResizeRequest, u64, u64 }{
        .{ .{ .size = 1000 }, 1000, 1024 },
        .{ .{ .size = 0, .relative = "grow" }, 1024, 1024 },
        .{ .{ .size = 2000, .preallocation = "full" }, 2000, 2048 },
        .{ .{ .size = 6, .shrink = true }, 6, 512 },
    };
    for (rows) |row| {
        const planned = try resize(context, device, &row[0]);
        try steps.execute(planned.steps, &device, arena.allocator(), null);
        try std.testing.expectEqual(row[1], device.length);
        try std.testing.expectEqual(row[2], planned.new_size);
        try std.testing.expectEqualStrings("012345", memory.bytes.items[0..6]);
    }
    try std.testing.expectError(error.Refused, resize(context, device, &.{ .size = 5000, .preallocation = "metadata" }));
    try std.testing.expectEqualStrings("Unsupported preallocation mode: metadata", diagnostic.message());
}
