//! The bytes of a virtual disk, read through an image's segments.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");

/// A range of the virtual disk and where its bytes go.
pub const Piece = struct { offset: u64, buffer: []u8 };

pub const Disk = struct {
    image: image.Image,
    device: block.Device,

    pub fn size(self: Disk) u64 {
        return self.image.virtual_size;
    }

    /// Fill every piece, as far as possible in one exit.  What lies past the end of the disk, and what the image leaves
    /// unallocated, reads as zero.
    ///
    /// Answers false when bytes are not to be had without decoding or another file (compressed, in a backing file).
    pub fn read(self: Disk, pieces: []const Piece) block.Error!bool {
        if (self.image.read) |decode| return self.decoded(decode, pieces);
        var batch: Batch = .{ .device = self.device };
        for (pieces) |piece| {
            @memset(piece.buffer, 0);
            if (!try self.gather(&batch, piece)) return false;
        }
        try batch.flush();
        return true;
    }

    /// `read` by the image's own function.
    fn decoded(self: Disk, decode: anytype, pieces: []const Piece) block.Error!bool {
        for (pieces) |piece| {
            const inside: usize = @intCast(@min(piece.buffer.len, self.image.virtual_size -| piece.offset));
            if (inside > 0) try decode(self.image.context, piece.offset, piece.buffer[0..inside]);
            @memset(piece.buffer[inside..], 0);
        }
        return true;
    }

    fn gather(self: Disk, batch: *Batch, piece: Piece) block.Error!bool {
        var done: usize = 0;
        while (done < piece.buffer.len) {
            const at = piece.offset +| done;
            if (at >= self.image.virtual_size) return true;
            const segment = try self.image.segmentAt(at);
            const length: usize = @intCast(@min(segment.length, piece.buffer.len - done));
            switch (segment.kind) {
                .zero => {},
                .unallocated => if (self.image.has_backing) return false,
                .data => {
                    const offset = segment.offset orelse return false;
                    if (segment.compressed) return false;
                    try batch.add(offset, piece.buffer[done..][0..length]);
                },
            }
            done += length;
        }
        return true;
    }
};

/// Reads that wait for one exit.
const Batch = struct {
    device: block.Device,
    reads: [8]block.Read = undefined,
    count: usize = 0,

    fn add(self: *Batch, offset: u64, buffer: []u8) block.Error!void {
        // A last sector or cluster may be cut by the end of the file.
        if (offset >= self.device.length) return;
        const inside: usize = @intCast(@min(buffer.len, self.device.length - offset));
        if (self.count == self.reads.len) try self.flush();
        self.reads[self.count] = .{ .offset = offset, .buffer = buffer[0..inside] };
        self.count += 1;
    }

    fn flush(self: *Batch) block.Error!void {
        if (self.count > 0) try self.device.readMany(self.reads[0..self.count]);
        self.count = 0;
    }
};
