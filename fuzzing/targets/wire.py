"""Whatever a worker sends, the broker makes plain items of it that say the same again, or raises WireError; and a
failure that is among them can be shown to people and programs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from fuzzing.oracle import check_text
from fuzzing.targets import Target
from vmm.boundary import Failure, FailureKind, Frame, LogEvent, MessageEvent, Outcome, ProgressEvent, TraceEvent, Usage
from vmm.cbor import encode
from vmm.cli.failures import error_dict, error_text
from vmm.operations.session import failure_error
from vmm.sandbox import wire
from vmm.sandbox.layers import LAYERS, JailReport, Layer


def _again(item: object) -> list[object]:
    """The item as a worker would send it."""
    if isinstance(item, Outcome):
        return wire.outcome_item(item)
    if isinstance(item, wire.Problem):
        return wire.problem_item(item.code, item.message, item.details)
    if isinstance(item, JailReport):
        return wire.report_item(item)
    if isinstance(item, wire.Addresses):
        return wire.addresses_item(item.frames)
    assert isinstance(item, (MessageEvent, LogEvent, ProgressEvent, TraceEvent))
    return wire.event_item(item)


def run(data: bytes) -> None:
    """See above."""
    try:
        items = wire.items_of(data)
    except wire.WireError as error:
        check_text(str(error), also="")
        return
    assert wire.items_of(encode([_again(item) for item in items])) == items
    for item in items:
        if isinstance(item, Outcome) and item.failure is not None:
            failed = failure_error(item.failure, ("image",))
            check_text(error_text(failed, "image"))
            assert json.dumps(error_dict(failed, "image"), allow_nan=False).isascii()


def seeds() -> Iterable[bytes]:
    """One of each item, and failures of each kind with everything that one can have."""
    frames = (Frame(0x400000, "f", "a.zig", 1), Frame(0xFFFF_FFFF_FFFF_FFFF))
    items = [
        wire.event_item(MessageEvent(b"\x82\x64info\xa0")),
        wire.event_item(LogEvent(3, b"line \x1b[2J")),
        wire.event_item(ProgressEvent(1, 2)),
        wire.event_item(TraceEvent(b"\x00")),
        wire.outcome_item(Outcome(0, None, Usage(1, 2, 3, 4, 5, 6), (512, 0), (None, "reading failed"), (None, 5))),
        wire.problem_item("usage", "no", {"path": "/dev/kvm", "number": 1, "really": True}),
        wire.report_item(JailReport(tuple(Layer(name, name != "landlock", "why") for name in LAYERS), close_ns=1)),
        wire.addresses_item(frames),
    ]
    for kind in ("panic", "page-fault", "limit", "io", "kvm", "worker", "diverged", "debugger"):
        failure = Failure(
            FailureKind(kind),
            "it \u202e failed",
            limit="timeout",
            limit_value=0.15,
            device=0,
            errno=5,
            vector=14,
            error_code=6,
            address=1 << 63,
            access="write",
            region="stack",
            registers={"rip": 1, "rsp": (1 << 64) - 1},
            backtrace=frames,
            recent_requests=("device 0: in sector 0, 512 bytes: ok",),
        )
        items.append(wire.outcome_item(Outcome(None, failure, Usage())))
    yield from (encode([item]) for item in items)
    yield encode(items)
    yield b"\x80"


TARGET = Target("wire", run, seeds, max_length=2048)
