//! An operation for tests: calls the call table as its request says, and reports what each call answered.

const std = @import("std");
const sdk = @import("sdk");
const cbor = @import("cbor");
const calltable = sdk.calltable;

pub const panic = sdk.panic;

comptime {
    _ = sdk;
}

const Range = struct { offset: u64, length: u64 = 0, data: ?cbor.Bytes = null };

const Step = struct {
    call: enum { read, read_many, write, write_many, write_zeroes, discard, flush, set_length, block_status, info, alloc, budget, log, progress, emit, device_count, request, panic, exit, null_pointers, wild_pointer },
    device: u32 = 0,
    offset: u64 = 0,
    length: u64 = 0,
    data: ?cbor.Bytes = null,
    ranges: []const Range = &.{},
};

const Request = struct { steps: []const Step };

/// What a call answered, what it read, and numbers it gave back.
const Answer = struct {
    pub const message_name = "answer";
    result: i64,
    data: ?cbor.Bytes = null,
    statuses: ?[]const i64 = null,
    numbers: ?[]const u64 = null,
};

const table = sdk.table;
const allocator = sdk.allocator;

pub fn operation(run: *sdk.Run) sdk.Error!void {
    const request = try run.request(Request);
    for (request.steps) |step| {
        const answer = try perform(run, step);
        try run.emitLarge(answer);
    }
}

fn make(size: u64) sdk.Error![]u8 {
    const buffer = allocator.alloc(u8, std.math.cast(usize, size) orelse return error.NoMemory) catch return error.NoMemory;
    @memset(buffer, 0xee);
    return buffer;
}

fn numbers(list: []const u64) sdk.Error!?[]const u64 {
    return allocator.dupe(u64, list) catch return error.NoMemory;
}

fn perform(run: *sdk.Run, step: Step) sdk.Error!Answer {
    const device = step.device;
    switch (step.call) {
        .read => {
            const buffer = try make(step.length);
            const result = table.read(device, step.offset, buffer.ptr, buffer.len);
            // Large reads are answered by their ends: a message has a limit.
            if (buffer.len <= 16384) return .{ .result = result, .data = .{ .bytes = buffer } };
            const ends = try make(2048);
            @memcpy(ends[0..1024], buffer[0..1024]);
            @memcpy(ends[1024..], buffer[buffer.len - 1024 ..]);
            return .{ .result = result, .data = .{ .bytes = ends } };
        },
        .read_many => {
            const requests = allocator.alloc(calltable.ReadRequest, step.ranges.len) catch return error.NoMemory;
            var total: u64 = 0;
            for (step.ranges) |range| total += range.length;
            const buffer = try make(total);
            var at: usize = 0;
            for (step.ranges, requests) |range, *request| {
                request.* = .{ .device = device, .status = 99, .offset = range.offset, .buffer = @intFromPtr(buffer.ptr) + at, .length = range.length };
                at += range.length;
            }
            const result = table.read_many(requests.ptr, requests.len);
            return .{ .result = result, .data = .{ .bytes = buffer }, .statuses = try statusesOf(requests) };
        },
        .write => {
            const bytes = step.data.?.bytes;
            return .{ .result = table.write(device, step.offset, bytes.ptr, bytes.len) };
        },
        .write_many => {
            const requests = allocator.alloc(calltable.WriteRequest, step.ranges.len) catch return error.NoMemory;
            for (step.ranges, requests) |range, *request| {
                const bytes = range.data.?.bytes;
                request.* = .{ .device = device, .status = 99, .offset = range.offset, .buffer = @intFromPtr(bytes.ptr), .length = bytes.len };
            }
            const result = table.write_many(requests.ptr, requests.len);
            return .{ .result = result, .statuses = try statusesOf(requests) };
        },
        .write_zeroes => return .{ .result = table.write_zeroes(device, step.offset, step.length) },
        .discard => return .{ .result = table.discard(device, step.offset, step.length) },
        .flush => return .{ .result = table.flush(device) },
        .set_length => return .{ .result = table.set_length(device, step.length) },
        .block_status => {
            var extents: [16]calltable.Extent = undefined;
            const result = table.block_status(device, step.offset, step.length, &extents, 16);
            var flat: [48]u64 = undefined;
            const count: usize = if (result > 0) @intCast(result) else 0;
            for (extents[0..count], 0..) |extent, i| flat[3 * i ..][0..3].* = .{ extent.offset, extent.length, extent.flags };
            return .{ .result = result, .numbers = try numbers(flat[0 .. 3 * count]) };
        },
        .info => {
            var info: [1]calltable.DeviceInfo = .{std.mem.zeroes(calltable.DeviceInfo)};
            const result = table.device_info(device, &info);
            return .{ .result = result, .numbers = try numbers(&.{ info[0].length, info[0].flags, info[0].block_size }) };
        },
        .alloc => {
            var pointer: [1]calltable.Pointer = .{.{ .address = 0 }};
            const result = table.alloc(step.length, step.offset, &pointer);
            var zero: u64 = 1;
            if (result == 0 and step.length <= 1 << 20) {
                const memory = @as([*]u8, @ptrFromInt(pointer[0].address))[0..step.length];
                zero = @intFromBool(std.mem.allEqual(u8, memory, 0));
                @memset(memory, 0xdd);
            }
            return .{ .result = result, .numbers = try numbers(&.{ pointer[0].address, zero }) };
        },
        .budget => {
            var left: [1]calltable.Budget = undefined;
            const result = table.budget(&left);
            return .{ .result = result, .numbers = try numbers(&.{ left[0].read_bytes, left[0].write_bytes, left[0].messages, left[0].memory }) };
        },
        .log => {
            const bytes = step.data.?.bytes;
            table.log(device, bytes.ptr, bytes.len);
            return .{ .result = 0 };
        },
        .progress => {
            table.progress(step.offset, step.length);
            return .{ .result = 0 };
        },
        .emit => {
            const buffer = try make(step.length);
            return .{ .result = table.emit(buffer.ptr, buffer.len) };
        },
        .device_count => return .{ .result = table.device_count() },
        .request => {
            var pointer: [1]calltable.Pointer = undefined;
            return .{ .result = table.request(&pointer), .numbers = try numbers(&.{pointer[0].address}) };
        },
        .panic => @panic("as asked"),
        .exit => table.exit(@intCast(step.length)),
        .null_pointers => {
            const results = [_]i64{
                table.request(null),                        table.device_info(0, null),
                table.read(0, 0, null, 10),                 table.read_many(null, 1),
                table.write_many(null, 1),                  table.block_status(0, 0, 1, null, 1),
                table.alloc(8, 8, null),                    table.emit(null, 5),
                table.budget(null),                         table.alloc(8, 3, null),
                table.read(0, 0, @ptrFromInt(0x300000), 4), table.read(0, 0, @ptrFromInt(0xffff_ffff_ffff_fff0), 64),
            };
            return .{ .result = 0, .statuses = allocator.dupe(i64, &results) catch return error.NoMemory };
        },
        .wild_pointer => return .{ .result = table.read(device, 0, @ptrFromInt(step.offset), step.length) },
    }
    _ = run;
}

fn statusesOf(requests: anytype) sdk.Error![]const i64 {
    const out = allocator.alloc(i64, requests.len) catch return error.NoMemory;
    for (requests, out) |request, *status| status.* = request.status;
    return out;
}
