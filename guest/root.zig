//! The root file of every guest; module `guest` is the guest itself.
//!
//! The compiler takes the optimisation pipeline from the root's mode and the safety checks from each module's own.  This
//! file alone is compiled for size: all code keeps its checks, and is inlined only where that makes it smaller.

const guest = @import("guest");
const std = @import("std");

pub const panic = if (@hasDecl(guest, "panic")) guest.panic else std.debug.FullPanic(std.debug.defaultPanic);

/// The file that declares what the SDK looks for.
pub const declarations = guest;

comptime {
    _ = guest;
}
