//! The LUKS1 header (LUKS1 On-Disk Format Specification 1.2.3, section 6): big endian, 592 bytes, at the start of a
//! container or inside a qcow2 image.
//!
//! Every number that the rest of the format code multiplies, seeks to or allocates from is checked here, once, in qemu's
//! order and with qemu's words, so that the first complaint about a broken header is the same one.

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const text = @import("../text.zig");
const template = @import("../qcow2/template.zig");
const none = template.none;

pub const format = "luks";
pub const magic = "LUKS\xba\xbe";
pub const size = 592;
pub const slot_count = 8;
pub const sector = 512;
/// Key material and payload begin behind the first 4096 bytes; areas are multiples of that as well.
pub const alignment = 4096;
pub const stripes = 4000;
pub const digest_size = 20;
pub const salt_size = 32;

/// Byte offsets of the fields.
pub const At = struct {
    pub const version = 6;
    pub const cipher_name = 8;
    pub const cipher_mode = 40;
    pub const hash_spec = 72;
    pub const payload_offset = 104;
    pub const key_bytes = 108;
    pub const digest = 112;
    pub const salt = 132;
    pub const iterations = 164;
    pub const uuid = 168;
    pub const slots = 208;
};

pub const slot_bytes = 48;
pub const State = struct {
    pub const active: u32 = 0x00ac71f3;
    pub const inactive: u32 = 0x0000dead;
};

/// A key slot: byte offsets inside `bytes` are 0 state, 4 iterations, 8 salt, 40 first sector, 44 stripes.
pub const Slot = struct {
    bytes: *const [slot_bytes]u8,

    fn int(self: Slot, comptime at: usize) u32 {
        return std.mem.readInt(u32, self.bytes[at..][0..4], .big);
    }
    pub fn state(self: Slot) u32 {
        return self.int(0);
    }
    pub fn active(self: Slot) bool {
        return self.state() == State.active;
    }
    pub fn iterations(self: Slot) u32 {
        return self.int(4);
    }
    pub fn salt(self: Slot) *const [salt_size]u8 {
        return self.bytes[8..40];
    }
    /// Bytes from the start of the header.
    pub fn offset(self: Slot) u64 {
        return @as(u64, self.int(40)) * sector;
    }
    pub fn stripeCount(self: Slot) u32 {
        return self.int(44);
    }
};

/// A header as it lies in the file.
pub const Header = struct {
    bytes: *const [size]u8,
    /// Byte of the device at which it begins; its own offsets count from there.
    base: u64,

    fn int(self: Header, comptime T: type, comptime at: usize) T {
        return std.mem.readInt(T, self.bytes[at..][0..@sizeOf(T)], .big);
    }

    /// Bytes of the field up to its first NUL.
    fn name(self: Header, comptime at: usize) []const u8 {
        return block.search.until(self.bytes[at..][0..32], 0);
    }

    pub fn version(self: Header) u16 {
        return self.int(u16, At.version);
    }
    pub fn cipherName(self: Header) []const u8 {
        return self.name(At.cipher_name);
    }
    pub fn cipherMode(self: Header) []const u8 {
        return self.name(At.cipher_mode);
    }
    pub fn hashSpec(self: Header) []const u8 {
        return self.name(At.hash_spec);
    }
    /// Bytes from the start of the header.
    pub fn payloadOffset(self: Header) u64 {
        return @as(u64, self.int(u32, At.payload_offset)) * sector;
    }
    pub fn keyBytes(self: Header) u32 {
        return self.int(u32, At.key_bytes);
    }
    pub fn digest(self: Header) *const [digest_size]u8 {
        return self.bytes[At.digest..][0..digest_size];
    }
    pub fn salt(self: Header) *const [salt_size]u8 {
        return self.bytes[At.salt..][0..salt_size];
    }
    pub fn iterations(self: Header) u32 {
        return self.int(u32, At.iterations);
    }
    pub fn uuid(self: Header) []const u8 {
        return block.search.until(self.bytes[At.uuid..][0..40], 0);
    }
    pub fn slot(self: Header, index: usize) Slot {
        return .{ .bytes = self.bytes[At.slots + index * slot_bytes ..][0..slot_bytes] };
    }

    /// Bytes that the key material of a slot takes, padding to 4096 included.
    pub fn areaSize(self: Header, stripe_count: u32) u64 {
        return std.mem.alignForward(u64, @as(u64, self.keyBytes()) * stripe_count, alignment);
    }

    /// Bytes that the key material itself has.
    pub fn materialSize(self: Header, stripe_count: u32) u64 {
        return @as(u64, self.keyBytes()) * stripe_count;
    }
};

/// Refuse as in template.zig.
pub const refuse = template.Refusals(format).refuse;

/// Read the header at byte `base` and make sure that it is one of this version; nothing else is checked.
pub fn read(context: image.Context, device: block.Device, base: u64) block.Error!Header {
    const bytes = context.allocator.create([size]u8) catch return error.NoMemory;
    try device.readPadded(base, bytes);
    const header: Header = .{ .bytes = bytes, .base = base };
    if (!std.mem.eql(u8, bytes[0..6], magic))
        return refuse(context.diagnostic, .corrupt, "header", "Volume is not in LUKS format", base, none, none);
    if (header.version() != 1)
        return refuse(context.diagnostic, .unsupported, "header", "LUKS version {value} is not supported", base + At.version, header.version(), 1);
    return header;
}

/// qemu's checks of a header, which do not look at the file's length.
pub fn check(diagnostic: *block.Diagnostic, header: Header) error{Refused}!void {
    const base = header.base;
    if (header.cipherName().len == 32)
        return refuse(diagnostic, .corrupt, "cipher name", "LUKS header cipher name is not NUL terminated", base + At.cipher_name, none, none);
    if (header.cipherMode().len == 32)
        return refuse(diagnostic, .corrupt, "cipher mode", "LUKS header cipher mode is not NUL terminated", base + At.cipher_mode, none, none);
    if (header.hashSpec().len == 32)
        return refuse(diagnostic, .corrupt, "hash spec", "LUKS header hash spec is not NUL terminated", base + At.hash_spec, none, none);
    const payload = header.payloadOffset();
    if (payload < alignment)
        return refuse(diagnostic, .corrupt, "payload offset", "LUKS payload is overlapping with the header: it begins at byte {value}, at least {limit}", base + At.payload_offset, payload, alignment);
    if (header.iterations() == 0)
        return refuse(diagnostic, .corrupt, "master key iterations", "LUKS key iteration count is zero", base + At.iterations, 0, 1);
    for (0..slot_count) |index| try checkSlot(diagnostic, header, index);
}

/// The check of slot `index`, those of its overlaps with later ones included.
fn checkSlot(diagnostic: *block.Diagnostic, header: Header, index: usize) error{Refused}!void {
    const slot = header.slot(index);
    const at = header.base + At.slots + index * slot_bytes;
    const name = "key slot";
    if (slot.stripeCount() != stripes)
        return refuseSlot(diagnostic, at + 44, slot.stripeCount(), stripes, "luks: Keyslot {d} is corrupted (stripes {d} != {d})", .{ index, slot.stripeCount(), stripes });
    if (slot.state() != State.active and slot.state() != State.inactive)
        return refuseSlot(diagnostic, at, slot.state(), null, "luks: Keyslot {d} state (active/disable) is corrupted: {x}", .{ index, slot.state() });
    if (slot.active() and slot.iterations() == 0)
        return refuse(diagnostic, .corrupt, name, "Keyslot {value} iteration count is zero", at + 4, index, none);
    const start = slot.offset();
    if (start < alignment)
        return refuseSlot(diagnostic, at + 40, start, alignment, "luks: Keyslot {d} is overlapping with the LUKS header: it begins at byte {d}, at least {d}", .{ index, start, alignment });
    const end = start + header.areaSize(stripes);
    if (end > header.payloadOffset())
        return refuseSlot(diagnostic, at + 40, end, header.payloadOffset(), "luks: Keyslot {d} is overlapping with the encrypted payload: it ends at byte {d}, the payload begins at {d}", .{ index, end, header.payloadOffset() });
    for (index + 1..slot_count) |later| {
        const other = header.slot(later);
        const other_start = other.offset();
        const other_end = other_start + header.areaSize(other.stripeCount());
        if (start < other_end and other_start < end)
            return refuseSlot(diagnostic, at + 40, start, other_start, "luks: Keyslots {d} and {d} are overlapping in the header: they begin at bytes {d} and {d}", .{ index, later, start, other_start });
    }
}

inline fn refuseSlot(diagnostic: *block.Diagnostic, offset: u64, value: u64, limit: ?u64, comptime sentence: []const u8, arguments: anytype) error{Refused} {
    return diagnostic.refuse(.corrupt, .{ .format = format, .structure = "key slot", .offset = offset, .value = value, .limit = limit }, sentence, arguments);
}

/// Names that qemu knows, in its spelling.
pub const Cipher = enum { aes, cast5, serpent, twofish };
pub const Mode = enum { ecb, cbc, xts, ctr };
pub const Generator = enum { plain, plain64, essiv };
pub const Hash = enum {
    md5,
    sha1,
    sha224,
    sha256,
    sha384,
    sha512,
    ripemd160,

    /// Bytes of a digest.
    pub fn digestSize(self: Hash) u32 {
        return switch (self) {
            .md5 => 16,
            .sha1, .ripemd160 => 20,
            .sha224 => 28,
            .sha256 => 32,
            .sha384 => 48,
            .sha512 => 64,
        };
    }
};

/// How sectors are encrypted.
pub const Method = struct {
    cipher: Cipher,
    mode: Mode,
    generator: Generator,
    /// Of ESSIV; for the other generators it may be there and means nothing.
    generator_hash: ?Hash,
    /// Bytes of one key of the cipher; XTS has two of them.
    cipher_key: u32,
};

/// The header's algorithms, as far as qemu knows them.
pub const Algorithms = struct { method: Method, hash: Hash };

/// Look the header's names up as qemu does, in its order.
pub fn algorithms(context: image.Context, header: Header) block.Error!Algorithms {
    const base = header.base;
    const spec = header.cipherMode();
    const dash = block.search.first(spec, '-') orelse
        return unknown(context, base + At.cipher_mode, "luks: Unexpected cipher mode string format '{s}'", spec);
    const generator = spec[dash + 1 ..];
    const colon = block.search.first(generator, ':');
    var method: Method = undefined;
    method.generator_hash = null;
    if (colon) |at| method.generator_hash = std.meta.stringToEnum(Hash, generator[at + 1 ..]) orelse
        return unknown(context, base + At.cipher_mode, "luks: Hash algorithm '{s}' not supported", generator[at + 1 ..]);
    method.mode = std.meta.stringToEnum(Mode, spec[0..dash]) orelse
        return unknown(context, base + At.cipher_mode, "luks: Cipher mode '{s}' not supported", spec[0..dash]);
    method.cipher_key = header.keyBytes() / @as(u32, if (method.mode == .xts) 2 else 1);
    const cipher = std.meta.stringToEnum(Cipher, header.cipherName());
    if (cipher == null or !hasKeySize(cipher.?, method.cipher_key)) {
        const shown = try printable(context, header.cipherName());
        return context.diagnostic.refuse(
            .unsupported,
            .{ .format = format, .structure = "cipher name", .offset = base + At.cipher_name, .value = header.keyBytes() },
            "luks: Algorithm '{s}' with key size {d} bytes not supported",
            .{ shown, method.cipher_key },
        );
    }
    method.cipher = cipher.?;
    const hash = std.meta.stringToEnum(Hash, header.hashSpec()) orelse
        return unknown(context, base + At.hash_spec, "luks: Hash algorithm '{s}' not supported", header.hashSpec());
    const ivs = if (colon) |at| generator[0..at] else generator;
    method.generator = std.meta.stringToEnum(Generator, ivs) orelse
        return unknown(context, base + At.cipher_mode, "luks: IV generator '{s}' not supported", ivs);
    if (method.generator == .essiv) try checkEssiv(context.diagnostic, base + At.cipher_mode, method);
    return .{ .method = method, .hash = hash };
}

/// ESSIV encrypts with a digest as its key, so the cipher must take a key of that size.
pub fn checkEssiv(diagnostic: *block.Diagnostic, offset: u64, method: Method) error{Refused}!void {
    const hash = method.generator_hash orelse
        return refuse(diagnostic, .corrupt, "cipher mode", "Missing IV generator hash specification", offset, none, none);
    if (method.cipher == .cast5)
        return refuse(diagnostic, .unsupported, "cipher mode", "Cipher cast5-128 not supported with essiv", offset, none, none);
    if (!hasKeySize(method.cipher, hash.digestSize())) {
        const name = switch (method.cipher) {
            .aes => "AES",
            .serpent => "Serpent",
            else => "Twofish",
        };
        return diagnostic.refuse(
            .unsupported,
            .{ .format = format, .structure = "cipher mode", .offset = offset, .value = hash.digestSize() },
            "luks: No {s} cipher with key size {d} available",
            .{ name, hash.digestSize() },
        );
    }
}

/// Whether a cipher takes keys of so many bytes.
pub fn hasKeySize(cipher: Cipher, bytes: u32) bool {
    return bytes == 16 or (cipher != .cast5 and (bytes == 24 or bytes == 32));
}

fn unknown(context: image.Context, offset: u64, comptime sentence: []const u8, name: []const u8) block.Error {
    return context.diagnostic.refuse(.unsupported, .{ .format = format, .structure = "header", .offset = offset }, sentence, .{try printable(context, name)});
}

/// A name out of the image as valid UTF-8.
pub fn printable(context: image.Context, name: []const u8) block.Error![]const u8 {
    return text.fromUtf8(context.allocator, name) catch error.NoMemory;
}

/// qemu's name of a cipher: with the bits of its key.
pub fn cipherText(context: image.Context, method: Method) block.Error![]const u8 {
    const buffer = context.allocator.alloc(u8, 16) catch return error.NoMemory;
    return block.sentence.write(buffer, "{s}-{d}", .{ @tagName(method.cipher), method.cipher_key * 8 });
}

/// A whole header that qemu would open: read, checked, its algorithms known.
pub const Opened = struct { header: Header, algorithms: Algorithms };

pub fn open(context: image.Context, device: block.Device, base: u64) block.Error!Opened {
    const header = try read(context, device, base);
    try check(context.diagnostic, header);
    return .{ .header = header, .algorithms = try algorithms(context, header) };
}
