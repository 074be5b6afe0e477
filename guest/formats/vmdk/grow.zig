//! Growing a disk that is one sparse extent (monolithicSparse), in place.
//!
//! The grain directory says where the grain tables are, and they may be anywhere.  New tables go to the end of the file,
//! and so does the directory, when its last sector has no room for their entries.  Nothing of that can be seen before the
//! header names it; the header is one sector.  The descriptor repeats the size; readers of an image with a header do not
//! take it from there, so that it comes last, and only one sector of it decides:
//!
//!     new tables and directories, zeroes behind the old end of the disk      flush
//!     header                                                                 flush
//!     descriptor                                                             flush
//!
//! A crash before the header leaves the old disk in a longer file, one after it the new disk.  One in front of the
//! descriptor leaves the old size in the text; growing to the same size again writes it.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const target = @import("../target.zig");
const resizing = @import("../resizing.zig");
const steps = @import("../steps.zig");
const format = @import("format.zig");
const edit = @import("descriptor_edit.zig");

const name = format.name;
const sector = format.sector;
const header = format.header;

/// Sectors of a grain at most: qemu's limit, 1 GiB.
const max_grain_sectors = 0x20_0000;
/// Tables at most: qemu's limit.
const max_tables = 32 << 20;
/// Sectors of a descriptor that are read.
const max_descriptor_sectors = 2048;

/// What the header says, checked.  In sectors unless it says otherwise.
const Extent = struct {
    bytes: [header.size]u8,
    capacity: u64,
    grain: u64,
    /// Entries of a table.
    entries: u64,
    directory: u64,
    /// Null when there is none.
    redundant: ?u64,

    fn tables(self: *const Extent, capacity: u64) u64 {
        // `grain * entries` is at most 2^30.
        return std.math.divCeil(u64, capacity, self.grain * self.entries) catch unreachable;
    }

    fn tableSectors(self: *const Extent) u64 {
        return std.math.divCeil(u64, self.entries * format.entry_size, sector) catch unreachable;
    }
};

/// Plan a larger size, rounded up to 512.  Refuses other subformats, smaller sizes and disks with a parent.
pub fn resize(context: image.Context, device: block.Device, request: *const messages.ResizeRequest) block.Error!steps.Resize {
    const extent = try readHeader(context, device);
    const old_size = extent.capacity * sector;
    const size = try wantedSize(context, old_size, request);
    const capacity = std.mem.alignForward(u64, size, sector) / sector;

    var plan: Plan = .{ .context = context, .device = device, .extent = &extent };
    // As many as there are at most: two zeroed ranges for each directory, two parts of each directory, the rest once.
    plan.list.ensureTotalCapacity(context.allocator, 16) catch return error.NoMemory;
    const text = try plan.readDescriptor();
    if (capacity > extent.capacity) try plan.grown(capacity);
    const changed = try edit.resized(context, text, capacity);
    if (changed.len > 0) {
        const first = plan.descriptorOffset() / sector;
        for (changed) |one| try plan.write((first + one.index) * sector, one.bytes);
        plan.flush();
    }
    return .{ .old_size = old_size, .new_size = capacity * sector, .steps = plan.list.items };
}

const Plan = struct {
    context: image.Context,
    device: block.Device,
    extent: *const Extent,
    list: std.ArrayList(steps.Step) = .empty,

    fn write(self: *Plan, offset: u64, bytes: []const u8) error{NoMemory}!void {
        self.list.append(self.context.allocator, .{ .write = .{ .offset = offset, .bytes = bytes } }) catch return error.NoMemory;
    }

    fn flush(self: *Plan) void {
        self.list.appendAssumeCapacity(.flush);
    }

    fn descriptorOffset(self: *const Plan) u64 {
        return readInt(u64, &self.extent.bytes, header.descriptor_offset) * sector;
    }

    /// The embedded descriptor, when it is one of an image that can grow.
    fn readDescriptor(self: *Plan) block.Error![]const u8 {
        const first = readInt(u64, &self.extent.bytes, header.descriptor_offset);
        const count = readInt(u64, &self.extent.bytes, header.descriptor_size);
        if (first == 0 or count == 0) return unsupported(self.context, "has no descriptor of its own");
        if (count > max_descriptor_sectors) return tooLarge(self.context, "descriptor", count, max_descriptor_sectors);
        try inFile(self.context, self.device, "descriptor", first, count);
        const bytes = self.context.allocator.alloc(u8, @intCast(count * sector)) catch return error.NoMemory;
        try self.device.read(first * sector, bytes);
        const kind = edit.value(bytes, "createType") orelse return unsupported(self.context, "is a part of a disk of several files");
        if (!std.mem.eql(u8, kind, "monolithicSparse")) return unsupported(self.context, "is no monolithicSparse image");
        const parent = edit.value(bytes, "parentCID") orelse "ffffffff";
        if (!std.ascii.eqlIgnoreCase(parent, "ffffffff")) return self.context.diagnostic.refuse(
            .needs_reference,
            .{ .format = name, .structure = "parentCID" },
            "vmdk: the new part of an image with a parent would show what the parent has there",
            .{},
        );
        return bytes;
    }

    /// Everything up to the header that says `capacity`.
    fn grown(self: *Plan, capacity: u64) block.Error!void {
        const extent = self.extent;
        const old = extent.tables(extent.capacity);
        const new = extent.tables(capacity);
        if (new > max_tables) return tooLarge(self.context, "grain directory", new, max_tables);
        const directories = [_]?u64{ extent.redundant, extent.directory };
        for (directories) |directory| if (directory) |at| try self.clearLastTable(at, old);
        try self.clearLastGrain(old);

        const bytes = self.context.allocator.create([header.size]u8) catch return error.NoMemory;
        bytes.* = extent.bytes;
        if (new > old) try self.moreTables(bytes, old, new);
        writeInt(u64, bytes, header.capacity, capacity);
        if (self.list.items.len > 0) self.flush();
        try self.write(0, bytes);
        self.flush();
    }

    /// Entries behind the end of the disk may hold anything: the new part of the disk starts with them.
    fn clearLastTable(self: *Plan, directory: u64, tables: u64) block.Error!void {
        const extent = self.extent;
        const used: usize = @intCast((std.math.divCeil(u64, extent.capacity, extent.grain) catch unreachable) % extent.entries);
        if (used == 0) return;
        const table = try self.tableAt(directory, tables - 1) orelse return;
        const bytes = self.context.allocator.alloc(u8, @intCast((extent.entries - used) * format.entry_size)) catch return error.NoMemory;
        const offset = table * sector + used * format.entry_size;
        try self.device.read(offset, bytes);
        if (std.mem.allEqual(u8, bytes, 0)) return;
        @memset(bytes, 0);
        try self.write(offset, bytes);
    }

    /// And so may the last grain.
    fn clearLastGrain(self: *Plan, tables: u64) block.Error!void {
        const extent = self.extent;
        const inside = extent.capacity % extent.grain;
        if (inside == 0) return;
        const table = try self.tableAt(extent.directory, tables - 1) orelse return;
        var bytes: [format.entry_size]u8 = undefined;
        const index = extent.capacity / extent.grain % extent.entries;
        try self.device.read(table * sector + index * format.entry_size, &bytes);
        const grain = readInt(u32, &bytes, 0);
        const zeroed = readInt(u32, &extent.bytes, header.flags) & format.flag.zeroed_grain != 0;
        if (grain == 0 or (zeroed and grain == format.zeroed_entry)) return;
        const start = (grain + inside) * sector;
        const end = @min((grain + extent.grain) * sector, self.device.length);
        // What lies behind the end of the file reads as zero.
        if (start < end) self.list.appendAssumeCapacity(.{ .zero = .{ .offset = start, .length = end - start } });
    }

    /// The first sector of a table; null when the directory has none.
    fn tableAt(self: *Plan, directory: u64, index: u64) block.Error!?u64 {
        var bytes: [format.entry_size]u8 = undefined;
        try self.device.read(directory * sector + index * format.entry_size, &bytes);
        const table = readInt(u32, &bytes, 0);
        if (table == 0) return null;
        try inFile(self.context, self.device, "grain table", table, self.extent.tableSectors());
        return table;
    }

    /// Room for the tables behind the first `old` at the end of the file, and their entries.
    fn moreTables(self: *Plan, bytes: *[header.size]u8, old: u64, new: u64) block.Error!void {
        const extent = self.extent;
        const length = std.math.divCeil(u64, self.device.length, sector) catch unreachable;
        const base = std.mem.alignForward(u64, length, extent.grain);
        const old_sectors = directorySectors(old);
        const new_sectors = directorySectors(new);
        // In the last sector of a directory nothing else can be, since tables begin with a sector.
        const moved = if (new_sectors > old_sectors) new_sectors else 0;
        const added = (new - old) * extent.tableSectors();
        const copies: u64 = if (extent.redundant == null) 1 else 2;
        const end = std.mem.alignForward(u64, base + copies * (moved + added), extent.grain);
        if (end >= format.max_sectors) return tooLarge(self.context, "grain directory", end * sector, format.max_sectors * sector);
        // The tables are what the longer file holds already.
        self.list.appendAssumeCapacity(.{ .length = end * sector });
        var next = base;
        for ([_]?u64{ extent.redundant, extent.directory }, [_]usize{ header.redundant_directory, header.directory }) |place, field| {
            const directory = place orelse continue;
            const kept: usize = if (moved > 0) @intCast(old * format.entry_size) else 0;
            const entries = self.context.allocator.alloc(u8, kept + @as(usize, @intCast((new - old) * format.entry_size))) catch return error.NoMemory;
            if (kept > 0) try self.device.read(directory * sector, entries[0..kept]);
            var at = kept;
            var table = next + moved;
            while (at < entries.len) : (at += format.entry_size) {
                std.mem.writeInt(u32, entries[at..][0..4], @intCast(table), .little);
                table += extent.tableSectors();
            }
            if (moved > 0) {
                try self.write(next * sector, entries);
                std.mem.writeInt(u64, bytes[field..][0..8], next, .little);
            } else try self.write(directory * sector + old * format.entry_size, entries);
            next += moved + added;
        }
    }
};

fn directorySectors(tables: u64) u64 {
    return std.math.divCeil(u64, tables * format.entry_size, sector) catch unreachable;
}

fn readInt(comptime T: type, bytes: []const u8, at: usize) T {
    return std.mem.readInt(T, bytes[at..][0..@sizeOf(T)], .little);
}

fn writeInt(comptime T: type, bytes: []u8, at: usize, number: T) void {
    std.mem.writeInt(T, bytes[at..][0..@sizeOf(T)], number, .little);
}

fn readHeader(context: image.Context, device: block.Device) block.Error!Extent {
    var extent: Extent = undefined;
    try device.readPadded(0, &extent.bytes);
    const bytes = &extent.bytes;
    if (!std.mem.eql(u8, bytes[0..4], format.magic)) return unsupported(context, "is no hosted sparse extent");
    const version = readInt(u32, bytes, header.version);
    const flags = readInt(u32, bytes, header.flags);
    const is_stream = flags & (format.flag.compressed | format.flag.markers) != 0 or
        readInt(u16, bytes, header.compression_algorithm) != 0 or
        readInt(u64, bytes, header.directory) == format.directory_at_end;
    if (is_stream) return unsupported(context, "is streamOptimized");
    if (version == 3) return unsupported(context, "keeps track of changed blocks");
    if (version < 1 or version > 3) return corrupt(context, "version", version, 3);
    extent.capacity = readInt(u64, bytes, header.capacity);
    extent.grain = readInt(u64, bytes, header.grain_size);
    extent.entries = readInt(u32, bytes, header.table_entries);
    extent.directory = readInt(u64, bytes, header.directory);
    extent.redundant = if (flags & format.flag.redundant != 0) readInt(u64, bytes, header.redundant_directory) else null;
    if (extent.capacity == 0) return unsupported(context, "is only a descriptor");
    if (extent.capacity > target.max_size / sector) return tooLarge(context, "capacity", extent.capacity, target.max_size / sector);
    if (extent.grain == 0 or extent.grain > max_grain_sectors or !std.math.isPowerOfTwo(extent.grain)) {
        return corrupt(context, "grain size", extent.grain, max_grain_sectors);
    }
    if (extent.entries == 0 or extent.entries > format.table_entries) return corrupt(context, "table entries", extent.entries, format.table_entries);
    const tables = extent.tables(extent.capacity);
    if (tables > max_tables) return tooLarge(context, "grain directory", tables, max_tables);
    try inFile(context, device, "grain directory", extent.directory, directorySectors(tables));
    if (extent.redundant) |first| try inFile(context, device, "redundant grain directory", first, directorySectors(tables));
    return extent;
}

/// The size that is asked for in bytes, at least the old one.
fn wantedSize(context: image.Context, old: u64, request: *const messages.ResizeRequest) error{Refused}!u64 {
    const wanted = try resizing.wanted(context, name, old, request);
    if (wanted.preallocation != .off) return resizing.noSuchMode(context, name, wanted.preallocation);
    if (wanted.size < old) return context.diagnostic.refuse(
        .unsupported,
        .{ .format = name, .structure = "virtual size", .value = wanted.size, .limit = old },
        "vmdk: Shrinking images is currently not supported: {d} bytes, the image has {d}",
        .{ wanted.size, old },
    );
    return wanted.size;
}

fn inFile(context: image.Context, device: block.Device, structure: []const u8, first: u64, count: u64) error{Refused}!void {
    const end = std.math.add(u64, first, count) catch std.math.maxInt(u64);
    if (first > 0 and end <= device.length / sector) return;
    return context.diagnostic.refuse(
        .out_of_bounds,
        .{ .format = name, .structure = structure, .offset = first *| sector, .value = end, .limit = device.length / sector },
        "vmdk: {s} lies in sectors {d} to {d}, the file has {d}",
        .{ structure, first, end, device.length / sector },
    );
}

fn unsupported(context: image.Context, what: []const u8) error{Refused} {
    return context.diagnostic.refuse(.unsupported, .{ .format = name }, "vmdk: only monolithicSparse images can be resized, this one {s}", .{what});
}

fn corrupt(context: image.Context, structure: []const u8, value: u64, limit: u64) error{Refused} {
    return context.diagnostic.refuse(.corrupt, .{ .format = name, .structure = structure, .value = value, .limit = limit }, "vmdk: {s} is {d}, the limit is {d}", .{ structure, value, limit });
}

fn tooLarge(context: image.Context, structure: []const u8, value: u64, limit: u64) error{Refused} {
    return context.diagnostic.refuse(.too_large, .{ .format = name, .structure = structure, .value = value, .limit = limit }, "vmdk: {s} would be {d}, the limit is {d}", .{ structure, value, limit });
}
