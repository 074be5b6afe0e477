//! Header extensions (QEMU docs/interop/qcow2.txt, "Header extensions"): where each known one lies, and its checks.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const header_zig = @import("header.zig");
const Window = @import("window.zig").Window;
const Header = header_zig.Header;
const template = @import("template.zig");
const refuse = template.refuse;
const none = template.none;
const big = header_zig.big;

pub const Type = struct {
    pub const end: u32 = 0;
    pub const backing_format: u32 = 0xe2792aca;
    pub const feature_names: u32 = 0x6803f857;
    pub const bitmaps: u32 = 0x23852875;
    pub const crypto_header: u32 = 0x0537be77;
    pub const data_file: u32 = 0x44415441;
};

/// Bytes of a directory of bitmaps; QEMU's limit.
pub const max_bitmap_directory = 1024 * 65535;
pub const max_bitmaps = 65535;
/// Extensions of unknown type that are remembered by their type.
pub const max_unknown = 32;
/// Bytes of a data file's name that are kept; QEMU keeps as much as its path buffer has.
pub const max_data_file_name = 4095;

pub const Place = struct { offset: u64, length: u32 };

pub const Bitmaps = struct { count: u32, directory_offset: u64, directory_size: u64 };
pub const CryptoHeader = struct { offset: u64, length: u64 };

pub const Extensions = struct {
    backing_format: ?Place = null,
    feature_names: ?Place = null,
    data_file: ?Place = null,
    bitmaps: ?Bitmaps = null,
    /// A bitmaps extension is there, but a writer without bitmaps has changed the image since.
    stale_bitmaps: bool = false,
    crypto: ?CryptoHeader = null,
    unknown: [max_unknown]u32 = undefined,
    unknown_count: usize = 0,
};

/// Walk the extensions.  The number of steps is at most an eighth of the first cluster.
pub fn read(context: image.Context, window: *Window, header: Header) block.Error!Extensions {
    const diagnostic = context.diagnostic;
    var found: Extensions = .{};
    var offset: u64 = header.header_length;
    const end = header.extensionsEnd();
    while (offset < end) {
        const head = try window.bytes(offset, 8);
        const kind = big(u32, head, 0);
        const length = big(u32, head, 4);
        const at = offset;
        offset += 8;
        if (offset > end or length > end - offset)
            return refuse(diagnostic, .out_of_bounds, "header extension", "header extension too large: the one at byte {offset} has {value} bytes, the extensions end at byte {limit}", at, length, end);
        switch (kind) {
            Type.end => return found,
            Type.backing_format => {
                if (length >= 16)
                    return refuse(diagnostic, .too_large, "header extension", "backing format extension too large: {value} bytes, at most {limit}", at, length, 15);
                found.backing_format = .{ .offset = offset, .length = length };
            },
            Type.feature_names => found.feature_names = .{ .offset = offset, .length = length },
            Type.data_file => found.data_file = .{ .offset = offset, .length = length },
            Type.crypto_header => found.crypto = try cryptoHeader(diagnostic, window, header, offset, length),
            Type.bitmaps => {
                if (length != 24)
                    return refuse(diagnostic, .corrupt, "bitmaps extension", "bitmaps extension: invalid length {value}, must be {limit}", at, length, 24);
                if (header.autoclear & header_zig.Autoclear.bitmaps == 0) {
                    found.stale_bitmaps = true;
                } else {
                    found.bitmaps = try bitmaps(diagnostic, window, header, offset);
                }
            },
            else => {
                if (found.unknown_count < max_unknown) {
                    found.unknown[found.unknown_count] = kind;
                    found.unknown_count += 1;
                }
            },
        }
        offset += std.mem.alignForward(u64, length, 8);
    }
    return found;
}

fn cryptoHeader(diagnostic: *block.Diagnostic, window: *Window, header: Header, offset: u64, length: u32) block.Error!CryptoHeader {
    if (header.crypt_method != @intFromEnum(header_zig.Crypt.luks))
        return refuse(diagnostic, .corrupt, "encryption extension", "encryption header extension only expected with LUKS encryption method", offset, header.crypt_method, none);
    if (length != 16)
        return refuse(diagnostic, .corrupt, "encryption extension", "encryption header extension has {value} bytes, must have {limit}", offset, length, 16);
    const body = try window.bytes(offset, 16);
    const place: CryptoHeader = .{ .offset = big(u64, body, 0), .length = big(u64, body, 8) };
    if (header.offsetInCluster(place.offset) != 0)
        return refuse(diagnostic, .corrupt, "encryption extension", "encryption header offset {value} is not a multiple of the cluster size {limit}", offset, place.offset, header.clusterSize());
    return place;
}

fn bitmaps(diagnostic: *block.Diagnostic, window: *Window, header: Header, offset: u64) block.Error!Bitmaps {
    const body = try window.bytes(offset, 24);
    const found: Bitmaps = .{ .count = big(u32, body, 0), .directory_size = big(u64, body, 8), .directory_offset = big(u64, body, 16) };
    if (big(u32, body, 4) != 0)
        return refuse(diagnostic, .corrupt, "bitmaps extension", "bitmaps extension: reserved field is not zero", offset, big(u32, body, 4), none);
    if (found.count > max_bitmaps)
        return refuse(diagnostic, .too_large, "bitmaps extension", "bitmaps extension: image has {value} bitmaps, at most {limit}", offset, found.count, max_bitmaps);
    if (found.count == 0)
        return refuse(diagnostic, .corrupt, "bitmaps extension", "found bitmaps extension with zero bitmaps", offset, none, none);
    if (header.offsetInCluster(found.directory_offset) != 0)
        return refuse(diagnostic, .corrupt, "bitmaps extension", "bitmaps extension: invalid bitmap directory offset {value}", offset, found.directory_offset, none);
    if (found.directory_size > max_bitmap_directory)
        return refuse(diagnostic, .too_large, "bitmaps extension", "bitmaps extension: bitmap directory size ({value}) exceeds the maximum ({limit})", offset, found.directory_size, max_bitmap_directory);
    return found;
}

pub const FeatureKind = enum(u8) { incompatible = 0, compatible = 1, autoclear = 2 };

/// The image's own name of a feature bit, from its feature name table; null where it has none.  The name is copied
/// into `out` (46 bytes at most) and cut at its first NUL.
pub fn featureName(window: *Window, table: ?Place, kind: FeatureKind, bit: u6, out: *[46]u8) block.DeviceError!?[]const u8 {
    const place = table orelse return null;
    var at: u64 = 0;
    while (at + 48 <= place.length) : (at += 48) {
        const entry = try window.bytes(place.offset + at, 48);
        if (entry[2] == 0) return null;
        if (entry[0] != @intFromEnum(kind) or entry[1] != bit) continue;
        out.* = entry[2..48].*;
        return block.search.until(out, 0);
    }
    return null;
}

/// Refuse when the image has incompatible features that are not known, naming them as the image does.
pub fn checkFeatures(context: image.Context, window: *Window, header: Header) block.Error!void {
    var unknown = header.incompatible & ~header_zig.Incompatible.known;
    if (unknown == 0) return;
    // Broken extensions do not matter here: the image is refused anyway, only less well named.
    const extensions = read(context, window, header) catch |err| switch (err) {
        error.Refused => Extensions{},
        else => |other| return other,
    };
    var text: [160]u8 = undefined;
    var used: usize = 0;
    for (0..64) |index| {
        const bit: u6 = @intCast(index);
        if (unknown >> bit & 1 == 0) continue;
        var buffer: [46]u8 = undefined;
        const name = try featureName(window, extensions.feature_names, .incompatible, bit, &buffer) orelse continue;
        if (used + name.len + 2 > text.len) continue;
        if (used > 0) {
            text[used..][0..2].* = ", ".*;
            used += 2;
        }
        @memcpy(text[used..][0..name.len], name);
        used += name.len;
        unknown &= ~(@as(u64, 1) << bit);
    }
    const details: block.Diagnostic.Details = .{ .format = "qcow2", .structure = "header", .offset = 72, .value = header.incompatible, .limit = header_zig.Incompatible.known };
    if (unknown == 0)
        return context.diagnostic.refuse(.unsupported, details, "qcow2: unsupported qcow2 feature(s): {s}", .{text[0..used]});
    return context.diagnostic.refuse(.unsupported, details, "qcow2: unsupported qcow2 feature(s): {s}{s}unknown incompatible feature: {x}", .{ text[0..used], if (used > 0) ", " else "", unknown });
}
