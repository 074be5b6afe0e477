//! The metadata region: items by themselves and against each other, and what the parent locator says.
//!
//! [MS-VHDX] 2.6.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const text = @import("../text.zig");
const Findings = @import("../qcow2/check_findings.zig").Findings;
const format = @import("format.zig");
const Headers = @import("headers.zig").Headers;
const locators = @import("locator.zig");
const metadata_zig = @import("metadata.zig");
const Region = @import("regions.zig").Region;

/// An item in the region.
const Span = struct {
    start: u64,
    end: u64,
    index: u32,

    fn before(_: void, a: Span, b: Span) bool {
        return a.start < b.start;
    }
};

pub fn check(context: image.Context, findings: *Findings, device: block.Device, metadata: *const metadata_zig.Metadata, region: Region) block.Error!void {
    try checkTable(context, findings, metadata, region);
    try checkValues(findings, metadata);
    if (metadata.isDifferencing()) try checkLocator(context, findings, device, metadata);
}

fn checkTable(context: image.Context, findings: *Findings, metadata: *const metadata_zig.Metadata, region: Region) block.Error!void {
    const table = &metadata.table;
    const name = "metadata table";
    const count: usize = table.count();
    const spans = context.allocator.alloc(Span, count) catch return error.NoMemory;
    var used: usize = 0;
    var users: u64 = 0;
    for (0..count) |index| {
        const entry = table.entry(index);
        const at = table.start + format.metadata_header_size + index * format.metadata_entry_size;
        const end = @as(u64, entry.offset()) + entry.length();
        users += @intFromBool(entry.isUser());
        if (metadata_zig.Item.of(entry.guid())) |item| {
            const size = item.size() orelse entry.length();
            if (entry.length() != size) {
                try findings.put(.corruption, name, "metadata item {index} has {value} bytes instead of {expected}", .{ .offset = at, .index = index, .value = entry.length(), .expected = size });
            }
            if (entry.isUser() or !entry.isRequired()) {
                try findings.put(.note, name, "metadata item {index} is known and must be required system metadata", .{ .offset = at, .index = index });
            }
        } else try findings.put(.note, name, "metadata item {index} is of an unknown kind", .{ .offset = at, .index = index });
        if (entry.reservedFlags() != 0 or entry.reserved() != 0) {
            try findings.put(.note, name, "metadata item {index}: reserved bits are set", .{ .offset = at, .index = index });
        }
        if (entry.length() == 0) {
            if (entry.offset() != 0) try findings.put(.note, name, "metadata item {index} is empty and lies at byte {value} of its region", .{ .offset = at, .index = index, .value = entry.offset() });
            continue;
        }
        if (entry.length() > format.max_item_size) {
            try findings.put(.corruption, name, "metadata item {index} has {value} bytes, at most {expected}", .{ .offset = at, .index = index, .value = entry.length(), .expected = format.max_item_size });
        }
        if (entry.offset() < format.metadata_table_size or end > region.length) {
            try findings.put(.corruption, name, "metadata item {index} at byte {value} of its region lies outside of the room for items, which ends at {expected}", .{ .offset = at, .index = index, .value = entry.offset(), .expected = region.length });
        }
        spans[used] = .{ .start = entry.offset(), .end = end, .index = @intCast(index) };
        used += 1;
    }
    if (users > format.max_user_items) {
        try findings.put(.corruption, name, "{value} metadata items are user metadata, at most {expected}", .{ .offset = table.start, .value = users, .expected = format.max_user_items });
    }
    if (table.hasReserved()) try findings.put(.note, name, "metadata table at byte {offset}: reserved bytes are not zero", .{ .offset = table.start });
    std.sort.heap(Span, spans[0..used], {}, Span.before);
    var end: u64 = 0;
    for (spans[0..used]) |span| {
        if (span.start < end) {
            try findings.put(.corruption, name, "metadata item {index} at byte {value} of its region overlaps another that ends at {expected}", .{ .offset = table.start, .index = span.index, .value = span.start, .expected = end });
        }
        end = @max(end, span.end);
    }
}

fn checkValues(findings: *Findings, metadata: *const metadata_zig.Metadata) block.Error!void {
    if (metadata.written_size != metadata.virtual_size) {
        try findings.put(.corruption, "virtual disk size", "virtual size {value} is no multiple of the sector size {expected}", .{ .offset = metadata.place(.virtual_disk_size), .value = metadata.written_size, .expected = metadata.logical_sector_size });
    }
    if (metadata.written_size > format.max_disk_size) {
        try findings.put(.corruption, "virtual disk size", "virtual size {value} is above 64 TiB", .{ .offset = metadata.place(.virtual_disk_size), .value = metadata.written_size, .expected = format.max_disk_size });
    }
    if (metadata.physical_sector_size != 512 and metadata.physical_sector_size != 4096) {
        try findings.put(.corruption, "physical sector size", "physical sectors of {value} bytes, only 512 and 4096 are allowed", .{ .offset = metadata.place(.physical_sector_size), .value = metadata.physical_sector_size });
    }
    if (metadata.reservedParameters() != 0) {
        try findings.put(.note, "file parameters", "file parameters: reserved bits {value:x} are set", .{ .offset = metadata.place(.file_parameters), .value = metadata.reservedParameters() });
    }
}

fn checkLocator(context: image.Context, findings: *Findings, device: block.Device, metadata: *const metadata_zig.Metadata) block.Error!void {
    const name = "parent locator";
    const locator: locators.Locator = try .read(context, device, metadata);
    const at = locator.offset;
    if (!locator.isVhdx()) try findings.put(.note, name, "parent locator at byte {offset} is of an unknown type", .{ .offset = at });
    if (locator.reserved() != 0) try findings.put(.note, name, "parent locator at byte {offset}: reserved bytes are not zero", .{ .offset = at });
    if (locator.seen() < locator.count()) {
        try findings.put(.corruption, name, "parent locator with {value} entries, room for {expected}", .{ .offset = at, .value = locator.count(), .expected = locator.seen() });
    }
    var seen: [locators.max_entries][]const u8 = undefined;
    var known: usize = 0;
    for (0..locator.seen()) |index| {
        const pair = try locator.pair(context, index) orelse {
            try findings.put(.corruption, name, "entry {index} of the parent locator: key or value is empty or lies outside of it", .{ .offset = at, .index = index });
            continue;
        };
        for (seen[0..known]) |key| if (std.mem.eql(u8, key, pair.key)) {
            try findings.put(.corruption, name, "entry {index} of the parent locator: its key is there a second time", .{ .offset = at, .index = index });
            break;
        };
        seen[known] = pair.key;
        known += 1;
    }
    if (!locator.isVhdx()) return;
    var places: usize = 0;
    for (locators.keys.paths) |key| places += @intFromBool(try locator.find(context, key) != null);
    if (places == 0) try findings.put(.corruption, name, "parent locator at byte {offset} names no place of the parent", .{ .offset = at });
    const linkage = try locator.find(context, locators.keys.linkage) orelse
        return findings.put(.corruption, name, "parent locator at byte {offset} has no parent_linkage", .{ .offset = at });
    if (!isBracedGuid(linkage)) {
        return findings.add(.corruption, .{ .structure = name, .offset = at }, "parent_linkage '{s}' is no GUID in braces", .{linkage[0..@min(linkage.len, 64)]});
    }
    try checkParent(context, findings, at, linkage, try locator.find(context, locators.keys.linkage2));
}

/// The parent itself, where it was given: whoever wrote to it after the child was made has changed its identity.
fn checkParent(context: image.Context, findings: *Findings, at: u64, linkage: []const u8, linkage2: ?[]const u8) block.Error!void {
    const given = try context.reference(.parent, 0) orelse return;
    var signature: [8]u8 = undefined;
    try given.device.readPadded(0, &signature);
    if (!std.mem.eql(u8, &signature, format.file_signature)) {
        return findings.put(.corruption, "parent locator", "the parent that the locator at byte {offset} names is no VHDX", .{ .offset = at });
    }
    var headers: Headers = try .read(context, given.device);
    try headers.pick(context);
    var buffer: [36]u8 = undefined;
    const identity = text.guid(&buffer, headers.current().dataWriteGuid());
    if (std.ascii.eqlIgnoreCase(linkage[1..37], identity)) return;
    if (linkage2) |second| if (isBracedGuid(second) and std.ascii.eqlIgnoreCase(second[1..37], identity)) return;
    try findings.add(.corruption, .{ .structure = "parent locator", .offset = at }, "the parent's identity is {s}, the child was made of {s}: the parent was changed", .{ identity, linkage[1..37] });
}

fn isBracedGuid(value: []const u8) bool {
    if (value.len != 38 or value[0] != '{' or value[37] != '}') return false;
    for (value[1..37], 0..) |digit, i| {
        const dash = i == 8 or i == 13 or i == 18 or i == 23;
        if (if (dash) digit != '-' else !std.ascii.isHex(digit)) return false;
    }
    return true;
}
