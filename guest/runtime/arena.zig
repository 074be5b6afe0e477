//! Memory for the operation: two bump allocators, the hot part (small pages, cheap to restore) first.  The host hands
//! both over as zeroes, so nothing is cleared here.

const std = @import("std");
const calltable = @import("calltable");

const Range = struct {
    next: u64,
    end: u64,

    fn take(self: *Range, size: u64, alignment: u64) ?u64 {
        const from = std.math.add(u64, self.next, alignment - 1) catch return null;
        const address = from & ~(alignment - 1);
        const end = std.math.add(u64, address, size) catch return null;
        if (end > self.end) return null;
        self.next = end;
        return address;
    }
};

var hot: Range = .{ .next = 0, .end = 0 };
var cold: Range = .{ .next = 0, .end = 0 };

pub fn begin(cold_size: u64) void {
    hot = .{ .next = calltable.arena_base, .end = calltable.arena_base + calltable.arena_hot };
    cold = .{ .next = calltable.cold_base, .end = calltable.cold_base + cold_size };
}

/// Bytes that can still be handed out.
pub fn left() u64 {
    return (hot.end - hot.next) + (cold.end - cold.next);
}

pub fn alloc(size: u64, alignment: u64, out: ?[*]calltable.Pointer) callconv(.c) i64 {
    const pointer = out orelse return -calltable.error_invalid;
    // Zero first: isPowerOfTwo() asserts that there is none, and would end the run.
    if (alignment == 0 or !std.math.isPowerOfTwo(alignment) or alignment > calltable.large_page_size)
        return -calltable.error_invalid;
    const address = hot.take(size, alignment) orelse cold.take(size, alignment) orelse return -calltable.error_memory;
    pointer[0].address = address;
    return 0;
}
