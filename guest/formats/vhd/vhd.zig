//! VHD, qemu's "vpc": fixed, dynamic, differencing.
//!
//! Virtual Hard Disk Image Format Specification 1.0 (Microsoft, 2006).  What is opened and what is refused is as in qemu;
//! the places where it is not are in docs/differences.md.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const detect = @import("../detect.zig");
const Flat = @import("../raw/raw.zig").Flat;
const template = @import("../qcow2/template.zig");
const none = template.none;
const footers = @import("footer.zig");
const dynamic = @import("dynamic.zig");
const Segments = @import("segments.zig").Segments;

pub const driver: image.Driver = .{
    .name = "vpc",
    .probe = probe,
    .open = open,
    .info = @import("info.zig").info,
    .references = @import("references.zig").run,
    .check = @import("check.zig").check,
    .size = size,
    .identity = identity,
    .resize = @import("resize.zig").resize,
};

/// A cookie at byte 0 counts as a magic; one at the end alone (a fixed disk) ranks below every magic at the start.
fn probe(p: *const image.Probe) u8 {
    if (detect.holds(p.head, 0, footers.cookie)) return detect.score.magic;
    return if (footers.inTail(p)) detect.score.trailer else detect.score.none;
}

fn size(context: image.Context, device: block.Device) block.Error!u64 {
    return (try load(context, device)).virtual_size;
}

fn identity(context: image.Context, device: block.Device) block.Error!image.Identity {
    const vhd = try load(context, device);
    return .{ .vhd = vhd.footer.uuid()[0..16].* };
}

/// An image that passed the checks that every reader relies on.
pub const Vhd = struct {
    /// The footer that counts: at byte 0 when there is a copy, otherwise at the end.
    footer: footers.Footer,
    /// Bytes, at most 2040 GiB.
    virtual_size: u64,
    /// Null on fixed disks.
    sparse: ?Sparse = null,

    pub const Sparse = struct {
        header: dynamic.Header,
        table: dynamic.Table,
        totals: dynamic.Table.Totals,
        differencing: bool,
    };
};

/// Refuse as in template.zig.
pub const refuse = template.Refusals(driver.name).refuse;

/// Refuse what is no VHD at all.
pub fn noFooter(context: image.Context, device: block.Device) error{Refused} {
    return refuse(context.diagnostic, .corrupt, "footer", "invalid VPC image: no footer at byte 0 nor at the end of {value} bytes", none, device.length, none);
}

/// Read and check footer, dynamic header and BAT.
pub fn load(context: image.Context, device: block.Device) block.Error!Vhd {
    const diagnostic = context.diagnostic;
    // The copy of the footer and, at its usual place behind it, the dynamic header.
    const start = context.allocator.create([footers.size + dynamic.size]u8) catch return error.NoMemory;
    try device.readPadded(0, start);
    const copied = std.mem.startsWith(u8, start, footers.cookie);
    const footer: footers.Footer = if (copied)
        .{ .bytes = start[0..footers.size], .offset = 0, .length = footers.size }
    else
        (try footers.atEnd(context.allocator, device)) orelse return noFooter(context, device);
    const at = footer.offset;
    const kind = @intFromEnum(footer.diskType());
    if (!copied and footer.diskType() != .fixed) {
        return refuse(diagnostic, .corrupt, "footer", "invalid VPC image: the footer at byte {offset} is of disk type {value}, but its copy at byte 0 is missing", at, kind, none);
    }
    if (copied and footer.diskType() == .fixed) {
        return refuse(diagnostic, .corrupt, "footer", "the footer at byte 0 says fixed disk, which has none there", at, kind, none);
    }
    if (!footer.checksumIsRight()) {
        return refuse(diagnostic, .corrupt, "footer", "Incorrect header checksum {value:x} of the footer at byte {offset}, should be {limit:x}", at, footer.checksum(), footers.sumOf(footer.bytes, 64));
    }
    const sectors = footer.sectors(context.qemu_major);
    if (sectors > footers.max_sectors) {
        return refuse(diagnostic, .too_large, "footer", "a disk of {value} sectors is above the limit of {limit} (2040 GiB)", at, sectors, footers.max_sectors);
    }
    var vhd: Vhd = .{ .footer = footer, .virtual_size = sectors * footers.sector };
    if (!copied) return vhd;

    const header: dynamic.Header = if (footer.dataOffset() == footers.size)
        .{ .bytes = start[footers.size..], .offset = footers.size }
    else
        try dynamic.Header.read(context.allocator, device, footer.dataOffset());
    const layout: dynamic.Layout = try .of(&header, vhd.virtual_size, context, device);
    var table: dynamic.Table = try .init(context, device, layout);
    const totals = try table.totals();
    if (totals.end > std.mem.alignForward(u64, device.length, footers.sector)) {
        return refuse(diagnostic, .out_of_bounds, "data block", "The image has been truncated: its last data block ends at byte {value}, file has {limit}", none, totals.end, device.length);
    }
    vhd.sparse = .{
        .header = header,
        .table = table,
        .totals = totals,
        .differencing = footer.diskType() == .differencing,
    };
    return vhd;
}

pub fn open(context: image.Context, device: block.Device) block.Error!image.Image {
    const vhd = try load(context, device);
    if (vhd.sparse) |sparse| {
        if (sparse.differencing) try @import("references.zig").checkParent(context, &sparse.header);
        const segments = context.allocator.create(Segments) catch return error.NoMemory;
        segments.* = try .init(context, sparse.table, vhd.virtual_size, sparse.differencing);
        return .{
            .driver = driver.name,
            .virtual_size = vhd.virtual_size,
            .cluster_size = sparse.table.layout.block_size,
            .has_backing = sparse.differencing,
            .context = segments,
            .segment_at = Segments.segmentAt,
        };
    }
    const flat = context.allocator.create(Flat) catch return error.NoMemory;
    flat.* = .{ .device = device, .virtual_size = vhd.virtual_size, .holes_are_data = true };
    return .{ .driver = driver.name, .virtual_size = vhd.virtual_size, .context = flat, .segment_at = Flat.segmentAt };
}

test {
    _ = footers;
    _ = dynamic;
    _ = @import("segments.zig");
    _ = @import("test_vhd.zig");
    _ = @import("test_check.zig");
}
