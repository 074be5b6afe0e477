//! map: where the bytes of the virtual disk lie.  Extents are sent as they are met, many in a message.

const std = @import("std");
const sdk = @import("sdk");
const block = @import("block");
const calltable = @import("calltable");
const formats = @import("formats");
const messages = @import("messages");

pub const panic = sdk.panic;
pub const only_reads = true;

comptime {
    _ = sdk;
}

const registry = formats.Registry(.map);
const Extent = formats.extents.Extent;

pub fn operation(run: *sdk.Run) sdk.Error!void {
    const request = try run.request(messages.MapRequest);
    var context = run.context();
    try run.answerAs(request.qemu_version, &context);
    context.files = run.files(request.files);
    context.as_qemu_sees = !(request.exact orelse false);
    const device = try run.device(0);
    const driver = if (request.format) |name| try registry.byName(context, name) else try registry.detect(context, device);
    const opened = try formats.Chain(registry).open(context, device, driver);
    const mapped_only = request.mapped_only orelse false;
    var walk: formats.extents.Walk = .init(context, opened, request.start orelse 0, request.length);
    var total: u64 = 0;
    while (walk.next() catch |reason| {
        try columns.send(run);
        return reason;
    }) |extent| {
        if (columns.count == batch) {
            try columns.send(run);
            run.progress(extent.start, opened.virtual_size);
        }
        columns.add(extent);
        total += 1;
        if (mapped_only and extent.data and extent.offset == null) {
            try columns.send(run);
            return run.diagnostic.refuse(
                .unsupported,
                .{ .format = opened.driver, .structure = "virtual disk", .offset = extent.start },
                "File contains external, encrypted or compressed clusters.",
                .{},
            );
        }
    }
    try columns.send(run);
    try run.emit(messages.Map{ .format = opened.driver, .virtual_size = opened.virtual_size, .extents = total });
}

/// Extents of one message: five numbers of at most nine bytes each, so that a message has less than 3 KiB.
const batch = 64;

/// Extents that wait to be sent.
const Columns = struct {
    count: usize = 0,
    start: u64 = 0,
    lengths: [batch]u64 = undefined,
    states: [batch]u64 = undefined,
    offsets: [batch]u64 = undefined,
    depths: [batch]u64 = undefined,
    devices: [batch]u64 = undefined,

    fn add(self: *Columns, extent: Extent) void {
        if (self.count == 0) self.start = extent.start;
        self.lengths[self.count] = extent.length;
        self.states[self.count] = stateOf(extent);
        self.offsets[self.count] = extent.offset orelse 0;
        self.depths[self.count] = extent.depth;
        self.devices[self.count] = extent.device;
        self.count += 1;
    }

    fn send(self: *Columns, run: *sdk.Run) sdk.Error!void {
        const count = self.count;
        if (count == 0) return;
        self.count = 0;
        try run.emit(messages.MapExtents{
            .start = self.start,
            .lengths = self.lengths[0..count],
            .states = self.states[0..count],
            .offsets = self.offsets[0..count],
            .depths = self.depths[0..count],
            .devices = self.devices[0..count],
        });
    }
};

var columns: Columns = .{};

fn stateOf(extent: Extent) u64 {
    var state: u64 = 0;
    if (extent.present) state |= calltable.map_present;
    if (extent.zero) state |= calltable.map_zero;
    if (extent.data) state |= calltable.map_data;
    if (extent.compressed) state |= calltable.map_compressed;
    if (extent.offset != null) state |= calltable.map_offset;
    return state;
}
