//! `info`: what an image is, what it refers to, and what lies on its disk.

const std = @import("std");
const sdk = @import("sdk");
const block = @import("block");
const formats = @import("formats");
const messages = @import("messages");

pub const panic = sdk.panic;
pub const only_reads = true;
comptime {
    _ = sdk;
}

const registry = formats.Registry(.info);

pub fn operation(run: *sdk.Run) sdk.Error!void {
    const request = try run.request(messages.InfoRequest);
    const device = try run.device(0);
    var context = run.context();
    context.progress = sdk.table.progress;
    if (request.passphrase) |passphrase| context.passphrase = passphrase.bytes;
    if (request.qemu_version) |version| {
        const major = block.search.until(version, '.');
        context.qemu_major = std.fmt.parseInt(u16, major, 10) catch
            return run.diagnostic.refuse(.invalid_option, .{}, "'{s}' is no qemu version", .{version[0..@min(version.len, 64)]});
    }

    var probed: formats.detection.Probed = .{};
    try probed.read(device);
    const driver = if (request.format) |name| try registry.byName(context, name) else registry.choose(&probed.probe);
    const fill = driver.info orelse return formats.refuse(context, driver.name, .info);
    var report: messages.Info = .{
        .format = driver.name,
        .virtual_size = 0,
        .file_length = device.length,
        .dirty_flag = false,
    };
    try fill(context, device, run.sink(), &report);
    try otherFormats(run, &probed.probe, driver, request.format == null);
    try content(run, context, device, driver, &report);
    try run.emitLarge(report);
}

/// Say which other formats the bytes fit: whoever guesses otherwise, or is told otherwise, sees another disk.
fn otherFormats(run: *sdk.Run, probe: *const formats.image.Probe, chosen: *const formats.image.Driver, detected: bool) sdk.Error!void {
    var buffer: [96]u8 = undefined;
    for (registry.drivers) |*driver| {
        const score = driver.probe(probe);
        if (driver == chosen) {
            if (detected and score == formats.detection.score.trailer) try run.emit(messages.InfoNote{
                .code = "detected-by-trailer",
                .message = "only the end of the file names the format: qemu-img takes this for raw unless told with -f",
            });
            continue;
        }
        if (score <= formats.detection.score.raw) continue;
        const name = formats.recognised.variant(probe, driver.name) orelse driver.name;
        const message = block.sentence.write(&buffer, "the content also looks like {s}", .{name});
        try run.emit(messages.InfoNote{ .code = "also-looks-like", .message = message });
    }
}

/// What lies on the disk, where its bytes are in this file.  An image whose tables are damaged still has an answer.
fn content(
    run: *sdk.Run,
    context: formats.image.Context,
    device: block.Device,
    driver: *const formats.image.Driver,
    report: *messages.Info,
) sdk.Error!void {
    if (report.encrypted orelse false) return decrypted(run, context, device, driver, report);
    const open = driver.open orelse return;
    if (context.passphrase != null) try run.emit(messages.InfoNote{ .code = "passphrase-not-needed", .message = "a passphrase was given, and the image is not encrypted" });
    if (report.qcow2) |qcow2| if (qcow2.data_file != null) return;
    const kind = look(run, context, device, open) catch |reason| switch (reason) {
        error.Refused => return run.emit(messages.InfoNote{ .code = "content-unreadable", .message = run.diagnostic.message() }),
        else => return reason,
    };
    if (report.recognised == null) report.recognised = kind;
}

/// What lies on an encrypted disk, for whoever has its passphrase.
fn decrypted(
    run: *sdk.Run,
    context: formats.image.Context,
    device: block.Device,
    driver: *const formats.image.Driver,
    report: *messages.Info,
) sdk.Error!void {
    if (context.passphrase == null) return;
    const unlock = driver.unlock orelse
        return run.diagnostic.refuse(.unsupported, .{ .format = driver.name }, "{s}: this version cannot unlock it", .{driver.name});
    const unlocked = try unlock(context, device);
    report.unlocked_keyslot = unlocked.keyslot;
    if (report.qcow2) |qcow2| if (qcow2.data_file != null) return;
    const kind = formats.content.report(context, unlocked.image, device, run.sink()) catch |reason| switch (reason) {
        error.Refused => return run.emit(messages.InfoNote{ .code = "content-unreadable", .message = run.diagnostic.message() }),
        else => return reason,
    };
    if (kind) |name| report.recognised = name;
}

fn look(run: *sdk.Run, context: formats.image.Context, device: block.Device, open: anytype) sdk.Error!?[]const u8 {
    return formats.content.report(context, try open(context, device), device, run.sink());
}
