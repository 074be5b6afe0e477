//! Cylinders, heads and sectors of a new VHD, and the size that they make of the one asked for.
//!
//! Virtual Hard Disk Image Format Specification 1.0, appendix "CHS Calculation", and what qemu-img makes of it: the
//! appendix rounds down, so qemu-img asks for one sector more until the geometry holds all that was asked for.

const std = @import("std");
const footers = @import("footer.zig");

pub const Geometry = struct {
    cylinders: u16 = 0,
    heads: u8 = 0,
    sectors: u8 = 0,

    /// Sectors of the disk that this geometry describes.
    pub fn total(self: Geometry) u64 {
        return @as(u64, self.cylinders) * self.heads * self.sectors;
    }

    /// Says nothing but "look at the size".
    pub const maximum: Geometry = .{ .cylinders = 65535, .heads = 16, .sectors = 255 };
};

/// The appendix's geometry for a disk of `count` sectors (below `footers.max_geometry`); never larger than the disk.
pub fn ofSpecification(count: u64) Geometry {
    std.debug.assert(count < footers.max_geometry);
    if (count >= 65535 * 16 * 63) return split(count, 255, 16);
    const tracks = count / 17;
    const heads = @max(4, (tracks + 1023) / 1024);
    if (heads <= 16 and tracks < heads * 1024) return split(count, 17, heads);
    // 17 sectors a track are too few for this many cylinders.
    if (count / 31 < 16 * 1024) return split(count, 31, 16);
    return split(count, 63, 16);
}

fn split(count: u64, sectors: u64, heads: u64) Geometry {
    return .{ .cylinders = @intCast(count / sectors / heads), .heads = @intCast(heads), .sectors = @intCast(sectors) };
}

/// The geometry of the least disk of at least `count` sectors, null when `count` is above what a geometry can say and
/// the size is to be kept as it is.
pub fn holding(count: u64) ?Geometry {
    if (count >= footers.max_geometry) return null;
    if (count == 0) return .{};
    // A cylinder of at most 16 * 255 sectors is the farthest that the search goes.
    var asked = count;
    while (asked < footers.max_geometry) : (asked += 1) {
        const found = ofSpecification(asked);
        if (found.total() >= count) return found;
    }
    return .maximum;
}

test "sizes that qemu-img 7.2.22 makes" {
    const gib = 1 << 30;
    const rows = [_]struct { u64, u64, u16, u8, u8 }{
        .{ 0, 0, 0, 0, 0 },
        .{ 1, 34_816, 1, 4, 17 },
        .{ 34_816, 34_816, 1, 4, 17 },
        .{ 34_817, 69_632, 2, 4, 17 },
        .{ 1 << 20, 1_079_296, 31, 4, 17 },
        .{ 4 << 20, 4_212_736, 121, 4, 17 },
        .{ 16 << 20, 16_781_312, 482, 4, 17 },
        .{ 64 << 20, 67_125_248, 964, 8, 17 },
        .{ 256 << 20, 268_886_016, 521, 16, 63 },
        .{ gib, 1_073_995_776, 2081, 16, 63 },
        .{ 35_651_584, 35_686_400, 820, 5, 17 },
        .{ 53_426_191, 53_433_856, 877, 7, 17 },
        .{ 127 * gib, 136_365_219_840, 65279, 16, 255 },
    };
    for (rows) |row| {
        const found = holding((row[0] + 511) / 512).?;
        try std.testing.expectEqual(row[1], found.total() * 512);
        try std.testing.expectEqual(Geometry{ .cylinders = row[2], .heads = row[3], .sectors = row[4] }, found);
    }
    try std.testing.expectEqual(@as(?Geometry, null), holding(128 * gib / 512));
    try std.testing.expectEqual(@as(?Geometry, null), holding(footers.max_geometry));
}
