//! measure: how large the file of a conversion, or of an empty image, would be.

const sdk = @import("sdk");
const formats = @import("formats");
const messages = @import("messages");

pub const panic = sdk.panic;

comptime {
    _ = sdk;
}

const registry = formats.Registry(.measure);
const targets = formats.targets;

pub fn operation(run: *sdk.Run) sdk.Error!void {
    const request = try run.request(messages.MeasureRequest);
    const context = run.context();
    const target = try targets.byName(.measure, context, request.target);
    const options: messages.CreateOptions = request.options orelse .{};
    const source = try open(run, request);
    const sizes = try target.measure(context, source, &options);
    try run.emit(messages.Measure{
        .required = sizes.required,
        .fully_allocated = sizes.fully_allocated,
        .bitmaps = sizes.bitmaps,
        .target = target.name,
        .virtual_size = sizes.virtual_size,
        .format = switch (source) {
            .size => null,
            .image => |image| image.driver,
        },
    });
}

fn open(run: *sdk.Run, request: messages.MeasureRequest) sdk.Error!targets.Source {
    if (request.size) |size| return .{ .size = size };
    const context = run.context();
    const device = try run.device(0);
    const driver = if (request.format) |name| try registry.byName(context, name) else try registry.detect(context, device);
    const opener = driver.open orelse return formats.refuse(context, driver.name, .measure);
    return .{ .image = try opener(context, device) };
}
