//! What the operation says: messages are collected and leave the guest in batches.

const std = @import("std");
const calltable = @import("calltable");
const control = @import("control.zig");

var batch: [calltable.report_buffer]u8 align(8) = undefined;
var batch_length: usize = 0;
var wanted_level: u32 = 0;
var wants_progress = false;
/// The last step of progress that was told, in thousandths.
var last_step: u64 = std.math.maxInt(u64);

pub fn begin(level: u32, progress_wanted: bool) void {
    wanted_level = level;
    wants_progress = progress_wanted;
}

pub fn emit(message: ?*const anyopaque, length: u64) callconv(.c) i64 {
    const from: [*]const u8 = @ptrCast(message orelse return -calltable.error_invalid);
    if (length == 0) return -calltable.error_invalid;
    if (length > calltable.message_max) return -calltable.error_too_large;
    if (@sizeOf(u32) + length > batch.len - batch_length) {
        _ = control.call(calltable.command_emit, .{ @intFromPtr(&batch), batch_length });
        batch_length = 0;
    }
    std.mem.writeInt(u32, batch[batch_length..][0..4], @intCast(length), .little);
    const bytes: usize = @intCast(length);
    @memcpy(batch[batch_length + 4 ..][0..bytes], from[0..bytes]);
    batch_length += 4 + bytes;
    return 0;
}

pub fn log(level: u32, text: ?*const anyopaque, length: u64) callconv(.c) void {
    if (level == 0 or level > wanted_level or text == null) return;
    _ = control.call(calltable.command_log, .{ level, @intFromPtr(text), @min(length, calltable.control_text_max) });
}

pub fn progress(done_units: u64, total: u64) callconv(.c) void {
    if (!wants_progress) return;
    // A thousand exits are enough for any progress bar.
    const step = done_units / (total / 1000 + 1);
    if (step == last_step and done_units != total) return;
    last_step = step;
    _ = control.call(calltable.command_progress, .{ done_units, total });
}

pub fn done(status: u32) noreturn {
    _ = control.call(calltable.command_done, .{ status, @intFromPtr(&batch), batch_length });
    unreachableByHost();
}

pub fn abort(text: []const u8, site: u64) noreturn {
    @branchHint(.cold);
    const length = @min(text.len, calltable.control_text_max);
    const messages = batch_length;
    _ = control.call(calltable.command_abort, .{ @intFromPtr(text.ptr), length, site, @intFromPtr(&batch), messages });
    unreachableByHost();
}

/// The host does not come back from DONE and ABORT; a bad opcode says so if it does.
fn unreachableByHost() noreturn {
    while (true) asm volatile ("ud2");
}
