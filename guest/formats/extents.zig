//! The virtual disk as `map` shows it: segments, merged where qemu-img merges them.
//!
//! qemu-img 7.2's rules: neighbours are one extent when they agree in everything that is shown, and the second one's
//! bytes follow the first one's in the file.  Where the bytes lie in no file as they are, it does not matter which file
//! they come from.

const std = @import("std");
const block = @import("block");
const image = @import("image.zig");

/// A run of the disk that is stored in one way.
pub const Extent = struct {
    /// Byte of the virtual disk.
    start: u64,
    /// Bytes, at least 1.
    length: u64,
    /// Whether an image of the chain says what is here, rather than nobody.
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    /// Byte of `device` where it begins, when it lies there as it is.
    offset: ?u64,
    device: u32,
    depth: u32,

    fn of(segment: image.Segment) Extent {
        return .{
            .start = segment.start,
            .length = segment.length,
            .present = segment.kind != .unallocated,
            .zero = segment.kind != .data,
            .data = segment.kind == .data or segment.hole,
            .compressed = segment.compressed,
            .offset = segment.offset,
            // Of what lies nowhere a segment may say a file that was not given.
            .device = if (segment.offset != null) segment.device else 0,
            .depth = segment.depth,
        };
    }

    /// Whether `next`, which begins where this one ends, continues it.
    fn continuedBy(self: Extent, next: Extent) bool {
        if (self.present != next.present or self.zero != next.zero or self.data != next.data or
            self.compressed != next.compressed or self.depth != next.depth) return false;
        const offset = self.offset orelse return next.offset == null;
        const wanted, const wrapped = @addWithOverflow(offset, self.length);
        return wrapped == 0 and next.offset == wanted and self.device == next.device;
    }
};

/// The extents of a range of the disk, front to back.
pub const Walk = struct {
    context: image.Context,
    opened: image.Image,
    at: u64,
    end: u64,
    held: ?Extent = null,
    failed: ?block.Error = null,

    /// From byte `start`, `length` bytes at most; null: to the end.
    pub fn init(context: image.Context, opened: image.Image, start: u64, length: ?u64) Walk {
        const end = if (length) |bytes| @min(start +| bytes, opened.virtual_size) else opened.virtual_size;
        return .{ .context = context, .opened = opened, .at = start, .end = end };
    }

    /// The next extent; null at the end.  What lies before something unreadable is answered first.
    ///
    /// Refuses with `needs_reference` what another file would have to answer.
    pub fn next(self: *Walk) block.Error!?Extent {
        while (self.failed == null and self.at < self.end) {
            const found = self.read() catch |reason| {
                self.failed = reason;
                break;
            };
            if (self.held) |*held| {
                if (!held.continuedBy(found)) {
                    defer self.held = found;
                    return held.*;
                }
                held.length += found.length;
            } else self.held = found;
        }
        if (self.held) |held| {
            self.held = null;
            return held;
        }
        return self.failed orelse null;
    }

    fn read(self: *Walk) block.Error!Extent {
        var segment = try self.opened.segmentAt(self.at);
        if (segment.kind == .unallocated and self.opened.has_backing) return self.context.diagnostic.refuse(
            .needs_reference,
            .{ .format = self.opened.driver, .structure = "virtual disk", .offset = segment.start },
            "{s}: what byte {d} of the disk holds is in the backing file, which is followed only with --chain",
            .{ self.opened.driver, segment.start },
        );
        if (segment.offset != null and segment.device == image.Segment.elsewhere) return self.context.diagnostic.refuse(
            .needs_reference,
            .{ .format = self.opened.driver, .structure = "virtual disk", .offset = segment.start },
            "{s}: byte {d} of the disk lies in the data file, which is followed only with --chain",
            .{ self.opened.driver, segment.start },
        );
        segment.length = @min(segment.length, self.end - self.at);
        self.at += segment.length;
        return .of(segment);
    }
};

const testing = std.testing;

/// Segments with everything that a format can say, for tests.
const Fake = struct {
    segments: []const image.Segment,

    fn segmentAt(opaque_self: *anyopaque, start: u64) block.Error!image.Segment {
        const self: *const Fake = @ptrCast(@alignCast(opaque_self));
        for (self.segments) |segment| {
            const end = segment.start + segment.length;
            if (start >= end) continue;
            var rest = segment;
            rest.start = start;
            rest.length = end - start;
            if (segment.offset) |offset| rest.offset = offset + (start - segment.start);
            return rest;
        }
        return error.Io;
    }

    fn walk(self: *Fake, diagnostic: *block.Diagnostic, size: u64, has_backing: bool, start: u64, length: ?u64) Walk {
        const opened: image.Image = .{
            .driver = "fake",
            .virtual_size = size,
            .has_backing = has_backing,
            .context = self,
            .segment_at = segmentAt,
        };
        return .init(.{ .allocator = testing.allocator, .diagnostic = diagnostic }, opened, start, length);
    }
};

test "neighbours merge when everything agrees and their bytes follow one another" {
    var fake: Fake = .{ .segments = &.{
        .{ .start = 0, .length = 512, .kind = .data, .offset = 4096 },
        .{ .start = 512, .length = 512, .kind = .data, .offset = 4608 },
        .{ .start = 1024, .length = 512, .kind = .data, .offset = 4096 },
        .{ .start = 1536, .length = 512, .kind = .data, .offset = 4608, .device = 1 },
        .{ .start = 2048, .length = 512, .kind = .data, .offset = 5120, .device = 1, .depth = 1 },
        .{ .start = 2560, .length = 512, .kind = .data, .compressed = true, .depth = 1 },
        .{ .start = 3072, .length = 512, .kind = .data, .compressed = true, .depth = 1, .device = 2 },
        .{ .start = 3584, .length = 512, .kind = .data, .depth = 1 },
        .{ .start = 4096, .length = 512, .kind = .zero, .hole = true, .offset = 0 },
        .{ .start = 4608, .length = 512, .kind = .zero, .offset = 512 },
        .{ .start = 5120, .length = 512, .kind = .zero },
        .{ .start = 5632, .length = 512, .kind = .unallocated },
    } };
    var diagnostic: block.Diagnostic = .{};
    var walk = fake.walk(&diagnostic, 6144, false, 0, null);
    const expected = [_]Extent{
        .{ .start = 0, .length = 1024, .present = true, .zero = false, .data = true, .compressed = false, .offset = 4096, .device = 0, .depth = 0 },
        .{ .start = 1024, .length = 512, .present = true, .zero = false, .data = true, .compressed = false, .offset = 4096, .device = 0, .depth = 0 },
        .{ .start = 1536, .length = 512, .present = true, .zero = false, .data = true, .compressed = false, .offset = 4608, .device = 1, .depth = 0 },
        .{ .start = 2048, .length = 512, .present = true, .zero = false, .data = true, .compressed = false, .offset = 5120, .device = 1, .depth = 1 },
        .{ .start = 2560, .length = 1024, .present = true, .zero = false, .data = true, .compressed = true, .offset = null, .device = 0, .depth = 1 },
        .{ .start = 3584, .length = 512, .present = true, .zero = false, .data = true, .compressed = false, .offset = null, .device = 0, .depth = 1 },
        .{ .start = 4096, .length = 512, .present = true, .zero = true, .data = true, .compressed = false, .offset = 0, .device = 0, .depth = 0 },
        .{ .start = 4608, .length = 512, .present = true, .zero = true, .data = false, .compressed = false, .offset = 512, .device = 0, .depth = 0 },
        .{ .start = 5120, .length = 512, .present = true, .zero = true, .data = false, .compressed = false, .offset = null, .device = 0, .depth = 0 },
        .{ .start = 5632, .length = 512, .present = false, .zero = true, .data = false, .compressed = false, .offset = null, .device = 0, .depth = 0 },
    };
    for (expected) |extent| try testing.expectEqual(extent, (try walk.next()).?);
    try testing.expectEqual(@as(?Extent, null), try walk.next());
    try testing.expectEqual(@as(?Extent, null), try walk.next());
}

test "a range is clipped on both sides, and may be empty" {
    var fake: Fake = .{ .segments = &.{.{ .start = 0, .length = 4096, .kind = .data, .offset = 512 }} };
    var diagnostic: block.Diagnostic = .{};
    const cases = [_]struct { u64, ?u64, u64 }{
        .{ 0, null, 4096 },                         .{ 100, 50, 50 },                .{ 4000, 500, 96 },
        .{ 100, std.math.maxInt(u64), 4096 - 100 }, .{ 0, 0, 0 },                    .{ 4096, null, 0 },
        .{ std.math.maxInt(u64), null, 0 },         .{ std.math.maxInt(u64), 1, 0 },
    };
    for (cases) |case| {
        var walk = fake.walk(&diagnostic, 4096, false, case[0], case[1]);
        const extent = try walk.next();
        try testing.expectEqual(case[2], if (extent) |found| found.length else 0);
        if (extent) |found| try testing.expectEqual(@as(?u64, 512 + case[0]), found.offset);
        try testing.expectEqual(@as(?Extent, null), try walk.next());
    }
}

test "what lies before a failure is answered first" {
    var fake: Fake = .{ .segments = &.{
        .{ .start = 0, .length = 512, .kind = .data, .offset = 0 },
        .{ .start = 512, .length = 512, .kind = .unallocated },
    } };
    var diagnostic: block.Diagnostic = .{};
    var broken = fake.walk(&diagnostic, 4096, false, 0, null);
    try testing.expectEqual(@as(u64, 512), (try broken.next()).?.length);
    try testing.expectEqual(@as(u64, 512), (try broken.next()).?.length);
    for (0..2) |_| try testing.expectError(error.Io, broken.next());
    var overlay = fake.walk(&diagnostic, 1024, true, 0, null);
    try testing.expectEqual(@as(u64, 512), (try overlay.next()).?.length);
    try testing.expectError(error.Refused, overlay.next());
    try testing.expectEqual(block.Diagnostic.Code.needs_reference, diagnostic.code);
    try testing.expectEqualStrings("fake: what byte 512 of the disk holds is in the backing file, which is followed only with --chain", diagnostic.message());
}

test "an offset in a file that was not given is refused" {
    var fake: Fake = .{ .segments = &.{
        .{ .start = 0, .length = 512, .kind = .zero, .device = image.Segment.elsewhere },
        .{ .start = 512, .length = 512, .kind = .data, .offset = 512, .device = 1 },
        .{ .start = 1024, .length = 512, .kind = .data, .offset = 1024, .device = image.Segment.elsewhere },
    } };
    var diagnostic: block.Diagnostic = .{};
    var walk = fake.walk(&diagnostic, 1536, false, 0, null);
    // What has no offset is in no file.
    try testing.expectEqual(@as(u32, 0), (try walk.next()).?.device);
    try testing.expectEqual(@as(u64, 512), (try walk.next()).?.length);
    try testing.expectError(error.Refused, walk.next());
    try testing.expectEqual(block.Diagnostic.Code.needs_reference, diagnostic.code);
}

test "an offset at the end of 64 bits is followed by nothing" {
    var fake: Fake = .{ .segments = &.{
        .{ .start = 0, .length = 512, .kind = .data, .offset = std.math.maxInt(u64) - 511 },
        .{ .start = 512, .length = 512, .kind = .data, .offset = 0 },
    } };
    var diagnostic: block.Diagnostic = .{};
    var walk = fake.walk(&diagnostic, 1024, false, 0, null);
    try testing.expectEqual(@as(u64, 512), (try walk.next()).?.length);
    try testing.expectEqual(@as(u64, 512), (try walk.next()).?.length);
}
