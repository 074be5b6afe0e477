//! The files that a qcow2 image names: its backing file, and the data file that holds its guest's bytes.

const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const text = @import("../text.zig");
const open = @import("open.zig");

/// See image.Driver.references.
pub fn run(context: image.Context, device: block.Device, sink: image.Sink) block.Error!void {
    return emit(try open.Opened.open(context, device, .information), sink);
}

/// Name what an opened image refers to; nothing is opened here.
pub fn emit(opened: open.Opened, sink: image.Sink) block.Error!void {
    const context = opened.context;
    if (opened.backing_name) |name| try sink.emit(messages.InfoReference{
        .kind = image.ReferenceKind.backing_file.text(),
        .name = try utf8(context, name),
        .format = try backingFormat(opened),
    });
    if (opened.data_file) |name| if (opened.header.hasDataFile()) try sink.emit(messages.InfoReference{
        .kind = image.ReferenceKind.data_file.text(),
        .name = try utf8(context, name),
        .format = "raw",
    });
}

/// The backing file's format where the image states one.
pub fn backingFormat(opened: open.Opened) block.Error!?[]const u8 {
    const driver = opened.backing_format orelse return null;
    return if (driver.len > 0) try utf8(opened.context, driver) else null;
}

pub fn utf8(context: image.Context, bytes: []const u8) block.Error![]const u8 {
    return text.fromUtf8(context.allocator, bytes) catch open.noMemory(context, bytes.len * 3);
}
