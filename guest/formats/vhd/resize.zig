//! Another virtual size of a VHD, fixed or dynamic, which qemu-img does not offer.
//!
//! A fixed disk is what its last sector says: the new footer is written there before the old one goes, and the write that
//! makes the file longer is the footer itself.  A dynamic disk is what the copy of the footer at byte 0 says: one sector
//! that is written when BAT and header are ready for the larger size, or before they forget what a smaller one lacks.
//! Until the last step the footer at the end may be another one than the copy; readers go by the copy.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const resizing = @import("../resizing.zig");
const steps = @import("../steps.zig");
const footers = @import("footer.zig");
const dynamic = @import("dynamic.zig");
const geometry = @import("geometry.zig");
const vhd = @import("vhd.zig");
const none = @import("../qcow2/template.zig").none;

const format = "vpc";
const sector = footers.sector;

/// What the footer says of a size.
const Shape = struct {
    /// Bytes, whole sectors.
    size: u64,
    geometry: geometry.Geometry,
};

pub fn resize(context: image.Context, device: block.Device, request: *const messages.ResizeRequest) block.Error!steps.Resize {
    const loaded = try vhd.load(context, device);
    const old_size = loaded.virtual_size;
    const wanted = try resizing.wanted(context, format, old_size, request);
    if (wanted.preallocation != .off) return resizing.noSuchMode(context, format, wanted.preallocation);
    const sectors = wanted.size / sector + @intFromBool(wanted.size % sector != 0);
    if (sectors > footers.max_sectors) {
        return vhd.refuse(context.diagnostic, .too_large, "virtual size", "a disk of {value} sectors is above the limit of {limit} (2040 GiB)", none, sectors, footers.max_sectors);
    }
    const shape = shapeOf(&loaded.footer, context.qemu_major, sectors);
    var work: Work = .{ .context = context, .device = device, .footer = loaded.footer, .old_size = old_size, .shape = shape };
    // A geometry that holds what was asked for may be the one that is there.
    const shrinks = wanted.size < old_size;
    if (shape.size == old_size or (shrinks and shape.size > old_size)) {
        return .{ .old_size = old_size, .new_size = old_size, .steps = &.{} };
    }
    try work.makeFooter();
    if (loaded.sparse) |sparse| {
        if (sparse.differencing) {
            return vhd.refuse(context.diagnostic, .needs_reference, "parent locator", "a differencing disk has the size of its parent, which is not followed", none, none, none);
        }
        if (sparse.header.offset % sector != 0) {
            return vhd.refuse(context.diagnostic, .unsupported, "dynamic header", "the dynamic header at byte {offset} is not at a multiple of 512 and cannot be changed at once", sparse.header.offset, none, none);
        }
        try if (shrinks) work.shrinkDynamic(sparse) else work.growDynamic(sparse);
    } else try if (shrinks) work.shrinkFixed() else work.growFixed();
    return .{ .old_size = old_size, .new_size = shape.size, .steps = work.plan.items };
}

/// The size and geometry of a disk of so many sectors, so that readers that go by either see the same size: as this
/// image's writer has it, rounded up as `create` does where the geometry is the size.
fn shapeOf(footer: *const footers.Footer, qemu_major: u32, sectors: u64) Shape {
    const exact = sectors * sector;
    if (footer.geometrySectors() == footers.max_geometry) return .{ .size = exact, .geometry = .maximum };
    if (footer.sizeRule(qemu_major) == .chs) {
        const found = geometry.holding(sectors) orelse return .{ .size = exact, .geometry = .maximum };
        return .{ .size = found.total() * sector, .geometry = found };
    }
    if (sectors >= footers.max_geometry) return .{ .size = exact, .geometry = .maximum };
    return .{ .size = exact, .geometry = geometry.ofSpecification(sectors) };
}

const Work = struct {
    context: image.Context,
    device: block.Device,
    footer: footers.Footer,
    old_size: u64,
    shape: Shape,
    /// The footer as it will be.
    bytes: *[footers.size]u8 = undefined,
    plan: std.ArrayList(steps.Step) = .empty,

    fn add(self: *Work, step: steps.Step) error{NoMemory}!void {
        self.plan.append(self.context.allocator, step) catch return error.NoMemory;
    }

    fn write(self: *Work, offset: u64, bytes: []const u8) error{NoMemory}!void {
        try self.add(.{ .write = .{ .offset = offset, .bytes = bytes } });
    }

    /// Zeroes as far as the file reaches.
    fn zero(self: *Work, start: u64, end: u64) error{NoMemory}!void {
        const stop = @min(end, self.device.length);
        if (start < stop) try self.add(.{ .zero = .{ .offset = start, .length = stop - start } });
    }

    fn makeFooter(self: *Work) error{NoMemory}!void {
        self.bytes = self.context.allocator.create([footers.size]u8) catch return error.NoMemory;
        self.bytes.* = self.footer.bytes.*;
        std.mem.writeInt(u64, self.bytes[48..56], self.shape.size, .big);
        std.mem.writeInt(u16, self.bytes[56..58], self.shape.geometry.cylinders, .big);
        self.bytes[58] = self.shape.geometry.heads;
        self.bytes[59] = self.shape.geometry.sectors;
        std.mem.writeInt(u32, self.bytes[64..68], footers.sumOf(self.bytes, 64), .big);
    }

    // Fixed: the data, then the footer.

    fn growFixed(self: *Work) block.Error!void {
        const at = self.footer.offset;
        const end = at + self.footer.length;
        const whole = at % sector == 0 and self.footer.length == footers.size;
        // What a file may have between the end of the disk and the footer becomes part of the disk.
        if (self.old_size < at) {
            try self.zero(self.old_size, @min(at, self.shape.size));
            try self.add(.flush);
        }
        if (whole and self.shape.size <= at) {
            try self.write(at, self.bytes);
            return self.add(.flush);
        }
        const place = @max(self.shape.size, std.mem.alignForward(u64, end, sector));
        // Alone between two flushes: the file ends with this sector, or where it ended before.
        try self.write(if (whole) self.shape.size else place, self.bytes);
        try self.add(.flush);
        try self.zero(at, end);
        try self.add(.flush);
    }

    fn shrinkFixed(self: *Work) block.Error!void {
        const place = self.shape.size;
        if (place + footers.size > self.footer.offset and place != self.footer.offset) {
            return vhd.refuse(self.context.diagnostic, .unsupported, "footer", "the footer at byte {offset} is not at a multiple of 512, and the new one would lie on a part of it", self.footer.offset, place, none);
        }
        try self.write(place, self.bytes);
        try self.add(.flush);
        try self.add(.{ .length = place + footers.size });
        try self.add(.flush);
    }

    // Dynamic: copy of the footer, header, BAT, blocks, footer.

    /// What the BAT says, in one walk.
    const Survey = struct {
        /// An entry of at least this index is about nothing that is kept.
        kept: u64,
        /// First byte behind the BAT and the blocks that are kept, and the start of the first block behind the BAT.
        end: u64,
        next: u64 = std.math.maxInt(u64),
        /// Whether there is a block that is not kept.
        lost: bool = false,
        /// The last block that is kept, when it is in the file.
        last: ?u64 = null,
    };

    fn survey(self: *Work, sparse: vhd.Vhd.Sparse, size: u64) block.Error!Survey {
        var table = sparse.table;
        const layout = table.layout;
        const table_end = layout.table_offset + @as(u64, layout.table_entries) * 4;
        var found: Survey = .{
            .kept = size / layout.block_size + @intFromBool(size % layout.block_size != 0),
            .end = std.mem.alignForward(u64, @max(table_end, sparse.header.offset + dynamic.size), sector),
        };
        if (sparse.header.offset > layout.table_offset) found.next = sparse.header.offset;
        for (0..layout.table_entries) |index| {
            self.context.tick(index, layout.table_entries);
            const entry = try table.entry(@intCast(index));
            if (entry == dynamic.absent) continue;
            const start = @as(u64, entry) * sector;
            if (start > layout.table_offset) found.next = @min(found.next, start);
            if (index >= found.kept) {
                found.lost = true;
                continue;
            }
            found.end = @max(found.end, start + layout.stride());
            if (index + 1 == found.kept) found.last = start;
        }
        return found;
    }

    fn absentFrom(self: *Work, layout: dynamic.Layout, first: u64, end: u64) error{NoMemory}!void {
        if (first >= end) return;
        try self.add(.{ .fill = .{
            .offset = layout.table_offset + first * 4,
            .length = (end - first) * 4,
            .content = .{ .pattern = &.{0xff} },
        } });
    }

    fn growDynamic(self: *Work, sparse: vhd.Vhd.Sparse) block.Error!void {
        const layout = sparse.table.layout;
        const had: u64 = layout.table_entries;
        const found = try self.survey(sparse, self.old_size);
        const needed = @max(had, self.shape.size / layout.block_size + @intFromBool(self.shape.size % layout.block_size != 0));
        // What lies behind the end is not to become visible.
        if (found.lost) try self.absentFrom(layout, found.kept, had);
        if (found.last) |start| {
            const inside = self.old_size % layout.block_size;
            if (inside != 0) try self.zero(start + layout.bitmap_size + inside, start + layout.stride());
        }
        // Blocks that go leave their space to nobody.
        var end = @max(found.end, std.mem.alignForward(u64, sparse.totals.end, sector));
        var table_offset = layout.table_offset;
        const new_bytes = std.mem.alignForward(u64, needed * 4, sector);
        if (needed > had) {
            if (layout.table_offset + new_bytes > found.next) {
                // There is no room behind it: the table moves to where the footer was.
                table_offset = end;
                const moved = self.context.allocator.alloc(u8, @intCast(new_bytes)) catch return error.NoMemory;
                @memset(moved, 0xff);
                const kept: usize = @intCast(@min(found.kept, had) * 4);
                try self.device.readPadded(layout.table_offset, moved[0..kept]);
                try self.write(table_offset, moved);
            } else try self.absentFrom(layout, had, new_bytes / 4);
            end = @max(end, table_offset + new_bytes);
        }
        if (end != self.footerAtEnd()) try self.write(end, self.bytes);
        if (self.plan.items.len > 0) try self.add(.flush);
        if (needed > had) try self.writeHeader(sparse.header, table_offset, needed);
        try self.write(0, self.bytes);
        try self.add(.flush);
        try self.finishDynamic(end);
    }

    /// Where the file's last footer is, if it is a whole one at its end.
    fn footerAtEnd(self: *const Work) u64 {
        return self.device.length -| footers.size;
    }

    fn writeHeader(self: *Work, header: dynamic.Header, table_offset: u64, entries: u64) block.Error!void {
        const bytes = self.context.allocator.create([dynamic.size]u8) catch return error.NoMemory;
        bytes.* = header.bytes.*;
        std.mem.writeInt(u64, bytes[16..24], table_offset, .big);
        std.mem.writeInt(u32, bytes[28..32], @intCast(entries), .big);
        std.mem.writeInt(u32, bytes[36..40], footers.sumOf(bytes, 36), .big);
        // All of it is in the first of its two sectors.
        try self.write(header.offset, bytes[0..sector]);
        try self.add(.flush);
    }

    /// The footer at the end, and nothing behind it.
    fn finishDynamic(self: *Work, end: u64) block.Error!void {
        try self.write(end, self.bytes);
        try self.add(.flush);
        if (end + footers.size < self.device.length) {
            try self.add(.{ .length = end + footers.size });
            try self.add(.flush);
        }
    }

    fn shrinkDynamic(self: *Work, sparse: vhd.Vhd.Sparse) block.Error!void {
        const found = try self.survey(sparse, self.shape.size);
        try self.write(0, self.bytes);
        try self.add(.flush);
        if (found.lost) {
            try self.absentFrom(sparse.table.layout, found.kept, sparse.table.layout.table_entries);
            try self.add(.flush);
        }
        try self.finishDynamic(found.end);
    }
};
