//! Refusals of VMDK images.

const block = @import("block");
const template = @import("../qcow2/template.zig");
const format = @import("format.zig");

/// Refuse as in template.zig.
pub inline fn refuse(
    diagnostic: *block.Diagnostic,
    comptime code: block.Diagnostic.Code,
    comptime structure: []const u8,
    comptime text: []const u8,
    offset: u64,
    value: u64,
    limit: u64,
) error{Refused} {
    return template.refuseAs(format.name, diagnostic, code, structure, text, offset, value, limit);
}
