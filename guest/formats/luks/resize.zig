//! Another size of a LUKS1 container: the file ends where the payload does, so that its length is all that changes.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const steps = @import("../steps.zig");
const target = @import("../target.zig");
const header_zig = @import("header.zig");
const luks = @import("luks.zig");

const format = header_zig.format;

pub fn resize(context: image.Context, device: block.Device, request: *const messages.ResizeRequest) block.Error!steps.Resize {
    if (try luks.versionOf(device) == .two) return context.diagnostic.refuse(
        .unsupported,
        .{ .format = format, .structure = "header", .value = 2, .limit = 1 },
        "luks: a LUKS2 container cannot be resized: its segments say how long it is",
        .{},
    );
    const opened = try header_zig.open(context, device, 0);
    const old_size = try luks.virtualSize(context, device, opened.header);
    const new_size = try wantedSize(context, old_size, request);
    if (request.preallocation) |mode| if (!std.mem.eql(u8, mode, "off")) {
        return target.refuseOption(context, format, "luks: Unsupported preallocation mode: {s}", .{target.shorten(mode)});
    };
    const length = std.math.add(u64, opened.header.payloadOffset(), new_size) catch std.math.maxInt(u64);
    try target.checkSize(context, format, length);
    const list = context.allocator.alloc(steps.Step, 2) catch return error.NoMemory;
    list[0] = .{ .length = length };
    list[1] = .flush;
    return .{ .old_size = old_size, .new_size = std.mem.alignForward(u64, new_size, header_zig.sector), .steps = list };
}

/// The size that is asked for, in bytes.
fn wantedSize(context: image.Context, old_size: u64, request: *const messages.ResizeRequest) error{Refused}!u64 {
    var size = request.size;
    if (request.relative) |relative| {
        const grow = std.mem.eql(u8, relative, "grow");
        if (!grow and !std.mem.eql(u8, relative, "shrink")) return target.refuseValue(context, format, "relative", relative);
        size = (if (grow) std.math.add(u64, old_size, size) else std.math.sub(u64, old_size, size)) catch 0;
    }
    if (size == 0) return target.refuseOption(context, format, "luks: New image size must be positive", .{});
    try target.checkSize(context, format, size);
    if (size < old_size and !(request.shrink orelse false))
        return target.refuseOption(context, format, "luks: Use the --shrink option to perform a shrink operation", .{});
    return size;
}
