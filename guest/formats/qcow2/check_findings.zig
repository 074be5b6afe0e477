//! Findings of a check: counted in the report, streamed to the sink until there are too many.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const template = @import("template.zig");
const none = template.none;

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

const Number = enum { count, offset, index, value, expected };

const Site = struct {
    kind: Kind,
    structure: [*]const u8,
    structure_length: u8,
    template: template.Template(Number),
};

/// The numbers of a finding; `none` where there is none.
pub const Numbers = struct {
    /// How much it adds to its counter.
    count: u64 = 1,
    offset: u64 = none,
    index: u64 = none,
    value: u64 = none,
    expected: u64 = none,
};

pub const Findings = struct {
    sink: image.Sink,
    report: *messages.Check,
    sent: [4]u32 = @splat(0),
    /// Findings about a part that has no place in the counters: all of them are notes.
    as_notes: bool = false,

    pub inline fn add(self: *Findings, kind: Kind, details: Details, comptime text: []const u8, arguments: anytype) block.Error!void {
        const list = block.sentence.pack(text, arguments);
        return self.addPacked(kind, &details, text, &list);
    }

    /// One function for all findings: there are many calls of `add`.
    noinline fn addPacked(self: *Findings, given: Kind, details: *const Details, text: []const u8, arguments: []const block.sentence.Argument) block.Error!void {
        const kind = if (self.as_notes) Kind.note else given;
        if (!self.count(kind, details.count)) return;
        var buffer: [384]u8 = undefined;
        // A text that does not fit is cut.
        try self.send(kind, details.*, block.sentence.fill(&buffer, text, arguments));
    }

    /// As `add`, for the many findings whose text needs nothing but their numbers: `text` may name them, see
    /// template.zig.
    pub inline fn put(self: *Findings, comptime kind: Kind, comptime structure: []const u8, comptime text: []const u8, numbers: Numbers) block.Error!void {
        const site = comptime Site{ .kind = kind, .structure = structure.ptr, .structure_length = structure.len, .template = .parse(text) };
        return self.record(&site, numbers.count, numbers.offset, numbers.index, numbers.value, numbers.expected);
    }

    noinline fn record(self: *Findings, site: *const Site, times: u64, offset: u64, index: u64, value: u64, expected: u64) block.Error!void {
        const kind = if (self.as_notes) Kind.note else site.kind;
        if (!self.count(kind, times)) return;
        var buffer: [384]u8 = undefined;
        return self.send(kind, .{
            .count = times,
            .structure = site.structure[0..site.structure_length],
            .offset = template.known(offset),
            .index = template.known(index),
            .value = template.known(value),
            .expected = template.known(expected),
        }, site.template.fill(&buffer, &.{ times, offset, index, value, expected }));
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
