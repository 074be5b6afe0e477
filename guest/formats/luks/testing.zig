//! Containers for tests: version 1 from our own planner, version 2 written here.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const target = @import("../target.zig");
const plans = @import("../plan.zig");
const header_zig = @import("header.zig");
const create = @import("create.zig");
const kdf = @import("kdf.zig");
const SectorCipher = @import("cipher.zig").SectorCipher;
const luks = @import("luks.zig");

const testing = std.testing;

/// A device in memory, an arena, and a diagnostic.
pub const Bench = struct {
    arena: std.heap.ArenaAllocator,
    memory: block.Memory,
    diagnostic: block.Diagnostic = .{},
    passphrase: ?[]const u8 = null,
    /// What the sink got.
    findings: std.ArrayList(u8) = .empty,

    pub fn init() !Bench {
        return .{ .arena = .init(testing.allocator), .memory = try .init(testing.allocator, "") };
    }

    pub fn deinit(self: *Bench) void {
        self.memory.deinit();
        self.arena.deinit();
    }

    pub fn bytes(self: *Bench) []u8 {
        return self.memory.bytes.items;
    }

    pub fn context(self: *Bench) image.Context {
        return .{ .allocator = self.arena.allocator(), .diagnostic = &self.diagnostic, .passphrase = self.passphrase };
    }

    pub fn device(self: *Bench) block.Device {
        return self.memory.device();
    }

    /// Put another content in.
    pub fn fill(self: *Bench, content: []const u8) !void {
        self.memory.bytes.clearRetainingCapacity();
        try self.memory.bytes.appendSlice(testing.allocator, content);
    }

    pub fn cut(self: *Bench, length: usize) void {
        self.memory.bytes.shrinkRetainingCapacity(length);
    }

    pub fn open(self: *Bench) block.Error!image.Image {
        return luks.driver.open.?(self.context(), self.device());
    }

    pub fn info(self: *Bench) block.Error!messages.Info {
        var report: messages.Info = .{ .format = "luks", .virtual_size = 0, .file_length = self.bytes().len, .dirty_flag = false };
        try luks.driver.info.?(self.context(), self.device(), self.sink(), &report);
        return report;
    }

    pub fn check(self: *Bench) block.Error!messages.Check {
        self.findings.clearRetainingCapacity();
        var report: messages.Check = .{ .format = "luks", .file_length = self.bytes().len, .check_errors = 0, .corruptions = 0, .leaks = 0, .findings_omitted = 0 };
        try luks.driver.check.?(self.context(), self.device(), self.sink(), &report);
        return report;
    }

    pub fn unlock(self: *Bench, passphrase: []const u8) block.Error!image.Unlocked {
        self.passphrase = passphrase;
        return luks.driver.unlock.?(self.context(), self.device());
    }

    fn sink(self: *Bench) image.Sink {
        return .{ .context = self, .deliver = deliver };
    }

    fn deliver(opaque_self: *anyopaque, message: []const u8) block.Error!void {
        const self: *Bench = @ptrCast(@alignCast(opaque_self));
        self.findings.appendSlice(self.arena.allocator(), message) catch return error.NoMemory;
    }

    /// The info, and the check if it finds nothing, must not be had: a refusal with this text.
    pub fn expectRefused(self: *Bench, text: []const u8) !void {
        testing.expectError(error.Refused, self.info()) catch |failure| {
            std.debug.print("not refused: {s}\n", .{text});
            return failure;
        };
        try self.expectText(text);
        try testing.expectError(error.Refused, self.open());
        try self.expectText(text);
    }

    fn expectText(self: *Bench, text: []const u8) !void {
        if (std.mem.indexOf(u8, self.diagnostic.message(), text) == null) try testing.expectEqualStrings(text, self.diagnostic.message());
        try testing.expectEqualStrings("luks", self.diagnostic.format.?);
    }

    /// check counts so many corruptions, one of them with this text.
    pub fn expectCorrupt(self: *Bench, corruptions: u64, text: []const u8) !void {
        const report = try self.check();
        testing.expectEqual(corruptions, report.corruptions) catch |failure| {
            std.debug.print("{s}\n", .{self.findings.items});
            return failure;
        };
        if (std.mem.indexOf(u8, self.findings.items, text) == null) {
            std.debug.print("no finding: {s}\n", .{text});
            return error.TestExpectedFinding;
        }
    }

    /// An empty LUKS1 container of our own planner, for a disk of `size` bytes.
    pub fn make(self: *Bench, size: u64, passphrase: []const u8, options: target.Options) !void {
        self.passphrase = passphrase;
        const planned = try create.plan(self.context(), size, &options, .{ .uuid = @splat(0xab), .entropy = @splat(7) });
        self.memory.bytes.clearRetainingCapacity();
        var out = self.memory.device();
        out.read_only = false;
        try plans.execute(&planned, &out, self.arena.allocator());
    }
};

pub fn be(comptime T: type, value: T) [@sizeOf(T)]u8 {
    var out: [@sizeOf(T)]u8 = undefined;
    std.mem.writeInt(T, &out, value, .big);
    return out;
}

/// A LUKS2 container: one key slot with PBKDF2, AES-128-XTS, and a payload.
pub const Two = struct {
    pub const header_size = 16384;
    pub const area_offset = 2 * header_size;
    pub const area_size = 128 << 10;
    pub const keyslots_size = 128 << 10;
    pub const payload_offset = 160 << 10;
    pub const passphrase = "open sesame";
    pub const key: [32]u8 = @splat(0x5a);
    const salt = "0123456789abcdef0123456789abcdef";
    const iterations = 1000;

    /// The metadata; `{s}` are the base64 texts of salts and digest.
    pub const json_text =
        \\{"keyslots":{"0":{"type":"luks2","key_size":32,"af":{"type":"luks1","stripes":4000,"hash":"sha256"},"area":{"type":"raw","offset":"32768","size":"131072","encryption":"aes-xts-plain64","key_size":32},"kdf":{"type":"pbkdf2","hash":"sha256","iterations":1000,"salt":"@SALT"}}},"tokens":{},"segments":{"0":{"type":"crypt","offset":"163840","size":"dynamic","iv_tweak":"0","encryption":"aes-xts-plain64","sector_size":512}},"digests":{"0":{"type":"pbkdf2","keyslots":["0"],"segments":["0"],"hash":"sha256","iterations":1000,"salt":"@SALT","digest":"@DIGEST"}},"config":{"json_size":"12288","keyslots_size":"131072"}}
    ;

    /// The metadata with its texts in place, and one more replacement.
    pub fn json(allocator: std.mem.Allocator, from: []const u8, to: []const u8) ![]const u8 {
        var diagnostic: block.Diagnostic = .{};
        var work: kdf.Work = .{ .context = .{ .allocator = allocator, .diagnostic = &diagnostic }, .total = 0 };
        var digest: [32]u8 = undefined;
        kdf.pbkdf2(&work, .sha256, &key, salt, iterations, &digest);
        var salt_text: [44]u8 = undefined;
        var digest_text: [44]u8 = undefined;
        _ = std.base64.standard.Encoder.encode(&salt_text, salt);
        _ = std.base64.standard.Encoder.encode(&digest_text, &digest);
        const one = try std.mem.replaceOwned(u8, allocator, json_text, "@SALT", &salt_text);
        const two = try std.mem.replaceOwned(u8, allocator, one, "@DIGEST", &digest_text);
        if (from.len == 0) return two;
        if (std.mem.indexOf(u8, two, from) == null) return error.TestNothingToReplace;
        return std.mem.replaceOwned(u8, allocator, two, from, to);
    }

    /// A whole container with this metadata and payload.
    pub fn write(bench: *Bench, text: []const u8, payload: []const u8) !void {
        const allocator = bench.arena.allocator();
        const file = try allocator.alloc(u8, payload_offset + payload.len);
        @memset(file, 0);
        header(file[0..header_size], true, 3, text);
        header(file[header_size..area_offset], false, 3, text);
        // Every stripe but the last one is zero.
        const material = file[area_offset..][0 .. 32 * 4000];
        kdf.split(.sha256, &key, material);
        var work: kdf.Work = .{ .context = bench.context(), .total = 0 };
        var slot_key: [32]u8 = undefined;
        kdf.pbkdf2(&work, .sha256, passphrase, salt, iterations, &slot_key);
        const slot: SectorCipher = .init(.xts, .plain64, &slot_key);
        slot.encrypt(0, 512, material);
        @memcpy(file[payload_offset..], payload);
        const disk: SectorCipher = .init(.xts, .plain64, &key);
        disk.encrypt(0, 512, file[payload_offset..]);
        try bench.fill(file);
    }

    /// One copy of the header, with its checksum.
    pub fn header(out: []u8, first: bool, sequence: u64, text: []const u8) void {
        @memset(out, 0);
        @memcpy(out[0..6], if (first) "LUKS\xba\xbe" else "SKUL\xba\xbe");
        out[6..8].* = be(u16, 2);
        out[8..16].* = be(u64, out.len);
        out[16..24].* = be(u64, sequence);
        @memcpy(out[24..28], "name");
        @memcpy(out[72..78], "sha256");
        @memcpy(out[168..204], "12345678-1234-1234-1234-123456789abc");
        out[256..264].* = be(u64, if (first) 0 else out.len);
        @memcpy(out[4096..][0..text.len], text);
        seal(out);
    }

    /// Set the checksum anew.
    pub fn seal(out: []u8) void {
        @memset(out[448..512], 0);
        std.crypto.hash.sha2.Sha256.hash(out, out[448..480], .{});
    }

    /// Set the checksums of both copies anew.
    pub fn sealBoth(bench: *Bench) void {
        seal(bench.bytes()[0..header_size]);
        seal(bench.bytes()[header_size..area_offset]);
    }
};
