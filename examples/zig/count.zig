//! count: the SHA-256 of the first MiB of a file, and how many of its 512-byte sectors hold only zeroes.
//!
//! An operation in Zig links the SDK: entry point, panic handler, devices, allocator and CBOR come from there, and
//! the standard library works as far as it needs no operating system.

const std = @import("std");
const sdk = @import("sdk");

pub const panic = sdk.panic;
/// Nothing newer than version 1.0 of the call table is used.
pub const calltable_minor = 0;

comptime {
    _ = sdk;
}

const sector = 512;
const hashed = 1 << 20;

/// The report: a struct with a `message_name` becomes `[name, {fields}]`.
const Count = struct {
    pub const message_name = "count";

    length: u64,
    sha256: []const u8,
    sectors: u64,
    zero_sectors: u64,
};

var buffer: [1 << 16]u8 = undefined;

pub fn operation(run: *sdk.Run) sdk.Error!void {
    const device = try run.device(0);
    var hash: std.crypto.hash.sha2.Sha256 = .init(.{});
    var zero_sectors: u64 = 0;
    var offset: u64 = 0;
    while (offset < device.length) : (offset += buffer.len) {
        const chunk = buffer[0..@intCast(@min(buffer.len, device.length - offset))];
        try device.read(offset, chunk);
        if (offset < hashed) hash.update(chunk);
        var at: usize = 0;
        while (at < chunk.len) : (at += sector) {
            if (std.mem.allEqual(u8, chunk[at..@min(at + sector, chunk.len)], 0)) zero_sectors += 1;
        }
        run.progress(offset + chunk.len, device.length);
    }
    var digest: [32]u8 = undefined;
    hash.final(&digest);
    try run.emit(Count{
        .length = device.length,
        .sha256 = &std.fmt.bytesToHex(digest, .lower),
        .sectors = std.math.divCeil(u64, device.length, sector) catch unreachable,
        .zero_sectors = zero_sectors,
    });
}
