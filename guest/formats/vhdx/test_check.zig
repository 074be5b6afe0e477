//! What the check finds where a parent is given: everything else is tested on whole files.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const format = @import("format.zig");
const check = @import("check.zig").check;
const testing = std.testing;
const support = @import("test_vhdx.zig");
const Builder = support.Builder;
const Case = support.Case;

/// Keeps the findings' bytes.
const Collector = struct {
    buffer: [4096]u8 = undefined,
    length: usize = 0,

    fn deliver(opaque_self: *anyopaque, message: []const u8) block.Error!void {
        const self: *Collector = @ptrCast(@alignCast(opaque_self));
        if (self.length + message.len > self.buffer.len) return error.TooLarge;
        @memcpy(self.buffer[self.length..][0..message.len], message);
        self.length += message.len;
    }
};

/// One parent for every question.
const Parent = struct {
    memory: *block.Memory,

    fn find(opaque_self: *anyopaque, owner: u32, kind: image.ReferenceKind, index: u32) block.DeviceError!?image.Given {
        const self: *Parent = @ptrCast(@alignCast(opaque_self));
        std.debug.assert(owner == 0 and kind == .parent and index == 0);
        return .{ .number = 1, .device = self.memory.device() };
    }
};

/// A child whose locator has these two pairs.
fn child(linkage: []const u8) !Builder {
    const builder: Builder = try .init(.{ .flags = 2 });
    const item = Builder.metadata_offset + format.metadata_table_size + 6 * 32;
    builder.int(u32, Builder.metadata_offset + 6 * 32 + 20, 400);
    builder.put(item, &format.guids.vhdx_locator);
    builder.int(u16, item + 18, 2);
    var at: u32 = 44;
    for ([_][2][]const u8{ .{ "parent_linkage", linkage }, .{ "relative_path", "x" } }, 0..) |pair, index| {
        for (pair, 0..) |part, which| {
            builder.int(u32, item + 20 + 12 * index + 4 * which, at);
            builder.int(u16, item + 28 + 12 * index + 2 * which, @intCast(2 * part.len));
            for (part) |letter| {
                builder.int(u16, item + at, letter);
                at += 2;
            }
        }
    }
    return builder;
}

fn expectFound(linkage: []const u8, parent_bytes: ?[]const u8, corruptions: u64, says: []const u8) !void {
    const builder = try child(linkage);
    defer builder.deinit();
    var case: Case = try .init(builder);
    defer case.deinit();
    const other: Builder = try .init(.{});
    defer other.deinit();
    for (format.header_offsets) |at| {
        other.put(at + 32, &(comptime format.parse("00112233-4455-6677-8899-AABBCCDDEEFF")));
        other.seal(at, format.header_size);
    }
    var memory: block.Memory = try .init(testing.allocator, parent_bytes orelse other.bytes);
    defer memory.deinit();
    var parent: Parent = .{ .memory = &memory };
    var context = case.context();
    context.files = .{ .context = &parent, .find = Parent.find, .device = undefined };
    var collector: Collector = .{};
    var report: messages.Check = .{ .format = format.name, .file_length = 0, .check_errors = 0, .corruptions = 0, .leaks = 0, .findings_omitted = 0 };
    try check(context, case.memory.device(), .{ .context = &collector, .deliver = Collector.deliver }, &report);
    const said = collector.buffer[0..collector.length];
    errdefer std.debug.print("\nfindings: {f}\nexpected: {s}\n", .{ std.zig.fmtString(said), says });
    try testing.expectEqual(corruptions, report.corruptions);
    try testing.expect(std.mem.indexOf(u8, said, says) != null);
}

test "the parent is the one that the child was made of" {
    try expectFound("{00112233-4455-6677-8899-aabbccddeeff}", null, 0, "");
    try expectFound("{00112233-4455-6677-8899-AABBCCDDEEFF}", null, 0, "");
    try expectFound("{00112233-4455-6677-8899-aabbccddeef0}", null, 1, "the parent was changed");
    try expectFound("{00112233-4455-6677-8899-aabbccddeeff}", "no VHDX at all", 1, "is no VHDX");
    try expectFound("(00112233-4455-6677-8899-aabbccddeeff)", null, 1, "is no GUID in braces");
}

test "the parent's places are alternatives of one reference" {
    const builder = try child("{00112233-4455-6677-8899-aabbccddeeff}");
    defer builder.deinit();
    var case: Case = try .init(builder);
    defer case.deinit();
    var collector: Collector = .{};
    const references = @import("vhdx.zig").driver.references.?;
    try references(case.context(), case.memory.device(), .{ .context = &collector, .deliver = Collector.deliver });
    const said = collector.buffer[0..collector.length];
    for ([_][]const u8{ "info-reference", "parent", "relative_path", "vhdx" }) |word| {
        try testing.expect(std.mem.indexOf(u8, said, word) != null);
    }
    // As Windows writes it, and as a path of this host.
    try testing.expectEqual(2, std.mem.count(u8, said, "info-reference"));

    const without: Builder = try .init(.{});
    defer without.deinit();
    var plain: Case = try .init(without);
    defer plain.deinit();
    collector.length = 0;
    try references(plain.context(), plain.memory.device(), .{ .context = &collector, .deliver = Collector.deliver });
    try testing.expectEqual(0, collector.length);
}
