//! What a format offers as a destination: measure how large a file of it would be, plan an empty image.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("image.zig");
pub const Plan = @import("plan.zig").Plan;

pub const Options = messages.CreateOptions;

/// qemu's limit on every size; a file offset is signed.
pub const max_size: u64 = std.math.maxInt(i64);

/// What a new image takes from the world, so that the same request gives the same bytes.
pub const Seed = struct {
    /// Seconds since 1970-01-01 00:00 UTC.
    unix_time: u64 = 0,
    uuid: [16]u8 = @splat(0),
    /// What every other random part of the image (CIDs, GUIDs, salts, keys) is made of.
    entropy: [32]u8 = @splat(0),
    /// The last component of the new file's path.
    name: []const u8 = "",
    /// VMDK: content identifier of the parent, when the request states it.
    parent_cid: ?u32 = null,
    /// The backing file of an overlay; null when there is none, and when it was not opened.
    parent: ?Parent = null,
};

/// The backing file of a new overlay, as far as formats record it.
pub const Parent = struct {
    /// Driver name.
    format: []const u8,
    /// Bytes.
    virtual_size: u64,
    /// Null where the format has none.
    identity: ?image.Identity,
    /// When the file was last changed, in seconds since 1970-01-01 00:00 UTC.
    unix_time: u64 = 0,
};

/// What is measured: an image, or an empty disk of so many bytes.
pub const Source = union(enum) {
    size: u64,
    image: image.Image,

    pub fn virtualSize(self: Source) u64 {
        return switch (self) {
            .size => |size| size,
            .image => |opened| opened.virtual_size,
        };
    }
};

/// The answer of a measurement, in bytes.
pub const Sizes = struct {
    required: u64,
    fully_allocated: u64,
    bitmaps: ?u64 = null,
    /// Of the target, after the format's rounding.
    virtual_size: u64,
};

pub const Target = struct {
    /// qemu's driver name, as in `-O`.
    name: []const u8,
    measure: *const fn (context: image.Context, source: Source, options: *const Options) block.Error!Sizes,
    plan: *const fn (context: image.Context, size: u64, options: *const Options, seed: Seed) block.Error!Plan,
};

/// Refuse a size that no signed 64-bit offset reaches; everything behind this door may round up without wrapping.
pub fn checkSize(context: image.Context, format: []const u8, size: u64) error{Refused}!void {
    if (size > max_size) {
        return context.diagnostic.refuse(
            .too_large,
            .{ .format = format, .structure = "virtual size", .value = size, .limit = max_size },
            "{s}: virtual size {d} is above 2^63-1",
            .{ format, size },
        );
    }
}

const option_names = std.meta.fieldNames(Options);

/// A bit for each option that is set, in the order of the fields.
fn given(options: *const Options) u64 {
    var bits: u64 = 0;
    inline for (option_names, 0..) |name, bit| bits |= @as(u64, @intFromBool(@field(options, name) != null)) << bit;
    return bits;
}

/// The bits of some options.
pub fn mask(comptime names: []const []const u8) u64 {
    return comptime blk: {
        var bits: u64 = 0;
        for (names) |name| bits |= 1 << std.meta.fieldIndex(Options, name).?;
        break :blk bits;
    };
}

/// Wishes to the file system, which every format has.
const everywhere = mask(&.{ "nocow", "extent_size_hint" });

/// Refuse every option that is set and not among `accepted` (see `mask`).
pub fn onlyOptions(context: image.Context, format: []const u8, options: *const Options, accepted: u64) error{Refused}!void {
    const foreign = given(options) & ~(accepted | everywhere);
    if (foreign == 0) return;
    return refuseOption(context, format, "{s}: Invalid parameter '{s}'", .{ format, spelling(option_names[@ctz(foreign)]) });
}

pub fn refuseOption(context: image.Context, format: []const u8, comptime text: []const u8, arguments: anytype) error{Refused} {
    return context.diagnostic.refuse(.invalid_option, .{ .format = format }, text, arguments);
}

/// How qemu-img spells an option.
fn spelling(name: []const u8) []const u8 {
    return if (std.mem.eql(u8, name, "backing_format")) "backing_fmt" else name;
}

pub const Preallocation = enum { off, metadata, falloc, full };

pub fn preallocation(context: image.Context, format: []const u8, options: *const Options) error{Refused}!Preallocation {
    const text = options.preallocation orelse return .off;
    return std.meta.stringToEnum(Preallocation, text) orelse
        refuseValue(context, format, "preallocation", text);
}

pub fn refuseValue(context: image.Context, format: []const u8, name: []const u8, value: []const u8) error{Refused} {
    return refuseOption(context, format, "{s}: Parameter '{s}' does not accept value '{s}'", .{ format, name, shorten(value) });
}

/// As much of a caller's text as fits an error message.
pub fn shorten(text: []const u8) []const u8 {
    return text[0..@min(text.len, 64)];
}

/// Bytes of the units of `unit` bytes that hold data: what a writer that allocates whole units has to allocate.  One
/// step a segment.  As in qemu, zeroes and (without a backing file) unallocated ranges cost nothing.
///
/// Refuses with `needs_reference` when another file decides what an unallocated range holds.
pub fn dataSize(context: image.Context, source: image.Image, unit: u64) block.Error!u64 {
    std.debug.assert(std.math.isPowerOfTwo(unit));
    var total: u64 = 0;
    var at: u64 = 0;
    while (at < source.virtual_size) {
        const segment = try source.segmentAt(at);
        at += segment.length;
        switch (segment.kind) {
            .zero => {},
            .unallocated => if (source.has_backing) {
                return context.diagnostic.refuse(
                    .needs_reference,
                    .{ .format = source.driver, .structure = "virtual disk", .offset = segment.start },
                    "{s}: what byte {d} of the disk holds is in the backing file, which only --chain follows",
                    .{ source.driver, segment.start },
                );
            },
            .data => {
                const begin = std.mem.alignBackward(u64, segment.start, unit);
                // virtual_size is at most 2^63-1 and unit at most 256 MiB.
                const end = std.mem.alignForward(u64, at, unit);
                total += end - begin;
                // The rest of this unit is paid for.
                at = end;
            },
        }
    }
    return total;
}

const testing = std.testing;

/// A disk made of given segments, for tests.
pub const Fake = struct {
    segments: []const image.Segment,

    pub fn segmentAt(opaque_self: *anyopaque, start: u64) block.Error!image.Segment {
        const self: *const Fake = @ptrCast(@alignCast(opaque_self));
        for (self.segments) |segment| {
            const end = segment.start + segment.length;
            if (start < end) return .{ .start = start, .length = end - start, .kind = segment.kind };
        }
        unreachable;
    }

    pub fn open(self: *Fake, has_backing: bool) image.Image {
        const last = self.segments[self.segments.len - 1];
        return .{
            .driver = "fake",
            .virtual_size = last.start + last.length,
            .has_backing = has_backing,
            .context = self,
            .segment_at = segmentAt,
        };
    }
};

test "data is counted in whole units, each once" {
    var diagnostic: block.Diagnostic = .{};
    const context: image.Context = .{ .allocator = testing.allocator, .diagnostic = &diagnostic };
    var fake: Fake = .{ .segments = &.{
        .{ .start = 0, .length = 512, .kind = .data },
        .{ .start = 512, .length = 512, .kind = .zero },
        .{ .start = 1024, .length = 512, .kind = .data },
        .{ .start = 1536, .length = 4096, .kind = .zero },
        .{ .start = 5632, .length = 512, .kind = .data },
        .{ .start = 6144, .length = 4096, .kind = .unallocated },
        .{ .start = 10240, .length = 512, .kind = .data },
    } };
    try testing.expectEqual(@as(u64, 4 * 512), try dataSize(context, fake.open(false), 512));
    try testing.expectEqual(@as(u64, 3 * 4096), try dataSize(context, fake.open(false), 4096));
    try testing.expectEqual(@as(u64, 65536), try dataSize(context, fake.open(false), 65536));
    try testing.expectError(error.Refused, dataSize(context, fake.open(true), 512));
    try testing.expectEqual(block.Diagnostic.Code.needs_reference, diagnostic.code);
    // The unallocated range lies in a cluster that is paid for.
    try testing.expectEqual(@as(u64, 65536), try dataSize(context, fake.open(true), 65536));
}

test "an option that the format does not have" {
    var diagnostic: block.Diagnostic = .{};
    const context: image.Context = .{ .allocator = testing.allocator, .diagnostic = &diagnostic };
    try onlyOptions(context, "raw", &.{ .nocow = true, .preallocation = "off" }, mask(&.{"preallocation"}));
    try testing.expectError(error.Refused, onlyOptions(context, "raw", &.{ .backing_format = "raw" }, mask(&.{"preallocation"})));
    try testing.expectEqualStrings("raw: Invalid parameter 'backing_fmt'", diagnostic.message());
}
