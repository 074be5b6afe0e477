//! Measure, create and resize on the host, with the code of the guest but without a machine: for comparing with qemu-img
//! at speed.
//!
//!     plan_tool measure TARGET (size=N | file=PATH [format=NAME]) [option=value ...]
//!     plan_tool create FORMAT PATH size=N [unix-time=N] [random=N] [parent-cid=N] [option=value ...]
//!     plan_tool resize FORMAT PATH size=N [steps=N]
//!
//! Prints one line of JSON.  Options are the fields of `create-options` with underscores.  `random` is the first word of
//! the entropy, little endian; further files lie beside PATH.  `resize` carries out the first so many steps of its plan, or all.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const formats = @import("formats");
const FileDevice = @import("file_device.zig").FileDevice;

const targets = formats.targets;

const Arguments = struct {
    options: messages.CreateOptions = .{},
    size: ?u64 = null,
    file: ?[:0]const u8 = null,
    data: ?[:0]const u8 = null,
    format: ?[]const u8 = null,
    unix_time: u64 = 0,
    random: u32 = 0,
    parent_cid: ?u32 = null,
    steps: ?u64 = null,

    fn parse(words: []const [:0]const u8) !Arguments {
        var parsed: Arguments = .{};
        for (words) |word| {
            const equals = std.mem.findScalar(u8, word, '=') orelse return error.Usage;
            const name = word[0..equals];
            const value = word[equals + 1 .. :0];
            if (std.mem.eql(u8, name, "size")) {
                parsed.size = try std.fmt.parseInt(u64, value, 10);
            } else if (std.mem.eql(u8, name, "file")) {
                parsed.file = value;
            } else if (std.mem.eql(u8, name, "data")) {
                parsed.data = value;
            } else if (std.mem.eql(u8, name, "format")) {
                parsed.format = value;
            } else if (std.mem.eql(u8, name, "unix-time")) {
                parsed.unix_time = try std.fmt.parseInt(u64, value, 10);
            } else if (std.mem.eql(u8, name, "random")) {
                parsed.random = try std.fmt.parseInt(u32, value, 10);
            } else if (std.mem.eql(u8, name, "parent-cid")) {
                parsed.parent_cid = try std.fmt.parseInt(u32, value, 10);
            } else if (std.mem.eql(u8, name, "steps")) {
                parsed.steps = try std.fmt.parseInt(u64, value, 10);
            } else try setOption(&parsed.options, name, value);
        }
        return parsed;
    }

    fn setOption(options: *messages.CreateOptions, name: []const u8, value: []const u8) !void {
        inline for (@typeInfo(messages.CreateOptions).@"struct".fields) |field| {
            if (std.mem.eql(u8, name, field.name)) {
                @field(options, field.name) = switch (field.type) {
                    ?u64 => try std.fmt.parseInt(u64, value, 10),
                    ?bool => std.mem.eql(u8, value, "on"),
                    else => value,
                };
                return;
            }
        }
        return error.Usage;
    }
};

pub fn main(init: std.process.Init) !void {
    const allocator = init.arena.allocator();
    const words = try init.minimal.args.toSlice(allocator);
    if (words.len < 3) return error.Usage;
    var diagnostic: block.Diagnostic = .{};
    const context: formats.image.Context = .{ .allocator = allocator, .diagnostic = &diagnostic };
    var buffer: [65536]u8 = undefined;
    var out: std.Io.Writer = .fixed(&buffer);
    const answer: anyerror!void = if (std.mem.eql(u8, words[1], "measure"))
        measure(context, words[2..], &out)
    else if (std.mem.eql(u8, words[1], "resize"))
        resize(context, words[2..], &out)
    else
        create(context, words[2..], &out);
    answer catch |failure| switch (failure) {
        error.Refused => {
            out.end = 0;
            try out.print("{f}\n", .{std.json.fmt(.{ .code = @tagName(diagnostic.code), .@"error" = diagnostic.message() }, .{})});
        },
        else => return failure,
    };
    const text = out.buffered();
    _ = std.os.linux.write(1, text.ptr, text.len);
}

fn measure(context: formats.image.Context, words: []const [:0]const u8, out: *std.Io.Writer) !void {
    const arguments: Arguments = try .parse(words[1..]);
    const target = try targets.byName(.measure, context, words[0]);
    var file: FileDevice = undefined;
    const source: targets.Source = if (arguments.file) |path| blk: {
        file = try .open(path, .read);
        const registry = formats.Registry(.measure);
        const driver = if (arguments.format) |name| try registry.byName(context, name) else try registry.detect(context, file.device());
        const open = driver.open orelse return formats.refuse(context, driver.name, .measure);
        break :blk .{ .image = try open(context, file.device()) };
    } else .{ .size = arguments.size orelse return error.Usage };
    const sizes = try target.measure(context, source, &arguments.options);
    try out.print("{f}\n", .{std.json.fmt(sizes, .{})});
}

fn create(context: formats.image.Context, words: []const [:0]const u8, out: *std.Io.Writer) !void {
    const arguments: Arguments = try .parse(words[2..]);
    const target = try targets.byName(.create, context, words[0]);
    const size = arguments.size orelse return error.Usage;
    const path = words[1];
    const folder = if (std.mem.findScalarLast(u8, path, '/')) |slash| path[0 .. slash + 1] else "";
    var seed: targets.Seed = .{ .unix_time = arguments.unix_time, .name = path[folder.len..], .parent_cid = arguments.parent_cid };
    std.mem.writeInt(u32, seed.entropy[0..4], arguments.random, .little);
    const planned = try target.plan(context, size, &arguments.options, seed);
    for (0..planned.others.len + 1) |index| {
        const beside = planned.file(index).name;
        const at = if (index == 0) path else if (beside) |name| try std.mem.concatWithSentinel(context.allocator, u8, &.{ folder, name }, 0) else arguments.data orelse break;
        var file: FileDevice = try .open(at, .create);
        defer _ = std.os.linux.close(file.fd);
        var device = file.device();
        try targets.plan.executeFile(&planned, index, &device, context.allocator);
    }
    try out.print("{f}\n", .{std.json.fmt(.{
        .virtual_size = planned.virtual_size,
        .file_length = planned.file_length,
        .cluster_size = planned.cluster_size,
        .options = planned.options,
    }, .{})});
}

fn resize(context: formats.image.Context, words: []const [:0]const u8, out: *std.Io.Writer) !void {
    const arguments: Arguments = try .parse(words[2..]);
    const driver = try formats.Registry(.resize).byName(context, words[0]);
    const plan = driver.resize orelse return formats.refuse(context, driver.name, .resize);
    var file: FileDevice = try .open(words[1], .update);
    var device = file.device();
    const planned = try plan(context, device, &.{ .size = arguments.size orelse return error.Usage });
    const count: usize = @intCast(@min(planned.steps.len, arguments.steps orelse planned.steps.len));
    try formats.steps.execute(planned.steps[0..count], &device, context.allocator, null);
    try out.print("{f}\n", .{std.json.fmt(.{ .steps = planned.steps.len, .old_size = planned.old_size, .new_size = planned.new_size }, .{})});
}
