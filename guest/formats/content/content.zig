//! What lies on a virtual disk: partition tables, and file systems on it or on its partitions.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const Disk = @import("disk.zig").Disk;
const mbr = @import("mbr.zig");
const gpt = @import("gpt.zig");
const filesystems = @import("filesystems.zig");

/// Partitions that are searched for a file system at most: each costs an exit.
const max_searched = 16;

/// Report what the disk holds.  Answers the type of what fills the whole disk (for example iso9660), if anything.
///
/// A disk whose content cannot be had (encrypted, compressed, in another file) is passed over; the caller leaves out
/// images whose segments are not bytes of `device`.
pub fn report(context: image.Context, opened: image.Image, device: block.Device, sink: image.Sink) block.Error!?[]const u8 {
    if (opened.virtual_size == 0) return null;
    const disk: Disk = .{ .image = opened, .device = device };
    const scan = context.allocator.create(Scan) catch return error.NoMemory;
    scan.* = .{ .context = context, .disk = disk, .sink = sink };
    if (!try scan.volume.read(disk, 0)) return null;
    const found = try filesystems.recognise(context, &scan.volume);
    if (found) |one| try one.emit(sink, 0);
    const kind = if (found) |one| one.type else null;
    if (found != null and found.?.isBootSector()) return kind;
    try scan.partitions();
    return kind;
}

const Scan = struct {
    context: image.Context,
    disk: Disk,
    sink: image.Sink,
    volume: filesystems.Volume = undefined,
    /// The disk's first bytes: MBR, and the GPT header for sectors of 512 or 4096 bytes.
    head: [8192]u8 = undefined,
    searched: usize = 0,

    fn partitions(self: *Scan) block.Error!void {
        const known = self.volume.head.len;
        @memcpy(self.head[0..known], &self.volume.head);
        const boot = self.head[0..512];
        const entries = mbr.parse(boot);
        // Only a disk that may have a 4096-byte-sector table costs another read.
        if (entries != null and mbr.protection(&entries.?, self.disk.size(), 4096) != .none) {
            if (!try self.disk.read(&.{.{ .offset = known, .buffer = self.head[known..] }})) return;
        } else @memset(self.head[known..], 0);
        if (gpt.sectorSize(&self.head)) |sector_size| {
            const guard = if (entries) |*table| mbr.protection(table, self.disk.size(), sector_size) else .none;
            return gpt.report(self.context, self.disk, self.sink, &self.head, sector_size, guard, self, visit);
        }
        if (entries) |*table| {
            if (mbr.protection(table, self.disk.size(), 512) != .none) try self.sink.emit(messages.InfoNote{
                .code = "gpt-header-missing",
                .message = "the MBR says that there is a GPT, but there is no GPT header",
            });
            return mbr.report(self.disk, self.sink, boot, table, self, visit);
        }
    }

    /// Look for a file system on a partition.
    fn visit(opaque_self: *anyopaque, offset: u64, length: u64) block.Error!void {
        const self: *Scan = @ptrCast(@alignCast(opaque_self));
        // A partition at byte 0 (isohybrid) is the disk itself, which was looked at.
        if (offset == 0 or offset >= self.disk.size() or length == 0 or self.searched == max_searched) return;
        self.searched += 1;
        if (!try self.volume.read(self.disk, offset)) return;
        if (try filesystems.recognise(self.context, &self.volume)) |found| try found.emit(self.sink, offset);
    }
};

test {
    _ = mbr;
    _ = gpt;
    _ = filesystems;
    _ = @import("test_content.zig");
}
