//! Refusals of VMDK images.

const template = @import("../qcow2/template.zig");
const format = @import("format.zig");

/// Refuse as in template.zig.
pub const refuse = template.Refusals(format.name).refuse;
