//! Logs in memory: what is replayed, and how much is read for it.

const std = @import("std");
const block = @import("block");
const format = @import("format.zig");
const logs = @import("log.zig");
const vhdx = @import("vhdx.zig");
const testing = std.testing;
const support = @import("test_vhdx.zig");
const Builder = support.Builder;
const Case = support.Case;

const mib = format.mib;

fn page(entry: u64) [4096]u8 {
    var bytes: [4096]u8 = @splat(0);
    std.mem.writeInt(u64, bytes[0..8], entry, .little);
    return bytes;
}

test "data and zeros of a log decide the BAT" {
    const builder: Builder = try .init(.{ .logged = true });
    defer builder.deinit();
    builder.log(0, 0, 5, Builder.bat_offset, &page(6 * mib | 6));
    builder.entry(1, 5, 6);
    var case: Case = try .init(builder);
    defer case.deinit();
    const opened = try case.open();
    const first = try opened.segmentAt(0);
    try testing.expectEqual(6 * mib, first.offset.?);
    // The page replaces what was there.
    try testing.expectEqual(.unallocated, (try opened.segmentAt(mib)).kind);

    builder.log(2, 0, 6, Builder.bat_offset, null);
    var zeroed: Case = try .init(builder);
    defer zeroed.deinit();
    const empty = try zeroed.open();
    try testing.expectEqual(4 * mib, (try empty.segmentAt(0)).length);
    try testing.expectEqual(.unallocated, (try empty.segmentAt(0)).kind);
}

test "a log that writes into a block is read through" {
    const builder: Builder = try .init(.{ .logged = true });
    defer builder.deinit();
    builder.entry(0, 4, 6);
    @memset(builder.bytes[4 * mib ..][0..mib], 0xaa);
    builder.log(0, 0, 5, 4 * mib + 4096, &page(0x1122));
    var case: Case = try .init(builder);
    defer case.deinit();
    const opened = try case.open();
    var bytes: [8192]u8 = undefined;
    try opened.read.?(opened.context, 0, &bytes);
    try testing.expect(std.mem.allEqual(u8, bytes[0..4096], 0xaa));
    try testing.expectEqualSlices(u8, &page(0x1122), bytes[4096..]);
    var across: [4]u8 = undefined;
    try opened.read.?(opened.context, 2 * mib - 2, &across);
    try testing.expectEqualSlices(u8, &.{ 0, 0, 0, 0 }, &across);
}

test "a log that wraps is replayed from its tail" {
    const builder: Builder = try .init(.{ .logged = true });
    defer builder.deinit();
    builder.log(254, 254, 8, Builder.bat_offset, &page(4 * mib | 6));
    builder.log(0, 254, 9, Builder.bat_offset + 4096, null);
    var case: Case = try .init(builder);
    defer case.deinit();
    const loaded = try vhdx.load(case.context(), case.memory.device());
    try testing.expectEqual(2, loaded.replayed.log.entries);
    try testing.expectEqual(9, loaded.replayed.log.sequence);
    try testing.expectEqual(1, loaded.totals.present);
}

test "an entry that ends behind the end of the ring goes on at its start" {
    const builder: Builder = try .init(.{ .logged = true });
    defer builder.deinit();
    builder.log(255, 255, 8, Builder.bat_offset, &page(4 * mib | 6));
    // What lies behind the log is the metadata: the sector belongs at the start.
    @memcpy(builder.bytes[Builder.log_offset..][0..4096], builder.bytes[Builder.metadata_offset..][0..4096]);
    const fresh: Builder = try .init(.{ .logged = true });
    defer fresh.deinit();
    builder.put(Builder.metadata_offset, fresh.bytes[Builder.metadata_offset..][0..4096]);
    var case: Case = try .init(builder);
    defer case.deinit();
    const loaded = try vhdx.load(case.context(), case.memory.device());
    try testing.expectEqual(1, loaded.replayed.log.entries);
    try testing.expectEqual(1, loaded.totals.present);
}

test "entries that each claim the rest of the log are read once" {
    const builder: Builder = try .init(.{ .logged = true });
    defer builder.deinit();
    // The worst case: every sector begins an entry that is right as far as one sector tells.
    for (0..256) |sector| {
        builder.log(sector, 0, 5, Builder.bat_offset, null);
        builder.int(u32, Builder.log_offset + sector * 4096 + 8, @intCast((256 - sector) * 4096));
        builder.int(u32, Builder.log_offset + sector * 4096 + 24, 120);
    }
    var case: Case = try .init(builder);
    defer case.deinit();
    const loaded = try vhdx.load(case.context(), case.memory.device());
    try testing.expectEqual(logs.Log.State.nothing_valid, loaded.replayed.log.state);
    try testing.expect(case.memory.read_bytes < 3 * mib);
}

test "a log of valid entries with a wrong tail is walked once" {
    const builder: Builder = try .init(.{ .logged = true });
    defer builder.deinit();
    for (0..255) |sector| builder.log(sector, 255, sector + 1, Builder.bat_offset, null);
    var case: Case = try .init(builder);
    defer case.deinit();
    try testing.expectError(error.Refused, vhdx.load(case.context(), case.memory.device()));
    try testing.expect(std.mem.indexOf(u8, case.diagnostic.message(), "where no entry of it lies") != null);
    try testing.expect(case.memory.read_bytes < 3 * mib);
}
