//! The JSON metadata of LUKS2 (LUKS2 On-Disk Format Specification 1.1.4, section 3), read into records whose numbers are
//! checked: what refers to what, which areas lie where.
//!
//! What is wrong is either refused at once (whoever opens the image) or reported and passed over (whoever checks it).

const std = @import("std");
const block = @import("block");
const image = @import("../image.zig");
const json = @import("json.zig");
const header_zig = @import("header.zig");
const header2 = @import("header2.zig");
const template = @import("../qcow2/template.zig");
const none = template.none;
const Findings = @import("../qcow2/check_findings.zig").Findings;

/// Of keyslots, segments, digests and tokens each; what cryptsetup can name.
pub const max_objects = 32;
/// Bytes of the area of all key slots; cryptsetup's limit.
pub const max_keyslots_size = 128 << 20;
pub const max_key_bytes = 512;
const sector = header_zig.sector;

/// Where a key slot's material lies.
pub const Area = struct {
    type: []const u8 = "",
    /// As "aes-xts-plain64"; empty in areas of other types than raw.
    encryption: []const u8 = "",
    key_size: u64 = 0,
    /// Bytes of the device.
    offset: u64 = 0,
    size: u64 = 0,
};

pub const Kdf = struct {
    /// pbkdf2, argon2i or argon2id.
    type: []const u8 = "",
    /// Base64.
    salt: []const u8 = "",
    hash: []const u8 = "",
    iterations: u64 = 0,
    time: u64 = 0,
    /// KiB.
    memory: u64 = 0,
    cpus: u64 = 0,
};

pub const Keyslot = struct {
    id: u32 = 0,
    type: []const u8 = "",
    key_size: u64 = 0,
    area: Area = .{},
    kdf: ?Kdf = null,
    af_hash: []const u8 = "",
    stripes: u64 = 0,
    /// 0 ignored unless asked for, 1 normal, 2 tried first.
    priority: u64 = 1,
    /// Of a slot that keeps an interrupted reencryption.
    mode: []const u8 = "",
};

pub const Segment = struct {
    id: u32 = 0,
    type: []const u8 = "",
    /// Bytes of the device.
    offset: u64 = 0,
    /// Null: to the end of the device.
    size: ?u64 = null,
    encryption: []const u8 = "",
    sector_size: u64 = sector,
    iv_tweak: u64 = 0,
    integrity: []const u8 = "",
    /// Part of the disk as it was, or will be, and not as it is.
    backup: bool = false,
};

pub const Digest = struct {
    id: u32 = 0,
    type: []const u8 = "",
    /// A bit for each.
    keyslots: u32 = 0,
    segments: u32 = 0,
    hash: []const u8 = "",
    iterations: u64 = 0,
    /// Base64.
    salt: []const u8 = "",
    digest: []const u8 = "",
};

pub const Token = struct { id: u32 = 0, type: []const u8 = "", keyslots: u32 = 0 };

pub const Metadata = struct {
    keyslots: []const Keyslot = &.{},
    segments: []const Segment = &.{},
    digests: []const Digest = &.{},
    tokens: []const Token = &.{},
    json_size: u64 = 0,
    keyslots_size: u64 = 0,
    flags: []const []const u8 = &.{},
    requirements: []const []const u8 = &.{},
    /// Bytes of the JSON text.
    text_size: u64 = 0,

    pub fn keyslot(self: *const Metadata, id: u32) ?*const Keyslot {
        for (self.keyslots) |*one| if (one.id == id) return one;
        return null;
    }

    /// The digest that verifies the key of a segment.
    pub fn digestOf(self: *const Metadata, segment: u32) ?*const Digest {
        for (self.digests) |*one| if (one.segments >> @intCast(segment) & 1 != 0) return one;
        return null;
    }

    /// Bytes of the disk, whose segments follow each other in the order of their numbers; null when one of them begins
    /// behind the end of a device of `length` bytes.
    pub fn virtualSize(self: *const Metadata, length: u64) ?u64 {
        var total: u64 = 0;
        for (self.segments) |*one| {
            if (!one.backup) total = std.math.add(u64, total, sizeOf(one, length) orelse return null) catch return null;
        }
        return if (total > std.math.maxInt(i64)) null else total;
    }
};

/// Bytes of a segment on a device of `length` bytes, whole sectors; null when it begins behind its end.
pub fn sizeOf(segment: *const Segment, length: u64) ?u64 {
    if (segment.size) |size| return size;
    if (segment.offset > length) return null;
    return std.mem.alignBackward(u64, length - segment.offset, segment.sector_size);
}

/// Where what is wrong goes.
pub const Problems = struct {
    context: image.Context,
    /// Null: the first problem is refused.
    findings: ?*Findings = null,

    /// A problem in a sentence that begins with "luks: LUKS2".
    pub inline fn say(self: Problems, structure: []const u8, offset: ?u64, value: ?u64, comptime text: []const u8, arguments: anytype) block.Error!void {
        const packed_arguments = block.sentence.pack("luks: " ++ text, arguments);
        return self.record(structure, offset orelse none, value orelse none, "luks: " ++ text, &packed_arguments);
    }

    /// One function for all problems: there are many calls of `say`.
    noinline fn record(self: Problems, structure: []const u8, offset: u64, value: u64, text: []const u8, arguments: []const block.sentence.Argument) block.Error!void {
        @branchHint(.cold);
        const diagnostic = self.context.diagnostic;
        diagnostic.* = .{
            .code = .corrupt,
            .format = header_zig.format,
            .structure = structure,
            .offset = template.known(offset),
            .value = template.known(value),
        };
        diagnostic.text_length = block.sentence.fill(&diagnostic.text, text, arguments).len;
        return self.settle(error.Refused);
    }

    /// Report what was refused, or refuse it.
    pub noinline fn settle(self: Problems, reason: block.Error) block.Error!void {
        const findings = self.findings orelse return reason;
        if (reason != error.Refused) return reason;
        const diagnostic = self.context.diagnostic;
        return findings.add(.corruption, .{
            .structure = diagnostic.structure,
            .offset = diagnostic.offset,
            .value = diagnostic.value,
            .expected = diagnostic.limit,
        }, "{s}", .{diagnostic.message()["luks: ".len..]});
    }
};

/// What a member has to be.
const Wanted = enum { text, integer, size, object, array };

const Reader = struct {
    problems: Problems,
    /// Byte of the device at which the JSON text begins.
    base: u64,

    /// A member; null, and said so, when it is not there or is something else.
    fn member(self: *const Reader, node: *const json.Node, what: []const u8, name: []const u8, wanted: Wanted) block.Error!?*const json.Node {
        return self.find(node, what, name, wanted, true);
    }

    noinline fn find(self: *const Reader, node: *const json.Node, what: []const u8, name: []const u8, wanted: Wanted, required: bool) block.Error!?*const json.Node {
        const found = node.member(name) orelse {
            if (required) try self.problems.say(what, self.base + node.at, null, "LUKS2 {s}{s}: '{s}' is missing", .{ what, self.suffix(node), name });
            return null;
        };
        const fits = switch (wanted) {
            .text => found.kind == .string,
            .integer => found.integer() != null,
            .size => found.decimalText() != null,
            .object => found.kind == .object,
            .array => found.kind == .array,
        };
        if (fits) return found;
        const names = [_][]const u8{ "a string", "a whole number", "a whole number in a string", "an object", "an array" };
        try self.problems.say(what, self.base + found.at, null, "LUKS2 {s}{s}: '{s}' is not {s}", .{ what, self.suffix(node), name, names[@intFromEnum(wanted)] });
        return null;
    }

    /// " 3" for member "3" of keyslots, segments and so on.
    noinline fn suffix(self: *const Reader, node: *const json.Node) []const u8 {
        if (json.decimal(node.name) == null) return "";
        const out = self.problems.context.allocator.alloc(u8, node.name.len + 1) catch return "";
        out[0] = ' ';
        @memcpy(out[1..], node.name);
        return out;
    }

    noinline fn text(self: *const Reader, node: *const json.Node, what: []const u8, name: []const u8) block.Error![]const u8 {
        return if (try self.member(node, what, name, .text)) |found| found.text else "";
    }

    noinline fn integer(self: *const Reader, node: *const json.Node, what: []const u8, name: []const u8) block.Error!u64 {
        return if (try self.member(node, what, name, .integer)) |found| found.integer().? else 0;
    }

    noinline fn size(self: *const Reader, node: *const json.Node, what: []const u8, name: []const u8) block.Error!u64 {
        return if (try self.member(node, what, name, .size)) |found| found.decimalText().? else 0;
    }

    /// The number of an object, which its name is; null, and said so, when it is none below `max_objects`.
    fn number(self: *const Reader, node: *const json.Node, what: []const u8) block.Error!?u32 {
        if (json.decimal(node.name)) |id| if (id < max_objects and node.kind == .object) return @intCast(id);
        if (node.kind != .object)
            try self.problems.say(what, self.base + node.at, null, "LUKS2 {s} '{s}' is not an object", .{ what, shorten(node.name) })
        else
            try self.problems.say(what, self.base + node.at, null, "LUKS2 {s} '{s}' is not a number below {d}", .{ what, shorten(node.name), max_objects });
        return null;
    }

    /// The objects of one section, each read by `one`.
    fn section(self: *const Reader, comptime T: type, root: *const json.Node, comptime name: []const u8, comptime what: []const u8, comptime one: anytype) block.Error![]const T {
        const node = try self.member(root, "metadata", name, .object) orelse return &.{};
        if (node.count > max_objects) {
            try self.problems.say(what, self.base + node.at, node.count, "LUKS2 metadata: {d} objects in '{s}', at most {d}", .{ node.count, name, max_objects });
            return &.{};
        }
        const list = self.problems.context.allocator.alloc(T, node.count) catch return error.NoMemory;
        var count: usize = 0;
        var each = node.first;
        while (each) |object| : (each = object.next) {
            const id = try self.number(object, what) orelse continue;
            list[count] = try one(self, object, what);
            list[count].id = id;
            count += 1;
        }
        const Less = struct {
            fn than(_: void, left: T, right: T) bool {
                return left.id < right.id;
            }
        };
        std.sort.insertion(T, list[0..count], {}, Less.than);
        return list[0..count];
    }

    fn keyslot(self: *const Reader, node: *const json.Node, what: []const u8) block.Error!Keyslot {
        var out: Keyslot = .{ .type = try self.text(node, what, "type"), .key_size = try self.integer(node, what, "key_size") };
        if (try self.find(node, what, "priority", .integer, false)) |found| out.priority = found.integer().?;
        if (try self.member(node, what, "area", .object)) |area| {
            out.area = .{
                .type = try self.text(area, "keyslot area", "type"),
                .offset = try self.size(area, "keyslot area", "offset"),
                .size = try self.size(area, "keyslot area", "size"),
            };
            if (std.mem.eql(u8, out.area.type, "raw")) {
                out.area.encryption = try self.text(area, "keyslot area", "encryption");
                out.area.key_size = try self.integer(area, "keyslot area", "key_size");
            }
        }
        if (std.mem.eql(u8, out.type, "reencrypt")) {
            out.mode = try self.text(node, what, "mode");
            return out;
        }
        if (!std.mem.eql(u8, out.type, "luks2")) return out;
        if (try self.member(node, what, "kdf", .object)) |kdf| out.kdf = try self.keyDerivation(kdf);
        if (try self.member(node, what, "af", .object)) |af| {
            const name = "keyslot af";
            const kind = try self.text(af, name, "type");
            out.stripes = try self.integer(af, name, "stripes");
            out.af_hash = try self.text(af, name, "hash");
            if (!std.mem.eql(u8, kind, "luks1"))
                try self.problems.say(name, self.base + af.at, null, "LUKS2 keyslot af: type '{s}' is not 'luks1'", .{shorten(kind)});
        }
        return out;
    }

    fn keyDerivation(self: *const Reader, node: *const json.Node) block.Error!Kdf {
        const what = "keyslot kdf";
        var out: Kdf = .{ .type = try self.text(node, what, "type"), .salt = try self.text(node, what, "salt") };
        if (std.mem.eql(u8, out.type, "pbkdf2")) {
            out.hash = try self.text(node, what, "hash");
            out.iterations = try self.integer(node, what, "iterations");
            if (out.iterations == 0) try self.problems.say(what, self.base + node.at, 0, "LUKS2 keyslot kdf: no iterations", .{});
        } else if (std.mem.eql(u8, out.type, "argon2i") or std.mem.eql(u8, out.type, "argon2id")) {
            out.time = try self.integer(node, what, "time");
            out.memory = try self.integer(node, what, "memory");
            out.cpus = try self.integer(node, what, "cpus");
            if (out.time == 0 or out.memory == 0 or out.cpus == 0)
                try self.problems.say(what, self.base + node.at, 0, "LUKS2 keyslot kdf: time {d}, memory {d} KiB and {d} cpus: none may be 0", .{ out.time, out.memory, out.cpus });
        }
        return out;
    }

    fn segment(self: *const Reader, node: *const json.Node, what: []const u8) block.Error!Segment {
        var out: Segment = .{ .type = try self.text(node, what, "type"), .offset = try self.size(node, what, "offset") };
        if (try self.member(node, what, "size", .text)) |found| {
            if (!std.mem.eql(u8, found.text, "dynamic")) {
                out.size = found.decimalText() orelse 0;
                if (out.size.? == 0) try self.problems.say(what, self.base + found.at, null, "LUKS2 segment{s}: size '{s}' is neither 'dynamic' nor a number of bytes above 0", .{ self.suffix(node), shorten(found.text) });
            }
        }
        if (try self.find(node, what, "flags", .array, false)) |flags| {
            var each = flags.first;
            while (each) |flag| : (each = flag.next) {
                if (flag.kind != .string)
                    try self.problems.say(what, self.base + flag.at, null, "LUKS2 segment{s}: a flag is not a string", .{self.suffix(node)})
                else if (std.mem.startsWith(u8, flag.text, "backup-")) out.backup = true;
            }
        }
        if (std.mem.eql(u8, out.type, "crypt")) {
            out.encryption = try self.text(node, what, "encryption");
            out.iv_tweak = try self.size(node, what, "iv_tweak");
            const found = try self.integer(node, what, "sector_size");
            if (found == 512 or found == 1024 or found == 2048 or found == 4096) out.sector_size = found else try self.problems.say(what, self.base + node.at, found, "LUKS2 segment{s}: sector size {d} is none of 512, 1024, 2048 and 4096", .{ self.suffix(node), found });
            if (try self.find(node, what, "integrity", .object, false)) |integrity| out.integrity = try self.text(integrity, "segment integrity", "type");
        }
        return out;
    }

    fn digest(self: *const Reader, node: *const json.Node, what: []const u8) block.Error!Digest {
        var out: Digest = .{ .type = try self.text(node, what, "type") };
        out.keyslots = try self.numbers(node, what, "keyslots");
        out.segments = try self.numbers(node, what, "segments");
        if (!std.mem.eql(u8, out.type, "pbkdf2")) return out;
        out.hash = try self.text(node, what, "hash");
        out.iterations = try self.integer(node, what, "iterations");
        out.salt = try self.text(node, what, "salt");
        out.digest = try self.text(node, what, "digest");
        if (out.iterations == 0) try self.problems.say(what, self.base + node.at, 0, "LUKS2 digest{s}: no iterations", .{self.suffix(node)});
        return out;
    }

    fn token(self: *const Reader, node: *const json.Node, what: []const u8) block.Error!Token {
        return .{ .type = try self.text(node, what, "type"), .keyslots = try self.numbers(node, what, "keyslots") };
    }

    /// An array of numbers in strings, as bits.
    noinline fn numbers(self: *const Reader, node: *const json.Node, what: []const u8, name: []const u8) block.Error!u32 {
        const list = try self.member(node, what, name, .array) orelse return 0;
        var bits: u32 = 0;
        var each = list.first;
        while (each) |item| : (each = item.next) {
            const id = item.decimalText() orelse max_objects;
            if (id >= max_objects) {
                try self.problems.say(what, self.base + item.at, null, "LUKS2 {s}{s}: an entry of '{s}' is not a number below {d} in a string", .{ what, self.suffix(node), name, max_objects });
            } else bits |= @as(u32, 1) << @intCast(id);
        }
        return bits;
    }

    /// An array of strings.
    noinline fn texts(self: *const Reader, node: *const json.Node, name: []const u8) block.Error![]const []const u8 {
        const list = try self.find(node, "config", name, .array, false) orelse return &.{};
        const out = self.problems.context.allocator.alloc([]const u8, list.count) catch return error.NoMemory;
        var count: usize = 0;
        var each = list.first;
        while (each) |item| : (each = item.next) {
            if (item.kind != .string) {
                try self.problems.say("config", self.base + item.at, null, "LUKS2 config: an entry of '{s}' is not a string", .{name});
                continue;
            }
            out[count] = item.text;
            count += 1;
        }
        return out[0..count];
    }
};

/// As much of an image's text as fits a sentence; cut between characters.
pub noinline fn shorten(name: []const u8) []const u8 {
    if (name.len <= 64) return name;
    var end: usize = 64;
    while (end > 0 and name[end] & 0xc0 == 0x80) end -= 1;
    return name[0..end];
}

/// Read the metadata of a copy on a device of `length` bytes.
pub fn read(problems: Problems, copy: *const header2.Copy, length: u64) block.Error!Metadata {
    const context = problems.context;
    const base = copy.at + header2.binary_size;
    var out: Metadata = .{ .text_size = copy.json().len };
    if (copy.json().len == copy.bytes.len - header2.binary_size) {
        try problems.say("JSON area", base, copy.json().len, "LUKS2 JSON area: no NUL ends the text of {d} bytes", .{copy.json().len});
        return out;
    }
    var failure: json.Failure = .{};
    const root = json.parse(context.allocator, copy.json(), &failure) catch |reason| switch (reason) {
        error.OutOfMemory => return error.NoMemory,
        error.Malformed => {
            try problems.say("JSON area", base + failure.at, null, "LUKS2 JSON area: byte {d} of the text: {s}", .{ failure.at, failure.what });
            return out;
        },
    };
    const reader: Reader = .{ .problems = problems, .base = base };
    if (root.kind != .object) {
        try problems.say("JSON area", base, null, "LUKS2 JSON area: the text is not an object", .{});
        return out;
    }
    out.keyslots = try reader.section(Keyslot, root, "keyslots", "keyslot", Reader.keyslot);
    out.segments = try reader.section(Segment, root, "segments", "segment", Reader.segment);
    out.digests = try reader.section(Digest, root, "digests", "digest", Reader.digest);
    out.tokens = try reader.section(Token, root, "tokens", "token", Reader.token);
    if (try reader.member(root, "metadata", "config", .object)) |config| {
        out.json_size = try reader.size(config, "config", "json_size");
        out.keyslots_size = try reader.size(config, "config", "keyslots_size");
        out.flags = try reader.texts(config, "flags");
        if (try reader.find(config, "config", "requirements", .object, false)) |node| out.requirements = try reader.texts(node, "mandatory");
    }
    try @import("consistency.zig").check(problems, copy, &out, length);
    return out;
}
