//! The facts of a LUKS1 header, with qemu-img's keys.

const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const header_zig = @import("header.zig");

/// qemu-img's format-specific object.
pub fn facts(context: image.Context, opened: header_zig.Opened) block.Error!messages.InfoLuks {
    const header = opened.header;
    const method = opened.algorithms.method;
    const slots = context.allocator.alloc(messages.InfoLuksSlot, header_zig.slot_count) catch return error.NoMemory;
    for (slots, 0..) |*out, index| {
        const slot = header.slot(index);
        const active = slot.active();
        out.* = .{
            .active = active,
            .iters = if (active) slot.iterations() else null,
            .stripes = if (active) slot.stripeCount() else null,
            .key_offset = slot.offset(),
        };
    }
    return .{
        .cipher_alg = try header_zig.cipherText(context, method),
        .cipher_mode = @tagName(method.mode),
        .hash_alg = @tagName(opened.algorithms.hash),
        .ivgen_alg = @tagName(method.generator),
        .ivgen_hash_alg = if (method.generator == .essiv) @tagName(method.generator_hash.?) else null,
        .payload_offset = header.payloadOffset(),
        .master_key_iters = header.iterations(),
        .uuid = try header_zig.printable(context, header.uuid()),
        .slots = slots,
    };
}
