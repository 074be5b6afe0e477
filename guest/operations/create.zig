//! create: plan an empty image and write it to device 0 (and, for an external data file, to device 1).

const sdk = @import("sdk");
const block = @import("block");
const formats = @import("formats");
const messages = @import("messages");

pub const panic = sdk.panic;

comptime {
    _ = sdk;
}

const targets = formats.targets;

pub fn operation(run: *sdk.Run) sdk.Error!void {
    const request = try run.request(messages.CreateRequest);
    var context = run.context();
    context.progress = sdk.table.progress;
    if (request.passphrase) |passphrase| context.passphrase = passphrase.bytes;
    const target = try targets.byName(.create, context, request.format);
    const size = request.size orelse
        return run.diagnostic.refuse(.invalid_option, .{ .format = target.name }, "{s}: Image creation needs a size parameter", .{target.name});
    const options: messages.CreateOptions = request.options orelse .{};
    var planned = try target.plan(context, size, &options, try seed(run, request));
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

/// An output: whatever it held would show through the places that no write touches.
fn empty(run: *sdk.Run, index: usize) sdk.Error!block.Device {
    const device = try run.device(index);
    if (device.length != 0) {
        return run.diagnostic.refuse(.invalid_option, .{ .value = device.length }, "the output is not empty, it has {d} bytes", .{device.length});
    }
    return device;
}
