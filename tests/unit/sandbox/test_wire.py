"""The wire: everything that may be said arrives as it was said, and nothing else does."""

from __future__ import annotations

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calltable import MAX_DEVICES, MESSAGE_MAX
from vmm.boundary import (
    FAILURE_KINDS,
    DeviceSpec,
    Failure,
    FailureKind,
    Frame,
    Job,
    Limits,
    LogEvent,
    MessageEvent,
    Outcome,
    ProgressEvent,
    TraceEvent,
    Usage,
)
from vmm.cbor import decode, encode
from vmm.sandbox import wire
from vmm.sandbox.layers import LAYERS, JailReport, Layer
from vmm.sandbox.settings import FEATURES, JailSettings

U64 = st.integers(0, 2**64 - 1)
#: What a worker says is printable; what is not is escaped.
TEXT = st.text(st.characters(exclude_categories=("C", "Z")), max_size=50)
MAYBE_TEXT = st.none() | TEXT
MAYBE_NUMBER = st.none() | U64

FRAMES = st.builds(Frame, U64, MAYBE_TEXT, MAYBE_TEXT, MAYBE_NUMBER)
EVENTS = st.one_of(
    st.builds(MessageEvent, st.binary(max_size=100)),
    st.builds(LogEvent, U64, st.binary(max_size=100)),
    st.builds(ProgressEvent, U64, U64),
    st.builds(TraceEvent, st.binary(max_size=100)),
)
FAILURES = st.builds(
    Failure,
    kind=st.sampled_from([FailureKind(kind) for kind in FAILURE_KINDS]),
    message=TEXT,
    limit=MAYBE_TEXT,
    limit_value=st.none() | st.integers(0, 2**64 - 1) | st.floats(0, 1e9, allow_nan=False),
    device=MAYBE_NUMBER,
    errno=MAYBE_NUMBER,
    vector=MAYBE_NUMBER,
    error_code=MAYBE_NUMBER,
    address=MAYBE_NUMBER,
    access=MAYBE_TEXT,
    region=MAYBE_TEXT,
    registers=st.dictionaries(TEXT, U64, max_size=20),
    backtrace=st.lists(FRAMES, max_size=5).map(tuple),
    recent_requests=st.lists(TEXT, max_size=5).map(tuple),
)
OUTCOMES = st.builds(
    Outcome,
    status=st.none() | st.integers(0, 2**32 - 1),
    failure=st.none() | FAILURES,
    usage=st.builds(Usage, U64, U64, U64, U64, U64, U64),
    device_lengths=st.lists(U64, max_size=MAX_DEVICES).map(tuple),
    device_errors=st.lists(MAYBE_TEXT, max_size=MAX_DEVICES).map(tuple),
)
PROBLEMS = st.builds(
    wire.Problem,
    TEXT,
    TEXT,
    st.dictionaries(TEXT, TEXT | st.integers(-(2**63), 2**64 - 1) | st.booleans(), max_size=10),
)
REPORTS = st.builds(
    JailReport,
    layers=st.lists(st.builds(Layer, st.sampled_from(list(LAYERS)), st.booleans(), TEXT), max_size=len(LAYERS)).map(
        tuple
    ),
    close_ns=U64,
)
ADDRESSES = st.builds(wire.Addresses, st.lists(FRAMES, max_size=20).map(tuple))


def said(item: wire.Item) -> list[object]:
    """An item as the worker puts it."""
    if isinstance(item, Outcome):
        return wire.outcome_item(item)
    if isinstance(item, wire.Problem):
        return wire.problem_item(item.code, item.message, item.details)
    if isinstance(item, JailReport):
        return wire.report_item(item)
    if isinstance(item, wire.Addresses):
        return wire.addresses_item(item.frames)
    return wire.event_item(item)


ITEMS = st.one_of(EVENTS, OUTCOMES, PROBLEMS, REPORTS, ADDRESSES)


@given(st.lists(ITEMS, max_size=5))
def test_what_is_said_arrives(items: list[wire.Item]) -> None:
    data = wire.frame([said(item) for item in items])
    assert wire.LENGTH.unpack_from(data)[0] == len(data) - wire.LENGTH.size
    assert wire.items_of(data[wire.LENGTH.size :]) == items


def check(data: bytes) -> None:
    """Items, or the one error; nothing that cannot be shown."""
    try:
        items = wire.items_of(data)
    except wire.WireError as error:
        refused = str(error)
    else:
        refused = ""
    assert refused.isprintable()
    if refused:
        return
    # Whatever was accepted can be said, and is the same again.
    again = encode([said(item) for item in items])
    assert wire.items_of(again) == items


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    check(data)


#: Values of every kind, with what makes items of them.
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**64), 2**64 - 1),
        st.floats(),
        st.text(max_size=5),
        st.binary(max_size=5),
        st.sampled_from([*"mlptoeja", *Failure.__match_args__, *FAILURE_KINDS, *LAYERS]),
        st.builds(cbor2.CBORTag, st.integers(0, 300), st.integers(0, 5)),
    ),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_any_value(value: object) -> None:
    check(cbor2.dumps(value))


@given(st.sampled_from("mlptoeja"), st.lists(VALUES, max_size=6))
def test_any_item(kind: str, fields: list[object]) -> None:
    check(cbor2.dumps([[kind, *fields]]))


@given(FAILURES, st.sampled_from([*Failure.__match_args__, "another"]), VALUES)
def test_any_field_of_a_failure(failure: Failure, name: str, value: object) -> None:
    item = wire.outcome_item(Outcome(None, failure, Usage()))
    fields = item[2]
    assert isinstance(fields, dict)
    fields[name] = value
    check(cbor2.dumps([item]))


@given(ITEMS, st.data())
def test_damaged_frames(item: wire.Item, data: st.DataObject) -> None:
    damaged = bytearray(encode([said(item)]))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    check(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))


@given(st.text(min_size=1, max_size=30))
def test_texts_are_printable(text: str) -> None:
    (item,) = wire.items_of(cbor2.dumps([["e", text, text, {text: text}]]))
    assert isinstance(item, wire.Problem)
    ((key, value),) = item.details.items()
    for one in (item.code, item.message, key, value):
        assert str(one).isprintable()
    if text.isprintable():
        assert item == wire.Problem(text, text, {text: text})


@pytest.mark.parametrize(
    ("item", "over"),
    [
        (lambda size: ["m", bytes(size)], MESSAGE_MAX),
        (lambda size: ["t", bytes(size)], wire.MAX_TRACE),
        (lambda size: ["l", 1, bytes(size)], wire.MAX_TEXT),
        (lambda size: ["e", "c", "m" * size, {}], wire.MAX_TEXT),
        (lambda size: ["a", [[1, None, None, None]] * size], wire.MAX_ITEMS),
        (lambda size: ["e", "c", "m", {str(number): 1 for number in range(size)}], 32),
    ],
)
def test_bounds(item: object, over: int) -> None:
    assert callable(item)
    assert len(wire.items_of(encode([item(over)]))) == 1
    with pytest.raises(wire.WireError):
        wire.items_of(encode([item(over + 1)]))


def test_the_largest_that_a_worker_sends_fits_a_frame() -> None:
    """What is put until a frame is full, and a piece of a trace on top of it."""
    assert len(encode([["m", bytes(wire.FLUSH_AT)], ["t", bytes(wire.MAX_TRACE)]])) <= wire.MAX_FRAME


JOBS = st.builds(
    Job,
    elf=st.just(b"elf"),
    request=st.binary(max_size=50),
    devices=st.lists(
        st.builds(DeviceSpec, st.integers(3, 100), U64, st.booleans(), st.booleans(), MAYBE_NUMBER, U64), max_size=5
    ).map(tuple),
    limits=st.builds(
        Limits,
        timeout=st.integers(1, 10**6).map(lambda ms: ms / 1000),
        max_read=U64,
        max_write=U64,
        max_messages=U64,
        max_report=U64,
        max_memory=U64,
        max_output=U64,
    ),
    log_level=st.integers(0, 4),
    progress=st.booleans(),
    record=st.booleans(),
    replay=st.none() | st.binary(max_size=20),
    debugger=st.none() | st.integers(200, 300),
)


@given(JOBS, st.integers(0, 63))
def test_a_job_arrives(job: Job, number: int) -> None:
    message = decode(encode(wire.job_message(job, job.elf, number)))
    assert isinstance(message, dict)
    assert (message["elf"], message["number"]) == (job.elf, number)
    descriptors = [device.fd for device in job.devices] + ([] if job.debugger is None else [job.debugger])
    assert wire.job_of(message, job.elf, descriptors) == job


@given(
    st.builds(
        JailSettings,
        layers=st.lists(st.sampled_from(list(LAYERS)), unique=True).map(tuple),
        memory=U64,
        machines=st.integers(1, 8),
        file_size=U64,
        features=st.lists(st.sampled_from(FEATURES), unique=True).map(tuple),
        verify_network=st.booleans(),
    )
)
@settings(max_examples=50)
def test_settings_arrive(chosen: JailSettings) -> None:
    message = decode(encode(wire.settings_message(chosen, {"user-namespace": "user:[1]"}, 1000, "/dev/kvm")))
    assert isinstance(message, dict)
    assert wire.settings_of(message) == chosen
