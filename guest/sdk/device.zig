//! `block.Device` over the call table.

const std = @import("std");
const root = @import("root").declarations;
const block = @import("block");
const calltable = @import("calltable");
const sdk = @import("sdk.zig");
const note = @import("note.zig");

/// The device of the last call that failed, for the `error` message.
pub var failed: ?u64 = null;

/// Requests that are handed to the runtime at once.
const batch = 64;

pub fn open(index: usize) block.DeviceError!block.Device {
    if (index >= calltable.max_devices) return error.NoDevice;
    var info: [1]calltable.DeviceInfo = undefined;
    _ = try sdk.answer(sdk.table.device_info(@intCast(index), &info));
    return .{
        .context = contextOf(index),
        .vtable = &vtable,
        .length = info[0].length,
        // block.Device answers writes to a read-only device itself, so that no undefined function is called.
        .read_only = only_reads or info[0].flags & calltable.device_read_only != 0,
        .allocated = info[0].allocated,
    };
}

/// A root file that declares `only_reads` links no code that writes; its devices are read-only whatever they were.
const only_reads = @hasDecl(root, "only_reads") and root.only_reads;

const vtable: block.Device.VTable = .{
    .read = read,
    .read_many = readMany,
    .write = if (only_reads) undefined else write,
    .write_many = if (only_reads) undefined else writeMany,
    .write_zeroes = if (only_reads) undefined else writeZeroes,
    .flush = flush,
    .set_length = if (only_reads) undefined else setLength,
    .block_status = blockStatus,
};

/// `context` of a device is its number and 1: no address, since 0 would be none.
fn contextOf(index: usize) *anyopaque {
    return @ptrFromInt(index + 1);
}

fn numberOf(context: *anyopaque) u32 {
    return @intCast(@intFromPtr(context) - 1);
}

fn checked(number: u32, result: i64) block.DeviceError!usize {
    errdefer failed = number;
    return sdk.answer(result);
}

fn read(context: *anyopaque, offset: u64, buffer: []u8) block.DeviceError!void {
    const number = numberOf(context);
    _ = try checked(number, sdk.table.read(number, offset, buffer.ptr, buffer.len));
}

fn readMany(context: *anyopaque, reads: []const block.Read) block.DeviceError!void {
    const number = numberOf(context);
    var requests: [batch]calltable.ReadRequest = undefined;
    var done: usize = 0;
    while (done < reads.len) {
        const part = reads[done..@min(done + batch, reads.len)];
        for (part, requests[0..part.len]) |r, *request| {
            request.* = .{ .device = number, .status = 0, .offset = r.offset, .buffer = @intFromPtr(r.buffer.ptr), .length = r.buffer.len };
        }
        _ = try checked(number, sdk.table.read_many(&requests, part.len));
        done += part.len;
    }
}

fn write(context: *anyopaque, offset: u64, bytes: []const u8) block.DeviceError!void {
    const number = numberOf(context);
    _ = try checked(number, sdk.table.write(number, offset, bytes.ptr, bytes.len));
}

fn writeMany(context: *anyopaque, writes: []const block.Write) block.DeviceError!void {
    // Entry write_many came with minor 1.
    if (comptime note.minor < 1) {
        for (writes) |w| try write(context, w.offset, w.bytes);
        return;
    }
    const number = numberOf(context);
    var requests: [batch]calltable.WriteRequest = undefined;
    var done: usize = 0;
    while (done < writes.len) {
        const part = writes[done..@min(done + batch, writes.len)];
        for (part, requests[0..part.len]) |w, *request| {
            request.* = .{ .device = number, .status = 0, .offset = w.offset, .buffer = @intFromPtr(w.bytes.ptr), .length = w.bytes.len };
        }
        _ = try checked(number, sdk.table.write_many(&requests, part.len));
        done += part.len;
    }
}

fn writeZeroes(context: *anyopaque, offset: u64, length: u64) block.DeviceError!void {
    const number = numberOf(context);
    _ = try checked(number, sdk.table.write_zeroes(number, offset, length));
}

fn flush(context: *anyopaque) block.DeviceError!void {
    const number = numberOf(context);
    _ = try checked(number, sdk.table.flush(number));
}

fn setLength(context: *anyopaque, length: u64) block.DeviceError!void {
    const number = numberOf(context);
    _ = try checked(number, sdk.table.set_length(number, length));
}

fn blockStatus(context: *anyopaque, offset: u64, length: u64, out: []block.Extent) block.DeviceError![]block.Extent {
    const number = numberOf(context);
    // Extents of block and call table have the same layout: both are three u64.
    comptime std.debug.assert(@sizeOf(block.Extent) == @sizeOf(calltable.Extent));
    const count = try checked(number, sdk.table.block_status(number, offset, length, @ptrCast(out.ptr), out.len));
    return out[0..@min(count, out.len)];
}
