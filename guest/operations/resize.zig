//! resize: another virtual size of the image on device 0, in place.  The whole plan is made before the first write.

const sdk = @import("sdk");
const formats = @import("formats");
const messages = @import("messages");

pub const panic = sdk.panic;

comptime {
    _ = sdk;
}

const registry = formats.Registry(.resize);

pub fn operation(run: *sdk.Run) sdk.Error!void {
    const request = try run.request(messages.ResizeRequest);
    var context = run.context();
    var device = try run.device(0);
    const driver = if (request.format) |name| try registry.byName(context, name) else try detect(run);
    const resize = driver.resize orelse return formats.refuse(context, driver.name, .resize);
    context.progress = sdk.table.progress;
    const planned = try resize(context, device, &request);
    try formats.steps.execute(planned.steps, &device, context.allocator, sdk.table.progress);
    try run.emit(messages.Resize{
        .format = driver.name,
        .old_size = planned.old_size,
        .virtual_size = planned.new_size,
        .file_length = device.length,
    });
}

/// Detection, where nobody could come to another answer: what is written in place was chosen by whoever made the image.
fn detect(run: *sdk.Run) sdk.Error!*const formats.image.Driver {
    var probed: formats.detection.Probed = .{};
    try probed.read(try run.device(0));
    const driver = registry.choose(&probed.probe);
    const certain = driver.probe(&probed.probe);
    if (certain == formats.detection.score.raw) {
        const other = formats.ambiguity.looksLike(&probed.probe) orelse return driver;
        return run.diagnostic.refuse(
            .invalid_option,
            .{ .format = driver.name, .structure = "format" },
            "the image was detected as raw, but it looks like {s}: it is written to only with -f raw (or another format)",
            .{other},
        );
    }
    if (certain < formats.detection.score.magic) return run.diagnostic.refuse(
        .invalid_option,
        .{ .format = driver.name, .structure = "format" },
        "the image looks like {s} by its last bytes alone, and others take it for raw: it is written to only with -f {s} or -f raw",
        .{ driver.name, driver.name },
    );
    return driver;
}
