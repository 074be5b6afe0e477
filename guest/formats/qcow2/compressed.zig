//! Compressed clusters, as far as they are raw deflate (QEMU docs/interop/qcow2.txt, "Compressed Clusters Descriptor").

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const header_zig = @import("header.zig");
const tables = @import("tables.zig");
const open = @import("open.zig");
const template = @import("template.zig");
const Header = header_zig.Header;

/// Fill `out`, a cluster, with the bytes of the compressed cluster that the L2 entry `word` names.
pub fn read(context: image.Context, device: block.Device, header: Header, word: u64, out: []u8) block.Error!void {
    // The standard library's decoder keeps several blocks of 128 KiB on the stack, which is not so large.
    if (header.compression != .zlib)
        return template.refuse(context.diagnostic, .unsupported, "compressed cluster", "the last cluster of the disk is compressed with zstd, and only a part of it is inside the disk", template.none, template.none, template.none);
    const place = tables.compressedPlace(header, word);
    // Never more than twice a cluster and a sector: the entry has no room for a larger number.
    const bytes = context.allocator.alloc(u8, @intCast(place.length)) catch return open.noMemory(context, place.length);
    try device.readPadded(place.offset, bytes);
    var input: std.Io.Reader = .fixed(bytes);
    if (!try inflate(context, &input, out))
        return template.refuse(context.diagnostic, .corrupt, "compressed cluster", "the compressed cluster at byte {offset} cannot be decompressed", place.offset, place.length, template.none);
}

fn inflate(context: image.Context, input: *std.Io.Reader, out: []u8) block.Error!bool {
    const flate = std.compress.flate;
    const window = context.allocator.alloc(u8, flate.max_window_len) catch return open.noMemory(context, flate.max_window_len);
    var stream: flate.Decompress = .init(input, .raw, window);
    stream.reader.readSliceAll(out) catch return false;
    return true;
}
