//! std's allocator interface over the call table's `alloc`: a bump allocator that never takes anything back, and that
//! grows the newest allocation in place, so that a growing list costs no copies.

const std = @import("std");
const calltable = @import("calltable");

const table: *const calltable.Table = @ptrFromInt(calltable.call_table);

pub const allocator: std.mem.Allocator = .{
    .ptr = undefined,
    .vtable = &.{ .alloc = alloc, .resize = resize, .remap = remap, .free = free },
};

/// Where the newest allocation ends.
var newest_end: usize = 0;

fn take(size: usize, alignment: usize) ?usize {
    var pointer = [1]calltable.Pointer{.{ .address = 0 }};
    if (table.alloc(size, alignment, &pointer) < 0) return null;
    newest_end = pointer[0].address + size;
    return pointer[0].address;
}

fn alloc(_: *anyopaque, length: usize, alignment: std.mem.Alignment, _: usize) ?[*]u8 {
    const address = take(length, alignment.toByteUnits()) orelse return null;
    return @ptrFromInt(address);
}

/// Out of line: `remap` is the same.
noinline fn resize(_: *anyopaque, memory: []u8, _: std.mem.Alignment, length: usize, _: usize) bool {
    if (length <= memory.len) return true;
    const end = @intFromPtr(memory.ptr) + memory.len;
    if (end != newest_end) return false;
    // What comes next lies right behind, unless another arena begins there.
    const address = take(length - memory.len, 1) orelse return false;
    return address == end;
}

fn remap(context: *anyopaque, memory: []u8, alignment: std.mem.Alignment, length: usize, return_address: usize) ?[*]u8 {
    return if (resize(context, memory, alignment, length, return_address)) memory.ptr else null;
}

fn free(_: *anyopaque, _: []u8, _: std.mem.Alignment, _: usize) void {}
