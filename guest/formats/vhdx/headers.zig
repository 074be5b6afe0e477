//! The two headers, and which of them counts.
//!
//! [MS-VHDX] 2.2.2.  The one that is not being rewritten is always whole; both are judged as qemu judges them.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const none = @import("../qcow2/template.zig").none;
const format = @import("format.zig");
const refuse = @import("vhdx.zig").refuse;

pub const Condition = enum { valid, bad_checksum, bad_signature, bad_version };

/// A header as it lies in the file.
pub const Header = struct {
    bytes: *const [format.header_size]u8,
    /// Byte offset in the file.
    offset: u64,
    condition: Condition,

    fn of(bytes: *const [format.header_size]u8, offset: u64) Header {
        return .{ .bytes = bytes, .offset = offset, .condition = judge(bytes) };
    }

    fn judge(bytes: *const [format.header_size]u8) Condition {
        if (!format.checksumIsRight(bytes)) return .bad_checksum;
        if (!std.mem.startsWith(u8, bytes, format.header_signature)) return .bad_signature;
        return if (format.int(u16, bytes, 66) == format.header_version) .valid else .bad_version;
    }

    pub fn checksum(self: *const Header) u32 {
        return format.int(u32, self.bytes, 4);
    }
    pub fn sequence(self: *const Header) u64 {
        return format.int(u64, self.bytes, 8);
    }
    /// Changes with every opening for writing.
    pub fn fileWriteGuid(self: *const Header) *const [16]u8 {
        return self.bytes[16..32];
    }
    /// Changes when what the disk holds changes; children name their parent by it.
    pub fn dataWriteGuid(self: *const Header) *const [16]u8 {
        return self.bytes[32..48];
    }
    /// Of valid log entries; zero: the log is empty.
    pub fn logGuid(self: *const Header) *const [16]u8 {
        return self.bytes[48..64];
    }
    pub fn logVersion(self: *const Header) u16 {
        return format.int(u16, self.bytes, 64);
    }
    pub fn version(self: *const Header) u16 {
        return format.int(u16, self.bytes, 66);
    }
    /// Bytes.
    pub fn logLength(self: *const Header) u32 {
        return format.int(u32, self.bytes, 68);
    }
    pub fn logOffset(self: *const Header) u64 {
        return format.int(u64, self.bytes, 72);
    }
    pub fn reserved(self: *const Header) []const u8 {
        return self.bytes[80..];
    }
};

pub const Headers = struct {
    copies: [2]Header,
    /// Index of the header that counts.
    active: u1 = 0,

    pub fn current(self: *const Headers) *const Header {
        return &self.copies[self.active];
    }

    /// Read both; what lies past the end of the file reads as zero, and is then no header.
    pub fn read(context: image.Context, device: block.Device) block.Error!Headers {
        const bytes = context.allocator.create([2][format.header_size]u8) catch return error.NoMemory;
        var headers: Headers = undefined;
        for (format.header_offsets, &bytes.*, &headers.copies) |offset, *one, *copy| {
            try device.readPadded(offset, one);
            copy.* = .of(one, offset);
        }
        headers.active = 0;
        return headers;
    }

    /// Find the active header.
    pub fn pick(self: *Headers, context: image.Context) error{Refused}!void {
        const valid = [2]bool{ self.copies[0].condition == .valid, self.copies[1].condition == .valid };
        if (valid[0] and valid[1]) {
            const first = self.copies[0].sequence();
            const second = self.copies[1].sequence();
            // Disk2vhd writes the same header twice.
            if (first == second and !self.areEqual()) {
                return refuse(context.diagnostic, .corrupt, "header", "No valid VHDX header found: both say sequence number {value} and differ", format.header_offsets[1], second, none);
            }
            self.active = @intFromBool(second > first);
        } else if (valid[0] or valid[1]) {
            self.active = @intFromBool(valid[1]);
        } else return self.noHeader(context);
    }

    pub fn areEqual(self: *const Headers) bool {
        return std.mem.eql(u8, self.copies[0].bytes[0..80], self.copies[1].bytes[0..80]);
    }

    fn noHeader(self: *const Headers, context: image.Context) error{Refused} {
        const first = &self.copies[0];
        return switch (first.condition) {
            .bad_version => refuse(context.diagnostic, .unsupported, "header", "No valid VHDX header found: the one at byte {offset} is of version {value}, not {limit}", first.offset, first.version(), format.header_version),
            .bad_signature => refuse(context.diagnostic, .corrupt, "header", "No valid VHDX header found: the one at byte {offset} has no signature", first.offset, none, none),
            else => refuse(context.diagnostic, .corrupt, "header", "No valid VHDX header found: checksum {value:x} at byte {offset}, should be {limit:x}", first.offset, first.checksum(), format.checksumOf(first.bytes)),
        };
    }
};
