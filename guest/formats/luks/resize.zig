//! Another size of a LUKS1 container: the file ends where the payload does, so that its length is all that changes.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const resizing = @import("../resizing.zig");
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
    const wanted = try resizing.wanted(context, format, old_size, request);
    if (wanted.preallocation != .off) return resizing.noSuchMode(context, format, wanted.preallocation);
    // A part of a sector of ciphertext is nothing that can be decrypted: whole ones, as readers count them.
    const size = std.mem.alignForward(u64, wanted.size, header_zig.sector);
    // Below 2^63 and 2^42.
    const length = opened.header.payloadOffset() + size;
    try target.checkSize(context, format, length);
    const list = context.allocator.alloc(steps.Step, 2) catch return error.NoMemory;
    list[0] = .{ .length = length };
    list[1] = .flush;
    return .{ .old_size = old_size, .new_size = size, .steps = list };
}
