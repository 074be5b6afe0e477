//! How large a VHDX file would be.

const block = @import("block");
const image = @import("../image.zig");
const target = @import("../target.zig");
const layouts = @import("layout.zig");

/// The file that qemu-img's writer makes: a block for each that holds data.  A disk of which every byte has been written
/// has all of its blocks.
pub fn measure(context: image.Context, source: target.Source, options: *const target.Options) block.Error!target.Sizes {
    const layout = try layouts.layout(context, source.virtualSize(), options);
    const data = switch (source) {
        .size => 0,
        .image => |opened| try target.dataSize(context, opened, layout.block_size),
    };
    return .{
        .required = layout.fileLength(data / layout.block_size),
        .fully_allocated = layout.fileLength(layout.blocks()),
        .virtual_size = layout.size,
    };
}
