//! Consistency of a VHDX.  What qemu-img counts as an error is one here; beyond it:
//!
//! * corruption: a reader that follows the specification gets wrong data, or refuses the image;
//! * note: against the letter of the specification, or worth knowing, but no reader is misled.
//!
//! There are no leaks: a file may be longer than what it refers to, and qemu-img does not count that either.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const Findings = @import("../qcow2/check_findings.zig").Findings;
const format = @import("format.zig");
const bat = @import("bat.zig");
const blocks = @import("check_blocks.zig");
const Headers = @import("headers.zig").Headers;
const metadata_check = @import("check_metadata.zig");
const Metadata = @import("metadata.zig").Metadata;
const regions = @import("regions.zig");
const vhdx = @import("vhdx.zig");

pub fn check(context: image.Context, device: block.Device, sink: image.Sink, report: *messages.Check) block.Error!void {
    var findings: Findings = .{ .sink = sink, .report = report };
    const replayed: vhdx.Replayed = try .load(context, device);
    try checkHeaders(&findings, &replayed.headers);
    report.dirty = replayed.log.state == .dirty;
    try checkLog(&findings, &replayed);
    const after = replayed.device;
    const known = try checkRegionTables(context, &findings, &replayed);
    try checkRegions(&findings, &known, after.length);
    const metadata: Metadata = try .load(context, after, known.metadata);
    report.virtual_size = metadata.virtual_size;
    report.cluster_size = metadata.block_size;
    try metadata_check.check(context, &findings, after, &metadata, known.metadata);
    const layout: bat.Layout = try .of(context, after, known.bat, &metadata);
    try blocks.check(context, &findings, .{
        .device = after,
        .layout = layout,
        .known = &known,
        .differencing = metadata.isDifferencing(),
    }, report);
}

/// A header that is being rewritten when the machine stops is not valid afterwards; that is what the other is for.
fn checkHeaders(findings: *Findings, headers: *const Headers) block.Error!void {
    for (&headers.copies) |*copy| {
        switch (copy.condition) {
            .valid => {},
            .bad_checksum => try findings.put(.note, "header", "header at byte {offset}: checksum {value:x}, should be {expected:x}; the other header counts", .{ .offset = copy.offset, .value = copy.checksum(), .expected = format.checksumOf(copy.bytes) }),
            .bad_signature => try findings.put(.note, "header", "header at byte {offset} has no signature; the other header counts", .{ .offset = copy.offset }),
            .bad_version => try findings.put(.note, "header", "header at byte {offset} is of version {value}; the other header counts", .{ .offset = copy.offset, .value = copy.version(), .expected = format.header_version }),
        }
        if (copy.condition == .valid and !std.mem.allEqual(u8, copy.reserved(), 0)) {
            try findings.put(.note, "header", "header at byte {offset}: reserved bytes are not zero", .{ .offset = copy.offset });
        }
    }
    const first = &headers.copies[0];
    const second = &headers.copies[1];
    if (first.condition == .valid and second.condition == .valid and first.sequence() == second.sequence()) {
        try findings.put(.note, "header", "both headers have sequence number {value}", .{ .offset = second.offset, .value = second.sequence() });
    }
}

fn checkLog(findings: *Findings, replayed: *const vhdx.Replayed) block.Error!void {
    const log = &replayed.log;
    switch (log.state) {
        .empty => {},
        .nothing_valid => try findings.put(.note, "log", "the header says that the log is in use, but it holds no valid entry", .{ .offset = log.offset }),
        .dirty => try findings.put(.note, "log", "the log at byte {offset} was not replayed: {value} entries; checked is the image as after that", .{ .offset = log.offset, .value = log.entries }),
    }
    const end = replayed.logRange().end;
    if (end > replayed.device.length) {
        try findings.put(.corruption, "log", "the log at byte {offset} ends at byte {value}, file has {expected}", .{ .offset = log.offset, .value = end, .expected = replayed.device.length });
    }
    if (replayed.patched) |patched| for (log.patches) |patch| {
        if (patch.start < format.header_section and (patch.start < format.region_table_offsets[0] or patch.end > format.region_table_offsets[1] + format.region_table_size)) {
            try findings.put(.corruption, "log", "the log writes to byte {offset} in the header section", .{ .offset = patch.start });
        }
        if (patch.start < end and patch.end > log.offset) {
            try findings.put(.corruption, "log", "the log writes to byte {offset}, into itself", .{ .offset = patch.start });
        }
        _ = patched;
    };
}

/// Both tables; answers what the one in use says.
fn checkRegionTables(context: image.Context, findings: *Findings, replayed: *const vhdx.Replayed) block.Error!regions.Regions {
    const device = replayed.device;
    const known: regions.Regions = try .load(context, device, replayed.logRange());
    const tables = [2]regions.Table{ try .read(context, device, 0), try .read(context, device, 1) };
    const name = "region table";
    if (!tables[0].isValid()) {
        try findings.put(.corruption, name, "region table at byte {offset}: checksum {value:x}, should be {expected:x}; only the second table can be used", .{
            .offset = tables[0].offset,
            .value = tables[0].checksum(),
            .expected = format.checksumOf(tables[0].bytes),
        });
    } else if (!tables[1].isValid()) {
        try findings.put(.note, name, "region table at byte {offset}: checksum {value:x}, should be {expected:x}; only the first table can be used", .{
            .offset = tables[1].offset,
            .value = tables[1].checksum(),
            .expected = format.checksumOf(tables[1].bytes),
        });
    } else if (!sameRegions(&tables[0], &tables[1])) {
        try findings.put(.corruption, name, "the region tables at bytes {value} and {offset} name different regions", .{ .offset = tables[1].offset, .value = tables[0].offset });
    }
    if (known.table.reserved() != 0) {
        try findings.put(.note, name, "region table at byte {offset}: reserved bytes are not zero", .{ .offset = known.table.offset });
    }
    return known;
}

fn sameRegions(first: *const regions.Table, second: *const regions.Table) bool {
    const count = first.entryCount();
    if (count != second.entryCount()) return false;
    const end = format.region_header_size + @as(usize, count) * format.region_entry_size;
    return std.mem.eql(u8, first.bytes[format.region_header_size..end], second.bytes[format.region_header_size..end]);
}

fn checkRegions(findings: *Findings, known: *const regions.Regions, length: u64) block.Error!void {
    const name = "region table";
    for (0..known.table.entryCount()) |index| {
        const region = known.table.region(index);
        if (region.offset < format.header_section or region.offset % format.alignment != 0) {
            try findings.put(.corruption, name, "region {index} lies at byte {value}, not at a multiple of 1 MiB behind the header section", .{ .offset = known.table.offset, .index = index, .value = region.offset });
        }
        if (region.length % format.alignment != 0 or region.length == 0) {
            try findings.put(.corruption, name, "region {index} has {value} bytes, which is no multiple of 1 MiB", .{ .offset = known.table.offset, .index = index, .value = region.length });
        }
        if (region.end() > length) {
            try findings.put(.corruption, name, "region {index} ends at byte {value}, file has {expected}", .{ .offset = known.table.offset, .index = index, .value = region.end(), .expected = length });
        }
        if (region.required > 1) {
            try findings.put(.note, name, "region {index}: reserved bits {value:x} are set", .{ .offset = known.table.offset, .index = index, .value = region.required });
        }
        if (!region.isBat() and !region.isMetadata()) {
            try findings.put(.note, name, "region {index} at byte {value} is of an unknown kind", .{ .offset = known.table.offset, .index = index, .value = region.offset });
        }
    }
}
