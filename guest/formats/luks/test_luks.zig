//! LUKS1: what is planned is read back; every field at and off its limits; truncation; the five evil headers' classes.

const std = @import("std");
const block = @import("block");
const resizing = @import("../resizing.zig");
const target = @import("../target.zig");
const header_zig = @import("header.zig");
const luks = @import("luks.zig");
const create = @import("create.zig");
const unlock = @import("unlock.zig");
const tools = @import("testing.zig");
const Bench = tools.Bench;
const be = tools.be;
const At = header_zig.At;

const testing = std.testing;

const fast: target.Options = .{ .cipher_alg = "aes-128", .cipher_mode = "cbc", .ivgen_alg = "essiv", .iterations = 1000 };
/// Of `fast`.
const payload_offset = 528_384;
const area = 65_536;

fn slotAt(index: usize) usize {
    return At.slots + index * header_zig.slot_bytes;
}

test "what is planned is opened, checked and unlocked" {
    var bench = try Bench.init();
    defer bench.deinit();
    const cases = [_]target.Options{
        fast,
        .{ .iterations = 1000 },
        .{ .iterations = 1000, .cipher_alg = "aes-192", .hash_alg = "sha1", .ivgen_alg = "plain" },
        .{ .iterations = 1000, .cipher_mode = "cbc", .hash_alg = "sha512" },
        .{ .iterations = 1000, .cipher_alg = "aes-128", .ivgen_alg = "essiv", .preallocation = "full" },
        .{ .iterations = 1000, .ivgen_alg = "plain", .ivgen_hash_alg = "md5", .preallocation = "metadata" },
    };
    for (cases) |options| {
        try bench.make(4096, "secret\n", options);
        const report = try bench.info();
        try testing.expectEqual(@as(u64, 4096), report.virtual_size);
        try testing.expectEqual(@as(usize, bench.bytes().len - 4096), @as(usize, @intCast(report.luks.?.payload_offset)));
        try testing.expectEqualStrings("abababab-abab-abab-abab-abababababab", report.luks.?.uuid);
        try testing.expectEqual(@as(?u64, 1000), report.luks.?.slots[0].iters);
        try testing.expectEqual(null, report.luks.?.slots[1].iters);
        const checked = try bench.check();
        try testing.expectEqual(@as(u64, 0), checked.corruptions);
        try testing.expectEqual(@as(usize, 0), bench.findings.items.len);
        const opened = try bench.unlock("secret\n");
        try testing.expectEqual(@as(u32, 0), opened.keyslot);
        try testing.expectEqual(@as(u64, 4096), opened.image.virtual_size);
        // Exactly these bytes.
        for ([_][]const u8{ "secret", "secret\n\n", "", "Secret\n" }) |wrong| {
            try testing.expectError(error.Refused, bench.unlock(wrong));
            try testing.expectEqual(block.Diagnostic.Code.wrong_passphrase, bench.diagnostic.code);
        }
    }
}

test "what was encrypted is read back, from anywhere" {
    var bench = try Bench.init();
    defer bench.deinit();
    try bench.make(40_960, "p", fast);
    // Decrypt what the file holds, which are zeroes, and encrypt the plain text in its place.
    const opened = try header_zig.open(bench.context(), bench.device(), 0);
    const key = try unlock.masterKey(bench.context(), bench.device(), opened, "p");
    const cipher = try unlock.cipherFor(bench.context(), opened.algorithms.method, key.bytes);
    var plain: [40_960]u8 = undefined;
    for (&plain, 0..) |*byte, i| byte.* = @truncate(i *% 31 +% i / 512);
    const stored = bench.bytes()[payload_offset..];
    @memcpy(stored, &plain);
    cipher.encrypt(0, 512, stored);
    const disk = (try bench.unlock("p")).image;
    var buffer: [40_960]u8 = undefined;
    for ([_]usize{ 0, 1, 511, 512, 513, 20_000, 40_959 }) |start| for ([_]usize{ 1, 15, 512, 16_384, 16_385, 40_960 }) |wanted| {
        const length = @min(wanted, plain.len - start);
        try disk.read.?(disk.context, start, buffer[0..length]);
        try testing.expectEqualSlices(u8, plain[start..][0..length], buffer[0..length]);
    };
}

test "the same request gives the same bytes, another one others" {
    var bench = try Bench.init();
    defer bench.deinit();
    try bench.make(512, "p", fast);
    const first = try testing.allocator.dupe(u8, bench.bytes());
    defer testing.allocator.free(first);
    try bench.make(512, "p", fast);
    try testing.expectEqualSlices(u8, first, bench.bytes());
    try bench.make(512, "q", fast);
    try testing.expect(!std.mem.eql(u8, first, bench.bytes()));
}

test "create refuses what it cannot make" {
    var bench = try Bench.init();
    defer bench.deinit();
    const seed: target.Seed = .{ .entropy = @splat(1) };
    const cases = [_]struct { target.Options, []const u8 }{
        .{ .{ .cipher_alg = "serpent-256" }, "luks: create does not support cipher-alg=serpent-256" },
        .{ .{ .cipher_mode = "ctr" }, "luks: create does not support cipher-mode=ctr" },
        .{ .{ .hash_alg = "ripemd160" }, "luks: create does not support hash-alg=ripemd160" },
        .{ .{ .preallocation = "some" }, "luks: Parameter 'preallocation' does not accept value 'some'" },
        .{ .{ .subformat = "fixed" }, "luks: Invalid parameter 'subformat'" },
    };
    bench.passphrase = "p";
    for (cases) |case| {
        try testing.expectError(error.Refused, create.plan(bench.context(), 1, &case[0], seed));
        try testing.expectEqualStrings(case[1], bench.diagnostic.message());
    }
    for ([_]u64{ target.max_size - payload_offset + 1, target.max_size, 1 << 63, std.math.maxInt(u64) }) |size| {
        try testing.expectError(error.Refused, create.plan(bench.context(), size, &fast, seed));
        try testing.expectEqual(block.Diagnostic.Code.too_large, bench.diagnostic.code);
    }
    try testing.expectError(error.Refused, create.plan(bench.context(), 1, &fast, .{}));
    bench.passphrase = null;
    try testing.expectError(error.Refused, create.plan(bench.context(), 1, &fast, seed));
    try testing.expectEqualStrings("luks: a passphrase is required: give it with --luks-passphrase-file", bench.diagnostic.message());
}

const Row = struct {
    at: usize,
    bytes: []const u8,
    /// What opening says; empty: it is opened.
    refused: []const u8 = "",
    /// Corruptions that check counts, and one of its texts.
    corruptions: u64 = 0,
    finding: []const u8 = "",
};

const rows = [_]Row{
    .{ .at = At.cipher_name, .bytes = "a" ** 32, .refused = "cipher name is not NUL terminated", .corruptions = 1, .finding = "cipher name is not NUL terminated" },
    .{ .at = At.cipher_name, .bytes = "\x00", .refused = "Algorithm '' with key size 16 bytes not supported" },
    .{ .at = At.cipher_name, .bytes = "\xff\x00", .refused = "Algorithm '\u{fffd}' with key size 16 bytes not supported" },
    .{ .at = At.cipher_mode, .bytes = "-" ** 32, .refused = "cipher mode is not NUL terminated", .corruptions = 1, .finding = "not NUL terminated" },
    .{ .at = At.cipher_mode, .bytes = "cbc\x00", .refused = "Unexpected cipher mode string format 'cbc'", .corruptions = 1, .finding = "names no IV generator" },
    .{ .at = At.cipher_mode, .bytes = "cfb-plain\x00", .refused = "Cipher mode 'cfb' not supported" },
    .{ .at = At.cipher_mode, .bytes = "cbc-null\x00", .refused = "IV generator 'null' not supported" },
    .{ .at = At.cipher_mode, .bytes = "cbc-essiv\x00", .refused = "Missing IV generator hash" },
    .{ .at = At.cipher_mode, .bytes = "cbc-essiv:sha1\x00", .refused = "No AES cipher with key size 20" },
    .{ .at = At.cipher_mode, .bytes = "cbc-essiv:what\x00", .refused = "Hash algorithm 'what' not supported" },
    .{ .at = At.hash_spec, .bytes = "s" ** 32, .refused = "hash spec is not NUL terminated", .corruptions = 1, .finding = "hash spec is not NUL terminated" },
    .{ .at = At.hash_spec, .bytes = "sha3\x00", .refused = "Hash algorithm 'sha3' not supported" },
    .{ .at = At.payload_offset, .bytes = &be(u32, 0), .refused = "payload is overlapping with the header", .finding = "disk that lies elsewhere" },
    .{ .at = At.payload_offset, .bytes = &be(u32, 1), .refused = "payload is overlapping with the header", .corruptions = 9, .finding = "inside the header" },
    .{ .at = At.payload_offset, .bytes = &be(u32, 7), .refused = "begins at byte 3584, at least 4096", .corruptions = 8, .finding = "behind the start of the payload at 3584" },
    .{ .at = At.payload_offset, .bytes = &be(u32, 8), .refused = "Keyslot 0 is overlapping with the encrypted payload", .corruptions = 8, .finding = "key slot 7: its area ends" },
    .{ .at = At.payload_offset, .bytes = &be(u32, payload_offset / 512 - 1), .refused = "Keyslot 7 is overlapping with the encrypted payload" },
    .{ .at = At.payload_offset, .bytes = &be(u32, payload_offset / 512 + 8) },
    .{ .at = At.payload_offset, .bytes = &be(u32, payload_offset / 512 + 9), .refused = "Could not refresh total sector count", .corruptions = 1, .finding = "the payload begins at byte 532992, file has 532480" },
    .{ .at = At.payload_offset, .bytes = "\xff" ** 4, .refused = "the payload begins at byte 2199023255040, file has 532480", .corruptions = 1, .finding = "file has" },
    .{ .at = At.key_bytes, .bytes = &be(u32, 0), .refused = "Algorithm 'aes' with key size 0 bytes", .corruptions = 1, .finding = "a master key of 0 bytes" },
    .{ .at = At.key_bytes, .bytes = &be(u32, 1), .refused = "Algorithm 'aes' with key size 1 bytes" },
    .{ .at = At.key_bytes, .bytes = &be(u32, 15), .refused = "Algorithm 'aes' with key size 15 bytes" },
    .{ .at = At.key_bytes, .bytes = &be(u32, 17), .refused = "are overlapping in the header", .corruptions = 8, .finding = "key slots 0 and 1: their areas overlap" },
    .{ .at = At.key_bytes, .bytes = "\xff" ** 4, .refused = "Keyslot 0 is overlapping with the encrypted payload", .corruptions = 38, .finding = "a master key of 4294967295 bytes" },
    .{ .at = At.iterations, .bytes = &be(u32, 0), .refused = "key iteration count is zero", .corruptions = 1, .finding = "master key iterations are zero" },
    .{ .at = At.iterations, .bytes = &be(u32, 1), .finding = "1 master key iterations, fewer than 1000" },
    .{ .at = At.iterations, .bytes = "\xff" ** 4 },
    .{ .at = At.uuid, .bytes = "u" ** 40, .finding = "the UUID is not of the usual form" },
    .{ .at = At.uuid, .bytes = "\xff\xfe\x00", .finding = "the UUID is not of the usual form" },
    .{ .at = slotAt(0), .bytes = &be(u32, 0), .refused = "Keyslot 0 state (active/disable) is corrupted: 0", .corruptions = 1, .finding = "key slot 0: state 0 is neither" },
    .{ .at = slotAt(0), .bytes = &be(u32, header_zig.State.inactive), .finding = "no key slot is active" },
    .{ .at = slotAt(7), .bytes = "\xff" ** 4, .refused = "Keyslot 7 state", .corruptions = 1, .finding = "key slot 7: state ffffffff" },
    .{ .at = slotAt(0) + 4, .bytes = &be(u32, 0), .refused = "Keyslot 0 iteration count is zero", .corruptions = 1, .finding = "key slot iterations are zero" },
    .{ .at = slotAt(0) + 4, .bytes = &be(u32, 999), .finding = "999 key slot iterations, fewer than 1000" },
    .{ .at = slotAt(1) + 4, .bytes = "\xff" ** 4 },
    // evil_hdr-luks_hdr_damage: key material over the header.
    .{ .at = slotAt(2) + 40, .bytes = &be(u32, 1), .refused = "Keyslots 0 and 2 are overlapping", .corruptions = 2, .finding = "key slot 2: its area begins at byte 512, inside the header" },
    .{ .at = slotAt(0) + 40, .bytes = &be(u32, 7), .refused = "Keyslot 0 is overlapping with the LUKS header", .finding = "qemu-img refuses this header" },
    // evil_hdr-keyslot_overlap.
    .{ .at = slotAt(1) + 40, .bytes = &be(u32, 8), .refused = "Keyslots 0 and 1 are overlapping in the header: they begin at bytes 4096 and 4096", .corruptions = 1, .finding = "key slots 0 and 1: their areas overlap" },
    .{ .at = slotAt(1) + 40, .bytes = &be(u32, 135), .refused = "Keyslots 0 and 1 are overlapping", .finding = "qemu-img refuses this header" },
    // evil_hdr-payload_overwrite.
    .{ .at = slotAt(7) + 40, .bytes = &be(u32, payload_offset / 512), .refused = "Keyslot 7 is overlapping with the encrypted payload", .corruptions = 1, .finding = "key slot 7: its area ends" },
    .{ .at = slotAt(7) + 40, .bytes = "\xff" ** 4, .refused = "Keyslot 7 is overlapping with the encrypted payload", .corruptions = 1, .finding = "key slot 7: its area ends at byte 2199023319040" },
    // evil_hdr-stripes_payload_dmg.
    .{ .at = slotAt(7) + 44, .bytes = &be(u32, 4100), .refused = "Keyslot 7 is corrupted (stripes 4100 != 4000)", .corruptions = 2, .finding = "key slot 7: 4100 stripes instead of 4000" },
    .{ .at = slotAt(0) + 44, .bytes = &be(u32, 0), .refused = "Keyslot 0 is corrupted (stripes 0 != 4000)", .corruptions = 1, .finding = "key slot 0: 0 stripes" },
    .{ .at = slotAt(0) + 44, .bytes = &be(u32, 3999), .refused = "(stripes 3999 != 4000)", .corruptions = 1, .finding = "3999 stripes" },
    .{ .at = slotAt(0) + 44, .bytes = "\xff" ** 4, .refused = "(stripes 4294967295 != 4000)", .corruptions = 10, .finding = "4294967295 stripes" },
    .{ .at = 6, .bytes = &be(u16, 3), .refused = "LUKS version 3 is not supported" },
};

test "every field of the header" {
    var bench = try Bench.init();
    defer bench.deinit();
    try bench.make(4096, "p", fast);
    const good = try testing.allocator.dupe(u8, bench.bytes());
    defer testing.allocator.free(good);
    for (rows) |row| {
        errdefer std.debug.print("field at {d}: {x}\n", .{ row.at, row.bytes });
        try bench.fill(good);
        @memcpy(bench.bytes()[row.at..][0..row.bytes.len], row.bytes);
        if (row.refused.len > 0) try bench.expectRefused(row.refused) else _ = try bench.info();
        if (row.at == 6) continue;
        try bench.expectCorrupt(row.corruptions, row.finding);
    }
}

test "truncation" {
    var bench = try Bench.init();
    defer bench.deinit();
    try bench.make(4096, "p", fast);
    const good = try testing.allocator.dupe(u8, bench.bytes());
    defer testing.allocator.free(good);
    const cases = [_]struct { usize, []const u8 }{
        .{ 0, "Volume is not in LUKS format" },
        .{ 5, "Volume is not in LUKS format" },
        .{ 7, "LUKS version 0 is not supported" },
        .{ 8, "payload is overlapping with the header" },
        .{ 207, "Keyslot 0 is corrupted (stripes 0 != 4000)" },
        .{ 591, "Keyslot 7 is corrupted (stripes 3840 != 4000)" },
        .{ 592, "the payload begins at byte 528384, file has 592" },
        .{ 4096, "file has 4096" },
        .{ 4096 + area, "file has 69632" },
        .{ payload_offset - 512, "file has 527872" },
    };
    for (cases) |case| {
        try bench.fill(good);
        bench.cut(case[0]);
        try bench.expectRefused(case[1]);
        if (case[0] >= 8) try testing.expect((try bench.check()).corruptions > 0);
    }
    // A part of a sector counts as a whole one, as in qemu.
    for ([_][2]u64{ .{ 0, 0 }, .{ 1, 512 }, .{ 512, 512 }, .{ 513, 1024 } }) |case| {
        try bench.fill(good);
        bench.cut(@intCast(payload_offset + case[0]));
        try testing.expectEqual(case[1], (try bench.open()).virtual_size);
    }
}

test "more work than a header should ask for" {
    var bench = try Bench.init();
    defer bench.deinit();
    try bench.make(512, "p", fast);
    bench.bytes()[slotAt(0) + 4 ..][0..4].* = @splat(0xff);
    try testing.expectError(error.Refused, bench.unlock("p"));
    try testing.expectEqual(block.Diagnostic.Code.too_large, bench.diagnostic.code);
    try testing.expectEqual(@as(?u64, unlock.max_rounds), bench.diagnostic.limit);
    try bench.make(512, "p", fast);
    bench.bytes()[At.iterations..][0..4].* = @splat(0xff);
    try testing.expectError(error.Refused, bench.unlock("p"));
    try testing.expectEqual(block.Diagnostic.Code.too_large, bench.diagnostic.code);
}

test "any header: no crash, and what opens is inside its file" {
    var bench = try Bench.init();
    defer bench.deinit();
    try bench.make(4096, "p", fast);
    const good = try testing.allocator.dupe(u8, bench.bytes());
    defer testing.allocator.free(good);
    var random: std.Random.DefaultPrng = .init(11);
    for (0..2000) |_| {
        try bench.fill(good[0 .. 592 + random.random().uintLessThan(usize, good.len - 592)]);
        for (0..1 + random.random().uintLessThan(usize, 4)) |_| {
            const at = 8 + random.random().uintLessThan(usize, 584);
            bench.bytes()[at] = random.random().int(u8);
        }
        _ = try bench.check();
        if (bench.open()) |opened| try testing.expect(opened.virtual_size <= std.mem.alignForward(u64, bench.bytes().len, 512)) else |reason| try testing.expectEqual(error.Refused, reason);
    }
}

test "resize sets the length" {
    var bench = try Bench.init();
    defer bench.deinit();
    const resize = luks.driver.resize.?;
    try bench.make(4096, "p", fast);
    const Case = struct { u64, ?[]const u8, bool, u64 };
    for ([_]Case{ .{ 8192, null, false, 8192 }, .{ 513, null, true, 513 }, .{ 100, "grow", false, 4196 }, .{ 4095, "shrink", true, 1 }, .{ 4096, null, false, 4096 } }) |case| {
        const planned = try resize(bench.context(), bench.device(), &.{ .size = case[0], .relative = case[1], .shrink = case[2] });
        try testing.expectEqual(@as(u64, 4096), planned.old_size);
        try testing.expectEqual(std.mem.alignForward(u64, case[3], 512), planned.new_size);
        try testing.expectEqual(payload_offset + std.mem.alignForward(u64, case[3], 512), planned.steps[0].length);
        try testing.expectEqual(.flush, std.meta.activeTag(planned.steps[1]));
    }
    const Refused = struct { u64, ?[]const u8, bool, []const u8 };
    for ([_]Refused{
        .{ 0, null, true, "New image size must be positive" },
        .{ 4096, "shrink", true, "New image size must be positive" },
        .{ 4097, "shrink", true, "New image size must be positive" },
        .{ 512, null, false, "Use the --shrink option" },
        .{ std.math.maxInt(u64), null, false, "above 2^63-1" },
        .{ resizing.max_size + 1, null, false, "exceeds maximum" },
    }) |case| {
        try testing.expectError(error.Refused, resize(bench.context(), bench.device(), &.{ .size = case[0], .relative = case[1], .shrink = case[2] }));
        try testing.expect(std.mem.indexOf(u8, bench.diagnostic.message(), case[3]) != null);
    }
    _ = try resize(bench.context(), bench.device(), &.{ .size = resizing.max_size });
}
