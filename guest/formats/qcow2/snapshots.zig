//! The snapshot table (QEMU docs/interop/qcow2.txt, "Snapshots"), read entry by entry.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const header_zig = @import("header.zig");
const Header = header_zig.Header;
const Window = @import("window.zig").Window;
const open = @import("open.zig");
const refuse = @import("template.zig").refuse;
const big = header_zig.big;

/// Bytes; QEMU's limits for the whole table and for the extra data of one entry.
pub const max_table_bytes = 1024 * header_zig.max_snapshots;
pub const max_extra_bytes = 1024;
/// Bytes that QEMU keeps of an identifier and of a name.
pub const max_id = 127;
pub const max_name = 255;
/// A window that holds any entry.
pub const window_bytes = 40 + max_extra_bytes + 2 * 65536;

pub const Snapshot = struct {
    index: u32,
    /// Where the entry lies.
    offset: u64,
    l1_offset: u64,
    l1_entries: u32,
    date_sec: u32,
    date_nsec: u32,
    vm_clock_nsec: u64,
    vm_state_size: u64,
    extra_length: u32,
    /// Virtual size in bytes when it was taken; null where the entry does not say.
    disk_size: ?u64,
    /// Null where it was not recorded.
    icount: ?u64,
    /// Cut at the first NUL and at what QEMU keeps; valid until the next call.
    id: []const u8,
    name: []const u8,
};

pub const Iterator = struct {
    diagnostic: *block.Diagnostic,
    /// Null for an empty table.
    window: ?*Window,
    header: Header,
    next_index: u32 = 0,
    offset: u64,
    /// Bytes from the table's start to the end of the last entry returned.
    table_bytes: u64 = 0,

    pub fn init(context: image.Context, device: block.Device, header: Header) block.Error!Iterator {
        const window = if (header.snapshot_count == 0) null else try open.newWindow(context, device, std.mem.alignForward(usize, window_bytes, 4096));
        return .{ .diagnostic = context.diagnostic, .window = window, .header = header, .offset = header.snapshots_offset };
    }

    /// The next entry, or null behind the last one.  Refuses entries and tables above QEMU's limits.
    pub fn next(self: *Iterator) block.Error!?Snapshot {
        if (self.next_index == self.header.snapshot_count) return null;
        const index = self.next_index;
        self.next_index += 1;
        const start = std.mem.alignForward(u64, self.offset, 8);
        const head = try self.window.?.bytes(start, header_zig.snapshot_entry_bytes);
        const id_length: u64 = big(u16, head, 12);
        const name_length: u64 = big(u16, head, 14);
        const extra_length = big(u32, head, 36);
        if (extra_length > max_extra_bytes)
            return refuse(self.diagnostic, .too_large, "snapshot table", "too much extra metadata in the snapshot table entry at byte {offset}: {value} bytes, at most {limit}", start, extra_length, max_extra_bytes);
        const length = header_zig.snapshot_entry_bytes + extra_length + id_length + name_length;
        self.offset = start + length;
        self.table_bytes = self.offset - self.header.snapshots_offset;
        if (self.table_bytes > max_table_bytes)
            return refuse(self.diagnostic, .too_large, "snapshot table", "snapshot table is too big: it has at least {value} bytes, at most {limit}", start, self.table_bytes, max_table_bytes);
        const entry = try self.window.?.bytes(start, @intCast(length));
        const extra = entry[40..][0..extra_length];
        const id = entry[40 + extra_length ..][0..@intCast(id_length)];
        const name = entry[40 + extra_length + id.len ..];
        return .{
            .index = index,
            .offset = start,
            .l1_offset = big(u64, entry, 0),
            .l1_entries = big(u32, entry, 8),
            .date_sec = big(u32, entry, 16),
            .date_nsec = big(u32, entry, 20),
            .vm_clock_nsec = big(u64, entry, 24),
            .vm_state_size = if (extra_length >= 8) big(u64, extra, 0) else big(u32, entry, 32),
            .extra_length = extra_length,
            .disk_size = if (extra_length >= 16) big(u64, extra, 8) else null,
            .icount = if (extra_length >= 24 and big(u64, extra, 16) != std.math.maxInt(u64)) big(u64, extra, 16) else null,
            .id = text(id, max_id),
            .name = text(name, max_name),
        };
    }
};

fn text(bytes: []const u8, limit: usize) []const u8 {
    const cut = block.search.until(bytes, 0);
    return cut[0..@min(cut.len, limit)];
}
