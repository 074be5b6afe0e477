//! check: is the image consistent?  Findings are sent as they are met, the counters last.

const sdk = @import("sdk");
const formats = @import("formats");
const messages = @import("messages");

pub const panic = sdk.panic;
pub const only_reads = true;

comptime {
    _ = sdk;
}

const registry = formats.Registry(.check);

/// Statuses of a finished check; they are qemu-img's.
const Status = struct {
    const incomplete = 1;
    const corrupt = 2;
    const leaks = 3;
};

pub fn operation(run: *sdk.Run) sdk.Error!void {
    const request = try run.request(messages.CheckRequest);
    const device = try run.device(0);
    var context = run.context();
    context.files = run.files(request.files);
    const driver = if (request.format) |name| try registry.byName(context, name) else try registry.detect(context, device);
    const check = driver.check orelse return formats.refuse(context, driver.name, .check);
    try formats.Chain(registry).openBehind(context);
    var report: messages.Check = .{
        .format = driver.name,
        .file_length = device.length,
        .check_errors = 0,
        .corruptions = 0,
        .leaks = 0,
        .findings_omitted = 0,
    };
    context.progress = sdk.table.progress;
    try check(context, device, run.sink(), &report);
    try run.emit(report);
    run.status = if (report.check_errors > 0)
        Status.incomplete
    else if (report.corruptions > 0)
        Status.corrupt
    else if (report.leaks > 0)
        Status.leaks
    else
        0;
}
