//! The disk of an image that is encrypted with LUKS: sectors are encrypted by where they lie in the file (QEMU
//! docs/interop/qcow2.txt, "Full disk encryption header pointer").

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const header_zig = @import("header.zig");
const open = @import("open.zig");
const embedded = @import("luks.zig");
const segments = @import("segments.zig");
const template = @import("template.zig");
const luks = @import("../luks/header.zig");
const keys = @import("../luks/unlock.zig");
const SectorCipher = @import("../luks/cipher.zig").SectorCipher;
const refuse = template.refuse;
const none = template.none;

const scratch_size = 16384;

pub fn unlock(context: image.Context, device: block.Device) block.Error!image.Unlocked {
    const opened = try open.Opened.open(context, device, .information);
    const place = opened.extensions.crypto orelse
        return refuse(context.diagnostic, .unsupported, "header", "only LUKS encryption can be unlocked, method {value} is another one", 32, opened.header.crypt_method, @intFromEnum(header_zig.Crypt.luks));
    try embedded.checkPlace(context, place);
    const header = try luks.open(context, device, place.offset);
    const key = try keys.masterKey(context, device, header, context.passphrase orelse "");
    const self = context.allocator.create(Decrypted) catch return error.NoMemory;
    const locked = try segments.openImage(context, device);
    // Segments of an encrypted image say no place of their bytes, which nobody without the key has a use for.
    const walk: *segments.Segments = @ptrCast(@alignCast(locked.context));
    walk.header.crypt_method = 0;
    self.* = .{
        .inner = locked,
        .diagnostic = context.diagnostic,
        .device = device,
        .cipher = try keys.cipherFor(context, header.algorithms.method, key.bytes),
        .scratch = context.allocator.alloc(u8, scratch_size) catch return error.NoMemory,
    };
    var image_of = self.inner;
    image_of.context = self;
    image_of.segment_at = Decrypted.segmentAt;
    image_of.read = Decrypted.read;
    return .{ .image = image_of, .keyslot = key.slot };
}

const Decrypted = struct {
    inner: image.Image,
    diagnostic: *block.Diagnostic,
    device: block.Device,
    cipher: SectorCipher,
    scratch: []u8,

    fn segmentAt(opaque_self: *anyopaque, start: u64) block.Error!image.Segment {
        const self: *const Decrypted = @ptrCast(@alignCast(opaque_self));
        var segment = try self.inner.segmentAt(start);
        // What lies there is not what the disk holds.
        segment.offset = null;
        return segment;
    }

    fn read(opaque_self: *anyopaque, start: u64, buffer: []u8) block.Error!void {
        const self: *Decrypted = @ptrCast(@alignCast(opaque_self));
        var done: usize = 0;
        while (done < buffer.len) {
            const at = start + done;
            const segment = try self.inner.segmentAt(at);
            const length: usize = @intCast(@min(segment.length, buffer.len - done));
            const part = buffer[done..][0..length];
            done += length;
            if (segment.kind == .data) {
                const offset = segment.offset orelse
                    return refuse(self.diagnostic, .unsupported, "cluster", "what byte {value} of the disk holds is compressed", none, at, none);
                try self.readData(offset, part);
            } else if (segment.kind == .unallocated and self.inner.has_backing) {
                return refuse(self.diagnostic, .needs_reference, "cluster", "what byte {value} of the disk holds is in the backing file, which is not followed", none, at, none);
            } else @memset(part, 0);
        }
    }

    fn readData(self: *Decrypted, offset: u64, buffer: []u8) block.Error!void {
        var done: usize = 0;
        while (done < buffer.len) {
            const at = offset + done;
            const aligned = std.mem.alignBackward(u64, at, luks.sector);
            const skip: usize = @intCast(at - aligned);
            const wanted = std.mem.alignForward(usize, skip + buffer.len - done, luks.sector);
            const bytes = self.scratch[0..@min(wanted, self.scratch.len)];
            try self.device.readPadded(aligned, bytes);
            self.cipher.decrypt(aligned / luks.sector, luks.sector, bytes);
            const length = @min(bytes.len - skip, buffer.len - done);
            @memcpy(buffer[done..][0..length], bytes[skip..][0..length]);
            done += length;
        }
    }
};
