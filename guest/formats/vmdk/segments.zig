//! Where the disk's bytes lie: extents one behind the other, flat ones as their files have them, sparse ones through
//! directory and tables, which are read on demand.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const raw = @import("../raw/raw.zig");
const Window = @import("../qcow2/window.zig").Window;
const format = @import("format.zig");
const sparse = @import("sparse.zig");
const vmdk_zig = @import("vmdk.zig");
const refuse = @import("refusal.zig").refuse;

/// Directory entries and tables of one extent, through windows.
pub const Tables = struct {
    directory: Window,
    table: Window,

    /// The largest table is that of a seSparse extent, 32 KiB; 128 hosted ones fit.
    const window_bytes = 256 << 10;

    pub fn init(context: image.Context, device: block.Device) block.Error!Tables {
        const buffer = context.allocator.alloc(u8, 2 * window_bytes) catch return error.NoMemory;
        return .{
            .directory = .init(device, buffer[0..window_bytes], 4096),
            .table = .init(device, buffer[window_bytes..], 4096),
        };
    }

    /// Go on with another extent's file.
    pub fn use(self: *Tables, device: block.Device) void {
        inline for (.{ &self.directory, &self.table }) |window| {
            window.* = .init(device, window.buffer, 4096);
        }
    }

    /// The entry `index` (< directory_entries) of the directory at byte `directory`; behind the end of the file it is 0.
    pub fn entry(self: *Tables, extent: *const sparse.Sparse, directory: u64, index: u64) block.DeviceError!u64 {
        const at = directory + index * extent.entryBytes();
        if (at >= self.directory.device.length) return 0;
        return extent.entry(try self.directory.bytes(at, extent.entryBytes()));
    }

    /// First index from `index` on whose entry is not 0, at most `end`: the file bounds the work, not its header.
    pub fn nextEntry(self: *Tables, extent: *const sparse.Sparse, directory: u64, index: u64, end: u64) block.DeviceError!u64 {
        var at = index;
        while (at < end) : (at += 1) {
            if (directory + at * extent.entryBytes() >= self.directory.device.length) return end;
            if (try self.entry(extent, directory, at) != 0) return at;
        }
        return end;
    }
};

pub const Disk = struct {
    context: image.Context,
    vmdk: vmdk_zig.Vmdk,
    tables: ?Tables = null,
    /// Index of the extent that was asked for last, and of the one that `tables` and `flat` are about.
    current: usize = 0,
    loaded: usize = std.math.maxInt(usize),
    flat: raw.Flat = undefined,
    /// Grains that `grain.read` decodes.
    decoded: ?@import("grain.zig").Decoded = null,

    /// The extent that byte `position` (< virtual_size) lies in.
    pub fn extentAt(self: *Disk, position: u64) *const vmdk_zig.Extent {
        const extents = self.vmdk.extents;
        if (!holds(&extents[self.current], position)) {
            var low: usize = 0;
            var high = extents.len;
            while (high - low > 1) {
                const middle = (low + high) / 2;
                if (extents[middle].start <= position) low = middle else high = middle;
            }
            // Extents without bytes begin where the one that is wanted does, or behind it.
            while (!holds(&extents[low], position)) low -= 1;
            self.current = low;
        }
        return &extents[self.current];
    }

    fn holds(extent: *const vmdk_zig.Extent, position: u64) bool {
        return position >= extent.start and position - extent.start < extent.size;
    }

    fn at(self: *Disk, start: u64) block.Error!image.Segment {
        const extent = self.extentAt(start);
        const inside = start - extent.start;
        var segment = switch (extent.body) {
            .missing => unreachable, // Refused when it was opened.
            .flat => |*flat| try self.flatRun(extent, flat, inside),
            .sparse => |*body| try self.sparseRun(body, inside),
        };
        segment.start = start;
        return segment;
    }

    fn flatRun(self: *Disk, extent: *const vmdk_zig.Extent, flat: *const vmdk_zig.Extent.Flat, inside: u64) block.Error!image.Segment {
        if (self.loaded != self.current) {
            self.flat = .{ .device = flat.device, .virtual_size = flat.offset + extent.size };
            self.loaded = self.current;
        }
        var segment = try raw.Flat.segmentAt(&self.flat, flat.offset + inside);
        segment.hole = segment.kind == .zero;
        segment.offset = flat.offset + inside;
        segment.device = flat.number;
        return segment;
    }

    /// Bytes after which a run is cut: some hundred grain tables of 64 KiB grains.
    const longest = 8 << 30;

    fn sparseRun(self: *Disk, extent: *const sparse.Sparse, inside: u64) block.Error!image.Segment {
        try self.ready(extent);
        const size = extent.size();
        var end = inside;
        var first: sparse.Place = undefined;
        while (end < size) {
            var length: u64 = undefined;
            const place = self.placeAt(extent, end, &length) catch |reason| {
                // What lies before a broken entry is still an answer; the next call meets the entry first.
                if (reason == error.Refused and end > inside) break;
                return reason;
            };
            if (end == inside) {
                first = place;
            } else if (!follows(first, place, end - inside, extent.compressed)) break;
            end += length;
            // Whoever asks for one byte of a large disk need not wait until all of its tables are read.
            if (end - inside >= longest) break;
        }
        const is_data = first == .data;
        return .{
            .start = undefined,
            .length = end - inside,
            .kind = switch (first) {
                .unallocated => .unallocated,
                .zero => .zero,
                .data => .data,
                .invalid => unreachable, // placeAt refuses it.
            },
            .compressed = is_data and extent.compressed,
            .offset = if (is_data and !extent.compressed) first.data else null,
            .device = extent.number,
        };
    }

    /// Point the windows to the current extent.
    pub fn ready(self: *Disk, extent: *const sparse.Sparse) block.Error!void {
        if (self.tables == null) {
            self.tables = try .init(self.context, extent.device);
        } else if (self.loaded != self.current) self.tables.?.use(extent.device);
        self.loaded = self.current;
    }

    fn follows(first: sparse.Place, place: sparse.Place, distance: u64, compressed: bool) bool {
        if (std.meta.activeTag(first) != std.meta.activeTag(place)) return false;
        return first != .data or compressed or place.data == first.data + distance;
    }

    /// How byte `position` of a sparse extent is stored, and for how many bytes at least (`length`, clipped to it).
    pub fn placeAt(self: *Disk, extent: *const sparse.Sparse, position: u64, length: *u64) block.Error!sparse.Place {
        const tables = &self.tables.?;
        const span = extent.tableSpan();
        const index = position / span;
        const size = extent.size();
        if (index >= extent.directory_entries)
            return refuse(self.context.diagnostic, .out_of_bounds, "grain directory", "byte {offset} of the disk needs entry {value} of the grain directory, which has {limit}", position, index, extent.directory_entries);
        const value = try tables.entry(extent, extent.directory, index);
        const table = switch (extent.table(value)) {
            .data => |offset| offset,
            .invalid => return refuse(self.context.diagnostic, .corrupt, "grain directory", "entry {limit} of the grain directory at byte {offset} is {value:x}, which is no grain table", extent.directory, value, index),
            else => {
                const needed = @min(extent.directory_entries, std.math.divCeil(u64, size, span) catch unreachable);
                const next = if (value == 0) try tables.nextEntry(extent, extent.directory, index + 1, needed) else index + 1;
                length.* = @min(size, next *| span) - position;
                return .unallocated;
            },
        };
        if (table >= extent.device.length) {
            // Reads as zeroes, as the file ends before.
            length.* = @min(size, (index + 1) *| span) - position;
            return .unallocated;
        }
        const bytes = try tables.table.bytes(table, extent.tableBytes());
        const grain = extent.grainBytes();
        const in_table = position - index * span;
        const in_grain = in_table % grain;
        const grain_index: usize = @intCast(in_table / grain);
        length.* = @min(grain - in_grain, size - position);
        const width = extent.entryBytes();
        const entry = extent.entry(bytes[grain_index * width ..][0..width]);
        switch (extent.grain(entry)) {
            .data => |offset| return .{ .data = offset + in_grain },
            .invalid => return refuse(self.context.diagnostic, .corrupt, "grain table", "entry {limit} of the grain table at byte {offset} is {value:x}, which is no grain", table, entry, grain_index),
            else => |place| return place,
        }
    }
};

pub fn open(context: image.Context, device: block.Device) block.Error!image.Image {
    const vmdk = try vmdk_zig.load(context, device);
    try vmdk.needExtents(context);
    const disk = context.allocator.create(Disk) catch return error.NoMemory;
    disk.* = .{ .context = context, .vmdk = vmdk };
    return .{
        .driver = format.name,
        .virtual_size = vmdk.virtual_size,
        .cluster_size = clusterSize(&vmdk) orelse 0,
        .has_backing = if (vmdk.identity) |its| its.parent != null else false,
        .context = disk,
        .segment_at = segmentAt,
    };
}

fn segmentAt(context: *anyopaque, start: u64) block.Error!image.Segment {
    const self: *Disk = @ptrCast(@alignCast(context));
    return self.at(start);
}

/// Bytes of a grain, where all extents are sparse and have the same.
pub fn clusterSize(vmdk: *const vmdk_zig.Vmdk) ?u64 {
    if (mixed(vmdk)) return null;
    return switch (vmdk.extents[0].body) {
        .sparse => |*body| body.grainBytes(),
        else => null,
    };
}

/// Whether extents are of different kinds, for which qemu answers neither cluster size nor dirty flag.
pub fn mixed(vmdk: *const vmdk_zig.Vmdk) bool {
    const first = &vmdk.extents[0];
    for (vmdk.extents[1..]) |*other| if (!alike(first, other)) return true;
    return false;
}

fn alike(a: *const vmdk_zig.Extent, b: *const vmdk_zig.Extent) bool {
    if (isFlat(a) != isFlat(b)) return false;
    if (a.body != .sparse or b.body != .sparse) return true;
    return a.body.sparse.compressed == b.body.sparse.compressed and a.body.sparse.grain_sectors == b.body.sparse.grain_sectors;
}

pub fn isFlat(extent: *const vmdk_zig.Extent) bool {
    return if (extent.line) |line| line.type.isFlat() else false;
}
