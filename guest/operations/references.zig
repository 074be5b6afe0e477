//! references: what an image, and the files behind it that are there, refer to and is not there yet.

const std = @import("std");
const sdk = @import("sdk");
const block = @import("block");
const cbor = @import("cbor");
const formats = @import("formats");
const messages = @import("messages");
const image = formats.image;

pub const panic = sdk.panic;
pub const only_reads = true;

comptime {
    _ = sdk;
}

const registry = formats.Registry(.references);

pub fn operation(run: *sdk.Run) sdk.Error!void {
    const request = try run.request(messages.ReferencesRequest);
    var context = run.context();
    context.files = run.files(request.files);
    try run.answerAs(request.qemu_version, &context);
    var walk: Walk = .{ .run = run, .files = request.files };
    for (0..request.files.len + 1) |number| {
        context.number = @intCast(number);
        walk.owner = number;
        walk.look(context, if (number == 0) request.format else request.files[number - 1].format) catch |reason| {
            if (reason == error.Refused and number > 0) run.diagnostic.device = number;
            return reason;
        };
    }
    try run.emit(messages.References{ .files = request.files.len + 1 });
}

const Walk = struct {
    run: *sdk.Run,
    files: []const messages.ChainFile,
    owner: u64 = 0,

    fn look(self: *Walk, context: image.Context, format: ?[]const u8) sdk.Error!void {
        const device = try self.run.device(context.number);
        const driver = if (format) |name| try registry.byName(context, formats.chain.formatOf(name)) else try registry.detect(context, device);
        const references = driver.references orelse return;
        return references(context, device, .{ .context = self, .deliver = deliver });
    }

    fn deliver(opaque_self: *anyopaque, message: []const u8) block.Error!void {
        const self: *Walk = @ptrCast(@alignCast(opaque_self));
        const found = (cbor.decodeMessage(messages.InfoReference, sdk.allocator, message) catch return error.Invalid) orelse return;
        const index = found.index orelse 0;
        for (self.files) |file| {
            if (file.owner == self.owner and file.index == index and std.mem.eql(u8, file.kind, found.kind)) return;
        }
        try self.run.emit(messages.ChainReference{
            .owner = self.owner,
            .kind = found.kind,
            .index = index,
            .name = found.name,
            .format = found.format,
        });
    }
};
