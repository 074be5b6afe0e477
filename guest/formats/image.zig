//! What every format offers to the operations, and what it gets to work with.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const steps = @import("steps.zig");
const text = @import("text.zig");

/// What format code works with: memory that lives until the run ends, and the place for the reason of a refusal.
pub const Context = struct {
    allocator: std.mem.Allocator,
    diagnostic: *block.Diagnostic,
    /// Major version of the qemu whose answers are wanted, where releases differ (`--qemu-version`).
    qemu_major: u32 = 7,
    /// Where long work says how far it is, in units of its choice; null when nobody looks.
    progress: ?*const fn (done: u64, total: u64) callconv(.c) void = null,
    /// Number of the device that is being opened.
    number: u32 = 0,
    /// The other files of the image; null when references are not followed (without `--chain`).
    files: ?Files = null,
    /// Whether disks are wanted as qemu's `measure` and `map` have them (`Image.asQemuSees`).
    as_qemu_sees: bool = false,
    /// What unlocks an encrypted payload, as the user gave it; null: it stays locked.
    passphrase: ?[]const u8 = null,

    /// The file that reference `index` of this kind stands for, in the image that is being opened; null when it was not
    /// given.
    pub fn reference(self: Context, kind: ReferenceKind, index: u32) block.DeviceError!?Given {
        const files = self.files orelse return null;
        return files.find(files.context, self.number, kind, index);
    }

    /// The device that `Segment.device` of the image being opened says; `error.NoDevice` when there is none.
    pub fn deviceAt(self: Context, number: u32) block.DeviceError!block.Device {
        const files = self.files orelse return error.NoDevice;
        return files.device(files.context, number);
    }

    /// This context for opening the file on another device.
    pub fn of(self: Context, given: Given) Context {
        var other = self;
        other.number = given.number;
        return other;
    }

    /// Say how far a loop is: now and then, because each time somebody looks costs an exit.
    pub fn tick(self: Context, done: u64, total: u64) void {
        const every = 256;
        if (done % every != 0) return;
        if (self.progress) |tell| tell(done, total);
    }
};

/// What a file that an image names is to it.
pub const ReferenceKind = enum {
    /// Answers for what is unallocated.
    backing_file,
    /// Holds a qcow2 image's guest data.
    data_file,
    /// Part of a VMDK disk; `index` counts the extents of the descriptor from 0.
    extent,
    /// The parent of a differencing VMDK, VHD or VHDX.
    parent,

    /// As in messages.
    pub fn text(self: ReferenceKind) []const u8 {
        return switch (self) {
            .backing_file => "backing-file",
            .data_file => "data-file",
            .extent => "extent",
            .parent => "parent",
        };
    }
};

/// A file that a reference was resolved to.
pub const Given = struct {
    /// Number of its device.
    number: u32,
    device: block.Device,
    /// Driver name of its format where the image states it; null: detection decides.
    format: ?[]const u8 = null,
};

/// The files of a chain: all of them are devices of one machine.
pub const Files = struct {
    context: *anyopaque,
    find: *const fn (context: *anyopaque, owner: u32, kind: ReferenceKind, index: u32) block.DeviceError!?Given,
    /// By number, 0 being the first image of all.
    device: *const fn (context: *anyopaque, number: u32) block.DeviceError!block.Device,
};

/// What an overlay writes down of its parent, to know it again.
pub const Identity = union(enum) {
    /// VHD: the footer's unique identifier, as it lies in the file.
    vhd: [16]u8,
    /// VHDX: the data write GUID of the header that counts, as it lies in the file.
    vhdx: [16]u8,
    /// VMDK: the content identifier.
    cid: u32,
};

/// How a range of the virtual disk is stored.
pub const Kind = enum {
    /// Bytes in the file.
    data,
    /// Reads as zero by what this image itself says.
    zero,
    /// Nothing here: the backing file or parent answers, or zero when there is none.
    unallocated,
};

/// A run of the virtual disk that is stored in one way.
pub const Segment = struct {
    /// Byte offset in the virtual disk.
    start: u64,
    /// Bytes, at least 1, never past the virtual size.
    length: u64,
    kind: Kind,
    compressed: bool = false,
    /// Data by what the format says, and zero because the file has a hole there; only where `kind` is zero.
    hole: bool = false,
    /// Where the first byte lies in the device, when the run is contiguous there.
    offset: ?u64 = null,
    /// Number of the device that `offset` counts in; 0 stands for the image's own file, whatever its number.
    device: u32 = 0,
    /// How far down the chain of backing files the answer was found; 0 is the image itself.
    depth: u32 = 0,

    /// `device` of what lies in a file that was not given.
    pub const elsewhere = std.math.maxInt(u32);
};

/// A persistent dirty bitmap, as far as its size matters.
pub const Bitmap = struct {
    /// Bytes of virtual disk that a bit stands for, at least 1.
    granularity: u64,
    /// Bytes of its name.
    name_length: u32,
};

/// An opened image: the virtual disk as a sequence of segments.
pub const Image = struct {
    driver: []const u8,
    /// Bytes; <= 2^63-1, checked where it entered.
    virtual_size: u64,
    /// Cluster, grain or block size in bytes; 0 where the format has none.
    cluster_size: u64 = 0,
    /// Whether another file stands behind unallocated ranges.
    has_backing: bool = false,
    /// Whether qemu's driver does not tell where the data lie: its `measure` and `map` take the whole disk for data.
    opaque_to_qemu: bool = false,
    /// Persistent bitmaps; null when the format, or its version, cannot have any.
    bitmaps: ?[]const Bitmap = null,
    context: *anyopaque,
    segment_at: *const fn (context: *anyopaque, start: u64) block.Error!Segment,
    /// Fills a buffer from byte `start` of the disk where the bytes are not those of the device at a segment's `offset`:
    /// decompressed, decrypted.  The range lies inside the disk.  Null: only `offset` leads to bytes.
    read: ?*const fn (context: *anyopaque, start: u64, buffer: []u8) block.Error!void = null,

    /// The segment that begins at byte `start` (< virtual_size).  Walking from 0 by `length` partitions the disk.
    pub fn segmentAt(self: Image, start: u64) block.Error!Segment {
        std.debug.assert(start < self.virtual_size);
        const segment = try self.segment_at(self.context, start);
        std.debug.assert(segment.start == start and segment.length > 0);
        std.debug.assert(segment.length <= self.virtual_size - start);
        return segment;
    }

    /// The disk as qemu's `measure` and `map` have it; valid while `self` lives and stays where it is.
    pub fn asQemuSees(self: *Image) Image {
        if (!self.opaque_to_qemu) return self.*;
        var seen = self.*;
        seen.context = self;
        seen.segment_at = allData;
        return seen;
    }

    fn allData(context: *anyopaque, start: u64) block.Error!Segment {
        const self: *Image = @ptrCast(@alignCast(context));
        return .{ .start = start, .length = self.virtual_size - start, .kind = .data };
    }
};

/// An encrypted image that a passphrase opened.
pub const Unlocked = struct {
    /// Its `read` decrypts.
    image: Image,
    /// Number of the key slot that the passphrase opened.
    keyslot: u32,
};

/// Where an operation's messages go while a format is at work (lists are streamed, never collected).
pub const Sink = struct {
    context: *anyopaque,
    deliver: *const fn (context: *anyopaque, message: []const u8) block.Error!void,

    /// Encode one of the generated message structs and deliver it.
    pub fn emit(self: Sink, message: anytype) block.Error!void {
        const cbor = @import("cbor");
        var buffer: [4096]u8 = undefined;
        const encoded = cbor.encodeMessage(&buffer, message) catch return error.TooLarge;
        return self.deliver(self.context, encoded);
    }

    /// Deliver a reference, whose name may be longer than what `emit` encodes.  One that is too long for a path is cut
    /// so that it stays too long, and is not followed: what is left of it names another file.
    pub fn emitReference(self: Sink, context: Context, reference: messages.InfoReference) block.Error!void {
        const cbor = @import("cbor");
        var cut = reference;
        cut.name = text.shorten(reference.name, max_name);
        const buffer = context.allocator.alloc(u8, cut.name.len + 512) catch return error.NoMemory;
        const encoded = cbor.encodeMessage(buffer, cut) catch return error.TooLarge;
        return self.deliver(self.context, encoded);
    }

    /// Bytes of a name: more than a path can have, also when a character is cut off.
    const max_name = 8192;
};

/// One format.  A null function means that the operation does not exist for it.
pub const Driver = struct {
    /// qemu's driver name, as in `-f`.
    name: []const u8,
    /// How sure this format is of the image, 0 (no) to 100.  Ties are broken by order in the registry.
    probe: *const fn (probe: *const Probe) u8,
    /// Open for reading the virtual disk's structure.
    open: ?*const fn (context: Context, device: block.Device) block.Error!Image = null,
    /// As `Image.read`, on the context of an image that `open` opened.  Apart from `open` so that only operations that
    /// look at content carry its code.
    read: ?*const fn (context: *anyopaque, start: u64, buffer: []u8) block.Error!void = null,
    /// Fill the `info` message; lists go to the sink first.
    info: ?*const fn (context: Context, device: block.Device, sink: Sink, report: *messages.Info) block.Error!void = null,
    /// Emit an `info-reference` for each file that the image names, with `index`; `info` says the same.
    references: ?*const fn (context: Context, device: block.Device, sink: Sink) block.Error!void = null,
    /// Virtual size in bytes, after the checks of `open` but without the code of segments; null: `open` says it.
    size: ?*const fn (context: Context, device: block.Device) block.Error!u64 = null,
    /// What an overlay on this image writes down of it.
    identity: ?*const fn (context: Context, device: block.Device) block.Error!Identity = null,
    /// Plan another virtual size, in bytes, of the image on `device`; reads and never writes.
    resize: ?*const fn (context: Context, device: block.Device, request: *const messages.ResizeRequest) block.Error!steps.Resize = null,
    /// Open an encrypted image with the context's passphrase, for reading what the disk holds (`Image.read`).
    unlock: ?*const fn (context: Context, device: block.Device) block.Error!Unlocked = null,
    /// Check consistency; findings go to the sink first.
    check: ?*const fn (context: Context, device: block.Device, sink: Sink, report: *messages.Check) block.Error!void = null,
};

/// The bytes that probing looks at, read once for all formats.
pub const Probe = struct {
    /// Exact length of the device in bytes.
    length: u64,
    /// The first bytes of the device.
    head: []const u8,
    /// The last bytes of the device.
    tail: []const u8,
    device: block.Device,
};
