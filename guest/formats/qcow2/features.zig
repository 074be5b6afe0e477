//! The feature name table of a new image: what a reader that does not know a feature bit can call it
//! (QEMU docs/interop/qcow2.txt, "Feature name table").

const std = @import("std");
const header = @import("header.zig");

const Kind = enum(u8) { incompatible = 0, compatible = 1, autoclear = 2 };

/// Type, bit number, name: as qemu-img 7.2 writes them.
const names = [_]struct { Kind, u64, []const u8 }{
    .{ .incompatible, header.Incompatible.dirty, "dirty bit" },
    .{ .incompatible, header.Incompatible.corrupt, "corrupt bit" },
    .{ .incompatible, header.Incompatible.data_file, "external data file" },
    .{ .incompatible, header.Incompatible.compression, "compression type" },
    .{ .incompatible, header.Incompatible.extended_l2, "extended L2 entries" },
    .{ .compatible, header.Compatible.lazy_refcounts, "lazy refcounts" },
    .{ .autoclear, header.Autoclear.bitmaps, "bitmaps" },
    .{ .autoclear, header.Autoclear.data_file_raw, "raw external data" },
};

const entry_size = 48;

/// The table as it stands in the header extension.
pub const table: [names.len * entry_size]u8 = blk: {
    var bytes: [names.len * entry_size]u8 = @splat(0);
    for (names, 0..) |feature, i| {
        bytes[i * entry_size] = @intFromEnum(feature[0]);
        bytes[i * entry_size + 1] = @ctz(feature[1]);
        @memcpy(bytes[i * entry_size + 2 ..][0..feature[2].len], feature[2]);
    }
    break :blk bytes;
};
