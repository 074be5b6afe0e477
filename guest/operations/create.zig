//! create: plan an empty image and write it to device 0 (and, for an external data file, to device 1).  The backing file
//! of an overlay is read for its size and its identity.

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
    const context = run.context();
    const target = try targets.byName(.create, context, request.format);
    const options: messages.CreateOptions = request.options orelse .{};
    var from = try seed(run, request);
    from.parent = try parent(run, request, options.backing_format);
    const size = request.size orelse if (from.parent) |found| found.virtual_size else return run.diagnostic.refuse(.invalid_option, .{ .format = target.name }, "{s}: Image creation needs a size parameter", .{target.name});
    var planned = try target.plan(context, size, &options, from);
    planned.progress = sdk.table.progress;

    if (planned.data_file_length != null and run.deviceCount() < 2) {
        return run.diagnostic.refuse(.unsupported, .{ .format = target.name }, "{s}: the external data file must be given as a second output", .{target.name});
    }
    var output = try empty(run, 0);
    try targets.plan.execute(&planned, &output, context.allocator);
    if (planned.data_file_length != null) {
        var data = try empty(run, 1);
        try targets.plan.executeDataFile(&planned, &data, context.allocator);
    }
    try run.emitLarge(messages.Create{
        .format = target.name,
        .virtual_size = planned.virtual_size,
        .cluster_size = planned.cluster_size,
        .file_length = planned.file_length,
        .options = planned.options,
    });
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
    return result;
}

/// What an overlay takes from its backing file; null when that is not opened.
fn parent(run: *sdk.Run, request: messages.CreateRequest, given: ?[]const u8) sdk.Error!?targets.Parent {
    const number = request.backing_device orelse return null;
    // What is refused from here on is about that file.
    run.subject = number;
    const context = run.context();
    const device = try run.device(@intCast(@min(number, 0xffff)));
    const name = given orelse {
        const found = try registry.detect(context, device);
        run.subject = null;
        return run.diagnostic.refuse(.invalid_option, .{ .format = found.name }, "Backing file specified without backing format (detected format of {s})", .{found.name});
    };
    const driver = try registry.byName(context, name);
    const size = if (driver.size) |sizeOf|
        try sizeOf(context, device)
    else if (driver.open) |open|
        (try open(context, device)).virtual_size
    else
        return run.diagnostic.refuse(.unsupported, .{ .format = driver.name }, "{s}: recognised, but this version cannot open it as a backing file", .{driver.name});
    const identity = if (driver.identity) |identify| try identify(context, device) else null;
    run.subject = null;
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
