"""Recording changes nothing, and a replay from what was recorded does the same, whatever is asked of a device."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.boundary import DeviceSpec, Event, TraceEvent
from vmm.cbor import decode, encode
from vmm.devices import trace as module
from vmm.devices.backend import FileBackend
from vmm.devices.errors import BackendError, LimitExceeded, ReplayDiverged
from vmm.devices.script import Script
from vmm.devices.trace import PIECE, Intervals, recording_backends

Call = tuple[Any, ...]


def nothing() -> None:
    pass


def memfd(content: bytes | bytearray) -> int:
    fd = os.memfd_create("test")
    os.pwrite(fd, content, 0)
    return fd


@dataclass
class Recording:
    """What a recorder got: the data by place, and the calls."""

    calls: list[bytes] = field(default_factory=list)
    data: list[tuple[int, bytes]] = field(default_factory=list)

    def take(self, event: Event) -> None:
        assert isinstance(event, TraceEvent)
        item = decode(event.payload)
        assert isinstance(item, list)
        if item[0] == "data":
            _, device, offset, content = item
            assert device == 0
            assert isinstance(offset, int)
            assert isinstance(content, (int, bytes))
            self.data.append((offset, bytes(content)))
        else:
            self.calls.append(event.payload)

    def seeds(self, length: int) -> int:
        """A descriptor with the recorded bytes and nothing else."""
        fd = memfd(b"")
        os.ftruncate(fd, length)
        for offset, content in self.data:
            os.pwrite(fd, content, offset)
        assert os.fstat(fd).st_size == length
        return fd

    def script(self) -> Script:
        return Script(b"".join(self.calls))


class Charge:
    """A budget for what `zero` writes."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.used = 0

    def __call__(self, count: int) -> None:
        if self.used + count > self.most:
            raise LimitExceeded("max-write", self.most)
        self.used += count


def perform(backend: Any, call: Call, charge: Charge) -> object:
    """What a call answers, everything that the guest could see of it."""
    kind, *numbers = call
    try:
        if kind == "read":
            offset, sizes = numbers
            buffer = bytearray(b"\xee" * sum(sizes))
            views, at = [], 0
            for size in sizes:
                views.append(memoryview(buffer)[at : at + size])
                at += size
            try:
                backend.read(offset, views, len(buffer))
            except BackendError as error:
                return (error.code, error.message, error.errno, bytes(buffer))
            return bytes(buffer)
        if kind == "write":
            offset, content = numbers
            half = len(content) // 2
            views = [memoryview(content)[:half], memoryview(content)[half:]]
            backend.write(offset, views, len(content))
            return None
        if kind == "zero":
            return (backend.zero(*numbers, charge), charge.used)
        if kind == "status":
            return [tuple(extent) for extent in backend.block_status(*numbers)]
        if kind == "length":
            return (backend.set_length(*numbers), backend.length)
        return getattr(backend, kind)(*numbers)
    except BackendError as error:
        return (error.code, error.message, error.errno)
    except LimitExceeded as error:
        return (error.limit, error.value)


class Disk:
    """os.preadv and os.pwritev that fail at one byte."""

    def __init__(self, bad: int | None) -> None:
        self.bad = bad
        self.read, self.write = os.preadv, os.pwritev

    def _until(self, views: Sequence[memoryview], at: int) -> list[memoryview]:
        length = sum(map(len, views))
        if self.bad is None or not at <= self.bad < at + length:
            return list(views)
        if at == self.bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        from vmm.devices.backend import cut

        return cut(views, 0, self.bad - at)

    def preadv(self, fd: int, views: Sequence[memoryview], at: int) -> int:
        return self.read(fd, self._until(views, at), at)

    def pwritev(self, fd: int, views: Sequence[memoryview], at: int) -> int:
        return self.write(fd, self._until(views, at), at)


SIZE = 5000
_places = st.integers(0, SIZE + 600)
_calls = st.one_of(
    st.tuples(st.just("read"), _places, st.lists(st.integers(0, 900), max_size=3)),
    st.tuples(st.just("write"), _places, st.binary(max_size=40).flatmap(lambda b: st.integers(0, 40).map(b.__mul__))),
    st.tuples(st.just("write"), _places, st.integers(0, 3000).map(bytes)),
    st.tuples(st.just("zero"), _places, st.integers(0, 3000), st.booleans()),
    st.tuples(st.just("discard"), _places, st.integers(0, 3000)),
    st.tuples(st.just("length"), st.integers(0, SIZE + 3000)),
    st.tuples(st.just("status"), st.integers(0, SIZE), st.integers(0, 3000), st.integers(1, 4)),
    st.tuples(st.just("flush")),
    st.tuples(st.just("flags")),
    st.tuples(st.just("allocated")),
)


@given(
    st.binary(max_size=30).map(lambda seed: (seed or b"\0") * (SIZE // max(len(seed), 1))),
    st.lists(_calls, max_size=12),
    st.one_of(st.none(), st.integers(0, SIZE)),
    st.booleans(),
    st.booleans(),
    st.integers(0, 4000),
)
@settings(deadline=None, max_examples=150)
def test_recorded_and_replayed_runs_are_alike(
    content: bytes, calls: list[Call], bad: int | None, allocates: bool, read_only: bool, budget: int
) -> None:
    spec: dict[str, Any] = {"read_only": read_only, "resizable": True, "max_length": SIZE + 2000}
    recording = Recording()
    disk = Disk(bad)
    allocate = {} if allocates else {"_allocate": lambda *_: False}
    with ExitStack() as stack:
        patch = stack.enter_context
        patch(mock.patch.object(module, "PIECE", 700))
        fds = [memfd(content), memfd(content)]
        for fd in fds:
            stack.callback(os.close, fd)
        plain = FileBackend(DeviceSpec(fds[0], len(content), **spec))
        recorded = recording_backends([DeviceSpec(fds[1], len(content), **spec)], nothing, recording.take)[0]
        answers = []
        with ExitStack() as faults:
            faults.enter_context(mock.patch.object(os, "preadv", disk.preadv))
            faults.enter_context(mock.patch.object(os, "pwritev", disk.pwritev))
            for name, value in allocate.items():
                faults.enter_context(mock.patch.object(FileBackend, name, value))
            one, two = Charge(budget), Charge(budget)
            for call in calls:
                answers.append(perform(plain, call, one))
                assert perform(recorded, call, two) == answers[-1]
        assert os.pread(fds[0], 1 << 20, 0) == os.pread(fds[1], 1 << 20, 0)

        seeds = recording.seeds(len(content))
        stack.callback(os.close, seeds)
        script = recording.script()
        replayed = script.backends([DeviceSpec(seeds, len(content), **spec)], nothing)[0]
        charge = Charge(budget)
        for call, answer in zip(calls, answers, strict=True):
            assert perform(replayed, call, charge) == answer
        end = decode(script.end().payload)
        assert end == ["end", len(recording.calls)]
        assert end == ["end", len(calls)]


def test_overlapping_buffers() -> None:
    """The same guest memory twice in one request: what the guest then sees, and what is recorded for the file."""
    content = os.urandom(1024)
    recording = Recording()
    fd = memfd(content)
    recorded = recording_backends([DeviceSpec(fd, 1024)], nothing, recording.take)[0]
    buffer = memoryview(bytearray(512))
    recorded.read(0, [buffer, buffer], 1024)
    assert bytes(buffer) == content[512:]
    assert recording.data == [(0, content)]
    replayed = recording.script().backends([DeviceSpec(recording.seeds(1024), 1024)], nothing)[0]
    again = memoryview(bytearray(512))
    replayed.read(0, [again, again], 1024)
    assert again == buffer


def test_no_byte_is_recorded_twice_and_zeroes_are_a_number() -> None:
    size = 3 * PIECE
    content = bytearray(size)
    content[5] = 1
    events: list[Event] = []
    recorded = recording_backends([DeviceSpec(memfd(bytes(content)), size)], nothing, events.append)[0]
    for offset, length in ((1024, 4096), (0, size), (100, 9000)):
        recorded.read(offset, [memoryview(bytearray(length))], length)
    items = [decode(event.payload) for event in events if isinstance(event, TraceEvent)]
    data = [item[1:] for item in items if isinstance(item, list) and item[0] == "data"]
    assert data == [
        [0, 1024, 4096],
        [0, 0, bytes(content[:1024])],
        [0, 5120, PIECE - 5120],
        [0, PIECE, PIECE],
        [0, 2 * PIECE, PIECE],
    ]


CONTENT = bytes(range(1, 251)) * 8
SPEC: dict[str, Any] = {"read_only": False, "resizable": True}
#: Calls between two reads of everything, and the bytes whose content the first read already told or the call made.
CHANGING: dict[str, Call] = {
    "write": ("write", 500, b"w" * 600),
    "write of zeroes": ("write", 500, bytes(600)),
    "zero": ("zero", 500, 600, True),
    "zero without a hole": ("zero", 500, 600, False),
    "discard": ("discard", 500, 600),
    "longer": ("length", 2600),
    "shorter": ("length", 900),
}


@pytest.mark.parametrize("read_before", [True, False])
@pytest.mark.parametrize("name", CHANGING)
def test_what_a_call_leaves_behind(name: str, read_before: bool) -> None:
    calls: list[Call] = [("read", 0, [2000])] if read_before else []
    calls += [CHANGING[name], ("read", 0, [2600])]
    recording = Recording()
    recorded = recording_backends([DeviceSpec(memfd(CONTENT), 2000, **SPEC)], nothing, recording.take)[0]
    answers = [perform(recorded, call, Charge(10000)) for call in calls]
    # What the run made itself is not recorded, and no byte is recorded twice.
    told = sorted(place for offset, data in recording.data for place in range(offset, offset + len(data)))
    own = set() if read_before else set(range(500, 1100)) if len(CHANGING[name]) > 2 else set(range(900, 2600))
    assert told == [place for place in range(2000) if place not in own or (name == "longer" and place < 2000)]
    replayed = recording.script().backends([DeviceSpec(recording.seeds(2000), 2000, **SPEC)], nothing)[0]
    assert [perform(replayed, call, Charge(10000)) for call in calls] == answers


@pytest.mark.parametrize("kind", ["read", "write", "zero"])
def test_a_failure_in_the_middle(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the first piece: the bytes before the failure are there, in the recorded run and in its replay."""
    monkeypatch.setattr(module, "PIECE", 700)
    call: Call = {"read": (kind, 0, [1000, 1000]), "write": (kind, 0, b"w" * 2000), "zero": (kind, 100, 1900, False)}[
        kind
    ]
    disk = Disk(1500)
    recording = Recording()
    fd = memfd(CONTENT)
    recorded = recording_backends([DeviceSpec(fd, 2000, **SPEC)], nothing, recording.take)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "preadv", disk.preadv)
        patch.setattr(os, "pwritev", disk.pwritev)
        patch.setattr(FileBackend, "_allocate", lambda *_: False)
        answer = perform(recorded, call, Charge(10000))
    assert isinstance(answer, tuple)
    assert "at byte 1500 failed" in answer[1]
    call_made = decode(recording.calls[-1])
    assert isinstance(call_made, list)
    assert call_made[3][3] == (1400 if kind == "zero" else 1500)  # type: ignore[index]
    after: Call = ("read", 0, [2000])
    found = perform(recorded, after, Charge(0))
    if kind == "read":
        assert answer[3] == CONTENT[:1500] + b"\xee" * 500
    replayed = recording.script().backends([DeviceSpec(recording.seeds(2000), 2000, **SPEC)], nothing)[0]
    assert perform(replayed, call, Charge(10000)) == answer
    assert perform(replayed, after, Charge(0)) == found


def _recorded(content: bytes, *calls: Call) -> Recording:
    recording = Recording()
    backend = recording_backends([DeviceSpec(memfd(content), len(content), read_only=False)], nothing, recording.take)
    for call in calls:
        perform(backend[0], call, Charge(0))
    return recording


def _replay(recording: Recording, length: int = 1024) -> FileBackend:
    spec = DeviceSpec(recording.seeds(length), length, read_only=False)
    return recording.script().backends([spec], nothing)[0]


READ: Call = ("read", 0, [512])
WRITE: Call = ("write", 512, b"x" * 512)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            ("read", 512, [512]),
            "recorded: read of device 0, offset 0, length 512; now came: read of device 0, offset 5",
        ),
        (("read", 0, [1024]), "now came: read of device 0, offset 0, length 1024"),
        (WRITE, "now came: write of device 0, offset 512, length 512, CRC-32 "),
        (("flush",), "now came: flush of device 0"),
    ],
)
def test_another_call_diverges(call: Call, said: str) -> None:
    replayed = _replay(_recorded(bytes(1024), ("flags",), READ))
    perform(replayed, ("flags",), Charge(0))
    with pytest.raises(ReplayDiverged) as caught:
        perform(replayed, call, Charge(0))
    assert caught.value.message.startswith("device call 2: ")
    assert said in caught.value.message


def test_another_content_of_a_write_diverges() -> None:
    replayed = _replay(_recorded(bytes(1024), WRITE))
    with pytest.raises(ReplayDiverged, match="CRC-32"):
        perform(replayed, ("write", 512, b"x" * 511 + b"y"), Charge(0))


def test_a_call_after_the_last_one_diverges() -> None:
    replayed = _replay(_recorded(bytes(1024), READ))
    perform(replayed, READ, Charge(0))
    with pytest.raises(ReplayDiverged, match=r"^device call 2: the recorded run had ended its calls; now"):
        perform(replayed, READ, Charge(0))


def test_an_image_that_changes_between_two_reads_is_noticed() -> None:
    content = bytearray(b"a" * 1024)
    fd = memfd(content)
    recording = Recording()
    backend = recording_backends([DeviceSpec(fd, 1024)], nothing, recording.take)[0]
    perform(backend, READ, Charge(0))
    os.pwrite(fd, b"b", 100)
    perform(backend, READ, Charge(0))
    replayed = _replay(recording)
    assert perform(replayed, READ, Charge(0)) == b"a" * 512
    with pytest.raises(ReplayDiverged, match=r"^device call 2: .* the image was changed while it was recorded"):
        perform(replayed, READ, Charge(0))


#: Entries that are no answer to READ, or none to the call they are for.
DAMAGED: list[tuple[object, Call]] = [
    (7, READ),
    ([], READ),
    (["read"], READ),
    (["read", 0, 5, None, 1], READ),
    (["read", 0, [0, 512], None], READ),
    (["read", 0, [0, 512], None, 1, 2], READ),
    (["read", 0, [0, 512], "error", 1], READ),
    (["read", 0, [0, 512], [1, "text", None, 513], 1], READ),
    (["read", 0, [0, 512], [1 << 40, "text", None, 0], 1], READ),
    (["read", 0, [0, 512], [1, b"text", None, 0], 1], READ),
    (["read", 0, [0, 512], None, "sum"], READ),
    (["\x1b[31m", {"a": []}, [b"\x1b"], None], READ),
    (["flags", 0, [], None, 1 << 32], ("flags",)),
    (["allocated", 0, [], None, "much"], ("allocated",)),
    (["status", 0, [0, 512, 1], None, [[0, 1, 2], [1, 2, 3]]], ("status", 0, 512, 1)),
    (["status", 0, [0, 512, 1], None, [[0, 1]]], ("status", 0, 512, 1)),
    (["status", 0, [0, 512, 1], None, [[0, 1, 1 << 64]]], ("status", 0, 512, 1)),
    (["status", 0, [0, 512, 1], None, [5]], ("status", 0, 512, 1)),
    (["zero", 0, [0, 512, True], None, "a", 0], ("zero", 0, 512, True)),
    (["zero", 0, [0, 512, True], None, 0, 5], ("zero", 0, 512, True)),
    (["length", 0, [4096], None], ("length", 4096)),
]


@pytest.mark.parametrize(("entry", "call"), DAMAGED)
def test_damaged_records_diverge(entry: object, call: Call) -> None:
    try:
        encoded = encode(entry)
    except TypeError:
        # An integer of 65 bits has no encoding here: the byte string 2^64 has, as a tag that is refused.
        encoded = b"\x85fstatus\x00\x83\x00\x19\x02\x00\x01\xf6\x81\x83\x00\x01\xc2\x49\x01" + bytes(8)
    replayed = Script(encoded).backends([DeviceSpec(memfd(bytes(1024)), 1024, read_only=False)], nothing)[0]
    with pytest.raises(ReplayDiverged, match=r"^device call 1: ") as caught:
        perform(replayed, call, Charge(1 << 20))
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300


@given(st.binary(max_size=60))
@settings(deadline=None)
def test_any_bytes_are_an_answer_or_a_divergence(trace: bytes) -> None:
    replayed = Script(trace).backends([DeviceSpec(memfd(bytes(1024)), 1024)], nothing)[0]
    calls: tuple[Callable[[], object], ...] = (replayed.flags, replayed.allocated)
    for call in calls:
        with contextlib.suppress(ReplayDiverged):
            call()


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=30))
def test_intervals(ranges: list[tuple[int, int]]) -> None:
    found = Intervals()
    members: set[int] = set()
    for start, length in ranges:
        new = [n for gap in found.add(start, start + length) for n in range(*gap)]
        assert new == sorted(set(range(start, start + length)) - members)
        members |= set(new)
        kept = list(found)
        assert [n for part in kept for n in range(*part)] == sorted(members)
        assert all(one[1] < other[0] for one, other in pairwise(kept))
