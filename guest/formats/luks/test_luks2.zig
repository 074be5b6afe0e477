//! LUKS2: both copies, every part of the metadata wrong in its way, unlocking.

const std = @import("std");
const block = @import("block");
const luks = @import("luks.zig");
const tools = @import("testing.zig");
const Bench = tools.Bench;
const Two = tools.Two;
const be = tools.be;

const testing = std.testing;

/// Bytes of the disk.
const disk_size = 8192;

fn plainText() [disk_size]u8 {
    var plain: [disk_size]u8 = undefined;
    for (&plain, 0..) |*byte, i| byte.* = @truncate(i *% 17 +% i / 512);
    return plain;
}

fn good(bench: *Bench) !void {
    const plain = plainText();
    try Two.write(bench, try Two.json(bench.arena.allocator(), "", ""), &plain);
}

fn changed(bench: *Bench, from: []const u8, to: []const u8) !void {
    const plain = plainText();
    try Two.write(bench, try Two.json(bench.arena.allocator(), from, to), &plain);
}

test "a container is described, checked and unlocked" {
    var bench = try Bench.init();
    defer bench.deinit();
    try good(&bench);
    const report = try bench.info();
    const facts = report.luks2.?;
    try testing.expectEqual(@as(u64, disk_size), report.virtual_size);
    try testing.expectEqualStrings("luks2", report.recognised.?);
    try testing.expectEqualStrings("primary", facts.active_copy);
    try testing.expectEqualStrings("same", facts.other_copy);
    try testing.expectEqualStrings("name", facts.label);
    try testing.expectEqual(@as(u64, Two.payload_offset), facts.payload_offset);
    try testing.expectEqual(@as(u64, 0), (try bench.check()).corruptions);
    const opened = try bench.unlock(Two.passphrase);
    var buffer: [disk_size]u8 = undefined;
    try opened.image.read.?(opened.image.context, 0, &buffer);
    try testing.expectEqualSlices(u8, &plainText(), &buffer);
    try testing.expectError(error.Refused, bench.unlock("open sesam"));
    try testing.expectEqual(block.Diagnostic.Code.wrong_passphrase, bench.diagnostic.code);
    try testing.expectError(error.Refused, luks.driver.resize.?(bench.context(), bench.device(), &.{ .size = 512 }));
    try testing.expectEqual(block.Diagnostic.Code.unsupported, bench.diagnostic.code);
}

test "one damaged copy is told, and the other one counts" {
    var bench = try Bench.init();
    defer bench.deinit();
    const Row = struct { at: usize, bytes: []const u8, problem: []const u8, sealed: bool = true };
    const rows = [_]Row{
        .{ .at = 0, .bytes = "X", .problem = "is missing: no magic" },
        .{ .at = 6, .bytes = &be(u16, 1), .problem = "is not of version 2" },
        .{ .at = 6, .bytes = &be(u16, 3), .problem = "is not of version 2" },
        .{ .at = 8, .bytes = &be(u64, 0), .problem = "has an invalid size" },
        .{ .at = 8, .bytes = &be(u64, 1), .problem = "has an invalid size" },
        .{ .at = 8, .bytes = &be(u64, Two.header_size - 1), .problem = "has an invalid size" },
        .{ .at = 8, .bytes = &be(u64, 8 << 20), .problem = "has an invalid size" },
        .{ .at = 8, .bytes = "\xff" ** 8, .problem = "has an invalid size" },
        .{ .at = 8, .bytes = &be(u64, 4 << 20), .problem = "ends outside the file" },
        .{ .at = 72, .bytes = "md5\x00", .problem = "has a checksum of an unknown kind" },
        .{ .at = 72, .bytes = "s" ** 32, .problem = "has a checksum of an unknown kind" },
        .{ .at = 256, .bytes = &be(u64, 512), .problem = "names another place" },
        .{ .at = 256, .bytes = "\xff" ** 8, .problem = "names another place" },
        .{ .at = 448, .bytes = "\x00" ** 32, .problem = "has a wrong checksum", .sealed = false },
        .{ .at = 4096, .bytes = "[", .problem = "has a wrong checksum", .sealed = false },
    };
    for (rows) |row| for ([_]bool{ true, false }) |first| {
        errdefer std.debug.print("field at {d}, first copy: {}\n", .{ row.at, first });
        try good(&bench);
        const copy = bench.bytes()[if (first) 0 else Two.header_size..][0..Two.header_size];
        @memcpy(copy[row.at..][0..row.bytes.len], row.bytes);
        if (row.sealed) Two.seal(copy);
        // A header of version 1 or 3 at the start is another format, or none that anybody knows.
        if (first and row.at == 6) {
            try testing.expectError(error.Refused, bench.info());
            continue;
        }
        const report = try bench.info();
        try testing.expectEqualStrings(if (first) "secondary" else "primary", report.luks2.?.active_copy);
        try testing.expect(std.mem.startsWith(u8, report.luks2.?.other_copy, row.problem));
        try bench.expectCorrupt(1, row.problem);
        _ = try bench.unlock(Two.passphrase);
    };
    // Neither is usable.
    try good(&bench);
    bench.bytes()[100] ^= 1;
    bench.bytes()[Two.header_size + 100] ^= 1;
    try bench.expectRefused("LUKS2 has no usable header: the primary one has a wrong checksum, the secondary one has a wrong checksum");
    try bench.expectCorrupt(2, "secondary header");
}

test "copies that disagree" {
    var bench = try Bench.init();
    defer bench.deinit();
    try good(&bench);
    const second = bench.bytes()[Two.header_size..Two.area_offset];
    second[16..24].* = be(u64, 4);
    Two.seal(second);
    try testing.expectEqualStrings("secondary", (try bench.info()).luks2.?.active_copy);
    try testing.expectEqualStrings("older", (try bench.info()).luks2.?.other_copy);
    try bench.expectCorrupt(1, "sequence numbers 3 and 4");
    try good(&bench);
    second[24] = 'N';
    Two.seal(second);
    try bench.expectCorrupt(1, "say different things");
    // What is reserved, and what follows the text, is worth a word.
    try good(&bench);
    bench.bytes()[264] = 1;
    bench.bytes()[Two.header_size - 1] = 1;
    Two.sealBoth(&bench);
    try bench.expectCorrupt(0, "reserved bytes are not zero");
    try bench.expectCorrupt(0, "behind the end of the JSON text");
}

test "a text without an end" {
    var bench = try Bench.init();
    defer bench.deinit();
    try good(&bench);
    for ([_]usize{ 0, Two.header_size }) |at| {
        const area = bench.bytes()[at + 4096 .. at + Two.header_size];
        for (area) |*byte| if (byte.* == 0) {
            byte.* = ' ';
        };
    }
    Two.sealBoth(&bench);
    try bench.expectRefused("LUKS2 JSON area: no NUL ends the text of 12288 bytes");
    try bench.expectCorrupt(1, "no NUL ends the text");
}

const Change = struct {
    from: []const u8,
    to: []const u8,
    /// Empty: nothing is wrong.
    text: []const u8,
    corruptions: u64 = 1,
    /// Of check, where it is another one than the first.
    finding: []const u8 = "",
};

const changes = [_]Change{
    .{ .from = "{\"keyslots\"", .to = "[\"keyslots\"", .text = "LUKS2 JSON area: byte 11 of the text: ',' or the end" },
    .{ .from = "\"tokens\":{}", .to = "\"tokens\":{},\"tokens\":{}", .text = "an object has a member twice" },
    .{ .from = "\"tokens\":{},", .to = "", .text = "LUKS2 metadata: 'tokens' is missing" },
    .{ .from = "\"tokens\":{}", .to = "\"tokens\":[]", .text = "LUKS2 metadata: 'tokens' is not an object" },
    .{ .from = "\"segments\":{\"0\"", .to = "\"segments\":{\"32\"", .text = "LUKS2 segment '32' is not a number below 32", .corruptions = 3 },
    .{ .from = "\"segments\":{\"0\"", .to = "\"segments\":{\"00\"", .text = "LUKS2 segment '00' is not a number below 32", .corruptions = 3 },
    .{ .from = "\"segments\":{\"0\"", .to = "\"segments\":{\"1\":0,\"0\"", .text = "LUKS2 segment '1' is not an object" },
    .{ .from = "\"segments\":{\"0\"", .to = "\"segments\":{\"1\"", .text = "LUKS2 segment 1: no digest belongs to it", .corruptions = 2, .finding = "LUKS2 digest 0: names segment 0, which does not exist" },
    .{ .from = "{\"type\":\"crypt\"", .to = "{\"type\":7", .text = "LUKS2 segment 0: 'type' is not a string" },
    .{ .from = "\"163840\"", .to = "163840", .text = "LUKS2 segment 0: 'offset' is not a whole number in a string", .corruptions = 1 },
    .{ .from = "\"163840\"", .to = "\"-1\"", .text = "'offset' is not a whole number in a string" },
    .{ .from = "\"163840\"", .to = "\"18446744073709551616\"", .text = "'offset' is not a whole number in a string" },
    .{ .from = "\"163840\"", .to = "\"18446744073709551104\"", .text = "LUKS2 segment 0: ends at byte 18446744073709551104, file has" },
    .{ .from = "\"163840\"", .to = "\"163328\"", .text = "LUKS2 segment 0: begins at byte 163328, the area of the key slots ends at 163840" },
    .{ .from = "\"163840\"", .to = "\"163841\"", .text = "no multiples of its sector size 512" },
    .{ .from = "\"dynamic\"", .to = "\"8192\"", .text = "" },
    .{ .from = "\"dynamic\"", .to = "\"0\"", .text = "size '0' is neither 'dynamic' nor" },
    .{ .from = "\"dynamic\"", .to = "\"static\"", .text = "size 'static' is neither 'dynamic' nor" },
    .{ .from = "\"dynamic\"", .to = "\"8704\"", .text = "LUKS2 segment 0: ends at byte 172544, file has 172032" },
    .{ .from = "\"dynamic\"", .to = "\"18446744073709551104\"", .text = "LUKS2 segment 0: ends at byte 18446744073709551615, file has" },
    .{ .from = "\"sector_size\":512", .to = "\"sector_size\":0", .text = "sector size 0 is none of" },
    .{ .from = "\"sector_size\":512", .to = "\"sector_size\":8192", .text = "sector size 8192 is none of" },
    .{ .from = "\"sector_size\":512", .to = "\"sector_size\":4096", .text = "" },
    .{ .from = "\"segments\":[\"0\"]", .to = "\"segments\":[]", .text = "LUKS2 segment 0: no digest belongs to it" },
    .{ .from = "\"keyslots\":[\"0\"]", .to = "\"keyslots\":[\"1\"]", .text = "LUKS2 digest 0: names keyslot 1, which does not exist" },
    .{ .from = "\"keyslots\":[\"0\"]", .to = "\"keyslots\":[0]", .text = "LUKS2 digest 0: an entry of 'keyslots' is not a number below 32" },
    .{ .from = "\"tokens\":{}", .to = "\"tokens\":{\"3\":{\"type\":\"t\",\"keyslots\":[\"31\"]}}", .text = "LUKS2 token 3: names keyslot 31, which does not exist" },
    .{ .from = "\"offset\":\"32768\"", .to = "\"offset\":\"32767\"", .text = "LUKS2 keyslot 0: its area begins at byte 32767, the headers end at 32768" },
    .{ .from = "\"offset\":\"32768\"", .to = "\"offset\":\"0\"", .text = "LUKS2 keyslot 0: its area begins at byte 0, the headers end" },
    .{ .from = "\"offset\":\"32768\"", .to = "\"offset\":\"33280\"", .text = "LUKS2 keyslot 0: its area ends at byte 164352, the area of all key slots at 163840" },
    .{ .from = "\"offset\":\"32768\"", .to = "\"offset\":\"18446744073709551615\"", .text = "ends above 2^64" },
    .{ .from = "\"size\":\"131072\"", .to = "\"size\":\"127999\"", .text = "its area has 127999 bytes, the key material 128000" },
    .{ .from = "\"size\":\"131072\"", .to = "\"size\":\"128000\"", .text = "" },
    .{ .from = "\"stripes\":4000", .to = "\"stripes\":4001", .text = "LUKS2 keyslot 0: 4001 stripes instead of 4000" },
    .{ .from = "\"stripes\":4000", .to = "\"stripes\":18446744073709551615", .text = "stripes instead of 4000", .corruptions = 2 },
    .{ .from = "\"type\":\"luks2\",\"key_size\":32", .to = "\"type\":\"luks2\",\"key_size\":0", .text = "LUKS2 keyslot 0: a key of 0 bytes" },
    .{ .from = "\"type\":\"luks2\",\"key_size\":32", .to = "\"type\":\"luks2\",\"key_size\":513", .text = "LUKS2 keyslot 0: a key of 513 bytes", .corruptions = 2 },
    .{ .from = "plain64\",\"key_size\":32", .to = "plain64\",\"key_size\":1024", .text = "its area is encrypted with a key of 1024 bytes" },
    .{ .from = "\"type\":\"luks1\"", .to = "\"type\":\"luks3\"", .text = "type 'luks3' is not 'luks1'" },
    .{ .from = "{\"type\":\"pbkdf2\",\"hash\":\"sha256\",\"iterations\":1000", .to = "{\"type\":\"pbkdf2\",\"hash\":\"sha256\",\"iterations\":0", .text = "LUKS2 keyslot kdf: no iterations" },
    .{ .from = "{\"type\":\"pbkdf2\",\"hash\":\"sha256\",\"iterations\":1000", .to = "{\"type\":\"argon2i\",\"time\":4,\"memory\":0,\"cpus\":1", .text = "none may be 0" },
    .{ .from = "\"kdf\":", .to = "\"kfd\":", .text = "LUKS2 keyslot 0: 'kdf' is missing" },
    .{ .from = "\"keyslots\":{\"0\":", .to = "\"keyslots\":{\"1\":{\"type\":\"luks2\",\"key_size\":32,\"af\":{\"type\":\"luks1\",\"stripes\":4000,\"hash\":\"sha256\"},\"area\":{\"type\":\"raw\",\"offset\":\"32768\",\"size\":\"131072\",\"encryption\":\"aes-xts-plain64\",\"key_size\":32},\"kdf\":{\"type\":\"pbkdf2\",\"hash\":\"sha256\",\"iterations\":1000,\"salt\":\"\"}},\"0\":", .text = "LUKS2 keyslots 0 and 1: their areas overlap at bytes 32768 and 32768" },
    .{ .from = "\"12288\"", .to = "\"12287\"", .text = "LUKS2 config: json_size is 12287, the JSON area has 12288 bytes" },
    .{ .from = "\"keyslots_size\":\"131072\"", .to = "\"keyslots_size\":\"131073\"", .text = "keyslots_size 131073 is not a multiple of 4096", .corruptions = 2 },
    .{ .from = "\"keyslots_size\":\"131072\"", .to = "\"keyslots_size\":\"126976\"", .text = "its area ends at byte 163840, the area of all key slots at 159744" },
    .{ .from = "\"keyslots_size\":\"131072\"", .to = "\"keyslots_size\":\"18446744073709547520\"", .text = "of at most 134217728", .corruptions = 2 },
    .{ .from = "\"keyslots_size\"", .to = "\"requirements\":{\"mandatory\":[1]},\"keyslots_size\"", .text = "an entry of 'mandatory' is not a string" },
};

test "every part of the metadata" {
    var bench = try Bench.init();
    defer bench.deinit();
    for (changes) |change| {
        errdefer std.debug.print("{s} -> {s}\n", .{ change.from, change.to });
        try changed(&bench, change.from, change.to);
        if (change.text.len == 0) {
            _ = try bench.info();
            try testing.expectEqual(@as(u64, 0), (try bench.check()).corruptions);
            continue;
        }
        try bench.expectRefused(change.text);
        try bench.expectCorrupt(change.corruptions, if (change.finding.len > 0) change.finding else change.text);
    }
}

test "what cannot be unlocked, and says why" {
    var bench = try Bench.init();
    defer bench.deinit();
    const pbkdf = "{\"type\":\"pbkdf2\",\"hash\":\"sha256\",\"iterations\":1000,\"salt\"";
    const Row = struct { []const u8, []const u8, block.Diagnostic.Code, []const u8 };
    const rows = [_]Row{
        .{ pbkdf, "{\"type\":\"pbkdf2\",\"hash\":\"sha256\",\"iterations\":99999999,\"salt\"", .too_large, "rounds of PBKDF2, the limit is" },
        .{ pbkdf, "{\"type\":\"pbkdf2\",\"hash\":\"md5\",\"iterations\":1000,\"salt\"", .unsupported, "unlocking does not support hash 'md5'" },
        .{ pbkdf, "{\"type\":\"scrypt\",\"salt\"", .unsupported, "unlocking does not support kdf 'scrypt'" },
        .{ pbkdf, "{\"type\":\"argon2id\",\"time\":4,\"memory\":4294967295,\"cpus\":4,\"salt\"", .too_large, "Argon2 with a work (passes times KiB) of 17179869180, the limit is" },
        .{ pbkdf, "{\"type\":\"argon2id\",\"time\":18446744073709551615,\"memory\":2,\"cpus\":1,\"salt\"", .too_large, "Argon2 with a work" },
        .{ pbkdf, "{\"type\":\"argon2i\",\"time\":1,\"memory\":8000,\"cpus\":65,\"salt\"", .too_large, "Argon2 with a number of lanes of 65" },
        .{ pbkdf, "{\"type\":\"argon2i\",\"time\":1,\"memory\":7,\"cpus\":1,\"salt\"", .corrupt, "8 KiB for each lane" },
        .{ pbkdf, "{\"type\":\"argon2id\",\"time\":1,\"memory\":8,\"cpus\":1,\"salt\"", .wrong_passphrase, "Invalid password" },
        .{ "\"salt\":\"MDEy", "\"salt\":\"*DEy", .unsupported, "unlocking does not support base64" },
        .{ "\"size\":\"dynamic\",\"iv_tweak\":\"0\",\"encryption\":\"aes-xts-plain64\"", "\"size\":\"dynamic\",\"iv_tweak\":\"0\",\"encryption\":\"serpent-xts-plain64\"", .unsupported, "'serpent-xts-plain64'" },
        .{ "\"size\":\"dynamic\",\"iv_tweak\":\"0\",\"encryption\":\"aes-xts-plain64\"", "\"size\":\"dynamic\",\"iv_tweak\":\"0\",\"encryption\":\"capi:xts(ecb(aes-generic))-plain64\"", .unsupported, "unlocking does not support encryption" },
        .{ "{\"type\":\"crypt\"", "{\"type\":\"hw-opal\"", .unsupported, "segment 'hw-opal'" },
        .{ "\"sector_size\":512", "\"sector_size\":512,\"integrity\":{\"type\":\"hmac(sha256)\"}", .unsupported, "integrity 'hmac(sha256)'" },
    };
    for (rows) |row| {
        errdefer std.debug.print("{s}: {s}\n", .{ row[1], bench.diagnostic.message() });
        try changed(&bench, row[0], row[1]);
        _ = try bench.info();
        try testing.expectError(error.Refused, bench.unlock(Two.passphrase));
        try testing.expectEqual(row[2], bench.diagnostic.code);
        try testing.expect(std.mem.indexOf(u8, bench.diagnostic.message(), row[3]) != null);
    }
}

test "segments one behind the other" {
    var bench = try Bench.init();
    defer bench.deinit();
    // The same bytes as one segment of 4096 bytes, one that is not encrypted, and a part of the past.
    try changed(&bench,
        \\"size":"dynamic","iv_tweak":"0","encryption":"aes-xts-plain64","sector_size":512}
    ,
        \\"size":"4096","iv_tweak":"0","encryption":"aes-xts-plain64","sector_size":512},"1":{"type":"linear","offset":"167936","size":"dynamic"},"2":{"type":"crypt","offset":"163840","size":"dynamic","iv_tweak":"0","encryption":"x","sector_size":512,"flags":["backup-previous"]}
    );
    try testing.expectEqual(@as(u64, disk_size), (try bench.info()).virtual_size);
    const disk = (try bench.unlock(Two.passphrase)).image;
    var buffer: [disk_size]u8 = undefined;
    try disk.read.?(disk.context, 0, &buffer);
    const plain = plainText();
    try testing.expectEqualSlices(u8, plain[0..4096], buffer[0..4096]);
    try testing.expectEqualSlices(u8, bench.bytes()[167_936..], buffer[4096..]);
}

test "truncation" {
    var bench = try Bench.init();
    defer bench.deinit();
    const Row = struct { usize, []const u8 };
    for ([_]Row{ .{ 8, "has an invalid size" }, .{ 16, "ends outside the file" }, .{ 4096, "ends outside the file" }, .{ Two.header_size - 1, "ends outside the file" } }) |row| {
        try good(&bench);
        bench.cut(row[0]);
        try bench.expectRefused("LUKS2 has no usable header: the primary one ");
        try bench.expectCorrupt(2, row[1]);
    }
    for ([_]usize{ Two.header_size, Two.area_offset - 1 }) |length| {
        try good(&bench);
        bench.cut(length);
        try bench.expectRefused("LUKS2 segment 0: ends at byte 163840, file has");
        try bench.expectCorrupt(2, "secondary header");
    }
    try good(&bench);
    bench.cut(Two.payload_offset + 700);
    try testing.expectEqual(@as(u64, 512), (try bench.open()).virtual_size);
}

test "any bytes in a sealed header: no crash" {
    var bench = try Bench.init();
    defer bench.deinit();
    var random: std.Random.DefaultPrng = .init(5);
    try good(&bench);
    const whole = try testing.allocator.dupe(u8, bench.bytes());
    defer testing.allocator.free(whole);
    const letters = "0123456789\"{}[]:,-x ";
    for (0..1500) |_| {
        try bench.fill(whole);
        for (0..1 + random.random().uintLessThan(usize, 3)) |_| {
            const at = random.random().uintLessThan(usize, 4096 + Two.json_text.len);
            bench.bytes()[at] = if (at < 4096) random.random().int(u8) else letters[random.random().uintLessThan(usize, letters.len)];
        }
        Two.seal(bench.bytes()[0..Two.header_size]);
        // The other copy would save it.
        bench.bytes()[Two.header_size] = 0;
        _ = bench.check() catch |reason| try testing.expectEqual(error.Refused, reason);
        if (bench.open()) |opened| try testing.expect(opened.virtual_size <= bench.bytes().len) else |reason| try testing.expectEqual(error.Refused, reason);
        _ = bench.arena.reset(.retain_capacity);
        bench.findings = .empty;
    }
}
