//! The parent locator of a differencing disk: keys and values that name its parent.
//!
//! [MS-VHDX] 2.6.2.6.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const text = @import("../text.zig");
const none = @import("../qcow2/template.zig").none;
const format = @import("format.zig");
const metadata = @import("metadata.zig");
const refuse = @import("vhdx.zig").refuse;

const header_size = 20;
const entry_size = 12;

/// Entries that are looked at; the specification knows five.
pub const max_entries = 64;
/// Bytes of a key or value that are looked at: the longest Windows path.
pub const max_text = 2 * 32_768;

/// Keys with the parent's identity and its places, in the order in which the places are to be tried.
pub const keys = struct {
    pub const linkage = "parent_linkage";
    pub const linkage2 = "parent_linkage2";
    pub const paths = [_][]const u8{ "relative_path", "volume_path", "absolute_win32_path" };
};

pub const Pair = struct { key: []const u8, value: []const u8 };

pub const Locator = struct {
    /// The item as it lies in the file.
    bytes: []const u8,
    /// Byte offset in the file.
    offset: u64,

    pub fn read(context: image.Context, device: block.Device, from: *const metadata.Metadata) block.Error!Locator {
        const entry = from.entries[@intFromEnum(metadata.Item.parent_locator)].?;
        const at = from.place(.parent_locator);
        if (entry.length() < header_size or entry.length() > format.max_item_size) {
            return refuse(context.diagnostic, .corrupt, "parent locator", "parent locator of {value} bytes, it has {limit} to 1 MiB", at, entry.length(), header_size);
        }
        const end = at +| entry.length();
        if (end > device.length) {
            return refuse(context.diagnostic, .out_of_bounds, "parent locator", "parent locator at byte {offset} ends at byte {value}, file has {limit}", at, end, device.length);
        }
        const bytes = context.allocator.alloc(u8, entry.length()) catch return error.NoMemory;
        try device.read(at, bytes);
        return .{ .bytes = bytes, .offset = at };
    }

    pub fn kind(self: *const Locator) *const [16]u8 {
        return self.bytes[0..16];
    }
    pub fn isVhdx(self: *const Locator) bool {
        return std.mem.eql(u8, self.kind(), &format.guids.vhdx_locator);
    }
    pub fn reserved(self: *const Locator) u16 {
        return format.int(u16, self.bytes, 16);
    }
    /// Pairs by the header.
    pub fn count(self: *const Locator) u16 {
        return format.int(u16, self.bytes, 18);
    }
    /// Pairs that are looked at.
    pub fn seen(self: *const Locator) usize {
        return @min(self.count(), max_entries, (self.bytes.len - header_size) / entry_size);
    }

    /// Pair `index` (below `seen`) as UTF-8; null when key or value is empty or does not lie in the item.
    pub fn pair(self: *const Locator, context: image.Context, index: usize) block.Error!?Pair {
        const at = header_size + index * entry_size;
        const key = self.part(format.int(u32, self.bytes, at), format.int(u16, self.bytes, at + 8)) orelse return null;
        const value = self.part(format.int(u32, self.bytes, at + 4), format.int(u16, self.bytes, at + 10)) orelse return null;
        return .{
            .key = text.fromUtf16(context.allocator, key, .little) catch return error.NoMemory,
            .value = text.fromUtf16(context.allocator, value, .little) catch return error.NoMemory,
        };
    }

    fn part(self: *const Locator, offset: u32, length: u16) ?[]const u8 {
        if (offset == 0 or length == 0 or offset > self.bytes.len or length > self.bytes.len - offset) return null;
        return self.bytes[offset..][0..length];
    }

    /// The value of a key, of the first pair that has it.
    pub fn find(self: *const Locator, context: image.Context, key: []const u8) block.Error!?[]const u8 {
        for (0..self.seen()) |index| {
            const found = try self.pair(context, index) orelse continue;
            if (std.mem.eql(u8, found.key, key)) return found.value;
        }
        return null;
    }

    /// Name the parent by each of its places, as they are written.
    pub fn emitReferences(self: *const Locator, context: image.Context, sink: image.Sink) block.Error!void {
        for (keys.paths) |key| {
            if (try self.find(context, key)) |name| try self.emitReference(context, sink, key, name);
        }
    }

    pub fn emitReference(self: *const Locator, context: image.Context, sink: image.Sink, key: []const u8, name: []const u8) block.Error!void {
        return sink.emitReference(context, .{
            .kind = image.ReferenceKind.parent.text(),
            .index = 0,
            .name = name,
            .format = if (self.isVhdx()) format.name else null,
            .source = key,
        });
    }
};

/// As much of a text as a message holds, cut between characters.
pub fn shorten(value: []const u8) []const u8 {
    return text.shorten(value, 3072);
}
