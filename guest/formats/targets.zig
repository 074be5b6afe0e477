//! The registry of destinations: every format that can be measured for and created.

const std = @import("std");
const block = @import("block");
const image = @import("image.zig");
const target = @import("target.zig");

pub const Target = target.Target;
pub const Options = target.Options;
pub const Seed = target.Seed;
pub const Parent = target.Parent;
pub const Source = target.Source;
pub const plan = @import("plan.zig");

pub const targets = [_]Target{
    .{ .name = "raw", .measure = @import("raw/create.zig").measure, .plan = @import("raw/create.zig").plan },
    .{ .name = "qcow2", .measure = @import("qcow2/measure.zig").measure, .plan = @import("qcow2/create.zig").plan },
    .{ .name = "vhdx", .measure = @import("vhdx/measure.zig").measure, .plan = @import("vhdx/create.zig").plan },
    .{ .name = "vpc", .measure = @import("vhd/layout.zig").measure, .plan = @import("vhd/create.zig").plan },
    .{ .name = "vmdk", .measure = @import("vmdk/measure.zig").measure, .plan = @import("vmdk/create.zig").plan },
    .{ .name = "luks", .measure = @import("luks/layout.zig").measure, .plan = @import("luks/create.zig").plan },
};

/// Formats that qemu-img knows and that are no destination here.
const others = [_][]const u8{ "vdi", "qcow", "qed", "parallels", "dmg", "bochs", "cloop" };

pub const Purpose = enum { measure, create };

/// The destinations with only the function that `purpose` calls, so that the other stays out of the operation's ELF.
fn registry(comptime purpose: Purpose) [targets.len]Target {
    var kept = targets;
    for (&kept) |*one| switch (purpose) {
        .measure => one.plan = undefined,
        .create => one.measure = undefined,
    };
    return kept;
}

/// The destination of this name; only the function of `purpose` may be called.
///
/// Refuses with `unsupported` for a format that is known, with `invalid_option` for others.
pub fn byName(comptime purpose: Purpose, context: image.Context, name: []const u8) error{Refused}!*const Target {
    const kept = comptime registry(purpose);
    for (&kept) |*candidate| if (std.mem.eql(u8, candidate.name, name)) return candidate;
    for (others) |known| if (std.mem.eql(u8, known, name)) {
        return context.diagnostic.refuse(.unsupported, .{ .format = known }, switch (purpose) {
            .measure => "Block driver '{s}' does not support size measurement",
            .create => "Format driver '{s}' does not support image creation",
        }, .{known});
    };
    return context.diagnostic.refuse(.invalid_option, .{}, "Unknown file format '{s}'", .{target.shorten(name)});
}

test {
    _ = target;
    _ = plan;
    _ = @import("option_list.zig");
    _ = @import("vhd/geometry.zig");
    _ = @import("qcow2/layout.zig");
    _ = @import("qcow2/test_create.zig");
    _ = @import("vmdk/format.zig");
    _ = @import("vmdk/layout.zig");
    _ = @import("vmdk/descriptor_text.zig");
    _ = @import("vmdk/test_create.zig");
    _ = @import("vmdk/descriptor_edit.zig");
    _ = @import("vmdk/test_grow.zig");
    _ = @import("vhdx/fields.zig");
    _ = @import("vhd/path.zig");
    _ = @import("vhdx/layout.zig");
    _ = @import("vhdx/identity.zig");
    _ = @import("vhdx/linkage.zig");
    _ = @import("vhdx/create.zig");
}

test "known and unknown destinations" {
    var diagnostic: block.Diagnostic = .{};
    const context: image.Context = .{ .allocator = std.testing.allocator, .diagnostic = &diagnostic };
    try std.testing.expectEqualStrings("vpc", (try byName(.measure, context, "vpc")).name);
    try std.testing.expectError(error.Refused, byName(.measure, context, "vdi"));
    try std.testing.expectEqualStrings("Block driver 'vdi' does not support size measurement", diagnostic.message());
    try std.testing.expectError(error.Refused, byName(.create, context, "nothing"));
    try std.testing.expectEqual(block.Diagnostic.Code.invalid_option, diagnostic.code);
}
