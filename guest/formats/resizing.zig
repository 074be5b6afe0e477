//! What a request to resize asks for, checked in one place for all formats: in qemu-img's order and with its words.
//!
//! A driver's `resize` begins like this:
//!
//!     const wanted = try resizing.wanted(context, "vpc", old_size, request);
//!     // wanted.size, wanted.preallocation; a smaller size was asked for with --shrink

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("image.zig");
const target = @import("target.zig");

/// Bytes; no request of qemu's block layer reaches further: the last multiple of 2^30 below 2^63.
pub const max_size: u64 = (1 << 63) - (1 << 30);

/// What is to become of an image.
pub const Wanted = struct {
    /// Bytes of virtual disk, 1 to `max_size`, before the format's rounding.
    size: u64,
    /// Of the new part; `off` unless the image grows.
    preallocation: target.Preallocation,
};

/// The size that a request asks for and how, given the image's present size in bytes (<= 2^63).
///
/// Refuses (`invalid_option`, `too_large`): no size at all, above the limit, smaller without `shrink`, preallocation of
/// what does not grow.  `structure` of a refusal is "shrink" where the flag alone is missing.
pub fn wanted(context: image.Context, format: []const u8, old_size: u64, request: *const messages.ResizeRequest) error{Refused}!Wanted {
    const mode = if (request.preallocation) |text|
        std.meta.stringToEnum(target.Preallocation, text) orelse
            return target.refuseOption(context, format, "Invalid preallocation mode '{s}'", .{target.shorten(text)})
    else
        .off;
    const size = try absolute(context, format, old_size, request);
    if (size == 0) return notPositive(context, format);
    if (size <= old_size and mode != .off) {
        return target.refuseOption(context, format, "Preallocation can only be used for growing images", .{});
    }
    if (size < old_size and !(request.shrink orelse false)) return context.diagnostic.refuse(
        .invalid_option,
        .{ .format = format, .structure = "shrink", .value = size, .limit = old_size },
        "Use the --shrink option to perform a shrink operation.",
        .{},
    );
    if (size > max_size) return context.diagnostic.refuse(
        .too_large,
        .{ .format = format, .structure = "virtual size", .value = size, .limit = max_size },
        "{s}: offset({d}) exceeds maximum({d})",
        .{ format, size, max_size },
    );
    return .{ .size = size, .preallocation = mode };
}

fn absolute(context: image.Context, format: []const u8, old_size: u64, request: *const messages.ResizeRequest) error{Refused}!u64 {
    const relative = request.relative orelse {
        try target.checkSize(context, format, request.size);
        return request.size;
    };
    if (std.mem.eql(u8, relative, "shrink")) {
        return if (request.size < old_size) old_size - request.size else notPositive(context, format);
    }
    if (!std.mem.eql(u8, relative, "grow")) {
        return target.refuseOption(context, format, "request: 'relative' is grow or shrink, not '{s}'", .{target.shorten(relative)});
    }
    const size = std.math.add(u64, old_size, request.size) catch std.math.maxInt(u64);
    try target.checkSize(context, format, size);
    return size;
}

fn notPositive(context: image.Context, format: []const u8) error{Refused} {
    return target.refuseOption(context, format, "New image size must be positive", .{});
}

/// Refuse a mode that the format does not have.
pub fn noSuchMode(context: image.Context, format: []const u8, mode: target.Preallocation) error{Refused} {
    return target.refuseOption(context, format, "Unsupported preallocation mode: {s}", .{@tagName(mode)});
}

const testing = std.testing;

fn expectSize(size: u64, old_size: u64, request: messages.ResizeRequest) !void {
    var diagnostic: block.Diagnostic = .{};
    const context: image.Context = .{ .allocator = testing.allocator, .diagnostic = &diagnostic };
    try testing.expectEqual(size, (try wanted(context, "raw", old_size, &request)).size);
}

fn expectRefusal(code: block.Diagnostic.Code, text: []const u8, old_size: u64, request: messages.ResizeRequest) !void {
    var diagnostic: block.Diagnostic = .{};
    const context: image.Context = .{ .allocator = testing.allocator, .diagnostic = &diagnostic };
    try testing.expectError(error.Refused, wanted(context, "raw", old_size, &request));
    try testing.expectEqual(code, diagnostic.code);
    try testing.expectEqualStrings(text, diagnostic.message());
}

test "sizes, absolute and relative, at their limits" {
    try expectSize(1, 0, .{ .size = 1 });
    try expectSize(max_size, 0, .{ .size = max_size });
    try expectSize(max_size, 1, .{ .size = max_size - 1, .relative = "grow" });
    try expectSize(512, 512, .{ .size = 0, .relative = "grow" });
    try expectSize(1, 512, .{ .size = 511, .relative = "shrink", .shrink = true });
    try expectRefusal(.invalid_option, "New image size must be positive", 512, .{ .size = 0, .shrink = true });
    try expectRefusal(.invalid_option, "New image size must be positive", 512, .{ .size = 512, .relative = "shrink", .shrink = true });
    try expectRefusal(.invalid_option, "New image size must be positive", 512, .{ .size = std.math.maxInt(u64), .relative = "shrink" });
    try expectRefusal(.invalid_option, "Use the --shrink option to perform a shrink operation.", 512, .{ .size = 511 });
    try expectRefusal(.invalid_option, "Preallocation can only be used for growing images", 512, .{ .size = 512, .preallocation = "full" });
    try expectRefusal(.invalid_option, "Invalid preallocation mode 'most'", 512, .{ .size = 1024, .preallocation = "most" });
    try expectRefusal(.invalid_option, "request: 'relative' is grow or shrink, not '+'", 512, .{ .size = 1, .relative = "+" });
    try expectRefusal(.too_large, "raw: offset(9223372035781033985) exceeds maximum(9223372035781033984)", 0, .{ .size = max_size + 1 });
    try expectRefusal(.too_large, "raw: virtual size 9223372036854775808 is above 2^63-1", 0, .{ .size = 1 << 63 });
    try expectRefusal(.too_large, "raw: virtual size 18446744073709551615 is above 2^63-1", 512, .{ .size = std.math.maxInt(u64), .relative = "grow" });
}

test "any size of 64 bits is taken or refused" {
    var random: std.Random.DefaultPrng = .init(4);
    const generator = random.random();
    var diagnostic: block.Diagnostic = .{};
    const context: image.Context = .{ .allocator = testing.allocator, .diagnostic = &diagnostic };
    for (0..20_000) |_| {
        const old_size = generator.int(u64) >> generator.uintLessThan(u6, 63) >> 1;
        const request: messages.ResizeRequest = .{
            .size = generator.int(u64) >> generator.int(u6),
            .relative = ([_]?[]const u8{ null, "grow", "shrink" })[generator.uintLessThan(usize, 3)],
            .shrink = generator.boolean(),
        };
        const found = wanted(context, "raw", old_size, &request) catch continue;
        try testing.expect(found.size >= 1 and found.size <= max_size);
        try testing.expect(found.size >= old_size or request.shrink.?);
        const exact: i128 = if (request.relative) |word|
            @as(i128, old_size) + if (word[0] == 'g') @as(i128, request.size) else -@as(i128, request.size)
        else
            request.size;
        try testing.expectEqual(exact, found.size);
    }
}
