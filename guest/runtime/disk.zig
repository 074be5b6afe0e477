//! Byte ranges over sectors: exact reads by scatter-gather (what lies around the range in its sectors goes to a
//! scratch buffer, nothing is copied), writes of part of a sector by read-modify-write.

const std = @import("std");
const calltable = @import("calltable");
const control = @import("control.zig");
const virtio = @import("virtio.zig");

const sector_size = virtio.sector_size;

/// Bytes of one request to a device; longer ones are split.
const piece_size = 64 << 20;

/// Sectors of one range of WRITE_ZEROES and DISCARD.
const range_sectors = 0xffff_ffff;

const Device = struct {
    length: u64 = 0,
    flags: u32 = 0,
    block_size: u32 = 0,
    /// Bytes that the host's file system has allocated for the file.
    allocated: u64 = 0,
};

const Range = extern struct {
    sector: u64,
    sectors: u32,
    flags: u32,
};

var devices: [calltable.max_devices]Device = @splat(.{});
/// The sector that a write changes a part of.
var edge: [sector_size]u8 align(16) = undefined;
var range: Range align(16) = undefined;
var zeroes: [sector_size]u8 align(16) = @splat(0);

pub fn begin(index: usize, device: Device) void {
    devices[index] = device;
}

fn find(number: u32) ?*Device {
    return if (number < virtio.count()) &devices[number] else null;
}

/// Whether an operation may name this memory: it does not wrap, and is none of what lies below the operation.
fn plausible(address: u64, length: u64) bool {
    const end = std.math.add(u64, address, length) catch return false;
    return length == 0 or (address >= calltable.operation_base and end <= std.math.maxInt(i64));
}

/// Minus an error, or 0, of a range that must lie inside the device.
fn inside(device: *const Device, offset: u64, length: u64) i32 {
    const end = std.math.add(u64, offset, length) catch return -calltable.error_range;
    return if (end > device.length) -calltable.error_range else 0;
}

pub fn info(number: u32, out: ?[*]calltable.DeviceInfo) callconv(.c) i64 {
    const device = find(number) orelse return -calltable.error_no_device;
    const to = out orelse return -calltable.error_invalid;
    to[0] = .{
        .length = device.length,
        .flags = device.flags,
        .block_size = device.block_size,
        .allocated = device.allocated,
    };
    return 0;
}

// Reading.

pub fn read(number: u32, offset: u64, buffer: ?*anyopaque, length: u64) callconv(.c) i64 {
    var status: i32 = 0;
    queueRead(number, offset, @intFromPtr(buffer), length, &status);
    virtio.flush();
    return status;
}

pub fn readMany(requests: ?[*]calltable.ReadRequest, count: u64) callconv(.c) i64 {
    const all = (requests orelse return -calltable.error_invalid)[0 .. std.math.cast(usize, count) orelse return -calltable.error_invalid];
    for (all) |*request| {
        request.status = 0;
        queueRead(request.device, request.offset, request.buffer, request.length, &request.status);
    }
    virtio.flush();
    for (all) |*request| {
        if (request.status != 0) return request.status;
    }
    return 0;
}

fn queueRead(number: u32, offset: u64, buffer: u64, length: u64, status: *i32) void {
    const device = find(number) orelse {
        status.* = -calltable.error_no_device;
        return;
    };
    status.* = inside(device, offset, length);
    if (status.* == 0 and !plausible(buffer, length)) status.* = -calltable.error_invalid;
    if (status.* != 0) return;
    var done: u64 = 0;
    while (done < length) {
        const start = offset + done;
        const size = @min(length - done, piece_size);
        virtio.push(.{
            .device = number,
            .kind = .in,
            .sector = start / sector_size,
            .front = @intCast(start % sector_size),
            .data = buffer + done,
            .length = @intCast(size),
            .behind = padding(start + size),
        }, status);
        done += size;
    }
}

/// Bytes from `end` to the end of its sector.
fn padding(end: u64) u32 {
    return @intCast((sector_size - end % sector_size) % sector_size);
}

// Writing.

pub fn write(number: u32, offset: u64, buffer: ?*const anyopaque, length: u64) callconv(.c) i64 {
    var status: i32 = prepare(number, offset, @intFromPtr(buffer), length);
    if (status == 0) status = grow(number, offset + length);
    if (status != 0) return status;
    queueWrite(number, offset, @intFromPtr(buffer), length, &status);
    virtio.flush();
    return status;
}

pub fn writeMany(requests: ?[*]calltable.WriteRequest, count: u64) callconv(.c) i64 {
    const all = (requests orelse return -calltable.error_invalid)[0 .. std.math.cast(usize, count) orelse return -calltable.error_invalid];
    // Grow each device once, to the furthest end.
    var ends: [calltable.max_devices]u64 = @splat(0);
    for (all) |*request| {
        request.status = prepare(request.device, request.offset, request.buffer, request.length);
        if (request.status == 0) ends[request.device] = @max(ends[request.device], request.offset + request.length);
    }
    for (all) |*request| {
        if (request.status == 0) request.status = grow(request.device, ends[request.device]);
        if (request.status == 0) queueWrite(request.device, request.offset, request.buffer, request.length, &request.status);
    }
    virtio.flush();
    for (all) |*request| {
        if (request.status != 0) return request.status;
    }
    return 0;
}

/// What can be said of a write without doing anything.
fn prepare(number: u32, offset: u64, buffer: u64, length: u64) i32 {
    const device = find(number) orelse return -calltable.error_no_device;
    if (device.flags & calltable.device_read_only != 0) return -calltable.error_read_only;
    const end = std.math.add(u64, offset, length) catch return -calltable.error_range;
    if (end > std.math.maxInt(i64)) return -calltable.error_range;
    return if (plausible(buffer, length)) 0 else -calltable.error_invalid;
}

fn grow(number: u32, end: u64) i32 {
    const device = &devices[number];
    if (end <= device.length) return 0;
    if (device.flags & calltable.device_resizable == 0) return -calltable.error_range;
    // What was pushed before belongs to the old length.
    virtio.flush();
    return resize(number, end);
}

fn resize(number: u32, length: u64) i32 {
    const result = control.call(calltable.command_set_length, .{ @as(u64, number), length });
    if (result != 0) return @intCast(std.math.clamp(result, -64, 0));
    devices[number].length = length;
    return 0;
}

/// Write inside the device.  The last sector of a device of odd length needs no read: what lies past the end is
/// dropped by the device.
fn queueWrite(number: u32, offset: u64, buffer: u64, length: u64, status: *i32) void {
    const end = offset + length;
    const last = devices[number].length;
    var done: u64 = 0;
    while (done < length) {
        const start = offset + done;
        const in_sector = start % sector_size;
        const left = length - done;
        if (in_sector != 0 or (left < sector_size and end != last)) {
            const size = @min(left, sector_size - in_sector);
            modify(number, start, @ptrFromInt(buffer + done), @intCast(size), status);
            done += size;
            continue;
        }
        const whole = if (end == last) left else left - left % sector_size;
        const size = @min(whole, piece_size);
        virtio.push(.{
            .device = number,
            .kind = .out,
            .sector = start / sector_size,
            .data = buffer + done,
            .length = @intCast(size),
            .behind = padding(start + size),
        }, status);
        done += size;
    }
}

/// Change `size` bytes inside one sector.
fn modify(number: u32, start: u64, from: [*]const u8, size: usize, status: *i32) void {
    // What was pushed before may be in the same sector.
    virtio.flush();
    const sector = start / sector_size;
    const at: usize = @intCast(start % sector_size);
    virtio.push(.{ .device = number, .kind = .in, .sector = sector, .data = @intFromPtr(&edge), .length = sector_size }, status);
    virtio.flush();
    if (status.* != 0) return;
    @memcpy(edge[at..][0..size], from[0..size]);
    virtio.push(.{ .device = number, .kind = .out, .sector = sector, .data = @intFromPtr(&edge), .length = sector_size }, status);
    virtio.flush();
}

// The rest.

pub fn writeZeroes(number: u32, offset: u64, length: u64) callconv(.c) i64 {
    const device = find(number) orelse return -calltable.error_no_device;
    if (device.flags & calltable.device_read_only != 0) return -calltable.error_read_only;
    var status = inside(device, offset, length);
    if (status != 0) return status;
    const end = offset + length;
    // The last sector may be whole although the device ends inside it.
    const whole_end = if (end == device.length) end + padding(end) else end - end % sector_size;
    const whole_start = offset + padding(offset);
    if (whole_start >= whole_end) {
        if (length > 0) writePart(number, offset, end, &status);
        return status;
    }
    writePart(number, offset, whole_start, &status);
    if (status == 0) ranges(number, .write_zeroes, whole_start / sector_size, whole_end / sector_size, &status);
    if (status == 0 and end > whole_end) writePart(number, whole_end, end, &status);
    return status;
}

/// Zeroes for less than two sectors.
fn writePart(number: u32, start: u64, end: u64, status: *i32) void {
    var position = start;
    while (position < end and status.* == 0) {
        const size = @min(end - position, sector_size - position % sector_size);
        queueWrite(number, position, @intFromPtr(&zeroes), size, status);
        virtio.flush();
        position += size;
    }
}

pub fn discard(number: u32, offset: u64, length: u64) callconv(.c) i64 {
    const device = find(number) orelse return -calltable.error_no_device;
    if (device.flags & calltable.device_read_only != 0) return -calltable.error_read_only;
    var status = inside(device, offset, length);
    if (status != 0) return status;
    // Sectors that are only in part no longer needed are still needed.
    const end = offset + length;
    const last = if (end == device.length) end + padding(end) else end;
    const first = (offset + padding(offset)) / sector_size;
    if (first < last / sector_size) ranges(number, .discard, first, last / sector_size, &status);
    return status;
}

fn ranges(number: u32, kind: virtio.Kind, first: u64, end: u64, status: *i32) void {
    var sector = first;
    while (sector < end and status.* == 0) {
        const size: u32 = @intCast(@min(end - sector, range_sectors));
        // Bit 0: a hole may be left.
        range = .{ .sector = sector, .sectors = size, .flags = @intFromBool(kind == .write_zeroes) };
        virtio.push(.{ .device = number, .kind = kind, .data = @intFromPtr(&range), .length = @sizeOf(Range) }, status);
        virtio.flush();
        sector += size;
    }
}

pub fn flush(number: u32) callconv(.c) i64 {
    if (find(number) == null) return -calltable.error_no_device;
    var status: i32 = 0;
    virtio.push(.{ .device = number, .kind = .flush }, &status);
    virtio.flush();
    return status;
}

pub fn setLength(number: u32, length: u64) callconv(.c) i64 {
    const device = find(number) orelse return -calltable.error_no_device;
    if (device.flags & calltable.device_read_only != 0) return -calltable.error_read_only;
    if (device.flags & calltable.device_resizable == 0) return -calltable.error_unsupported;
    return if (length == device.length) 0 else resize(number, length);
}

pub fn blockStatus(number: u32, offset: u64, length: u64, out: ?[*]calltable.Extent, capacity: u64) callconv(.c) i64 {
    const device = find(number) orelse return -calltable.error_no_device;
    const to = out orelse return -calltable.error_invalid;
    if (capacity == 0) return -calltable.error_invalid;
    const status = inside(device, offset, length);
    if (status != 0) return status;
    if (length == 0) return 0;
    if (device.flags & calltable.device_has_block_status == 0) {
        to[0] = .{ .offset = offset, .length = length, .flags = calltable.extent_data };
        return 1;
    }
    return control.call(calltable.command_block_status, .{ @as(u64, number), offset, length, @intFromPtr(to), capacity });
}
