//! The resident runtime: entered in ring 3 by the host, it prepares the devices once, then runs one operation and
//! serves its call table.  It is not trusted by the host and does not trust the operation beyond what is cheap: both
//! run in the same ring, so an operation that lies to it hurts itself only.

const std = @import("std");
const calltable = @import("calltable");
const arena = @import("arena.zig");
const control = @import("control.zig");
const disk = @import("disk.zig");
const report = @import("report.zig");
const virtio = @import("virtio.zig");

/// Written by the host, before the start and again before each run.
const boot: *const volatile calltable.BootInfo = @ptrFromInt(calltable.boot_info);

pub const panic = @import("sdk").Panic(fail);

fn fail(text: []const u8, return_address: ?usize) noreturn {
    @branchHint(.cold);
    const site = return_address orelse @returnAddress();
    report.abort(text, site -| 1);
}

comptime {
    // Where the linker script begins.
    asm (std.fmt.comptimePrint(".globl pyvmm_runtime_base\n.set pyvmm_runtime_base, {d}", .{calltable.runtime_base}));
    std.debug.assert(calltable.call_table == calltable.runtime_base);
    @export(&start, .{ .name = "_start" });
    @export(&table, .{ .name = "pyvmm_call_table", .section = ".calltable" });
}

/// The first instruction.  The host has set the stack pointer; nobody returns from here.
fn start() callconv(.naked) noreturn {
    asm volatile (
        \\xorl %%ebp, %%ebp
        \\andq $-16, %%rsp
        \\callq %[main:P]
        \\ud2
        :
        : [main] "X" (&main),
    );
}

fn main() callconv(.c) noreturn {
    // The number of devices belongs to the machine; everything else in the boot page belongs to a run.
    virtio.handshake(boot.device_count);
    _ = control.call(calltable.command_ready, .{});
    if (boot.magic != calltable.boot_magic) @panic("the host wrote no boot page");
    arena.begin(boot.arena_size);
    report.begin(boot.log_level, boot.progress != 0);
    for (0..virtio.count()) |i| {
        const device = &boot.devices[i];
        disk.begin(i, .{
            .length = device.length,
            .flags = device.flags,
            .block_size = device.block_size,
            .allocated = device.allocated,
        });
    }
    const entry: *const fn (*const calltable.Table) callconv(.c) i64 = @ptrFromInt(boot.operation_entry);
    const status = entry(&table);
    exit(@truncate(@as(u64, @bitCast(status))));
}

const table: calltable.Table = .{
    .magic = calltable.table_magic,
    .major = calltable.table_major,
    .minor = calltable.table_minor,
    .entry_count = calltable.entry_count,
    .abort = abort,
    .exit = exit,
    .log = report.log,
    .progress = report.progress,
    .request = request,
    .device_count = deviceCount,
    .device_info = disk.info,
    .read = disk.read,
    .read_many = disk.readMany,
    .write = disk.write,
    .write_zeroes = disk.writeZeroes,
    .discard = disk.discard,
    .flush = disk.flush,
    .set_length = disk.setLength,
    .block_status = disk.blockStatus,
    .alloc = arena.alloc,
    .emit = report.emit,
    .budget = budget,
    .write_many = disk.writeMany,
};

fn abort(message: ?*const anyopaque, length: u64, site: u64) callconv(.c) noreturn {
    const text: [*]const u8 = @ptrCast(message orelse report.abort("", site));
    report.abort(text[0..@min(length, calltable.control_text_max)], if (site != 0) site else @returnAddress() -| 1);
}

fn exit(status: u32) callconv(.c) noreturn {
    report.done(status);
}

fn request(out: ?[*]calltable.Pointer) callconv(.c) i64 {
    const pointer = out orelse return -calltable.error_invalid;
    pointer[0].address = boot.request;
    return @intCast(boot.request_length);
}

fn deviceCount() callconv(.c) i64 {
    return @intCast(virtio.count());
}

fn budget(out: ?[*]calltable.Budget) callconv(.c) i64 {
    const left = out orelse return -calltable.error_invalid;
    const answer = control.call(calltable.command_budget, .{@intFromPtr(left)});
    left[0].memory = arena.left();
    return answer;
}
