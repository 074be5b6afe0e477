//! Findings of a check: counted in the report, streamed to the sink until there are too many.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");

/// Findings of one kind that are sent; the rest is only counted.
const sent_limit = 1000;

pub const Kind = enum { corruption, leak, check_error, note };

pub const Details = struct {
    count: u64 = 1,
    structure: ?[]const u8 = null,
    offset: ?u64 = null,
    index: ?u64 = null,
    value: ?u64 = null,
    expected: ?u64 = null,
};

pub const Findings = struct {
    sink: image.Sink,
    report: *messages.Check,
    sent: [4]u32 = @splat(0),

    pub inline fn add(self: *Findings, kind: Kind, details: Details, comptime text: []const u8, arguments: anytype) block.Error!void {
        const list = block.sentence.pack(text, arguments);
        return self.addPacked(kind, &details, text, &list);
    }

    /// One function for all findings: there are many calls of `add`.
    noinline fn addPacked(self: *Findings, kind: Kind, details: *const Details, text: []const u8, arguments: []const block.sentence.Argument) block.Error!void {
        if (!self.count(kind, details.count)) return;
        var buffer: [384]u8 = undefined;
        // A text that does not fit is cut.
        try self.send(kind, details.*, block.sentence.fill(&buffer, text, arguments));
    }

    /// Whether the finding should be sent too.
    fn count(self: *Findings, kind: Kind, times: u64) bool {
        const counter: ?*u64 = switch (kind) {
            .corruption => &self.report.corruptions,
            .leak => &self.report.leaks,
            .check_error => &self.report.check_errors,
            .note => null,
        };
        if (counter) |c| c.* +|= times;
        const sent = &self.sent[@intFromEnum(kind)];
        if (sent.* == sent_limit) {
            self.report.findings_omitted += 1;
            return false;
        }
        sent.* += 1;
        return true;
    }

    fn send(self: *Findings, kind: Kind, details: Details, text: []const u8) block.Error!void {
        return self.sink.emit(messages.CheckFinding{
            .kind = switch (kind) {
                .corruption => "corruption",
                .leak => "leak",
                .check_error => "check-error",
                .note => "note",
            },
            .message = text,
            .count = details.count,
            .structure = details.structure,
            .offset = details.offset,
            .index = details.index,
            .value = details.value,
            .expected = details.expected,
        });
    }
};
