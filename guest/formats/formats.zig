//! The registry: every format of the product in one place, and how an image finds its format.
//!
//! An operation names what it will do, so that only that code is linked into its ELF:
//!
//!     const formats = @import("formats");
//!     const registry = formats.Registry(.measure);
//!     const driver = try registry.detect(context, device);         // without -f
//!     const driver = try registry.byName(context, "qcow2");        // with -f
//!     const open = driver.open orelse return formats.refuse(context, driver.name, .measure);

const std = @import("std");
const block = @import("block");

pub const image = @import("image.zig");
pub const steps = @import("steps.zig");
/// The disk as `map` shows it.
pub const extents = @import("extents.zig");
pub const text = @import("text.zig");
pub const detection = @import("detect.zig");
pub const recognised = @import("recognised.zig");
/// What a request to resize asks for.
pub const resizing = @import("resizing.zig");
/// Whether somebody else would take the image for another format.
pub const ambiguity = @import("ambiguity.zig");
/// Destinations: what `measure -O` and `create -f` can name.
pub const targets = @import("targets.zig");
pub const raw = @import("raw/raw.zig");
pub const vhd = @import("vhd/vhd.zig");
pub const vhdx = @import("vhdx/vhdx.zig");
pub const qcow2 = @import("qcow2/qcow2.zig");
pub const vmdk = @import("vmdk/vmdk.zig");
pub const luks = @import("luks/luks.zig");
pub const content = @import("content/content.zig");
/// Images with what stands behind them.
pub const chain = @import("chain.zig");
pub const Chain = chain.Chain;

/// Every format.  The order breaks ties of equal probe scores; raw is last because it fits everything.
pub const drivers: []const image.Driver = &([_]image.Driver{
    qcow2.driver,
    vhd.driver,
    vhdx.driver,
    vmdk.driver,
    luks.driver,
} ++ recognised.drivers ++ [_]image.Driver{
    raw.driver,
});

/// What an operation wants of a format.
pub const Purpose = enum { info, unlock, check, measure, map, resize, references, create };

/// The drivers with only the functions that `purpose` calls.  Everything else stays out of the operation's ELF.
pub fn Registry(comptime purpose: Purpose) type {
    return struct {
        pub const drivers: []const image.Driver = blk: {
            var kept: [all.len]image.Driver = undefined;
            for (all, 0..) |driver, i| {
                kept[i] = driver;
                if (purpose == .resize or purpose == .references or (purpose == .create and driver.size != null)) kept[i].open = null;
                if (purpose != .info and purpose != .unlock) kept[i].info = null;
                if (purpose != .info and purpose != .unlock) kept[i].read = null;
                if (purpose != .unlock) kept[i].unlock = null;
                if (purpose != .check) kept[i].check = null;
                if (purpose != .resize) kept[i].resize = null;
                if (purpose != .references) kept[i].references = null;
                if (purpose != .create) kept[i].identity = null;
                if (purpose != .create) kept[i].size = null;
            }
            const frozen = kept;
            break :blk &frozen;
        };
        const all = @import("formats.zig").drivers;

        /// The format of an image by its content; raw when nothing else fits.  Never refuses for what it finds, only
        /// for what it cannot read.
        pub fn detect(context: image.Context, device: block.Device) block.Error!*const image.Driver {
            _ = context;
            var probed: detection.Probed = .{};
            try probed.read(device);
            return choose(&probed.probe);
        }

        /// `detect` on bytes that were read before.
        pub fn choose(probe: *const image.Probe) *const image.Driver {
            return &@This().drivers[detection.best(@This().drivers, probe)];
        }

        /// Refuse because a driver lacks what this registry is for.
        pub fn refuse(context: image.Context, name: []const u8) error{Refused} {
            return @import("formats.zig").refuse(context, name, purpose);
        }

        /// The format that `-f` names.
        pub fn byName(context: image.Context, name: []const u8) block.Error!*const image.Driver {
            for (@This().drivers) |*driver| {
                if (std.mem.eql(u8, driver.name, name)) return driver;
            }
            return context.diagnostic.refuse(.invalid_option, .{}, "Unknown driver '{s}'", .{name[0..@min(name.len, 64)]});
        }
    };
}

/// Refuse because `name` has no such function: an operation calls this when the driver's pointer is null.
pub fn refuse(context: image.Context, name: []const u8, purpose: Purpose) error{Refused} {
    if (purpose == .check and recognised.hasNoChecks(name)) {
        return context.diagnostic.refuse(.no_checks, .{ .format = name }, "{s}: This image format does not support checks", .{name});
    }
    return context.diagnostic.refuse(
        .unsupported,
        .{ .format = name },
        "{s}: recognised, but this version has no {s} for it",
        .{ name, @tagName(purpose) },
    );
}

fn detected(bytes: []const u8) ![]const u8 {
    var memory: block.Memory = try .init(std.testing.allocator, bytes);
    defer memory.deinit();
    var diagnostic: block.Diagnostic = .{};
    const context: image.Context = .{ .allocator = std.testing.allocator, .diagnostic = &diagnostic };
    return (try Registry(.measure).detect(context, memory.device())).name;
}

test "a magic at the start beats a trailer, a trailer beats raw" {
    var bytes: [2048]u8 = @splat(0);
    try std.testing.expectEqualStrings("raw", try detected(&bytes));
    try std.testing.expectEqualStrings("raw", try detected(""));
    bytes[1536..1544].* = "conectix".*;
    try std.testing.expectEqualStrings("vpc", try detected(&bytes));
    try std.testing.expectEqualStrings("vpc", try detected(bytes[0..2047]));
    bytes[0..8].* = "QFI\xfb\x00\x00\x00\x03".*;
    try std.testing.expectEqualStrings("qcow2", try detected(&bytes));
    bytes[7] = 1;
    try std.testing.expectEqualStrings("qcow", try detected(&bytes));
    bytes[0..8].* = "conectix".*;
    try std.testing.expectEqualStrings("vpc", try detected(&bytes));
}

test "an operation has its own functions and no others" {
    var diagnostic: block.Diagnostic = .{};
    const context: image.Context = .{ .allocator = std.testing.allocator, .diagnostic = &diagnostic };
    const checker = try Registry(.check).byName(context, "vpc");
    try std.testing.expect(checker.check != null and checker.info == null);
    const measurer = try Registry(.measure).byName(context, "vpc");
    try std.testing.expect(measurer.check == null and measurer.info == null and measurer.open != null);
    const describer = try Registry(.info).byName(context, "luks");
    try std.testing.expect(describer.info != null and describer.unlock == null);
    const unlocker = try Registry(.unlock).byName(context, "luks");
    try std.testing.expect(unlocker.info != null and unlocker.unlock != null);
    try std.testing.expectError(error.Refused, Registry(.info).byName(context, "vhd"));
    try std.testing.expectEqualStrings("Unknown driver 'vhd'", diagnostic.message());
    try std.testing.expectEqual(error.Refused, refuse(context, "raw", .check));
    try std.testing.expectEqual(.no_checks, diagnostic.code);
    try std.testing.expectEqual(error.Refused, refuse(context, "vdi", .check));
    try std.testing.expectEqual(.unsupported, diagnostic.code);
}

test {
    _ = qcow2;
    _ = steps;
    _ = extents;
    _ = @import("resizing.zig");
    _ = @import("text.zig");
    _ = @import("detect.zig");
    _ = @import("recognised.zig");
    _ = resizing;
    _ = ambiguity;
    _ = @import("targets.zig");
    _ = raw;
    _ = vhd;
    _ = vhdx;
    _ = vmdk;
    _ = luks;
    _ = content;
    _ = @import("test_chain.zig");
}
