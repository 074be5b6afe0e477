//! `info`: what an image is, what it refers to, and what lies on its disk.
//!
//! With a passphrase it is unlock.zig, which is this file with the code that decrypts.

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

pub const operation = Describing(.info).operation;

/// The operation of one of two ELFs: that of `purpose` .info opens nothing that is encrypted.
pub fn Describing(comptime purpose: formats.Purpose) type {
    return struct {
        const registry = formats.Registry(purpose);
        const unlocks = purpose == .unlock;

        pub fn operation(run: *sdk.Run) sdk.Error!void {
            const request = try run.request(messages.InfoRequest);
            if (!unlocks and request.passphrase != null)
                return run.diagnostic.refuse(.invalid_option, .{}, "this operation opens nothing with a passphrase: unlock does", .{});
            var context = run.context();
            context.files = run.files(request.files);
            context.progress = sdk.table.progress;
            if (unlocks) if (request.passphrase) |passphrase| {
                context.passphrase = passphrase.bytes;
            };
            var format = request.format;
            // What an image behind the first one is called by the one that names it.
            var stated: ?[]const u8 = null;
            if (request.image) |number| if (number > 0) {
                const files = request.files orelse &.{};
                if (number > files.len) return run.diagnostic.refuse(.invalid_option, .{ .value = number, .limit = files.len }, "there is no image {d} among {d} files", .{ number, files.len });
                context.number = @intCast(number);
                stated = files[@intCast(number - 1)].format;
                format = if (stated) |name| formats.chain.formatOf(name) else null;
                run.diagnostic.device = number;
            };
            const device = try run.device(context.number);
            try run.answerAs(request.qemu_version, &context);

            var probed: formats.detection.Probed = .{};
            try probed.read(device);
            const driver = if (format) |name| try registry.byName(context, name) else registry.choose(&probed.probe);
            const fill = driver.info orelse return formats.refuse(context, driver.name, .info);
            var report: messages.Info = .{
                .format = driver.name,
                .virtual_size = 0,
                .file_length = device.length,
                .dirty_flag = false,
            };
            try fill(context, device, run.sink(), &report);
            if (stated) |name| report.format = name;
            try otherFormats(run, &probed.probe, driver, format == null);
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

        /// What lies on the disk, where its bytes are in files that are there.  An image whose tables are damaged still has an
        /// answer.
        fn content(
            run: *sdk.Run,
            context: formats.image.Context,
            device: block.Device,
            driver: *const formats.image.Driver,
            report: *messages.Info,
        ) sdk.Error!void {
            if (report.encrypted orelse false) {
                if (unlocks) try decrypted(run, context, device, driver, report);
                return;
            }
            if (driver.open == null) return;
            if (unlocks and context.passphrase != null) try run.emit(messages.InfoNote{ .code = "passphrase-not-needed", .message = "a passphrase was given, and the image is not encrypted" });
            if (report.qcow2) |qcow2| if (qcow2.data_file != null and context.files == null) return;
            const kind = look(run, context, device, driver) catch |reason| switch (reason) {
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

        fn look(run: *sdk.Run, context: formats.image.Context, device: block.Device, driver: *const formats.image.Driver) sdk.Error!?[]const u8 {
            const opened = try formats.Chain(registry).open(context, device, driver);
            return formats.content.report(context, opened, device, run.sink());
        }
    };
}
