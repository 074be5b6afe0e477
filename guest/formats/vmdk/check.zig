//! Consistency of a VMDK.  qemu-img asks one question of it: does each grain begin inside its file?  Here every
//! structure is looked at; what counts as what:
//!
//! * corruption: a reader gets wrong data or none, or the two copies of a structure differ;
//! * note: against the letter of the specification, or worth knowing, but no reader is misled.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const Findings = @import("../qcow2/check_findings.zig").Findings;
const format = @import("format.zig");
const segments = @import("segments.zig");
const sparse_check = @import("check_sparse.zig");
const vmdk_zig = @import("vmdk.zig");
const refuse = @import("refusal.zig").refuse;
const none = @import("../qcow2/template.zig").none;

const sector = format.sector;

pub fn check(context: image.Context, device: block.Device, sink: image.Sink, report: *messages.Check) block.Error!void {
    const vmdk = try vmdk_zig.load(context, device);
    try vmdk.needExtents(context);
    var findings: Findings = .{ .sink = sink, .report = report };
    report.virtual_size = vmdk.virtual_size;
    report.cluster_size = segments.clusterSize(&vmdk);
    if (vmdk.ignored > 0)
        try findings.put(.note, "descriptor", "{value} extent lines are passed over: read-only, not accessible, empty, or of a type without a file", .{ .value = vmdk.ignored });
    for (vmdk.extents, 0..) |*extent, index| {
        switch (extent.body) {
            .missing => unreachable, // Refused above.
            .flat => |*flat| try checkFlat(&findings, extent, flat, index),
            .sparse => |*body| {
                if (extent.line) |line| if (line.sectors != body.sectors)
                    try findings.put(.corruption, "descriptor", "extent {index} has {value} sectors by its own header, the descriptor says {expected}", .{ .index = index, .value = body.sectors, .expected = line.sectors });
                try sparse_check.check(context, &findings, body, report);
            },
        }
    }
    try checkShared(&findings, &vmdk);
    try checkParent(context, &findings, &vmdk);
}

fn checkFlat(findings: *Findings, extent: *const vmdk_zig.Extent, flat: *const vmdk_zig.Extent.Flat, index: usize) block.Error!void {
    const end = flat.offset + extent.size;
    const length = std.mem.alignForward(u64, flat.device.length, sector);
    if (end > length)
        try findings.put(.corruption, "extent", "flat extent {index} ends at byte {value} of its file, which has {expected}", .{ .offset = flat.offset, .index = index, .value = end, .expected = flat.device.length });
}

/// Flat extents that lie in one file must not overlap.  One pass: neighbours in the descriptor are what writers place
/// one behind the other.
fn checkShared(findings: *Findings, vmdk: *const vmdk_zig.Vmdk) block.Error!void {
    for (vmdk.extents[1..], 1..) |*extent, index| {
        const before = &vmdk.extents[index - 1];
        if (extent.body != .flat or before.body != .flat) continue;
        const a = &before.body.flat;
        const b = &extent.body.flat;
        const same = a.number == b.number or std.mem.eql(u8, before.line.?.name, extent.line.?.name);
        if (same and a.offset < b.offset + extent.size and b.offset < a.offset + before.size)
            try findings.put(.corruption, "descriptor", "flat extent {index} overlaps the one before it in their file", .{ .offset = b.offset, .index = index });
    }
}

/// The parent, when it was given, must be the one that the image was made on.
fn checkParent(context: image.Context, findings: *Findings, vmdk: *const vmdk_zig.Vmdk) block.Error!void {
    const its = vmdk.identity orelse return;
    if (its.parent == null) {
        if (its.parent_cid != format.no_parent)
            try findings.put(.note, "descriptor", "the image has a parent with CID {value:x} and does not name it", .{ .value = its.parent_cid });
        return;
    }
    const given = try context.reference(.parent, 0) orelse return;
    const parent = vmdk_zig.load(context.of(given), given.device) catch |reason| {
        if (reason != error.Refused) return reason;
        return findings.put(.corruption, "descriptor", "the parent is no VMDK that can be read: its content is not used", .{ .expected = its.parent_cid });
    };
    const cid = if (parent.identity) |identity| identity.cid else format.no_parent;
    if (cid != its.parent_cid)
        try findings.put(.corruption, "descriptor", "the parent has CID {value:x}, the image was made on {expected:x}: the parent was changed or is another one", .{ .value = cid, .expected = its.parent_cid });
}
