//! references: the files that an image names.

const sdk = @import("sdk");
const formats = @import("formats");
const messages = @import("messages");

pub const panic = sdk.panic;
pub const only_reads = true;

comptime {
    _ = sdk;
}

const registry = formats.Registry(.references);

pub fn operation(run: *sdk.Run) sdk.Error!void {
    const request = try run.request(messages.ReferencesRequest);
    var context = run.context();
    try run.answerAs(request.qemu_version, &context);
    const device = try run.device(0);
    const driver = if (request.format) |name| try registry.byName(context, formats.chain.formatOf(name)) else try registry.detect(context, device);
    if (driver.references) |name| try name(context, device, run.sink());
    try run.emit(messages.References{ .format = driver.name });
}
