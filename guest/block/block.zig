//! What a format sees of the world: a block device as a byte range, and a place to say what is wrong with it.
//!
//! Nothing here knows virtio, the call table or an operating system.  The same format code runs on a device of the
//! machine (sdk/device.zig), on bytes in memory in a host test (`Memory`), and under a fuzzer.

const std = @import("std");
pub const search = @import("search.zig");
pub const sentence = @import("sentence.zig");

/// What can go wrong with a device, as opposed to its content.
pub const DeviceError = error{ Invalid, Range, ReadOnly, Io, NoSpace, Unsupported, NoDevice, NoMemory, TooLarge };

/// Everything a format function may return: a device error, or `Refused` with the reason in the Diagnostic.
pub const Error = DeviceError || error{Refused};

/// A run of bytes of one kind, as the host's file system reports it.
pub const Extent = extern struct {
    /// Byte offset in the device.
    offset: u64,
    /// Bytes.
    length: u64,
    /// `data_flag` or 0 (a hole, reads as zero).
    flags: u64,

    pub const data_flag: u64 = 1;

    pub fn isData(self: Extent) bool {
        return self.flags & data_flag != 0;
    }
};

/// One read of a batch.
pub const Read = struct {
    offset: u64,
    buffer: []u8,
};

/// One write of a batch.
pub const Write = struct {
    offset: u64,
    bytes: []const u8,
};

/// A block device: byte-addressed, of exact length in bytes.
pub const Device = struct {
    context: *anyopaque,
    vtable: *const VTable,
    /// Exact length in bytes of the device when it was opened; `setLength` and writes past the end change the device,
    /// and the functions below keep this field true for the Device value they are called on.
    length: u64,
    read_only: bool = true,
    /// Bytes that the host's file system has allocated for it (st_blocks), null where that is not known.  It is what
    /// qemu calls the actual size; extents that are allocated but were never written count here and are holes below.
    allocated: ?u64 = null,

    pub const VTable = struct {
        read: *const fn (*anyopaque, u64, []u8) DeviceError!void,
        read_many: *const fn (*anyopaque, []const Read) DeviceError!void,
        write: *const fn (*anyopaque, u64, []const u8) DeviceError!void,
        write_many: *const fn (*anyopaque, []const Write) DeviceError!void,
        write_zeroes: *const fn (*anyopaque, u64, u64) DeviceError!void,
        flush: *const fn (*anyopaque) DeviceError!void,
        set_length: *const fn (*anyopaque, u64) DeviceError!void,
        block_status: *const fn (*anyopaque, u64, u64, []Extent) DeviceError![]Extent,
    };

    /// Fill `buffer` from byte `offset`; the whole range must lie inside the device, otherwise `error.Range`.
    pub fn read(self: Device, offset: u64, buffer: []u8) DeviceError!void {
        if (buffer.len == 0) return;
        const end = std.math.add(u64, offset, buffer.len) catch return error.Range;
        if (end > self.length) return error.Range;
        return self.vtable.read(self.context, offset, buffer);
    }

    /// Like `read`, but bytes past the end of the device read as zero.
    pub fn readPadded(self: Device, offset: u64, buffer: []u8) DeviceError!void {
        const inside: usize = if (offset >= self.length) 0 else @intCast(@min(self.length - offset, buffer.len));
        try self.read(offset, buffer[0..inside]);
        @memset(buffer[inside..], 0);
    }

    /// A batch of reads, in as few exits as the transport can.
    pub fn readMany(self: Device, reads: []const Read) DeviceError!void {
        for (reads) |r| {
            const end = std.math.add(u64, r.offset, r.buffer.len) catch return error.Range;
            if (end > self.length) return error.Range;
        }
        return self.vtable.read_many(self.context, reads);
    }

    pub fn write(self: *Device, offset: u64, bytes: []const u8) DeviceError!void {
        if (self.read_only) return error.ReadOnly;
        const end = std.math.add(u64, offset, bytes.len) catch return error.Range;
        try self.vtable.write(self.context, offset, bytes);
        self.length = @max(self.length, end);
    }

    /// A batch of writes that do not overlap, in any order.
    pub fn writeMany(self: *Device, writes: []const Write) DeviceError!void {
        if (self.read_only) return error.ReadOnly;
        var furthest = self.length;
        for (writes) |w| furthest = @max(furthest, std.math.add(u64, w.offset, w.bytes.len) catch return error.Range);
        try self.vtable.write_many(self.context, writes);
        self.length = furthest;
    }

    /// The range reads as zero afterwards; the host may leave a hole.  Does not make the device longer.
    pub fn writeZeroes(self: *Device, offset: u64, length: u64) DeviceError!void {
        if (self.read_only) return error.ReadOnly;
        const end = std.math.add(u64, offset, length) catch return error.Range;
        if (end > self.length) return error.Range;
        return self.vtable.write_zeroes(self.context, offset, length);
    }

    pub fn flush(self: Device) DeviceError!void {
        return self.vtable.flush(self.context);
    }

    pub fn setLength(self: *Device, length: u64) DeviceError!void {
        if (self.read_only) return error.ReadOnly;
        try self.vtable.set_length(self.context, length);
        self.length = length;
    }

    /// Data and holes of [offset, offset + length), in order and without gaps, as far as `out` reaches.
    pub fn blockStatus(self: Device, offset: u64, length: u64, out: []Extent) DeviceError![]Extent {
        const end = std.math.add(u64, offset, length) catch return error.Range;
        if (end > self.length) return error.Range;
        if (length == 0) return out[0..0];
        return self.vtable.block_status(self.context, offset, length, out);
    }
};

/// Why an image (or a request) was refused.  Filled once by the code that returns `error.Refused`; the operation
/// turns it into the `error` message of calltable/definition/messages/common.toml.
pub const Diagnostic = struct {
    code: Code = .corrupt,
    format: ?[]const u8 = null,
    structure: ?[]const u8 = null,
    offset: ?u64 = null,
    value: ?u64 = null,
    limit: ?u64 = null,
    /// Number of the device whose content was refused, where it is not the first one's.
    device: ?u64 = null,
    text: [384]u8 = undefined,
    text_length: usize = 0,

    /// The `code` of the error message; names are the CBOR spelling with `_` for `-`.
    pub const Code = enum { invalid_option, unsupported, corrupt, out_of_bounds, too_large, needs_reference, io, no_memory, no_checks, wrong_passphrase };

    pub const Details = struct {
        format: ?[]const u8 = null,
        structure: ?[]const u8 = null,
        offset: ?u64 = null,
        value: ?u64 = null,
        limit: ?u64 = null,
    };

    /// As `.{}`, but what the text holds stays undefined.
    pub fn clear(self: *Diagnostic) void {
        self.code = .corrupt;
        self.format = null;
        self.structure = null;
        self.offset = null;
        self.value = null;
        self.limit = null;
        self.device = null;
        self.text_length = 0;
    }

    /// Record the reason and return `error.Refused`: `return diagnostic.refuse(.too_large, .{...}, "text {d}", .{x});`
    /// The sentence names the format and structure but not the file; it is cut, with an ellipsis, at 384 bytes.
    /// Placeholders are those of sentence.zig.
    pub inline fn refuse(self: *Diagnostic, code: Code, details: Details, comptime format: []const u8, arguments: anytype) error{Refused} {
        return self.record(code, &details, format, &sentence.pack(format, arguments));
    }

    /// One function for all refusals: there are many calls of `refuse`.
    noinline fn record(self: *Diagnostic, code: Code, details: *const Details, format: []const u8, arguments: []const sentence.Argument) error{Refused} {
        @branchHint(.cold);
        self.code = code;
        self.format = details.format;
        self.structure = details.structure;
        self.offset = details.offset;
        self.value = details.value;
        self.limit = details.limit;
        self.text_length = sentence.fill(&self.text, format, arguments).len;
        return error.Refused;
    }

    pub fn message(self: *const Diagnostic) []const u8 {
        return self.text[0..self.text_length];
    }
};

pub const Memory = @import("memory.zig").Memory;

test {
    _ = @import("memory.zig");
    _ = search;
    _ = sentence;
}
