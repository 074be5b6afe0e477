//! What the headers of a sparse extent say, and where the structures that they name lie.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const format = @import("format.zig");
const sparse = @import("sparse.zig");
const Checker = @import("check_sparse.zig").Checker;

const sector = format.sector;

pub fn check(checker: *Checker, report: *messages.Check) block.Error!void {
    switch (checker.extent.kind) {
        .hosted => try hosted(checker, report),
        .cowd => _ = try checker.claim("header", 0, sparse.cowd.header_sectors * sector),
        .sesparse => try seSparse(checker),
    }
}

fn hosted(checker: *Checker, report: *messages.Check) block.Error!void {
    const extent = checker.extent;
    const findings = checker.findings;
    const at = format.header;
    const base = extent.header_offset;
    _ = try checker.claim("header", 0, sector);
    const flags = extent.int(u32, at.flags);
    const version = extent.int(u32, at.version);
    if (version == 0)
        try findings.put(.note, "header", "version {value} is none that exists", .{ .offset = base + at.version, .value = version });
    if (flags & format.flag.newline_test != 0 and !std.mem.eql(u8, extent.header[at.newline_test..][0..4], format.newlines))
        try findings.put(.corruption, "header", "the characters that a transfer as text would change are changed: {value:x}", .{ .offset = base + at.newline_test, .value = extent.int(u32, at.newline_test), .expected = std.mem.readInt(u32, format.newlines, .little) });
    if (extent.header[at.unclean] != 0) {
        report.dirty = true;
        try findings.put(.note, "header", "a writer has not closed the image", .{ .offset = base + at.unclean, .value = extent.header[at.unclean] });
    }
    if (!std.math.isPowerOfTwo(extent.grain_sectors) or extent.grain_sectors < 8)
        try findings.put(.note, "header", "grains of {value} sectors: not a power of two from {expected} on", .{ .offset = base + at.grain_size, .value = extent.grain_sectors, .expected = 8 });
    const algorithm = extent.int(u16, at.compression_algorithm);
    if (algorithm > format.compression.deflate)
        try findings.put(.corruption, "header", "compression algorithm {value} is not known", .{ .offset = base + at.compression_algorithm, .value = algorithm });
    if ((flags & format.flag.compressed != 0) != extent.compressed)
        try findings.put(.note, "header", "flags {value:x} and compression algorithm {expected} contradict each other", .{ .offset = base + at.flags, .value = flags, .expected = algorithm });
    try descriptor(checker);
    if (base != 0) try footer(checker);
}

fn descriptor(checker: *Checker) block.Error!void {
    const extent = checker.extent;
    const at = format.header;
    const first = extent.int(u64, at.descriptor_offset);
    const sectors = extent.int(u64, at.descriptor_size);
    if (first == 0) return;
    if (first > checker.sectors or sectors > checker.sectors) {
        return checker.findings.put(.corruption, "descriptor", "the descriptor of {value} sectors at sector {index} is not in the file, which has {expected} bytes", .{ .offset = extent.header_offset + at.descriptor_offset, .index = first, .value = sectors, .expected = extent.device.length });
    }
    _ = try checker.claim("descriptor", first * sector, sectors * sector);
    if (first != 1)
        try checker.findings.put(.note, "descriptor", "the descriptor is at sector {value}, readers look for it at sector {expected}", .{ .offset = extent.header_offset + at.descriptor_offset, .value = first, .expected = 1 });
}

/// The footer and its neighbours; what header and footer both say must be the same.
fn footer(checker: *Checker) block.Error!void {
    const extent = checker.extent;
    const start = extent.header_offset - sector;
    _ = try checker.claim("footer", start, 3 * sector);
    var front: [sector]u8 = undefined;
    try extent.device.readPadded(0, &front);
    const at = format.header;
    const fields = [_]struct { u8, u8 }{
        .{ at.version, 4 },           .{ at.flags, 4 },
        .{ at.capacity, 8 },          .{ at.grain_size, 8 },
        .{ at.descriptor_offset, 8 }, .{ at.descriptor_size, 8 },
        .{ at.table_entries, 4 },     .{ at.compression_algorithm, 2 },
    };
    for (fields) |field| {
        const place, const bytes = field;
        if (std.mem.eql(u8, front[place..][0..bytes], extent.header[place..][0..bytes])) continue;
        try checker.findings.put(.corruption, "footer", "header and footer at byte {offset} differ in the {value} bytes at {index}", .{ .offset = extent.header_offset, .index = place, .value = bytes });
    }
    try checker.tableMarker(extent.directory, .grain_directory, extent.directory_entries * format.entry_size);
}

fn seSparse(checker: *Checker) block.Error!void {
    const names = sparse.sesparse;
    _ = try checker.claim("constant header", 0, sector);
    const regions = [_]struct { []const u8, u8 }{
        .{ "volatile header", names.volatile_header },
        .{ "journal header", names.journal_header },
        .{ "journal", names.journal },
        .{ "free bitmap", names.free_bitmap },
        .{ "back map", names.backmap },
    };
    for (regions) |one| try region(checker, one[0], one[1]);
}

/// A structure that the constant header names by its first sector and its size, both at `at`.
fn region(checker: *Checker, name: []const u8, at: usize) block.Error!void {
    const extent = checker.extent;
    const first = extent.int(u64, at);
    const sectors = extent.int(u64, at + 8);
    if (first <= checker.sectors and sectors <= checker.sectors) {
        _ = try checker.claim(name, first * sector, sectors * sector);
        return;
    }
    try checker.findings.add(
        .corruption,
        .{ .structure = name, .offset = at, .index = first, .value = sectors, .expected = checker.sectors },
        "{s} of {d} sectors at sector {d} is not in the file, which has {d} sectors",
        .{ name, sectors, first, checker.sectors },
    );
}
