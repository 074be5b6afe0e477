//! A file of the host as a block device, so that format code can be run against real images without a machine.

const std = @import("std");
const linux = std.os.linux;
const block = @import("block");

pub const FileDevice = struct {
    fd: i32,
    read_only: bool,

    /// Open a file for reading, create one, or open one to change it.
    pub fn open(path: [:0]const u8, mode: enum { read, create, update }) error{OpenFailed}!FileDevice {
        const flags: linux.O = switch (mode) {
            .read => .{ .CLOEXEC = true },
            .create => .{ .CLOEXEC = true, .ACCMODE = .RDWR, .CREAT = true, .TRUNC = true },
            .update => .{ .CLOEXEC = true, .ACCMODE = .RDWR },
        };
        const fd = linux.open(path, flags, 0o644);
        if (linux.errno(fd) != .SUCCESS) return error.OpenFailed;
        return .{ .fd = @intCast(fd), .read_only = mode == .read };
    }

    /// The view that formats take; valid while `self` stays where it is.
    pub fn device(self: *FileDevice) block.Device {
        const end = linux.lseek(self.fd, 0, linux.SEEK.END);
        return .{ .context = self, .vtable = &vtable, .length = end, .read_only = self.read_only, .allocated = self.allocated() };
    }

    fn allocated(self: *FileDevice) ?u64 {
        var status: linux.Statx = undefined;
        const done = linux.statx(self.fd, "", linux.AT.EMPTY_PATH, .{ .BLOCKS = true }, &status);
        return if (linux.errno(done) == .SUCCESS) status.blocks * 512 else null;
    }

    const vtable: block.Device.VTable = .{
        .read = read,
        .read_many = readMany,
        .write = write,
        .write_many = writeMany,
        .write_zeroes = writeZeroes,
        .flush = flush,
        .set_length = setLength,
        .block_status = blockStatus,
    };

    fn from(context: *anyopaque) *FileDevice {
        return @ptrCast(@alignCast(context));
    }

    fn read(context: *anyopaque, offset: u64, buffer: []u8) block.DeviceError!void {
        var done: usize = 0;
        while (done < buffer.len) {
            const got = linux.pread(from(context).fd, buffer.ptr + done, buffer.len - done, @intCast(offset + done));
            if (linux.errno(got) != .SUCCESS) return error.Io;
            if (got == 0) return error.Range;
            done += got;
        }
    }

    fn readMany(context: *anyopaque, reads: []const block.Read) block.DeviceError!void {
        for (reads) |one| try read(context, one.offset, one.buffer);
    }

    fn write(context: *anyopaque, offset: u64, bytes: []const u8) block.DeviceError!void {
        var done: usize = 0;
        while (done < bytes.len) {
            const put = linux.pwrite(from(context).fd, bytes.ptr + done, bytes.len - done, @intCast(offset + done));
            if (linux.errno(put) != .SUCCESS) return error.Io;
            done += put;
        }
    }

    fn writeMany(context: *anyopaque, writes: []const block.Write) block.DeviceError!void {
        for (writes) |one| try write(context, one.offset, one.bytes);
    }

    fn writeZeroes(context: *anyopaque, offset: u64, length: u64) block.DeviceError!void {
        const zeroes: [4096]u8 = @splat(0);
        var done: u64 = 0;
        while (done < length) {
            const piece: usize = @intCast(@min(length - done, zeroes.len));
            try write(context, offset + done, zeroes[0..piece]);
            done += piece;
        }
    }

    fn flush(_: *anyopaque) block.DeviceError!void {}

    fn setLength(context: *anyopaque, length: u64) block.DeviceError!void {
        const signed = std.math.cast(i64, length) orelse return error.NoSpace;
        if (linux.errno(linux.ftruncate(from(context).fd, signed)) != .SUCCESS) return error.NoSpace;
    }

    const seek_data = 3;
    const seek_hole = 4;

    fn blockStatus(context: *anyopaque, offset: u64, length: u64, out: []block.Extent) block.DeviceError![]block.Extent {
        const fd = from(context).fd;
        const end = offset + length;
        var at = offset;
        var count: usize = 0;
        while (at < end and count < out.len) : (count += 1) {
            const found = linux.lseek(fd, @intCast(at), seek_data);
            const data = if (linux.errno(found) == .SUCCESS) @min(found, end) else end;
            if (data > at) {
                out[count] = .{ .offset = at, .length = data - at, .flags = 0 };
            } else {
                const hole = linux.lseek(fd, @intCast(at), seek_hole);
                if (linux.errno(hole) != .SUCCESS) return error.Io;
                out[count] = .{ .offset = at, .length = @min(hole, end) - at, .flags = block.Extent.data_flag };
            }
            at += out[count].length;
        }
        return out[0..count];
    }
};
