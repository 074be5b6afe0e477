//! The metadata table and its items: sizes, the disk's identity, the parent.
//!
//! [MS-VHDX] 2.6.  What qemu refuses is refused, but for what it does not know: logical sectors of 4096 bytes and
//! differencing disks.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const none = @import("../qcow2/template.zig").none;
const format = @import("format.zig");
const Region = @import("regions.zig").Region;
const refuse = @import("vhdx.zig").refuse;

/// An entry of the table.
pub const Entry = struct {
    bytes: *const [format.metadata_entry_size]u8,

    pub fn guid(self: Entry) *const [16]u8 {
        return self.bytes[0..16];
    }
    /// From the start of the region; 0 for an empty item.
    pub fn offset(self: Entry) u32 {
        return format.int(u32, self.bytes, 16);
    }
    /// Bytes.
    pub fn length(self: Entry) u32 {
        return format.int(u32, self.bytes, 20);
    }
    fn flags(self: Entry) u32 {
        return format.int(u32, self.bytes, 24);
    }
    pub fn isUser(self: Entry) bool {
        return self.flags() & 1 != 0;
    }
    pub fn isVirtualDisk(self: Entry) bool {
        return self.flags() & 2 != 0;
    }
    pub fn isRequired(self: Entry) bool {
        return self.flags() & 4 != 0;
    }
    pub fn reservedFlags(self: Entry) u32 {
        return self.flags() & ~@as(u32, 7);
    }
    pub fn reserved(self: Entry) u32 {
        return format.int(u32, self.bytes, 28);
    }
};

/// The items that the specification defines.
pub const Item = enum(u3) {
    file_parameters,
    virtual_disk_size,
    virtual_disk_id,
    logical_sector_size,
    physical_sector_size,
    parent_locator,

    const count = std.meta.fields(Item).len;

    const ids = [count][16]u8{
        format.guids.file_parameters,
        format.guids.virtual_disk_size,
        format.guids.virtual_disk_id,
        format.guids.logical_sector_size,
        format.guids.physical_sector_size,
        format.guids.parent_locator,
    };

    pub fn of(guid: *const [16]u8) ?Item {
        for (&ids, 0..) |*id, i| if (std.mem.eql(u8, id, guid)) return @enumFromInt(i);
        return null;
    }

    /// Bytes that the item has; null: any number.
    pub fn size(self: Item) ?u32 {
        return switch (self) {
            .file_parameters, .virtual_disk_size => 8,
            .virtual_disk_id => 16,
            .logical_sector_size, .physical_sector_size => 4,
            .parent_locator => null,
        };
    }
};

/// The table as it lies in the file.
pub const Table = struct {
    bytes: *const [format.metadata_table_size]u8,
    /// Byte offset in the file.
    start: u64,

    pub fn read(context: image.Context, device: block.Device, region: Region) block.Error!Table {
        const bytes = context.allocator.create([format.metadata_table_size]u8) catch return error.NoMemory;
        try device.readPadded(region.offset, bytes);
        return .{ .bytes = bytes, .start = region.offset };
    }

    pub fn hasSignature(self: *const Table) bool {
        return std.mem.startsWith(u8, self.bytes, format.metadata_signature);
    }
    pub fn count(self: *const Table) u16 {
        return format.int(u16, self.bytes, 10);
    }
    pub fn hasReserved(self: *const Table) bool {
        return !std.mem.allEqual(u8, self.bytes[8..10], 0) or !std.mem.allEqual(u8, self.bytes[12..32], 0);
    }
    /// Entry `index`, below `count` and 2047.
    pub fn entry(self: *const Table, index: usize) Entry {
        const at = format.metadata_header_size + index * format.metadata_entry_size;
        return .{ .bytes = self.bytes[at..][0..format.metadata_entry_size] };
    }
};

/// What the items say, checked.
pub const Metadata = struct {
    table: Table,
    entries: [Item.count]?Entry,
    /// Bytes of a payload block.
    block_size: u32,
    /// Bytes, a multiple of the logical sector size.
    virtual_size: u64,
    /// As written.
    written_size: u64,
    logical_sector_size: u32,
    physical_sector_size: u32,
    disk_id: [16]u8,
    parameters: u32,

    const leave_allocated = 1;
    const has_parent = 2;

    pub fn isFixed(self: *const Metadata) bool {
        return self.parameters & (leave_allocated | has_parent) == leave_allocated;
    }
    pub fn isDifferencing(self: *const Metadata) bool {
        return self.parameters & has_parent != 0;
    }
    pub fn reservedParameters(self: *const Metadata) u32 {
        return self.parameters & ~@as(u32, leave_allocated | has_parent);
    }

    /// "fixed", "dynamic" or "differencing".
    pub fn kind(self: *const Metadata) []const u8 {
        if (self.isDifferencing()) return "differencing";
        return if (self.isFixed()) "fixed" else "dynamic";
    }

    pub fn load(context: image.Context, device: block.Device, region: Region) block.Error!Metadata {
        const diagnostic = context.diagnostic;
        const table: Table = try .read(context, device, region);
        const at = table.start;
        if (!table.hasSignature()) {
            return refuse(diagnostic, .corrupt, "metadata table", "no metadata table at byte {offset}", at, none, none);
        }
        if (table.count() > format.max_table_entries) {
            return refuse(diagnostic, .too_large, "metadata table", "metadata table with {value} entries, at most {limit}", at, table.count(), format.max_table_entries);
        }
        var self: Metadata = undefined;
        self.table = table;
        self.entries = @splat(null);
        for (0..table.count()) |index| {
            const entry = table.entry(index);
            const item = Item.of(entry.guid()) orelse {
                if (!entry.isRequired()) continue;
                return refuse(diagnostic, .unsupported, "metadata table", "metadata item {value} is of an unknown kind and required", at, index, none);
            };
            const known = &self.entries[@intFromEnum(item)];
            if (known.* != null) {
                return refuse(diagnostic, .corrupt, "metadata table", "metadata item {value} is there a second time", at, index, none);
            }
            known.* = entry;
        }
        for (self.entries[0..@intFromEnum(Item.parent_locator)], 0..) |entry, index| {
            if (entry == null) return refuse(diagnostic, .corrupt, "metadata table", "known metadata item {value} of {limit} is missing", at, index, Item.count - 1);
        }
        for (self.entries[0..@intFromEnum(Item.parent_locator)], 0..) |entry, index| {
            const item: Item = @enumFromInt(index);
            const end = @as(u64, entry.?.offset()) + item.size().?;
            if (entry.?.offset() >= format.metadata_table_size and end <= region.length) continue;
            return refuse(diagnostic, .out_of_bounds, "metadata table", "a known metadata item ends at byte {value} of its region, outside of the room for items from 65536 to {limit}", at, end, region.length);
        }
        const parameters = try self.value(device, .file_parameters);
        self.block_size = @truncate(parameters);
        self.parameters = @truncate(parameters >> 32);
        self.written_size = try self.value(device, .virtual_disk_size);
        self.logical_sector_size = @truncate(try self.value(device, .logical_sector_size));
        self.physical_sector_size = @truncate(try self.value(device, .physical_sector_size));
        try device.readPadded(self.place(.virtual_disk_id), &self.disk_id);
        try self.verify(context);
        self.virtual_size = self.written_size - self.written_size % self.logical_sector_size;
        return self;
    }

    fn verify(self: *const Metadata, context: image.Context) error{Refused}!void {
        const diagnostic = context.diagnostic;
        const located = self.entries[@intFromEnum(Item.parent_locator)] != null;
        if (self.isDifferencing() and !located) {
            return refuse(diagnostic, .corrupt, "metadata table", "a differencing disk without a parent locator", self.table.start, none, none);
        }
        if (!self.isDifferencing() and located) {
            return refuse(diagnostic, .unsupported, "metadata table", "a parent locator, but the file parameters say that there is no parent", self.table.start, none, none);
        }
        if (self.block_size < format.min_block_size or self.block_size > format.max_block_size or !std.math.isPowerOfTwo(self.block_size)) {
            return refuse(diagnostic, .corrupt, "file parameters", "block size {value} is no power of two from 1 MiB to {limit}", self.place(.file_parameters), self.block_size, format.max_block_size);
        }
        if (self.logical_sector_size != 512 and self.logical_sector_size != 4096) {
            return refuse(diagnostic, .unsupported, "logical sector size", "logical sectors of {value} bytes, only 512 and {limit} are known", self.place(.logical_sector_size), self.logical_sector_size, 4096);
        }
        if (self.written_size > std.math.maxInt(i64)) {
            return refuse(diagnostic, .too_large, "virtual disk size", "virtual size {value} is above 2^63-1", self.place(.virtual_disk_size), self.written_size, std.math.maxInt(i64));
        }
    }

    /// Byte offset of an item in the file.
    pub fn place(self: *const Metadata, item: Item) u64 {
        return self.table.start +| self.entries[@intFromEnum(item)].?.offset();
    }

    fn value(self: *const Metadata, device: block.Device, item: Item) block.Error!u64 {
        var bytes: [8]u8 = undefined;
        try device.readPadded(self.place(item), &bytes);
        return std.mem.readInt(u64, &bytes, .little);
    }
};
