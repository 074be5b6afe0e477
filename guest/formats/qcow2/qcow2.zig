//! qcow2 (QEMU docs/interop/qcow2.txt), versions 2 and 3: the driver and the parts that other formats' code may use.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");

pub const header = @import("header.zig");
pub const tables = @import("tables.zig");
pub const refcount = @import("refcount.zig");
pub const open = @import("open.zig");
pub const segments = @import("segments.zig");

pub const driver: image.Driver = .{
    .name = "qcow2",
    .probe = probe,
    .open = segments.openImage,
    .size = size,
    .info = @import("info.zig").run,
    .references = @import("references.zig").run,
    .check = @import("check.zig").run,
    .resize = @import("resize.zig").resize,
    .unlock = @import("unlock.zig").unlock,
};

fn size(context: image.Context, device: block.Device) block.Error!u64 {
    const opened = try open.Opened.open(context, device, .content);
    return opened.header.virtualSize();
}

/// The magic with version 2 or anything newer; version 1 is the older format qcow.
fn probe(p: *const image.Probe) u8 {
    if (p.head.len < 8) return 0;
    if (header.big(u32, p.head, 0) != header.magic) return 0;
    return if (header.big(u32, p.head, 4) >= 2) 100 else 0;
}

test {
    _ = header;
    _ = tables;
    _ = refcount;
    _ = segments;
    _ = @import("template.zig");
    _ = @import("window.zig");
    _ = @import("check_counts.zig");
    _ = @import("pages.zig");
    _ = @import("test_qcow2.zig");
    _ = @import("test_check_bounds.zig");
}
