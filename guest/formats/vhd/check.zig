//! Consistency of a VHD.  qemu-img has no check for this format; what counts as what is our choice:
//!
//! * corruption: a reader that follows the specification gets wrong data, or refuses the image;
//! * leak: bytes of the file that nothing refers to;
//! * note: against the letter of the specification, but no reader is misled.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const Findings = @import("../qcow2/check_findings.zig").Findings;
const footers = @import("footer.zig");
const dynamic = @import("dynamic.zig");
const blocks = @import("check_blocks.zig");
const references = @import("references.zig");
const vhd = @import("vhd.zig");
const sameFooter = @import("info.zig").sameFooter;

const version_1_0 = 0x10000;

pub fn check(context: image.Context, device: block.Device, sink: image.Sink, report: *messages.Check) block.Error!void {
    var findings: Findings = .{ .sink = sink, .report = report };
    const at_end = try footers.atEnd(context.allocator, device);
    const copy: ?footers.Footer = blk: {
        const first: footers.Footer = try .read(context.allocator, device, 0, @intCast(@min(footers.size, device.length)));
        // A disk that begins with somebody else's cookie is a fixed one when its own footer says so.
        const fixed = at_end != null and at_end.?.diskType() == .fixed and at_end.?.checksumIsRight();
        break :blk if (first.hasCookie() and !(fixed and !first.checksumIsRight())) first else null;
    };
    const footer = pick(copy, at_end) orelse return vhd.noFooter(context, device);
    if (copy) |*one| try checkFooter(&findings, one);
    if (at_end) |*one| {
        if (copy == null or one.offset != 0) try checkFooter(&findings, one);
    }

    const sectors = footer.sectors(context.qemu_major);
    report.virtual_size = sectors * footers.sector;
    if (sectors > footers.max_sectors) {
        try findings.put(.corruption, "footer", "a disk of {value} sectors is above the limit of {expected} (2040 GiB)", .{
            .offset = footer.offset,
            .value = sectors,
            .expected = footers.max_sectors,
        });
    }
    try checkGeometry(&findings, &footer, report.virtual_size.?);
    if (footer.diskType() == .fixed) return checkFixed(&findings, device, &footer, copy, report);
    try checkCopies(&findings, device, copy, at_end);
    return checkSparse(context, &findings, device, &footer, at_end, report);
}

/// The footer to go by: the copy as qemu does, unless only the one at the end has its checksum right.
fn pick(copy: ?footers.Footer, at_end: ?footers.Footer) ?footers.Footer {
    const first = copy orelse return at_end;
    const last = at_end orelse return first;
    return if (!first.checksumIsRight() and last.checksumIsRight()) last else first;
}

/// A footer or its copy by itself; findings name it by its offset.
fn checkFooter(findings: *Findings, footer: *const footers.Footer) block.Error!void {
    const at = footer.offset;
    const name = "footer";
    if (!footer.checksumIsRight()) {
        const right = footers.sumOf(footer.bytes, 64);
        try findings.put(.corruption, name, "footer at byte {offset}: checksum {value:x}, should be {expected:x}", .{ .offset = at, .value = footer.checksum(), .expected = right });
    }
    switch (footer.diskType()) {
        .fixed, .dynamic, .differencing => {},
        else => |other| try findings.put(.corruption, name, "footer at byte {offset}: disk type {value} is not fixed, dynamic or differencing", .{ .offset = at, .value = @intFromEnum(other) }),
    }
    if (footer.version() >> 16 != 1) {
        try findings.put(.corruption, name, "footer at byte {offset}: file format version {value:x} is not {expected:x}", .{ .offset = at, .value = footer.version(), .expected = version_1_0 });
    }
    // Bit 1 is "reserved, always set", bit 0 marks a temporary disk.
    if (footer.features() & ~@as(u32, 1) != 2) {
        try findings.put(.note, name, "footer at byte {offset}: features {value:x} have reserved bits wrong", .{ .offset = at, .value = footer.features(), .expected = 2 });
    }
    if (footer.diskType() == .fixed and footer.dataOffset() != std.math.maxInt(u64)) {
        try findings.put(.note, name, "footer at byte {offset}: a fixed disk has a data offset of {value}", .{ .offset = at, .value = footer.dataOffset() });
    }
    if (footer.savedState() > 1) {
        try findings.put(.note, name, "footer at byte {offset}: saved state is {value}, neither 0 nor 1", .{ .offset = at, .value = footer.savedState() });
    }
    if (!std.mem.allEqual(u8, footer.reserved(), 0)) {
        try findings.put(.note, name, "footer at byte {offset}: reserved bytes are not zero", .{ .offset = at });
    }
}

/// Readers disagree about the size when geometry and current size do.
fn checkGeometry(findings: *Findings, footer: *const footers.Footer, virtual_size: u64) block.Error!void {
    const by_geometry = footer.geometrySectors() * footers.sector;
    const current = footer.currentSize();
    if (current % footers.sector != 0) {
        try findings.put(.note, "footer", "current size {value} is not a multiple of 512", .{ .offset = footer.offset, .value = current });
    }
    // Geometry rounds down to a cylinder, which is less than current size and no contradiction; at its maximum it says
    // nothing.
    if (by_geometry > current) {
        try findings.put(.note, "footer", "the geometry holds {value} bytes, more than the current size {expected}: readers differ about the size", .{ .offset = footer.offset, .value = by_geometry, .expected = current });
    }
    if (virtual_size == 0 and current != 0) {
        try findings.put(.corruption, "footer", "the geometry is empty, the current size is {expected}", .{ .offset = footer.offset, .value = 0, .expected = current });
    }
}

fn checkFixed(findings: *Findings, device: block.Device, footer: *const footers.Footer, copy: ?footers.Footer, report: *messages.Check) block.Error!void {
    if (copy != null) {
        return findings.put(.corruption, "footer", "the footer at byte {offset} says fixed disk, which has none there", .{ .offset = 0 });
    }
    const needed = @max(report.virtual_size.?, footer.currentSize());
    if (footer.offset < needed) {
        try findings.put(.corruption, "data", "the data end at byte {value}, the disk has {expected}", .{ .offset = footer.offset, .value = footer.offset, .expected = needed });
    } else if (footer.offset > needed) {
        try findings.put(.leak, "data", "{value} bytes between the end of the disk and the footer", .{ .offset = needed, .value = footer.offset - needed });
    }
    try checkFooterEnd(findings, device, footer);
    report.image_end_offset = footer.offset + footer.length;
}

fn checkFooterEnd(findings: *Findings, device: block.Device, footer: *const footers.Footer) block.Error!void {
    if (footer.length != footers.size) {
        try findings.put(.note, "footer", "the footer has {value} bytes instead of {expected}, as old Virtual PC wrote it", .{ .offset = footer.offset, .value = footer.length, .expected = footers.size });
    } else if (device.length % footers.sector != 0) {
        try findings.put(.note, "footer", "the footer does not begin at a multiple of 512, where qemu looks for it", .{ .offset = footer.offset, .value = device.length });
    }
}

/// Footer and copy of a dynamic or differencing disk must both be there and agree.
fn checkCopies(findings: *Findings, device: block.Device, copy: ?footers.Footer, at_end: ?footers.Footer) block.Error!void {
    const first = copy orelse return findings.put(.corruption, "footer", "the copy of the footer at byte {offset} is missing or damaged", .{ .offset = 0 });
    const last = at_end orelse return findings.put(.corruption, "footer", "there is no footer at the end of the file", .{ .offset = device.length });
    if (!sameFooter(&first, &last)) {
        try findings.put(.corruption, "footer", "the footer at byte {offset} and its copy at byte 0 differ", .{ .offset = last.offset });
    }
    try checkFooterEnd(findings, device, &last);
}

fn checkSparse(
    context: image.Context,
    findings: *Findings,
    device: block.Device,
    footer: *const footers.Footer,
    at_end: ?footers.Footer,
    report: *messages.Check,
) block.Error!void {
    const header: dynamic.Header = try .read(context.allocator, device, footer.dataOffset());
    const layout = dynamic.Layout.of(&header, report.virtual_size.?, context, device) catch {
        // Without these bounds there is nothing to walk.
        const diagnostic = context.diagnostic;
        const details: @import("../qcow2/check_findings.zig").Details = .{
            .structure = diagnostic.structure,
            .offset = diagnostic.offset,
            .value = diagnostic.value,
            .expected = diagnostic.limit,
        };
        // The refusal begins with the format's name, which a finding does not.
        return findings.add(.corruption, details, "{s}", .{diagnostic.message()["vpc: ".len..]});
    };
    try checkHeader(findings, &header, footer.diskType() == .differencing);
    if (footer.diskType() == .differencing and !try references.isParent(context, &header)) {
        try findings.put(.corruption, "dynamic header", "dynamic header: the file that the parent's name leads to has another identifier than the parent", .{ .offset = header.offset + 40 });
    }
    report.cluster_size = layout.block_size;
    report.total_clusters = std.math.divCeil(u64, report.virtual_size.?, layout.block_size) catch unreachable;
    try blocks.check(context, findings, device, .{
        .header = &header,
        .layout = layout,
        .footer = at_end,
        .differencing = footer.diskType() == .differencing,
        .disk_size = @max(report.virtual_size.?, footer.currentSize()),
    }, report);
}

fn checkHeader(findings: *Findings, header: *const dynamic.Header, differencing: bool) block.Error!void {
    const name = "dynamic header";
    const at = header.offset;
    if (!header.checksumIsRight()) {
        const right = footers.sumOf(header.bytes, 36);
        try findings.put(.corruption, name, "dynamic header: checksum {value:x}, should be {expected:x}", .{ .offset = at, .value = header.checksum(), .expected = right });
    }
    if (header.version() >> 16 != 1) {
        try findings.put(.corruption, name, "dynamic header: version {value:x} is not {expected:x}", .{ .offset = at, .value = header.version(), .expected = version_1_0 });
    }
    if (header.dataOffset() != std.math.maxInt(u64)) {
        try findings.put(.note, name, "dynamic header: the next structure's offset is {value}, no such structure exists", .{ .offset = at, .value = header.dataOffset() });
    }
    if (!std.mem.allEqual(u8, header.reserved(), 0)) {
        try findings.put(.note, name, "dynamic header: reserved bytes are not zero", .{ .offset = at });
    }
    if (differencing and std.mem.allEqual(u8, header.parentUuid(), 0)) {
        try findings.put(.corruption, name, "dynamic header: a differencing disk without its parent's identifier", .{ .offset = at });
    }
}
