//! measure: how large the file of a conversion, or of an empty image, would be.

const std = @import("std");
const sdk = @import("sdk");
const formats = @import("formats");
const messages = @import("messages");

pub const panic = sdk.panic;
pub const only_reads = true;

comptime {
    _ = sdk;
}

const block = @import("block");
const image_zig = formats.image;

const registry = formats.Registry(.measure);
const targets = formats.targets;

pub fn operation(run: *sdk.Run) sdk.Error!void {
    const request = try run.request(messages.MeasureRequest);
    const context = run.context();
    const target = try targets.byName(.measure, context, request.target);
    const options: messages.CreateOptions = request.options orelse .{};
    const source = try open(run, request);
    const sizes = try target.measure(context, source, &options);
    try run.emit(messages.Measure{
        .required = sizes.required,
        .fully_allocated = sizes.fully_allocated,
        .bitmaps = sizes.bitmaps,
        .target = target.name,
        .virtual_size = sizes.virtual_size,
        .format = switch (source) {
            .size => null,
            .image => |image| image.driver,
        },
    });
}

fn open(run: *sdk.Run, request: messages.MeasureRequest) sdk.Error!targets.Source {
    if (request.size) |size| return .{ .size = size };
    const context = run.context();
    const device = try run.device(0);
    const driver = if (request.format) |name| try registry.byName(context, name) else try registry.detect(context, device);
    const opener = driver.open orelse return formats.refuse(context, driver.name, .measure);
    opened = try opener(context, device);
    watched = .{ .inner = if (isMeasuredByQemu(request.target)) opened.asQemuSees() else opened };
    var image = watched.inner;
    image.context = &watched;
    image.segment_at = Watched.segmentAt;
    return .{ .image = image };
}

/// For these targets the numbers are qemu-img's, which knows less about some sources than we do.
fn isMeasuredByQemu(target: []const u8) bool {
    for ([_][]const u8{ "raw", "qcow2", "luks" }) |name| if (std.mem.eql(u8, name, target)) return true;
    return false;
}

var opened: image_zig.Image = undefined;

/// The source, and how far the walk over its segments is: what measuring a large image takes is that walk.
const Watched = struct {
    inner: image_zig.Image,
    segments: u64 = 0,

    const every = 1024;

    fn segmentAt(context: *anyopaque, start: u64) block.Error!image_zig.Segment {
        const self: *Watched = @ptrCast(@alignCast(context));
        self.segments += 1;
        if (self.segments % every == 0) sdk.table.progress(start, self.inner.virtual_size);
        return self.inner.segment_at(self.inner.context, start);
    }
};

var watched: Watched = undefined;
