//! What an operation links.  Its root file looks like this:
//!
//!     const sdk = @import("sdk");
//!     pub const panic = sdk.panic;
//!     comptime {
//!         _ = sdk; // brings the entry point
//!     }
//!
//!     pub fn operation(run: *sdk.Run) sdk.Error!void {
//!         const request = try run.request(messages.MeasureRequest);
//!         const device = try run.device(0);
//!         ...
//!         try run.emit(messages.Measure{ ... });
//!     }
//!
//! `error.Refused` ends the run with status 1 after an `error` message from `run.diagnostic`; so does a device error,
//! with a message that says what failed.  A panic is reported with its text and the address of the code.

const std = @import("std");
const root = @import("root").declarations;
pub const calltable = @import("calltable");
const block = @import("block");
const cbor = @import("cbor");
const messages = @import("messages");
const image = @import("formats").image;

const device_file = @import("device.zig");
const note = @import("note.zig");

pub const Error = block.Error;
pub const allocator = @import("allocator.zig").allocator;

/// The call table of the runtime; its address is part of the contract.
pub const table: *const calltable.Table = @ptrFromInt(calltable.call_table);

/// What a root file takes as its `panic`.
pub const panic = Panic(abort);

/// The panic interface over a function that ends the run.
pub const Panic = @import("panic.zig").Panic;

fn abort(text: []const u8, return_address: ?usize) noreturn {
    @branchHint(.cold);
    // A return address lies behind the call; the symboliser wants the call itself.
    const site = return_address orelse @returnAddress();
    table.abort(text.ptr, text.len, if (site > 0) site - 1 else 0);
}

comptime {
    if (@hasDecl(root, "operation")) {
        @export(&start, .{ .name = "_start" });
        @export(&note.needs, .{ .name = "pyvmm_note", .section = ".note.pyvmm" });
    }
}

/// What `Run.emitLarge` encodes into.
var large_buffer: ?[]u8 = null;

fn start(_: *const calltable.Table) callconv(.c) i64 {
    // Field by field: the text of the diagnostic is large, and would be a constant to copy from.
    var run: Run = undefined;
    run.status = 0;
    run.diagnostic.clear();
    root.operation(&run) catch |reason| {
        run.report(reason);
        return 1;
    };
    return run.status;
}

/// One run of the operation: what it was asked, what it works on, where its report goes.
pub const Run = struct {
    diagnostic: block.Diagnostic,
    /// What the run ends with when `operation` returns: 0 answered.
    status: u32,
    /// See `files`.
    chain: []const messages.ChainFile,

    pub const Level = enum(u32) { err = 1, warning = 2, info = 3, debug = 4 };

    /// The request, decoded; a key that T does not have, or a value that does not fit, is refused by name.
    pub fn request(self: *Run, comptime T: type) Error!T {
        var pointer = [1]calltable.Pointer{.{ .address = 0 }};
        const length = try answer(table.request(&pointer));
        const bytes = @as([*]const u8, @ptrFromInt(pointer[0].address))[0..length];
        var problem: cbor.Problem = .{};
        return cbor.decodeReporting(T, allocator, bytes, &problem) catch |reason| switch (reason) {
            error.OutOfMemory => error.NoMemory,
            else => self.refuseRequest(reason, problem.key),
        };
    }

    fn refuseRequest(self: *Run, reason: cbor.DecodeError, key: []const u8) error{Refused} {
        const what = switch (reason) {
            error.UnknownKey => "there is no such key",
            error.DuplicateKey => "the key comes twice",
            error.MissingKey => "the key is missing",
            error.WrongType => "a value of another type is expected",
            error.OutOfRange => "the value is not one of those allowed",
            error.InvalidText => "the text is not UTF-8",
            else => "not the CBOR that is expected",
        };
        return self.diagnostic.refuse(.invalid_option, .{}, "request: '{s}': {s}", .{ key[0..@min(key.len, 64)], what });
    }

    pub fn deviceCount(_: *const Run) usize {
        return answer(table.device_count()) catch 0;
    }

    /// Device number `index` of the machine; `error.NoDevice` when there are not so many.
    pub fn device(_: *const Run, index: usize) block.DeviceError!block.Device {
        return device_file.open(index);
    }

    /// The other files of the image, as the request lists them; null when references are not followed.
    pub fn files(self: *Run, list: ?[]const messages.ChainFile) ?image.Files {
        self.chain = list orelse return null;
        return .{ .context = self, .find = findFile, .device = fileDevice };
    }

    /// Have the context answer as the release of qemu that a request names as `major.minor`.
    pub fn answerAs(self: *Run, release: ?[]const u8, which: *image.Context) Error!void {
        const asked = release orelse return;
        which.qemu_major = std.fmt.parseInt(u16, block.search.until(asked, '.'), 10) catch
            return self.diagnostic.refuse(.invalid_option, .{}, "'{s}' is no qemu version", .{asked[0..@min(asked.len, 64)]});
    }

    fn findFile(opaque_self: *anyopaque, owner: u32, kind: image.ReferenceKind, index: u32) block.DeviceError!?image.Given {
        const self: *Run = @ptrCast(@alignCast(opaque_self));
        for (self.chain, 1..) |file, number| {
            if (file.owner != owner or file.index != index or !std.mem.eql(u8, file.kind, kind.text())) continue;
            return .{ .number = @intCast(number), .device = try device_file.open(number), .format = file.format };
        }
        return null;
    }

    fn fileDevice(_: *anyopaque, number: u32) block.DeviceError!block.Device {
        return device_file.open(number);
    }

    /// What format code works with.
    pub fn context(self: *Run) image.Context {
        return .{ .allocator = allocator, .diagnostic = &self.diagnostic };
    }

    /// Where format code delivers its lists.
    pub fn sink(self: *Run) image.Sink {
        return .{ .context = self, .deliver = deliver };
    }

    fn deliver(_: *anyopaque, message: []const u8) Error!void {
        _ = try answer(table.emit(message.ptr, message.len));
    }

    /// Encode one of the generated message structs and put it into the report; at most 4 KiB, otherwise
    /// `error.TooLarge`.
    pub fn emit(self: *Run, message: anytype) Error!void {
        return self.sink().emit(message);
    }

    /// `emit` for a message of up to MESSAGE_MAX bytes.
    pub fn emitLarge(_: *Run, message: anytype) Error!void {
        // Allocated once: the arena takes nothing back.
        const buffer = large_buffer orelse allocator.alloc(u8, calltable.message_max) catch return error.NoMemory;
        large_buffer = buffer;
        const encoded = cbor.encodeMessage(buffer, message) catch return error.TooLarge;
        _ = try answer(table.emit(encoded.ptr, encoded.len));
    }

    /// One line for `-v`, cut at 512 bytes; placeholders are those of block/sentence.zig.
    pub fn log(_: *const Run, level: Level, comptime format: []const u8, arguments: anytype) void {
        var buffer: [512]u8 = undefined;
        const line = block.sentence.write(&buffer, format, arguments);
        table.log(@intFromEnum(level), line.ptr, line.len);
    }

    /// Work done so far, in units of the operation's choice; costs nothing when nobody looks.
    pub fn progress(_: *const Run, done: u64, total: u64) void {
        table.progress(done, total);
    }

    /// Turn the reason into the `error` message of the report.
    fn report(self: *Run, reason: Error) void {
        var message: messages.Error = switch (reason) {
            error.Refused => .{
                .code = codeName(self.diagnostic.code),
                .message = self.diagnostic.message(),
                .format = self.diagnostic.format,
                .structure = self.diagnostic.structure,
                .offset = self.diagnostic.offset,
                .value = self.diagnostic.value,
                .limit = self.diagnostic.limit,
            },
            error.Io => .{ .code = "io", .message = "the host could not read or write the file" },
            error.NoSpace => .{ .code = "io", .message = "no space is left for the output" },
            error.ReadOnly => .{ .code = "io", .message = "the file is read-only" },
            error.Range => .{ .code = "out-of-bounds", .message = "an access lies outside the file" },
            error.NoMemory => .{ .code = "no-memory", .message = "the guest's memory is too small for this image (see --max-memory)" },
            error.NoDevice => .{ .code = "invalid-option", .message = "the operation needs more files than were given" },
            error.Unsupported => .{ .code = "unsupported", .message = "the file does not support this request" },
            error.TooLarge => .{ .code = "too-large", .message = "a part of the report is too large" },
            error.Invalid => .{ .code = "invalid-option", .message = "the runtime refused an argument of the operation" },
        };
        message.device = if (reason == error.Refused) self.diagnostic.device else device_file.failed;
        // Nothing is left to be done when even this does not fit.
        self.emit(message) catch {};
    }
};

/// The CBOR spelling of a code.
fn codeName(code: block.Diagnostic.Code) []const u8 {
    return switch (code) {
        inline else => |tag| comptime cbor.keyOf(@tagName(tag)),
    };
}

/// The value of a call that answered, or its error.
pub fn answer(result: i64) block.DeviceError!usize {
    if (result >= 0) return @intCast(result);
    return switch (-%result) {
        calltable.error_range => error.Range,
        calltable.error_read_only => error.ReadOnly,
        calltable.error_io => error.Io,
        calltable.error_no_space => error.NoSpace,
        calltable.error_unsupported => error.Unsupported,
        calltable.error_no_device => error.NoDevice,
        calltable.error_memory => error.NoMemory,
        calltable.error_too_large => error.TooLarge,
        else => error.Invalid,
    };
}
