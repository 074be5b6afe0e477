//! The text of a descriptor, byte for byte as qemu-img writes it, and the names of the files that it lists.
//!
//! VMware Virtual Disk Format 5.0, "The Descriptor File".

const std = @import("std");
const block = @import("block");
const format = @import("format.zig");
const layouts = @import("layout.zig");

/// What the text says beside the layout.
pub const Facts = struct {
    /// The file's own name, without a directory.
    name: []const u8,
    cid: u32,
    parent_cid: u32 = format.no_parent,
};

/// Counts what is appended, and keeps as much of it as there is room for.
pub const Text = struct {
    room: []u8 = &.{},
    length: usize = 0,

    noinline fn append(self: *Text, bytes: []const u8) void {
        if (self.length <= self.room.len and bytes.len <= self.room.len - self.length) {
            @memcpy(self.room[self.length..][0..bytes.len], bytes);
        }
        self.length += bytes.len;
    }

    fn number(self: *Text, value: u64) void {
        var digits: [20]u8 = undefined;
        self.append(block.sentence.write(&digits, "{d}", .{value}));
    }

    fn hexadecimal(self: *Text, value: u32) void {
        var digits: [8]u8 = undefined;
        self.append(block.sentence.write(&digits, "{x}", .{value}));
    }
};

/// The descriptor of a disk.
pub fn write(out: *Text, layout: layouts.Layout, facts: Facts) void {
    out.append("# Disk DescriptorFile\nversion=1\nCID=");
    out.hexadecimal(facts.cid);
    out.append("\nparentCID=");
    out.hexadecimal(facts.parent_cid);
    out.append("\ncreateType=\"");
    out.append(@tagName(layout.subformat));
    out.append("\"\n");
    if (layout.parent) |parent| {
        out.append("parentFileNameHint=\"");
        out.append(parent);
        out.append("\"");
    }
    out.append("\n# Extent description\n");
    for (0..@intCast(layout.extents())) |index| {
        out.append("RW ");
        out.number(layout.extentSize(index) / format.sector);
        out.append(if (layout.subformat.isFlat()) " FLAT \"" else " SPARSE \"");
        extentName(out, layout.subformat, facts.name, index);
        out.append(if (layout.subformat.isFlat()) "\" 0\n" else "\"\n");
    }
    out.append("\n# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"");
    out.append(layout.hardware_version);
    out.append("\"\nddb.geometry.cylinders = \"");
    out.number(layout.cylinders());
    out.append("\"\nddb.geometry.heads = \"");
    out.number(layout.adapter.heads());
    out.append("\"\nddb.geometry.sectors = \"63\"\nddb.adapterType = \"");
    out.append(@tagName(layout.adapter));
    out.append("\"\nddb.toolsVersion = \"");
    out.append(layout.tools_version);
    out.append("\"\n");
}

/// The name of the file of extent `index`, which counts from 0: between the stem and the suffix of the image's own name.
pub fn extentName(out: *Text, subformat: layouts.Subformat, name: []const u8, index: u64) void {
    if (subformat.isEmbedded()) return out.append(name);
    const stem = name[0 .. std.mem.findScalarLast(u8, name, '.') orelse name.len];
    out.append(stem);
    if (subformat.isSplit()) {
        out.append(if (subformat.isFlat()) "-f" else "-s");
        // Three digits at least.
        if (index + 1 < 100) out.append("0");
        if (index + 1 < 10) out.append("0");
        out.number(index + 1);
    } else out.append("-flat");
    out.append(name[stem.len..]);
}

const testing = std.testing;

fn expectName(expected: []const u8, subformat: layouts.Subformat, name: []const u8, index: u64) !void {
    var room: [64]u8 = undefined;
    var out: Text = .{ .room = &room };
    extentName(&out, subformat, name, index);
    try testing.expectEqualStrings(expected, room[0..out.length]);
}

test "names of extents" {
    try expectName("a.vmdk", .monolithicSparse, "a.vmdk", 0);
    try expectName("a-flat.vmdk", .monolithicFlat, "a.vmdk", 0);
    try expectName("a.b-f001.c", .twoGbMaxExtentFlat, "a.b.c", 0);
    try expectName("a-s010.", .twoGbMaxExtentSparse, "a.", 9);
    try expectName("a-s100", .twoGbMaxExtentSparse, "a", 99);
    try expectName("-f1000.vmdk", .twoGbMaxExtentFlat, ".vmdk", 999);
}

test "a text that does not fit is counted" {
    var room: [4]u8 = @splat(0);
    var out: Text = .{ .room = &room };
    out.append("abc");
    out.append("de");
    out.append("f");
    try testing.expectEqual(@as(usize, 6), out.length);
    try testing.expectEqualStrings("abc\x00", &room);
}
