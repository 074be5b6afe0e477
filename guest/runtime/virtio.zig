//! virtio-blk over virtio-mmio version 2, the driver's side (VIRTIO 1.2 sections 3.1.1, 4.2.3, 5.2), one virtqueue a
//! device.
//!
//! All requests of a batch use slots of one set of arrays, whatever their device: slot n is descriptor n of its
//! device's table and points at indirect table n.  A batch is filled, then each device is notified once.  The host
//! serves a queue inside the notification, so nothing is polled and no interrupt is wanted.

const std = @import("std");
const calltable = @import("calltable");
const control = @import("control.zig");

pub const sector_size = 512;

/// Requests in flight at once.
pub const slots = calltable.queue_size;

/// struct virtio_blk_req without data and status (section 5.2.6).
const Header = extern struct {
    kind: u32,
    reserved: u32 = 0,
    sector: u64,
};

pub const Kind = enum(u32) { in = 0, out = 1, flush = 4, discard = 11, write_zeroes = 13 };

const Descriptor = extern struct {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,

    const next_flag = 1;
    const write_flag = 2;
    const indirect_flag = 4;
};

/// Header, padding in front, data, padding behind, status.
const parts = 5;

const Available = extern struct {
    flags: u16,
    index: u16,
    ring: [slots]u16,
};

const Used = extern struct {
    flags: u16,
    index: u16,
    ring: [slots]extern struct { id: u32, length: u32 },
};

/// The memory of one virtqueue, at QUEUES_BASE (sections 2.7 and 2.7.1 for the alignments).
const Queue = extern struct {
    descriptors: [slots]Descriptor align(16),
    available: Available align(2),
    used: Used align(4),
};

comptime {
    std.debug.assert(@sizeOf(Queue) <= calltable.queue_stride);
    std.debug.assert(std.math.isPowerOfTwo(slots));
}

const Register = enum(u64) {
    magic = 0x000,
    version = 0x004,
    device_id = 0x008,
    device_features = 0x010,
    device_features_select = 0x014,
    driver_features = 0x020,
    driver_features_select = 0x024,
    queue_select = 0x030,
    queue_size_max = 0x034,
    queue_size = 0x038,
    queue_ready = 0x044,
    queue_notify = 0x050,
    status = 0x070,
    descriptors_low = 0x080,
    descriptors_high = 0x084,
    driver_low = 0x090,
    driver_high = 0x094,
    device_low = 0x0a0,
    device_high = 0x0a4,
};

const magic = 0x74726976;
const block_device = 2;

const acknowledge = 1;
const driver = 2;
const driver_ok = 4;
const features_ok = 8;
const failed = 128;

const feature_read_only = 1 << 5;
const feature_block_size = 1 << 6;
const feature_flush = 1 << 9;
const feature_discard = 1 << 13;
const feature_write_zeroes = 1 << 14;
const feature_indirect = 1 << 28;
const feature_version_1 = 1 << 32;
const features_required: u64 = feature_version_1 | feature_indirect;
const features_wanted: u64 = features_required | feature_read_only | feature_block_size | feature_flush | feature_discard | feature_write_zeroes;

var device_count: usize = 0;
/// How many requests each device was given, modulo 2^16.
var available: [calltable.max_devices]u16 = @splat(0);
/// Devices with requests that they were not told of yet, a bit each.
var pending: std.meta.Int(.unsigned, calltable.max_devices) = 0;

var used_slots: usize = 0;
var headers: [slots]Header align(16) = undefined;
var tables: [slots][parts]Descriptor align(16) = undefined;
var statuses: [slots]u8 = undefined;
var devices: [slots]u8 = undefined;
var owners: [slots]*i32 = undefined;
/// Where padding goes to, and where it comes from; nobody looks at it.
var scratch: [sector_size]u8 align(16) = undefined;

pub fn count() usize {
    return device_count;
}

fn register(device: usize, which: Register) *volatile u32 {
    return @ptrFromInt(calltable.virtio_base + device * calltable.virtio_stride + @intFromEnum(which));
}

fn queueOf(device: usize) *volatile Queue {
    return @ptrFromInt(calltable.queues_base + device * calltable.queue_stride);
}

/// Initialise every device (section 3.1.1).
pub fn handshake(number: u32) void {
    if (number > calltable.max_devices) @panic("more devices than there can be");
    device_count = number;
    for (0..device_count) |device| initialise(device);
}

fn initialise(device: usize) void {
    const status = register(device, .status);
    if (register(device, .magic).* != magic or register(device, .version).* != 2) @panic("no virtio-mmio device");
    if (register(device, .device_id).* != block_device) @panic("no block device");
    status.* = 0;
    while (status.* != 0) {}
    status.* = acknowledge;
    status.* = acknowledge | driver;
    register(device, .device_features_select).* = 0;
    var offered: u64 = register(device, .device_features).*;
    register(device, .device_features_select).* = 1;
    offered |= @as(u64, register(device, .device_features).*) << 32;
    const features = offered & features_wanted;
    if (features & features_required != features_required) giveUp(device, "a device lacks VERSION_1 or INDIRECT_DESC");
    register(device, .driver_features_select).* = 0;
    register(device, .driver_features).* = @truncate(features);
    register(device, .driver_features_select).* = 1;
    register(device, .driver_features).* = @truncate(features >> 32);
    status.* = acknowledge | driver | features_ok;
    if (status.* & features_ok == 0) giveUp(device, "a device refused the features");
    const queue = queueOf(device);
    register(device, .queue_select).* = 0;
    if (register(device, .queue_size_max).* < slots) giveUp(device, "a device's virtqueue is too small");
    register(device, .queue_size).* = slots;
    setAddress(device, .descriptors_low, .descriptors_high, @intFromPtr(&queue.descriptors));
    setAddress(device, .driver_low, .driver_high, @intFromPtr(&queue.available));
    setAddress(device, .device_low, .device_high, @intFromPtr(&queue.used));
    queue.available.flags = 1; // VIRTQ_AVAIL_F_NO_INTERRUPT
    register(device, .queue_ready).* = 1;
    if (register(device, .queue_ready).* != 1) giveUp(device, "a device refused its virtqueue");
    status.* = acknowledge | driver | features_ok | driver_ok;
}

fn setAddress(device: usize, low: Register, high: Register, address: u64) void {
    register(device, low).* = @truncate(address);
    register(device, high).* = @truncate(address >> 32);
}

fn giveUp(device: usize, comptime why: []const u8) noreturn {
    register(device, .status).* = failed;
    @panic(why);
}

/// One request: `front` bytes of padding, the data, `behind` bytes of padding; together whole sectors.
pub const Request = struct {
    device: usize,
    kind: Kind,
    sector: u64 = 0,
    front: u32 = 0,
    data: u64 = 0,
    length: u32 = 0,
    behind: u32 = 0,
};

pub fn full() bool {
    return used_slots == slots;
}

/// Put a request into its device's queue; `owner` is set to minus an error when it fails.  Flushes when all slots are
/// in use.
pub fn push(request: Request, owner: *i32) void {
    if (full()) flush();
    const slot = used_slots;
    used_slots += 1;
    devices[slot] = @intCast(request.device);
    owners[slot] = owner;
    // A device that does not answer has not said that all is well.
    statuses[slot] = 1;
    headers[slot] = .{ .kind = @intFromEnum(request.kind), .sector = request.sector };
    const table = &tables[slot];
    const direction: u16 = if (request.kind == .in) Descriptor.write_flag else 0;
    var used: u16 = 0;
    add(table, &used, @intFromPtr(&headers[slot]), @sizeOf(Header), 0);
    if (request.front > 0) add(table, &used, @intFromPtr(&scratch), request.front, direction);
    if (request.length > 0) add(table, &used, request.data, request.length, direction);
    if (request.behind > 0) add(table, &used, @intFromPtr(&scratch), request.behind, direction);
    table[used] = .{ .address = @intFromPtr(&statuses[slot]), .length = 1, .flags = Descriptor.write_flag, .next = 0 };
    const queue = queueOf(request.device);
    queue.descriptors[slot].address = @intFromPtr(table);
    queue.descriptors[slot].length = (@as(u32, used) + 1) * @sizeOf(Descriptor);
    queue.descriptors[slot].flags = Descriptor.indirect_flag;
    const index = available[request.device];
    queue.available.ring[index % slots] = @intCast(slot);
    available[request.device] = index +% 1;
    pending |= @as(@TypeOf(pending), 1) << @intCast(request.device);
}

fn add(table: *[parts]Descriptor, used: *u16, address: u64, length: u32, flags: u16) void {
    table[used.*] = .{ .address = address, .length = length, .flags = flags | Descriptor.next_flag, .next = used.* + 1 };
    used.* += 1;
}

/// Have everything done that was pushed, and tell the owners of what failed.
pub fn flush() void {
    while (pending != 0) {
        const device: usize = @ctz(pending);
        pending &= pending - 1;
        const queue = queueOf(device);
        queue.available.index = available[device];
        asm volatile ("" ::: .{ .memory = true });
        register(device, .queue_notify).* = 0;
        asm volatile ("" ::: .{ .memory = true });
        // Served inside the notification, or never.
        if (queue.used.index != available[device]) @panic("a block device needs a reset: it was given an address that it may not use");
    }
    const answers: *volatile [slots]u8 = &statuses;
    for (0..used_slots) |slot| {
        const answer = answers[slot];
        if (answer == 0) continue;
        if (owners[slot].* == 0) owners[slot].* = reason(devices[slot], answer);
    }
    used_slots = 0;
}

/// Minus the error that a status stands for; the control device knows more than IOERR says.
fn reason(device: u8, answer: u8) i32 {
    @branchHint(.cold);
    if (answer == 2) return -calltable.error_unsupported;
    const told = control.call(calltable.command_device_error, .{@as(u64, device)});
    return if (told < 0 and told >= -64) @intCast(told) else -calltable.error_io;
}
