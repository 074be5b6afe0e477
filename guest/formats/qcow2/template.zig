//! Sentences whose numbers have names: what a refusal or a finding says is one constant, and a call only hands over
//! numbers.  There are some eighty such calls in the format, and each costs a few instructions this way.

const std = @import("std");
const block = @import("block");

/// A sentence for block.sentence, and which of a record's numbers go into its placeholders, in order.
pub fn Template(comptime Number: type) type {
    return struct {
        // Not slices: there are a hundred of these, and their lengths are small.
        format: [*]const u8,
        length: u16,
        count: u8,
        /// Indices of Number.
        order: [most_numbers]u8,

        const Self = @This();

        /// `{name}` stands for the number `name` in decimal, `{name:x}` in hexadecimal.
        pub fn parse(comptime text: []const u8) Self {
            comptime {
                @setEvalBranchQuota(20_000);
                var format: []const u8 = "";
                var order: [most_numbers]u8 = @splat(0);
                var count: u8 = 0;
                var at: usize = 0;
                while (std.mem.indexOfScalarPos(u8, text, at, '{')) |open| {
                    const close = std.mem.indexOfScalarPos(u8, text, open, '}') orelse @compileError("'{' without '}': " ++ text);
                    const inner = text[open + 1 .. close];
                    const hexadecimal = std.mem.endsWith(u8, inner, ":x");
                    const name = if (hexadecimal) inner[0 .. inner.len - 2] else inner;
                    format = format ++ text[at..open] ++ (if (hexadecimal) "{x}" else "{d}");
                    if (!@hasField(Number, name)) @compileError("no number '" ++ name ++ "' for: " ++ text);
                    if (count == most_numbers) @compileError("too many numbers in: " ++ text);
                    order[count] = @intFromEnum(@field(Number, name));
                    count += 1;
                    at = close + 1;
                }
                const whole = format ++ text[at..];
                return .{ .format = whole.ptr, .length = whole.len, .count = count, .order = order };
            }
        }

        /// Fill `buffer`; `numbers` are indexed by Number.
        pub fn fill(self: *const Self, buffer: []u8, numbers: []const u64) []const u8 {
            return fillInOrder(buffer, self.format[0..self.length], self.order[0..self.count], numbers);
        }
    };
}

/// What is the same for the numbers of refusals and of findings.
noinline fn fillInOrder(buffer: []u8, format: []const u8, order: []const u8, numbers: []const u64) []const u8 {
    var arguments: [most_numbers]block.sentence.Argument = undefined;
    for (order, arguments[0..order.len]) |number, *argument| argument.* = .{ .first = numbers[number] };
    return block.sentence.fill(buffer, format, arguments[0..order.len]);
}

const most_numbers = 5;

/// In place of a number that does not exist.
pub const none: u64 = std.math.maxInt(u64);

pub fn known(number: u64) ?u64 {
    return if (number == none) null else number;
}

const Refusal = enum { offset, value, limit };

const Site = struct {
    code: block.Diagnostic.Code,
    structure: [*]const u8,
    structure_length: u8,
    /// Of the driver's name, with which the sentence begins.
    driver_length: u8,
    template: Template(Refusal),
};

/// How a driver refuses its images.
pub fn Refusals(comptime driver: []const u8) type {
    return struct {
        /// Refuse the image.  `text` may name {offset}, {value} and {limit}.
        pub inline fn refuse(
            diagnostic: *block.Diagnostic,
            comptime code: block.Diagnostic.Code,
            comptime structure: []const u8,
            comptime text: []const u8,
            offset: u64,
            value: u64,
            limit: u64,
        ) error{Refused} {
            const site = comptime Site{
                .code = code,
                .structure = structure.ptr,
                .structure_length = structure.len,
                .driver_length = driver.len,
                .template = .parse(driver ++ ": " ++ text),
            };
            return record(diagnostic, &site, offset, value, limit);
        }
    };
}

/// Refuse a qcow2 image.
pub const refuse = Refusals("qcow2").refuse;

noinline fn record(diagnostic: *block.Diagnostic, site: *const Site, offset: u64, value: u64, limit: u64) error{Refused} {
    @branchHint(.cold);
    diagnostic.* = .{
        // Whose content it is was said before.
        .device = diagnostic.device,
        .code = site.code,
        .format = site.template.format[0..site.driver_length],
        .structure = site.structure[0..site.structure_length],
        .offset = known(offset),
        .value = known(value),
        .limit = known(limit),
    };
    diagnostic.text_length = site.template.fill(&diagnostic.text, &.{ offset, value, limit }).len;
    return error.Refused;
}

test "numbers go where their names are" {
    var diagnostic: block.Diagnostic = .{};
    const reason = refuse(&diagnostic, .too_large, "L1 table", "{limit} is less than {value:x} ({value})", none, 255, 7);
    try std.testing.expectEqual(error.Refused, reason);
    try std.testing.expectEqualStrings("qcow2: 7 is less than ff (255)", diagnostic.message());
    try std.testing.expectEqual(null, diagnostic.offset);
    try std.testing.expectEqual(@as(?u64, 7), diagnostic.limit);
}
