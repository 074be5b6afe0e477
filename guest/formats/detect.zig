//! Which format an image is: its first and last bytes are read once and every driver says how sure it is.
//!
//! The decision is qemu-img's wherever qemu-img recognises the format.  It differs on purpose where qemu-img would call
//! an image raw although its content names a format (fixed VHD, LUKS 2, seSparse, DMG by content, ASIF): see
//! docs/differences.md.

const std = @import("std");
const block = @import("block");
const image = @import("image.zig");

/// Scores, highest wins.  qemu gives 100 to a magic at the start; what only a trailer says ranks below every magic.
pub const score = struct {
    pub const none = 0;
    pub const raw = 1;
    pub const trailer = 50;
    pub const magic = 100;
};

/// Bytes read at the start: what qemu-img probes, so that a text descriptor is judged by the same bytes.
pub const head_size = 512;
/// Bytes read at the end: a footer of 512 bytes with up to 511 stray bytes around it.
pub const tail_size = 1023;

/// Room for what is read, and the view of it that drivers probe.
pub const Probed = struct {
    head: [head_size]u8 = undefined,
    tail: [tail_size]u8 = undefined,
    probe: image.Probe = undefined,

    /// Read both ends in one batch.  `self` must stay where it is afterwards.
    pub fn read(self: *Probed, device: block.Device) block.Error!void {
        const head = self.head[0..@intCast(@min(head_size, device.length))];
        const tail = self.tail[0..@intCast(@min(tail_size, device.length))];
        if (head.len > 0) {
            try device.readMany(&.{
                .{ .offset = 0, .buffer = head },
                .{ .offset = device.length - tail.len, .buffer = tail },
            });
        }
        self.probe = .{ .length = device.length, .head = head, .tail = tail, .device = device };
    }
};

/// Index of the driver that is surest; the first one among equals.
pub fn best(drivers: []const image.Driver, probe: *const image.Probe) usize {
    var found: usize = 0;
    var found_score: u8 = 0;
    for (drivers, 0..) |driver, i| {
        const its_score = driver.probe(probe);
        if (its_score > found_score) {
            found = i;
            found_score = its_score;
        }
    }
    return found;
}

/// Whether `bytes` holds `magic` at `offset`.
pub fn holds(bytes: []const u8, offset: usize, magic: []const u8) bool {
    return offset <= bytes.len and std.mem.startsWith(u8, bytes[offset..], magic);
}
