//! check of a LUKS container, for which qemu-img has none: every field against its specification, every area against
//! the others and the file; of LUKS2 both copies and their checksums.

const std = @import("std");
const block = @import("block");
const messages = @import("messages");
const image = @import("../image.zig");
const header_zig = @import("header.zig");
const header2 = @import("header2.zig");
const luks = @import("luks.zig");
const metadata_zig = @import("metadata.zig");
const info2 = @import("info2.zig");
const Findings = @import("../qcow2/check_findings.zig").Findings;
const At = header_zig.At;

/// Fewer iterations of PBKDF2 than this are a weak spot; qemu and cryptsetup write no fewer.
const few_iterations = 1000;

pub fn check(context: image.Context, device: block.Device, sink: image.Sink, report: *messages.Check) block.Error!void {
    var findings: Findings = .{ .sink = sink, .report = report };
    if (try luks.versionOf(device) == .two) return checkTwo(context, device, &findings);
    const header = try header_zig.read(context, device, 0);
    try checkOne(context, device, header, &findings);
    const payload = header.payloadOffset();
    const length = std.mem.alignForward(u64, @min(device.length, std.math.maxInt(i64)), header_zig.sector);
    report.virtual_size = length -| payload;
    if (payload > device.length)
        try findings.put(.corruption, "payload", "the payload begins at byte {value}, file has {expected}", .{ .offset = At.payload_offset, .value = payload, .expected = device.length });
    if (device.length % header_zig.sector != 0)
        try findings.put(.note, "payload", "the file has {value} bytes, which is no multiple of 512: its last bytes belong to no sector", .{ .value = device.length });
    if (report.corruptions > 0) return;
    // What is right by the specification can still be more than qemu knows.
    if (header_zig.open(context, device, 0)) |_| {} else |reason| {
        if (reason != error.Refused) return reason;
        try findings.add(.note, .{}, "qemu-img refuses this header: {s}", .{context.diagnostic.message()["luks: ".len..]});
    }
}

/// The header of a LUKS1 container, or of a qcow2 image, whose offsets count from `header.base`.
pub fn checkOne(context: image.Context, device: block.Device, header: header_zig.Header, findings: *Findings) block.Error!void {
    const base = header.base;
    if (device.length < base +| header_zig.size)
        try findings.put(.corruption, "header", "the header ends at byte {value}, file has {expected}", .{ .offset = base, .value = base +| header_zig.size, .expected = device.length });
    try names(context, header, findings);
    const key_bytes = header.keyBytes();
    if (key_bytes == 0 or key_bytes > metadata_zig.max_key_bytes)
        try findings.put(.corruption, "key bytes", "a master key of {value} bytes", .{ .offset = base + At.key_bytes, .value = key_bytes });
    try iterations(findings, "master key iterations", base + At.iterations, header.iterations());
    const uuid = header.uuid();
    if (!isUuid(uuid))
        try findings.put(.note, "uuid", "the UUID is not of the usual form", .{ .offset = base + At.uuid });
    const payload = header.payloadOffset();
    if (payload == 0)
        try findings.put(.note, "payload offset", "the payload offset is 0: the header of a disk that lies elsewhere", .{ .offset = base + At.payload_offset })
    else if (payload < header_zig.size)
        try findings.put(.corruption, "payload offset", "the payload begins at byte {value}, inside the header of {expected} bytes", .{ .offset = base + At.payload_offset, .value = payload, .expected = header_zig.size });
    var active: u32 = 0;
    for (0..header_zig.slot_count) |index| {
        try slot(device, header, index, findings);
        active += @intFromBool(header.slot(index).active());
    }
    if (active == 0) try findings.put(.note, "key slot", "no key slot is active: nothing can unlock this", .{ .offset = base + At.slots });
}

fn names(context: image.Context, header: header_zig.Header, findings: *Findings) block.Error!void {
    const base = header.base;
    var terminated = true;
    inline for (.{ "cipher name", "cipher mode", "hash spec" }, .{ At.cipher_name, At.cipher_mode, At.hash_spec }) |name, at| {
        if (block.search.first(header.bytes[at..][0..32], 0) == null) {
            terminated = false;
            try findings.put(.corruption, name, name ++ " is not NUL terminated", .{ .offset = base + at });
        }
    }
    if (!terminated) return;
    if (block.search.first(header.cipherMode(), '-') == null and !std.mem.eql(u8, header.cipherMode(), "ecb"))
        return findings.put(.corruption, "cipher mode", "the cipher mode names no IV generator", .{ .offset = base + At.cipher_mode });
    // Other implementations know other algorithms.
    if (header_zig.algorithms(context, header)) |_| {} else |reason| {
        if (reason != error.Refused) return reason;
        const diagnostic = context.diagnostic;
        try findings.add(.note, .{ .structure = diagnostic.structure, .offset = diagnostic.offset, .value = diagnostic.value }, "{s}", .{diagnostic.message()["luks: ".len..]});
    }
}

fn iterations(findings: *Findings, comptime name: []const u8, offset: u64, count: u32) block.Error!void {
    if (count == 0)
        return findings.put(.corruption, name, name ++ " are zero", .{ .offset = offset, .value = 0 });
    if (count < few_iterations)
        return findings.put(.note, name, "{value} " ++ name ++ ", fewer than {expected}", .{ .offset = offset, .value = count, .expected = few_iterations });
}

fn slot(device: block.Device, header: header_zig.Header, index: usize, findings: *Findings) block.Error!void {
    const one = header.slot(index);
    const at = header.base + At.slots + index * header_zig.slot_bytes;
    const name = "key slot";
    if (one.state() != header_zig.State.active and one.state() != header_zig.State.inactive)
        try findings.put(.corruption, name, "key slot {index}: state {value:x} is neither active nor disabled", .{ .offset = at, .index = index, .value = one.state() });
    if (one.active()) try iterations(findings, "key slot iterations", at + 4, one.iterations());
    if (one.stripeCount() != header_zig.stripes)
        try findings.put(.corruption, name, "key slot {index}: {value} stripes instead of {expected}", .{ .offset = at + 44, .index = index, .value = one.stripeCount(), .expected = header_zig.stripes });
    const start = one.offset();
    // Old writers did not pad the areas to 4096 bytes.
    const end = start + std.mem.alignForward(u64, header.materialSize(one.stripeCount()), header_zig.sector);
    const payload = header.payloadOffset();
    if (start < header_zig.size)
        try findings.put(.corruption, name, "key slot {index}: its area begins at byte {value}, inside the header of {expected} bytes", .{ .offset = at + 40, .index = index, .value = start, .expected = header_zig.size });
    if (payload != 0 and end > payload)
        try findings.put(.corruption, name, "key slot {index}: its area ends at byte {value}, behind the start of the payload at {expected}", .{ .offset = at + 40, .index = index, .value = end, .expected = payload });
    if (one.active() and header.base + end > device.length)
        try findings.put(.corruption, name, "key slot {index}: its area ends at byte {value}, file has {expected}", .{ .offset = at + 40, .index = index, .value = header.base + end, .expected = device.length });
    for (index + 1..header_zig.slot_count) |later| {
        const other = header.slot(later);
        const other_start = other.offset();
        const other_end = other_start + std.mem.alignForward(u64, header.materialSize(other.stripeCount()), header_zig.sector);
        if (start < other_end and other_start < end)
            try findings.add(.corruption, .{ .structure = name, .offset = at + 40, .index = index, .value = start, .expected = other_start }, "key slots {d} and {d}: their areas overlap, they begin at bytes {d} and {d}", .{ index, later, start, other_start });
    }
}

fn isUuid(bytes: []const u8) bool {
    if (bytes.len != 36) return false;
    for (bytes, 0..) |byte, i| {
        const dash = i == 8 or i == 13 or i == 18 or i == 23;
        if (dash != (byte == '-')) return false;
        if (!dash and !std.ascii.isHex(byte)) return false;
    }
    return true;
}

fn checkTwo(context: image.Context, device: block.Device, findings: *Findings) block.Error!void {
    const copies = try header2.read(context, device);
    try copyState(findings, "primary header", &copies.first);
    try copyState(findings, "secondary header", &copies.second);
    const active = copies.active() orelse return;
    if (copies.first.problem == null and copies.second.problem == null) try compare(findings, &copies);
    const problems: metadata_zig.Problems = .{ .context = context, .findings = findings };
    const metadata = try metadata_zig.read(problems, active, device.length);
    findings.report.virtual_size = metadata.virtualSize(device.length);
    if (info2.reencrypts(&metadata))
        try findings.put(.note, "metadata", "a reencryption has begun and not ended", .{});
    if (metadata.keyslots.len == 0)
        try findings.put(.note, "metadata", "no key slot is there: nothing can unlock this", .{});
}

fn copyState(findings: *Findings, comptime name: []const u8, copy: *const header2.Copy) block.Error!void {
    if (copy.problem) |problem|
        return findings.add(.corruption, .{ .structure = name, .offset = copy.at }, "LUKS2 " ++ name ++ " at byte {d} {s}", .{ copy.at, problem.text() });
    if (!std.mem.allEqual(u8, copy.padding(), 0) or !std.mem.allEqual(u8, copy.secondPadding(), 0))
        try findings.put(.note, name, "LUKS2 " ++ name ++ ": reserved bytes are not zero", .{ .offset = copy.at });
    if (!std.mem.allEqual(u8, copy.behindJson(), 0))
        try findings.put(.note, name, "LUKS2 " ++ name ++ ": bytes behind the end of the JSON text are not zero", .{ .offset = copy.at + header2.binary_size + copy.json().len });
    if (!isUuid(copy.uuid()))
        try findings.put(.note, name, "LUKS2 " ++ name ++ ": the UUID is not of the usual form", .{ .offset = copy.at + 168 });
}

/// Two usable copies say the same, or one of them is older, which a writer that was interrupted leaves behind.
fn compare(findings: *Findings, copies: *const header2.Copies) block.Error!void {
    const one = &copies.first;
    const other = &copies.second;
    if (one.sequence() != other.sequence())
        return findings.put(.corruption, "header", "LUKS2 headers: sequence numbers {value} and {expected}: a write was interrupted, the higher one counts", .{ .offset = 16, .value = one.sequence(), .expected = other.sequence() });
    const same = one.size() == other.size() and std.mem.eql(u8, one.uuid(), other.uuid()) and
        std.mem.eql(u8, one.label(), other.label()) and std.mem.eql(u8, one.subsystem(), other.subsystem()) and
        std.mem.eql(u8, one.json(), other.json());
    if (!same) try findings.put(.corruption, "header", "LUKS2 headers: both have sequence number {value} and say different things", .{ .offset = 16, .value = one.sequence() });
}
