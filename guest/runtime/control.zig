//! The control device: one doorbell, one block of arguments (calltable/definition/machine.toml).

const calltable = @import("calltable");

var request: calltable.ControlBlock = undefined;

const doorbell: *volatile u64 = @ptrFromInt(calltable.control_base + calltable.control_doorbell);

/// Ring with a command and its arguments (up to six integers); the host's answer.
pub fn call(command: u32, arguments: anytype) i64 {
    const shared: *volatile calltable.ControlBlock = &request;
    shared.command = command;
    shared.reserved = 0;
    shared.result = 0;
    inline for (0..request.arguments.len) |i| {
        shared.arguments[i] = if (i < arguments.len) arguments[i] else 0;
    }
    // What the host is to see lies in memory before it looks, and what it wrote is read afterwards.
    asm volatile ("" ::: .{ .memory = true });
    doorbell.* = @intFromPtr(shared);
    asm volatile ("" ::: .{ .memory = true });
    return shared.result;
}
