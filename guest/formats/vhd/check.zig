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
const sameFooter = @import("info.zig").sameFooter;

const version_1_0 = 0x10000;

pub fn check(context: image.Context, device: block.Device, sink: image.Sink, report: *messages.Check) block.Error!void {
    var findings: Findings = .{ .sink = sink, .report = report };
    const at_end = try footers.atEnd(device);
    const copy: ?footers.Footer = blk: {
        const first: footers.Footer = try .read(device, 0, @intCast(@min(footers.size, device.length)));
        // A disk that begins with somebody else's cookie is a fixed one when its own footer says so.
        const fixed = at_end != null and at_end.?.diskType() == .fixed and at_end.?.checksumIsRight();
        break :blk if (first.hasCookie() and !(fixed and !first.checksumIsRight())) first else null;
    };
    const footer = pick(copy, at_end) orelse return context.diagnostic.refuse(
        .corrupt,
        .{ .format = "vpc", .structure = "footer" },
        "vpc: invalid VPC image: no footer at byte 0 nor at the end of {d} bytes",
        .{device.length},
    );
    if (copy) |*one| try checkFooter(&findings, one, "footer copy");
    if (at_end) |*one| {
        if (copy == null or one.offset != 0) try checkFooter(&findings, one, "footer");
    }

    const sectors = footer.sectors(context.qemu_major);
    report.virtual_size = sectors * footers.sector;
    if (sectors > footers.max_sectors) {
        try findings.add(
            .corruption,
            .{ .structure = "footer", .offset = footer.offset + 48, .value = sectors, .expected = footers.max_sectors },
            "a disk of {d} sectors is above the limit of 2040 GiB",
            .{sectors},
        );
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

fn checkFooter(findings: *Findings, footer: *const footers.Footer, structure: []const u8) block.Error!void {
    const at = footer.offset;
    if (!footer.checksumIsRight()) {
        const right = footers.sumOf(&footer.bytes, 64);
        try findings.add(
            .corruption,
            .{ .structure = structure, .offset = at + 64, .value = footer.checksum(), .expected = right },
            "{s} at byte {d}: checksum 0x{x:0>8}, should be 0x{x:0>8}",
            .{ structure, at, footer.checksum(), right },
        );
    }
    switch (footer.diskType()) {
        .fixed, .dynamic, .differencing => {},
        else => |other| try findings.add(
            .corruption,
            .{ .structure = structure, .offset = at + 60, .value = @intFromEnum(other) },
            "{s} at byte {d}: disk type {d} is not fixed, dynamic or differencing",
            .{ structure, at, @intFromEnum(other) },
        ),
    }
    if (footer.version() >> 16 != 1) try findings.add(
        .corruption,
        .{ .structure = structure, .offset = at + 12, .value = footer.version(), .expected = version_1_0 },
        "{s} at byte {d}: file format version 0x{x:0>8} is not 1.0",
        .{ structure, at, footer.version() },
    );
    // Bit 1 is "reserved, always set", bit 0 marks a temporary disk.
    if (footer.features() & ~@as(u32, 1) != 2) try findings.add(
        .note,
        .{ .structure = structure, .offset = at + 8, .value = footer.features(), .expected = 2 },
        "{s} at byte {d}: features 0x{x:0>8} have reserved bits wrong",
        .{ structure, at, footer.features() },
    );
    if (footer.diskType() == .fixed and footer.dataOffset() != std.math.maxInt(u64)) try findings.add(
        .note,
        .{ .structure = structure, .offset = at + 16, .value = footer.dataOffset() },
        "{s} at byte {d}: a fixed disk has a data offset of {d}",
        .{ structure, at, footer.dataOffset() },
    );
    if (footer.savedState() > 1) try findings.add(
        .note,
        .{ .structure = structure, .offset = at + 84, .value = footer.savedState() },
        "{s} at byte {d}: saved state is {d}, neither 0 nor 1",
        .{ structure, at, footer.savedState() },
    );
    if (!std.mem.allEqual(u8, footer.reserved(), 0)) try findings.add(
        .note,
        .{ .structure = structure, .offset = at + 85 },
        "{s} at byte {d}: reserved bytes are not zero",
        .{ structure, at },
    );
}

/// Readers disagree about the size when geometry and current size do.
fn checkGeometry(findings: *Findings, footer: *const footers.Footer, virtual_size: u64) block.Error!void {
    const by_geometry = footer.geometrySectors() * footers.sector;
    const current = footer.currentSize();
    if (current % footers.sector != 0) try findings.add(
        .note,
        .{ .structure = "footer", .offset = footer.offset + 48, .value = current },
        "current size {d} is not a multiple of 512",
        .{current},
    );
    // Geometry rounds down to a cylinder, which is less than current size and no contradiction; at its maximum it says
    // nothing.
    if (by_geometry > current) try findings.add(
        .note,
        .{ .structure = "footer", .offset = footer.offset + 56, .value = by_geometry, .expected = current },
        "the geometry {d}/{d}/{d} holds {d} bytes, more than the current size {d}: readers differ about the size",
        .{ footer.cylinders(), footer.heads(), footer.sectorsPerTrack(), by_geometry, current },
    );
    if (virtual_size == 0 and current != 0) try findings.add(
        .corruption,
        .{ .structure = "footer", .offset = footer.offset + 56 },
        "the geometry {d}/{d}/{d} is empty, the current size is {d}",
        .{ footer.cylinders(), footer.heads(), footer.sectorsPerTrack(), current },
    );
}

fn checkFixed(findings: *Findings, device: block.Device, footer: *const footers.Footer, copy: ?footers.Footer, report: *messages.Check) block.Error!void {
    if (copy != null) {
        return findings.add(.corruption, .{ .structure = "footer copy", .offset = 0 }, "the footer at byte 0 says fixed disk, which has none there", .{});
    }
    const needed = @max(report.virtual_size.?, footer.currentSize());
    if (footer.offset < needed) {
        try findings.add(
            .corruption,
            .{ .structure = "data", .offset = footer.offset, .value = footer.offset, .expected = needed },
            "the data end at byte {d}, the disk has {d}",
            .{ footer.offset, needed },
        );
    } else if (footer.offset > needed) {
        try findings.add(
            .leak,
            .{ .structure = "data", .offset = needed, .value = footer.offset - needed },
            "{d} bytes between the end of the disk and the footer",
            .{footer.offset - needed},
        );
    }
    try checkFooterEnd(findings, device, footer);
    report.image_end_offset = footer.offset + footer.length;
}

fn checkFooterEnd(findings: *Findings, device: block.Device, footer: *const footers.Footer) block.Error!void {
    if (footer.length != footers.size) try findings.add(
        .note,
        .{ .structure = "footer", .offset = footer.offset, .value = footer.length, .expected = footers.size },
        "the footer has {d} bytes instead of 512, as old Virtual PC wrote it",
        .{footer.length},
    ) else if (device.length % footers.sector != 0) try findings.add(
        .note,
        .{ .structure = "footer", .offset = footer.offset, .value = device.length },
        "the footer does not begin at a multiple of 512, where qemu looks for it",
        .{},
    );
}

/// Footer and copy of a dynamic or differencing disk must both be there and agree.
fn checkCopies(findings: *Findings, device: block.Device, copy: ?footers.Footer, at_end: ?footers.Footer) block.Error!void {
    const first = copy orelse return findings.add(
        .corruption,
        .{ .structure = "footer copy", .offset = 0 },
        "the copy of the footer at byte 0 is missing or damaged",
        .{},
    );
    const last = at_end orelse return findings.add(
        .corruption,
        .{ .structure = "footer", .offset = device.length },
        "there is no footer at the end of the file",
        .{},
    );
    if (!sameFooter(&first, &last)) try findings.add(
        .corruption,
        .{ .structure = "footer", .offset = last.offset },
        "the footer at byte {d} and its copy at byte 0 differ",
        .{last.offset},
    );
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
    const header: dynamic.Header = try .read(device, footer.dataOffset());
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
    const structure = "dynamic header";
    const at = header.offset;
    if (!header.checksumIsRight()) {
        const right = footers.sumOf(&header.bytes, 36);
        try findings.add(
            .corruption,
            .{ .structure = structure, .offset = at + 36, .value = header.checksum(), .expected = right },
            "dynamic header: checksum 0x{x:0>8}, should be 0x{x:0>8}",
            .{ header.checksum(), right },
        );
    }
    if (header.version() >> 16 != 1) try findings.add(
        .corruption,
        .{ .structure = structure, .offset = at + 24, .value = header.version(), .expected = version_1_0 },
        "dynamic header: version 0x{x:0>8} is not 1.0",
        .{header.version()},
    );
    if (header.dataOffset() != std.math.maxInt(u64)) try findings.add(
        .note,
        .{ .structure = structure, .offset = at + 8, .value = header.dataOffset() },
        "dynamic header: the next structure's offset is {d}, no such structure exists",
        .{header.dataOffset()},
    );
    if (!std.mem.allEqual(u8, header.reserved(), 0)) try findings.add(
        .note,
        .{ .structure = structure, .offset = at + 768 },
        "dynamic header: reserved bytes are not zero",
        .{},
    );
    if (differencing and std.mem.allEqual(u8, header.parentUuid(), 0)) try findings.add(
        .corruption,
        .{ .structure = structure, .offset = at + 40 },
        "dynamic header: a differencing disk without its parent's identifier",
        .{},
    );
}
