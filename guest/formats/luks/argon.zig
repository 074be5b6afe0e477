//! Argon2 (RFC 9106) by std, with bounds on memory and work, which the image chooses.

const std = @import("std");
const builtin = @import("builtin");
const block = @import("block");
const image = @import("../image.zig");
const header_zig = @import("header.zig");
const metadata_zig = @import("metadata.zig");
const argon2 = std.crypto.pwhash.argon2;

/// Passes over memory times KiB of it, for one slot: a minute or so.
pub const max_work = 1 << 26;
/// Lanes; cryptsetup uses at most 4.
pub const max_lanes = 64;

fn refuse(context: image.Context, what: []const u8, value: u64, limit: u64) error{Refused} {
    return context.diagnostic.refuse(
        .too_large,
        .{ .format = header_zig.format, .structure = "keyslot kdf", .value = value, .limit = limit },
        "luks: Argon2 with {s} of {d}, the limit is {d}",
        .{ what, value, limit },
    );
}

/// Bytes that a derivation needs.
pub fn memory(context: image.Context, kdf: *const metadata_zig.Kdf) error{Refused}!u64 {
    if (mode(kdf.type) == null) return @import("unlock.zig").unsupported(context, "kdf", kdf.type);
    const work = kdf.time *| kdf.memory;
    if (work > max_work) return refuse(context, "a work (passes times KiB)", work, max_work);
    if (kdf.cpus > max_lanes) return refuse(context, "a number of lanes", kdf.cpus, max_lanes);
    if (kdf.time == 0 or kdf.cpus == 0 or kdf.memory < 8 * kdf.cpus) return context.diagnostic.refuse(
        .corrupt,
        .{ .format = header_zig.format, .structure = "keyslot kdf", .value = kdf.memory, .limit = 8 * kdf.cpus },
        "luks: Argon2 with {d} passes over {d} KiB in {d} lanes: at least one pass and 8 KiB for each lane are needed",
        .{ kdf.time, kdf.memory, kdf.cpus },
    );
    return kdf.memory * 1024;
}

/// Memory for all derivations, one after another.
pub fn room(context: image.Context, bytes: u64) block.Error![]u8 {
    if (bytes == 0) return &.{};
    // Blocks begin at multiples of 64.
    const wanted = std.math.cast(usize, bytes + 4096) orelse std.math.maxInt(usize);
    return context.allocator.alloc(u8, wanted) catch context.diagnostic.refuse(
        .no_memory,
        .{ .format = header_zig.format, .structure = "keyslot kdf", .value = bytes },
        "luks: Argon2 needs {d} bytes of memory for this key slot; raise --max-memory",
        .{bytes},
    );
}

fn mode(name: []const u8) ?argon2.Mode {
    if (std.mem.eql(u8, name, "argon2i")) return .argon2i;
    if (std.mem.eql(u8, name, "argon2id")) return .argon2id;
    return null;
}

/// `kdf` passed `memory`.
pub fn derive(context: image.Context, kdf: *const metadata_zig.Kdf, passphrase: []const u8, salt: []const u8, bytes: []u8, out: []u8) block.Error!void {
    var fixed: std.heap.FixedBufferAllocator = .init(bytes);
    const parameters: argon2.Params = .{ .t = @intCast(kdf.time), .m = @intCast(kdf.memory), .p = @intCast(kdf.cpus) };
    // Lanes are calculated one after another here; only the host's threads would need an Io.
    const io: std.Io = if (builtin.single_threaded) undefined else std.Io.Threaded.global_single_threaded.io();
    argon2.kdf(fixed.allocator(), out, passphrase, salt, parameters, mode(kdf.type).?, io) catch |reason| switch (reason) {
        error.OutOfMemory => return error.NoMemory,
        else => return @import("unlock.zig").unsupported(context, "kdf", "with these parameters"),
    };
}
