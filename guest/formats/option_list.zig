//! The options of a new image as qemu-img's `Formatting` line shows them.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");

/// Of 2^64-1.
const max_digits = 20;

/// Collects names and values; null values are left out.
pub const OptionList = struct {
    allocator: std.mem.Allocator,
    list: std.ArrayList(messages.CreateOption) = .empty,

    pub fn init(allocator: std.mem.Allocator) OptionList {
        return .{ .allocator = allocator };
    }

    pub fn text(self: *OptionList, name: []const u8, value: ?[]const u8) error{OutOfMemory}!void {
        if (value) |given| try self.list.append(self.allocator, .{ .name = name, .value = given });
    }

    pub fn number(self: *OptionList, name: []const u8, value: ?u64) error{OutOfMemory}!void {
        const given = value orelse return;
        const digits = try self.allocator.alloc(u8, max_digits);
        try self.text(name, block.sentence.write(digits, "{d}", .{given}));
    }

    pub fn boolean(self: *OptionList, name: []const u8, value: ?bool) error{OutOfMemory}!void {
        const given = value orelse return;
        try self.text(name, if (given) "on" else "off");
    }

    pub fn items(self: *const OptionList) []const messages.CreateOption {
        return self.list.items;
    }
};

test "null options are left out" {
    var arena: std.heap.ArenaAllocator = .init(std.testing.allocator);
    defer arena.deinit();
    var list: OptionList = .init(arena.allocator());
    try list.number("size", 1 << 40);
    try list.text("compat", null);
    try list.boolean("extended_l2", false);
    try std.testing.expectEqual(@as(usize, 2), list.items().len);
    try std.testing.expectEqualStrings("1099511627776", list.items()[0].value);
    try std.testing.expectEqualStrings("off", list.items()[1].value);
}
