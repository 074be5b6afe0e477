//! Opening an image: everything that QEMU checks before it answers anything about it, in the same order.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const header_zig = @import("header.zig");
const extensions_zig = @import("extensions.zig");
const snapshots = @import("snapshots.zig");
const bitmaps = @import("bitmaps.zig");
const template = @import("template.zig");
const refuse = template.refuse;
const none = template.none;
const Window = @import("window.zig").Window;
const Header = header_zig.Header;

pub const Purpose = header_zig.Purpose;

/// Bytes that the first read fetches: with the usual cluster sizes this is the header, all extensions and the
/// backing file's name.
const first_read = 4096;
/// The window on the header and on small tables: longer than a data file's name.  Kept small, because it is memory
/// that every image touches.
const window_bytes = 8192;

pub const Opened = struct {
    context: image.Context,
    device: block.Device,
    header: Header,
    extensions: extensions_zig.Extensions,
    /// As written, cut at the first NUL; null where there is no backing file.
    backing_name: ?[]const u8,
    backing_format: ?[]const u8,
    /// As written, cut at the first NUL; null where the image names none.
    data_file: ?[]const u8,
    bitmaps: []const bitmaps.Bitmap,
    /// For further walks of small tables.
    window: *Window,

    pub fn open(context: image.Context, device: block.Device, purpose: Purpose) block.Error!Opened {
        const diagnostic = context.diagnostic;
        const window = try newWindow(context, device, window_bytes);
        const known = (try window.bytes(0, header_zig.known_length))[0..header_zig.known_length];
        const header = try header_zig.parse(diagnostic, known);
        try extensions_zig.checkFeatures(context, window, header);
        try header_zig.checkTables(diagnostic, header, purpose);
        const extensions = try extensions_zig.read(context, window, header);
        var self: Opened = .{
            .context = context,
            .device = device,
            .header = header,
            .extensions = extensions,
            .backing_name = null,
            .backing_format = try textAt(context, window, extensions.backing_format, 15),
            .data_file = try textAt(context, window, extensions.data_file, extensions_zig.max_data_file_name),
            .bitmaps = &.{},
            .window = window,
        };
        if (purpose != .information) try self.checkDataFile();
        if (header.crypt_method == @intFromEnum(header_zig.Crypt.luks) and extensions.crypto == null and purpose != .information)
            return refuse(diagnostic, .corrupt, "header", "missing encryption header for crypt method {value}", 32, header.crypt_method, none);
        try self.readBackingName();
        if (purpose != .check) {
            var iterator = try snapshots.Iterator.init(context, device, header);
            while (try iterator.next()) |_| {}
        }
        if (extensions.bitmaps) |place| {
            self.bitmaps = try bitmaps.directory(context, device, header, place);
            try bitmaps.load(context, device, window, header, self.bitmaps);
        }
        return self;
    }

    fn checkDataFile(self: *Opened) block.Error!void {
        const diagnostic = self.context.diagnostic;
        if (self.header.hasDataFile()) {
            if (self.extensions.data_file == null)
                return refuse(diagnostic, .corrupt, "header", "'data-file' is required for this image, and it names none", 72, self.header.incompatible, none);
        } else if (self.header.dataFileRaw()) {
            return refuse(diagnostic, .corrupt, "header", "data-file-raw requires a data file", 88, self.header.autoclear, none);
        }
    }

    fn readBackingName(self: *Opened) block.Error!void {
        const header = self.header;
        if (header.backing_offset == 0) return;
        const limit = @min(header_zig.max_backing_name, header.clusterSize() - header.backing_offset);
        if (header.backing_length > limit)
            return refuse(self.context.diagnostic, .too_large, "backing file name", "backing file name too long: {value} bytes, at most {limit}", header.backing_offset, header.backing_length, limit);
        const name = (try textAt(self.context, self.window, .{ .offset = header.backing_offset, .length = header.backing_length }, header_zig.max_backing_name)).?;
        if (name.len > 0) self.backing_name = name;
    }
};

/// A window on memory of its own, read in steps that grow from one page.
pub fn newWindow(context: image.Context, device: block.Device, bytes: usize) block.Error!*Window {
    const window = context.allocator.create(Window) catch return noMemory(context, @sizeOf(Window));
    const buffer = context.allocator.alloc(u8, bytes) catch return noMemory(context, bytes);
    window.* = Window.init(device, buffer, first_read);
    return window;
}

pub fn noMemory(context: image.Context, bytes: u64) error{Refused} {
    return refuse(context.diagnostic, .no_memory, "memory", "this image needs {value} more bytes of memory; raise --max-memory", none, bytes, none);
}

fn textAt(context: image.Context, window: *Window, place: ?extensions_zig.Place, limit: u32) block.Error!?[]const u8 {
    const where = place orelse return null;
    const bytes = try window.bytes(where.offset, @min(where.length, limit));
    const cut = block.search.until(bytes, 0);
    return context.allocator.dupe(u8, cut) catch return noMemory(context, cut.len);
}
