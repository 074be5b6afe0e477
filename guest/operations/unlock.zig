//! `unlock`: what `info` says, and what lies on an encrypted disk, for whoever gives its passphrase.
//!
//! An operation of its own because the ciphers and what makes keys of passphrases are a quarter of it, which a run
//! without a passphrase need not load.

const sdk = @import("sdk");

pub const panic = sdk.panic;
pub const only_reads = true;
comptime {
    _ = sdk;
}

pub const operation = @import("info.zig").Describing(.unlock).operation;
