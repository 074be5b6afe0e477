//! The formats without the machine: opens a file on the host, runs info, check or the segment walk of a driver on it,
//! and writes the report to standard output as a sequence of CBOR items.  For tests and debugging only; nothing of
//! the product uses it.
//!
//!     host_tool info|check|segments|references|read FORMAT|auto FILE [extent|parent|... FILE]...
//!     host_tool resize FORMAT|auto FILE SIZE [grow] [shrink] [PREALLOCATION]
//!
//! `read` writes the disk's bytes instead.  Files of one kind that follow are those of its references, in order; without
//! any, references are not followed.  `resize` writes nothing: it emits each step of the plan, then the answer.
//! The exit status is the operation's: 1 refused; check: 1, 2 or 3 by its counters, 63 without checks.

const std = @import("std");
const linux = std.os.linux;
const block = @import("block");
const cbor = @import("cbor");
const formats = @import("formats");
const messages = @import("messages");
const image = formats.image;

/// lseek(2).
const seek_data = 3;
const seek_hole = 4;

const File = struct {
    fd: i32,

    const vtable: block.Device.VTable = .{
        .read = read,
        .read_many = readMany,
        .write = undefined,
        .write_many = undefined,
        .write_zeroes = undefined,
        .flush = undefined,
        .set_length = undefined,
        .block_status = blockStatus,
    };

    fn open(path: [*:0]const u8) !File {
        const result = linux.open(path, .{ .ACCMODE = .RDONLY, .CLOEXEC = true }, 0);
        if (linux.errno(result) != .SUCCESS) return error.Open;
        return .{ .fd = @intCast(result) };
    }

    fn device(self: *File) !block.Device {
        const end = linux.lseek(self.fd, 0, linux.SEEK.END);
        if (linux.errno(end) != .SUCCESS) return error.Open;
        var status: linux.Statx = undefined;
        if (linux.errno(linux.statx(self.fd, "", linux.AT.EMPTY_PATH, .{ .BLOCKS = true }, &status)) != .SUCCESS) return error.Open;
        return .{ .context = self, .vtable = &vtable, .length = end, .allocated = status.blocks * 512 };
    }

    fn read(context: *anyopaque, offset: u64, buffer: []u8) block.DeviceError!void {
        const self: *File = @ptrCast(@alignCast(context));
        var done: usize = 0;
        while (done < buffer.len) {
            const got = linux.pread(self.fd, buffer.ptr + done, buffer.len - done, @intCast(offset + done));
            if (linux.errno(got) != .SUCCESS or got == 0) return error.Io;
            done += got;
        }
    }

    fn readMany(context: *anyopaque, reads: []const block.Read) block.DeviceError!void {
        for (reads) |r| try read(context, r.offset, r.buffer);
    }

    fn blockStatus(context: *anyopaque, offset: u64, length: u64, out: []block.Extent) block.DeviceError![]block.Extent {
        const self: *File = @ptrCast(@alignCast(context));
        const end = offset + length;
        var at = offset;
        var count: usize = 0;
        while (at < end and count < out.len) {
            const data = linux.lseek(self.fd, @intCast(at), seek_data);
            const data_at = if (linux.errno(data) == .SUCCESS) @min(data, end) else end;
            const is_data = data_at == at;
            const hole = if (is_data) linux.lseek(self.fd, @intCast(at), seek_hole) else data_at;
            const stop = @min(end, hole);
            out[count] = .{ .offset = at, .length = stop - at, .flags = @intFromBool(is_data) };
            count += 1;
            at = stop;
        }
        return out[0..count];
    }
};

const Segment = struct {
    pub const message_name = "segment";
    start: u64,
    length: u64,
    kind: image.Kind,
    compressed: bool,
    offset: ?u64,
    hole: bool,
    device: u64,
};

/// The files that were named behind the image, as devices from 1 on.
const Named = struct {
    kinds: []const image.ReferenceKind,
    files: []File,
    /// Device 0.
    image: block.Device = undefined,

    fn parse(allocator: std.mem.Allocator, arguments: []const [:0]const u8) !Named {
        const kinds = try allocator.alloc(image.ReferenceKind, arguments.len / 2);
        const files = try allocator.alloc(File, arguments.len / 2);
        for (kinds, files, 0..) |*kind, *file, index| {
            kind.* = for (std.enums.values(image.ReferenceKind)) |one| {
                if (std.mem.eql(u8, one.text(), arguments[2 * index])) break one;
            } else return error.UnknownKind;
            file.* = try File.open(arguments[2 * index + 1]);
        }
        return .{ .kinds = kinds, .files = files };
    }

    fn find(context: *anyopaque, owner: u32, kind: image.ReferenceKind, index: u32) block.DeviceError!?image.Given {
        const self: *Named = @ptrCast(@alignCast(context));
        if (owner != 0) return null;
        var seen: u32 = 0;
        for (self.kinds, self.files, 1..) |one, *file, number| {
            if (one != kind) continue;
            if (seen == index) return .{ .number = @intCast(number), .device = file.device() catch return error.Io };
            seen += 1;
        }
        return null;
    }

    fn deviceAt(context: *anyopaque, number: u32) block.DeviceError!block.Device {
        const self: *Named = @ptrCast(@alignCast(context));
        if (number == 0) return self.image;
        if (number > self.files.len) return error.NoDevice;
        return self.files[number - 1].device() catch return error.Io;
    }
};

/// A step of a plan: kind is write, zero, length or flush.
const Step = struct {
    pub const message_name = "step";
    kind: []const u8,
    offset: u64 = 0,
    length: u64 = 0,
    bytes: ?cbor.Bytes = null,
};

fn emitStep(step: Step) block.Error!void {
    var large: [1 << 16]u8 = undefined;
    write(cbor.encodeMessage(&large, step) catch return error.TooLarge);
}

/// Writes go out in pieces of whole sectors, as far as they are whole.
fn emitWrite(offset: u64, bytes: []const u8) block.Error!void {
    const piece = 32 << 10;
    var done: usize = 0;
    while (done < bytes.len) {
        const part = bytes[done..@min(bytes.len, done + piece)];
        try emitStep(.{ .kind = "write", .offset = offset + done, .length = part.len, .bytes = .{ .bytes = part } });
        done += part.len;
    }
}

fn resize(context: image.Context, device: block.Device, name: []const u8, words: []const [:0]const u8) block.Error!u8 {
    const driver = try pick(formats.Registry(.resize), context, device, name);
    const plan = driver.resize orelse return formats.refuse(context, driver.name, .resize);
    var request: messages.ResizeRequest = .{ .size = std.fmt.parseInt(u64, words[0], 10) catch return error.Invalid };
    for (words[1..]) |word| {
        if (std.mem.eql(u8, word, "shrink")) {
            request.shrink = true;
        } else if (std.mem.eql(u8, word, "grow")) {
            request.relative = "grow";
        } else {
            request.preallocation = word;
        }
    }
    const planned = try plan(context, device, &request);
    for (planned.steps) |step| switch (step) {
        .write => |one| try emitWrite(one.offset, one.bytes),
        .fill => |region| {
            var pending: formats.targets.plan.Writes = .{ .regions = &.{region}, .length = region.end() };
            var buffer: [1 << 15]u8 = undefined;
            while (pending.next(&buffer)) |one| try emitWrite(one.offset, one.bytes);
        },
        .zero => |range| try emitStep(.{ .kind = "zero", .offset = range.offset, .length = range.length }),
        .length => |length| try emitStep(.{ .kind = "length", .length = length }),
        .flush => try emitStep(.{ .kind = "flush" }),
    };
    var small: [4096]u8 = undefined;
    write(cbor.encodeMessage(&small, messages.Resize{
        .format = driver.name,
        .old_size = planned.old_size,
        .virtual_size = planned.new_size,
        .file_length = 0,
    }) catch return error.TooLarge);
    return 0;
}

fn write(bytes: []const u8) void {
    var done: usize = 0;
    while (done < bytes.len) {
        const put = linux.write(1, bytes.ptr + done, bytes.len - done);
        if (linux.errno(put) != .SUCCESS) std.process.exit(74);
        done += put;
    }
}

fn deliver(_: *anyopaque, message: []const u8) block.Error!void {
    write(message);
}

pub fn main(init: std.process.Init) !u8 {
    const arguments = try init.minimal.args.toSlice(init.arena.allocator());
    if (arguments.len < 4) return 64;
    var diagnostic: block.Diagnostic = .{};
    var context: image.Context = .{ .allocator = init.arena.allocator(), .diagnostic = &diagnostic };
    const resizing = std.mem.eql(u8, arguments[1], "resize");
    if (!resizing and arguments.len % 2 != 0) return 64;
    var named = Named.parse(context.allocator, if (resizing) &.{} else arguments[4..]) catch return 74;
    if (named.files.len > 0) context.files = .{ .context = &named, .find = Named.find, .device = Named.deviceAt };
    var file = File.open(arguments[3]) catch return 74;
    const device = file.device() catch return 74;
    named.image = device;
    const sink: image.Sink = .{ .context = &file, .deliver = deliver };
    const answered = if (resizing and arguments.len > 4)
        resize(context, device, arguments[2], arguments[4..])
    else
        run(context, device, sink, arguments[1], arguments[2]);
    return answered catch |reason| {
        const code = if (reason == error.Refused) @tagName(diagnostic.code) else @errorName(reason);
        try sink.emit(messages.Error{
            .code = code,
            .message = diagnostic.message(),
            .structure = diagnostic.structure,
            .offset = diagnostic.offset,
            .value = diagnostic.value,
            .limit = diagnostic.limit,
        });
        return if (diagnostic.code == .no_checks) 63 else 1;
    };
}

fn run(context: image.Context, device: block.Device, sink: image.Sink, operation: []const u8, name: []const u8) block.Error!u8 {
    var large: [1 << 16]u8 = undefined;
    if (std.mem.eql(u8, operation, "info")) {
        const driver = try pick(formats.Registry(.info), context, device, name);
        const info = driver.info orelse return formats.refuse(context, driver.name, .info);
        var report: messages.Info = .{ .format = driver.name, .virtual_size = 0, .file_length = device.length, .dirty_flag = false };
        try info(context, device, sink, &report);
        write(cbor.encodeMessage(&large, report) catch return error.TooLarge);
        return 0;
    }
    if (std.mem.eql(u8, operation, "check")) {
        const driver = try pick(formats.Registry(.check), context, device, name);
        const check = driver.check orelse return formats.refuse(context, driver.name, .check);
        var report: messages.Check = .{ .format = driver.name, .file_length = device.length, .check_errors = 0, .corruptions = 0, .leaks = 0, .findings_omitted = 0 };
        try check(context, device, sink, &report);
        write(cbor.encodeMessage(&large, report) catch return error.TooLarge);
        return if (report.check_errors > 0) 1 else if (report.corruptions > 0) 2 else if (report.leaks > 0) 3 else 0;
    }
    if (std.mem.eql(u8, operation, "references")) {
        const driver = try pick(formats.Registry(.references), context, device, name);
        const references = driver.references orelse return formats.refuse(context, driver.name, .references);
        try references(context, device, sink);
        return 0;
    }
    if (std.mem.eql(u8, operation, "read")) return readDisk(context, device, name);
    const driver = try pick(formats.Registry(.measure), context, device, name);
    const open = driver.open orelse return formats.refuse(context, driver.name, .measure);
    const opened = try open(context, device);
    var position: u64 = 0;
    while (position < opened.virtual_size) {
        const segment = try opened.segmentAt(position);
        try sink.emit(Segment{ .start = segment.start, .length = segment.length, .kind = segment.kind, .compressed = segment.compressed, .offset = segment.offset, .hole = segment.hole, .device = segment.device });
        position += segment.length;
    }
    return 0;
}

/// The bytes of the disk, through the driver's reader.
fn readDisk(context: image.Context, device: block.Device, name: []const u8) block.Error!u8 {
    const driver = try pick(formats.Registry(.info), context, device, name);
    const open = driver.open orelse return formats.refuse(context, driver.name, .info);
    const reader = driver.read orelse return formats.refuse(context, driver.name, .info);
    const opened = try open(context, device);
    // A size that no grain has, so that reads begin and end anywhere.
    const buffer = context.allocator.alloc(u8, 100_003) catch return error.NoMemory;
    var position: u64 = 0;
    while (position < opened.virtual_size) {
        const part = buffer[0..@intCast(@min(buffer.len, opened.virtual_size - position))];
        try reader(opened.context, position, part);
        write(part);
        position += part.len;
    }
    return 0;
}

fn pick(comptime Registry: type, context: image.Context, device: block.Device, name: []const u8) block.Error!*const image.Driver {
    if (std.mem.eql(u8, name, "auto")) return Registry.detect(context, device);
    return Registry.byName(context, name);
}
