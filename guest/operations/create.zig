//! create: plan an empty image and write it to device 0, its other files to the devices behind that one.
//!
//! Planning is pure: a run that has not got all files plans like one that has, and writes those that it was given.
//! The backing file of an overlay is read for its size and its identity.

const std = @import("std");
const sdk = @import("sdk");
const block = @import("block");
const formats = @import("formats");
const messages = @import("messages");

pub const panic = sdk.panic;

comptime {
    _ = sdk;
}

const targets = formats.targets;
const registry = formats.Registry(.create);

pub fn operation(run: *sdk.Run) sdk.Error!void {
    const request = try run.request(messages.CreateRequest);
    var context = run.context();
    context.progress = sdk.table.progress;
    if (request.passphrase) |passphrase| context.passphrase = passphrase.bytes;
    const target = try targets.byName(.create, context, request.format);
    const options: messages.CreateOptions = request.options orelse .{};
    var from = try seed(run, request);
    from.parent = try parent(run, request, options.backing_format);
    const size = request.size orelse if (from.parent) |found| found.virtual_size else return run.diagnostic.refuse(.invalid_option, .{ .format = target.name }, "{s}: Image creation needs a size parameter", .{target.name});
    var planned = try target.plan(context, size, &options, from);
    planned.progress = sdk.table.progress;

    try write(run, context, &planned, request.first_output, from.parent != null);
    try run.emitLarge(messages.Create{
        .format = target.name,
        .virtual_size = planned.virtual_size,
        .cluster_size = planned.cluster_size,
        .file_length = planned.file_length,
        .options = planned.options,
    });
}

/// Write the files that are devices; when they are not all there, and no other run was announced, name them instead.
fn write(run: *sdk.Run, context: formats.image.Context, planned: *const targets.plan.Plan, window: ?u64, has_backing: bool) sdk.Error!void {
    const total = planned.others.len + 1;
    const devices = run.deviceCount() - @intFromBool(has_backing);
    if (window == null and devices < total) return name(run, planned);
    const first = window orelse 0;
    if (first > total or devices > total - first) return run.diagnostic.refuse(
        .invalid_option,
        .{ .value = first +| devices, .limit = total },
        "request: {d} outputs from {d} on, the image has {d} files",
        .{ devices, first, total },
    );
    for (0..devices) |index| {
        var output = try empty(run, index);
        try targets.plan.executeFile(planned, @intCast(first + index), &output, context.allocator);
    }
}

fn name(run: *sdk.Run, planned: *const targets.plan.Plan) sdk.Error!void {
    _ = try empty(run, 0);
    for (planned.others, 1..) |file, index| {
        const text = file.name orelse
            return run.diagnostic.refuse(.unsupported, .{}, "the image has a second file, which must be given as an output", .{});
        try run.emit(messages.CreateFile{ .index = index, .name = .{ .bytes = text }, .length = file.length });
    }
}

fn seed(run: *sdk.Run, request: messages.CreateRequest) sdk.Error!targets.Seed {
    var result: targets.Seed = .{ .unix_time = request.unix_time orelse 0 };
    if (request.uuid) |uuid| {
        if (uuid.bytes.len != result.uuid.len) {
            return run.diagnostic.refuse(.invalid_option, .{ .value = uuid.bytes.len, .limit = 16 }, "request: 'uuid' has {d} bytes instead of 16", .{uuid.bytes.len});
        }
        @memcpy(&result.uuid, uuid.bytes);
    }
    if (request.entropy) |entropy| {
        if (entropy.bytes.len != result.entropy.len) {
            return run.diagnostic.refuse(.invalid_option, .{ .value = entropy.bytes.len, .limit = 32 }, "request: 'entropy' has {d} bytes instead of 32", .{entropy.bytes.len});
        }
        @memcpy(&result.entropy, entropy.bytes);
    }
    if (request.name) |text| result.name = text.bytes;
    if (request.parent_cid) |cid| result.parent_cid = std.math.cast(u32, cid) orelse
        return run.diagnostic.refuse(.invalid_option, .{ .value = cid, .limit = std.math.maxInt(u32) }, "request: 'parent-cid' is {d}, which 32 bits do not hold", .{cid});
    return result;
}

/// What an overlay takes from its backing file; null when that is not opened.
fn parent(run: *sdk.Run, request: messages.CreateRequest, given: ?[]const u8) sdk.Error!?targets.Parent {
    const number = request.backing_device orelse return null;
    // What is refused from here on is about that file.
    run.diagnostic.device = number;
    const context = run.context();
    const device = try run.device(@intCast(@min(number, 0xffff)));
    const stated = given orelse {
        const found = try registry.detect(context, device);
        run.diagnostic.device = null;
        return run.diagnostic.refuse(.invalid_option, .{ .format = found.name }, "Backing file specified without backing format (detected format of {s})", .{found.name});
    };
    const driver = try registry.byName(context, stated);
    const size = if (driver.size) |sizeOf|
        try sizeOf(context, device)
    else if (driver.open) |open|
        (try open(context, device)).virtual_size
    else
        return run.diagnostic.refuse(.unsupported, .{ .format = driver.name }, "{s}: recognised, but this version cannot open it as a backing file", .{driver.name});
    const identity = if (driver.identity) |identify| try identify(context, device) else null;
    run.diagnostic.device = null;
    return .{
        .format = driver.name,
        .virtual_size = size,
        .identity = identity,
        .unix_time = request.backing_time orelse 0,
    };
}

/// An output: whatever it held would show through the places that no write touches.
fn empty(run: *sdk.Run, index: usize) sdk.Error!block.Device {
    const device = try run.device(index);
    if (device.length != 0) {
        return run.diagnostic.refuse(.invalid_option, .{ .value = device.length }, "the output is not empty, it has {d} bytes", .{device.length});
    }
    return device;
}
