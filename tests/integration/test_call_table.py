"""Every entry of the call table, through the real runtime, virtqueues and devices, on KVM."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import calltable as ct
from tests.integration.exerciser import MEMORY, Exerciser, Step
from vmm.boundary import FailureKind, Limits, MessageEvent

pytestmark = pytest.mark.kvm

#: 5000 bytes of which no two near each other are alike.
CONTENT = bytes((position * 7 + position // 256) % 251 for position in range(5000))


def _read(offset: int, length: int, device: int = 0) -> Step:
    return {"call": "read", "offset": offset, "length": length, "device": device}


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 0), (0, 1), (0, 512), (1, 1), (511, 2), (500, 24), (3, 1021), (512, 4096), (0, 5000), (4999, 1), (4608, 392)],
)
def test_reads_are_exact(exerciser: Exerciser, offset: int, length: int) -> None:
    ran = exerciser.run([_read(offset, length)], CONTENT)
    assert ran.outcome.failure is None
    assert ran.answers == [{"result": 0, "data": CONTENT[offset : offset + length]}]
    # One notification and the end of the run; booting cost its exits in the first run only.
    assert exerciser.run([_read(offset, length)], CONTENT).outcome.usage.exits == (2 if length else 1)


@pytest.mark.parametrize(("offset", "length"), [(5000, 1), (4999, 2), (0, 5001), (2**64 - 1, 1), (2**63, 2**20)])
def test_reads_past_the_end(exerciser: Exerciser, offset: int, length: int) -> None:
    ran = exerciser.run([_read(offset, length)], CONTENT)
    assert ran.answers[0]["result"] == -ct.ERROR_RANGE
    assert set(ran.answers[0]["data"]) == {0xEE}
    assert ran.outcome.usage.read_bytes == 0


def test_a_batch_of_reads_is_one_exit_for_a_queue_full(exerciser: Exerciser) -> None:
    ranges = [{"offset": 13 * number, "length": 17} for number in range(100)]
    steps = [{"call": "read-many", "ranges": ranges}]
    exerciser.run(steps, CONTENT)
    ran = exerciser.run(steps, CONTENT)
    assert ran.answers[0]["result"] == 0
    assert ran.answers[0]["statuses"] == [0] * 100
    assert ran.answers[0]["data"] == b"".join(CONTENT[13 * n : 13 * n + 17] for n in range(100))
    assert ran.outcome.usage.exits == 1 + 2


def test_a_bad_read_of_a_batch_leaves_the_others_alone(exerciser: Exerciser) -> None:
    ranges = [{"offset": 1, "length": 5}, {"offset": 4999, "length": 2}, {"offset": 7, "length": 3}]
    ran = exerciser.run([{"call": "read-many", "ranges": ranges}], CONTENT)
    assert ran.answers[0]["result"] == -ct.ERROR_RANGE
    assert ran.answers[0]["statuses"] == [0, -ct.ERROR_RANGE, 0]
    assert ran.answers[0]["data"] == CONTENT[1:6] + b"\xee\xee" + CONTENT[7:10]


def test_devices_are_told_apart(exerciser: Exerciser) -> None:
    steps = [_read(0, 3, 1), _read(0, 3, 0), _read(0, 3, 2), {"call": "device-count"}]
    ran = exerciser.run(steps, b"one" * 300, b"two" * 300)
    assert [answer["result"] for answer in ran.answers] == [0, 0, -ct.ERROR_NO_DEVICE, 2]
    assert (ran.answers[0]["data"], ran.answers[1]["data"]) == (b"two", b"one")


def test_as_many_devices_as_there_can_be(exerciser: Exerciser) -> None:
    contents = [bytes([number]) * (100 + number) for number in range(ct.MAX_DEVICES)]
    steps = [_read(99, 1, number) for number in range(ct.MAX_DEVICES)]
    ran = exerciser.run(steps, *contents)
    assert [answer["data"] for answer in ran.answers] == [bytes([number]) for number in range(ct.MAX_DEVICES)]


def test_large_reads_are_split(exerciser: Exerciser) -> None:
    size = 9 << 20

    def mark(fd: int) -> None:
        os.ftruncate(fd, size + 700)
        os.pwrite(fd, b"first", 100)
        os.pwrite(fd, b"last", size + 100 - 4)

    ran = exerciser.run([_read(100, size)], bytes(size + 700), prepare=mark)
    data = ran.answers[0]["data"]
    assert ran.answers[0]["result"] == 0
    assert data[:5] == b"first"
    assert data[-4:] == b"last"


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (0, b"a"),
        (511, b"bc"),
        (512, b"d" * 512),
        (100, b"e" * 2000),
        (4990, b"f" * 10),
        (4608, b"g" * 392),
        (1, b"h" * 4999),
        (0, b"i" * 5000),
        (5, b""),
    ],
)
@pytest.mark.parametrize("resizable", [False, True])
def test_writes_are_exact(exerciser: Exerciser, offset: int, data: bytes, resizable: bool) -> None:
    ran = exerciser.run([{"call": "write", "offset": offset, "data": data}], CONTENT, resizable=resizable)
    assert ran.answers == [{"result": 0}]
    assert ran.files == [CONTENT[:offset] + data + CONTENT[offset + len(data) :]]


@pytest.mark.parametrize(("offset", "data"), [(5000, b"x"), (4999, b"yy"), (6000, b"z" * 700), (10240, b"w" * 512)])
def test_writes_past_the_end_lengthen_to_the_byte(exerciser: Exerciser, offset: int, data: bytes) -> None:
    step = {"call": "write", "offset": offset, "data": data}
    ran = exerciser.run([step, {"call": "info"}], CONTENT, resizable=True)
    assert ran.files == [CONTENT.ljust(offset, b"\0")[:offset] + data]
    assert ran.answers[1]["numbers"][0] == offset + len(data)
    assert ran.outcome.device_lengths == (offset + len(data),)
    # A device of fixed length refuses, and so does a read-only one.
    assert exerciser.run([step], CONTENT).answers[0]["result"] == -ct.ERROR_RANGE
    assert exerciser.run([step], CONTENT, read_only=True).answers[0]["result"] == -ct.ERROR_READ_ONLY


def test_a_batch_of_writes_that_share_sectors(exerciser: Exerciser) -> None:
    pieces = [(number * 37, bytes([number + 1]) * 37) for number in range(90)]
    ranges = [{"offset": offset, "data": data} for offset, data in reversed(pieces)]
    ran = exerciser.run([{"call": "write-many", "ranges": ranges}], b"", resizable=True)
    assert ran.answers[0] == {"result": 0, "statuses": [0] * 90}
    assert ran.files == [b"".join(data for _, data in pieces)]


def test_a_batch_of_aligned_writes_is_one_exit(exerciser: Exerciser) -> None:
    ranges = [{"offset": number * 1024, "data": bytes([number + 1]) * 512} for number in range(20)]
    steps = [{"call": "write-many", "ranges": ranges}]
    exerciser.run(steps, bytes(20480), resizable=True)
    ran = exerciser.run(steps, bytes(20480), resizable=True)
    assert ran.files == [b"".join(bytes([number + 1]) * 512 + bytes(512) for number in range(20))]
    assert ran.outcome.usage.exits == 1 + 1


@pytest.mark.parametrize(("offset", "length"), [(0, 5000), (1, 1), (500, 100), (512, 1024), (100, 4900), (4700, 300)])
def test_write_zeroes_and_discard(exerciser: Exerciser, offset: int, length: int) -> None:
    ran = exerciser.run([{"call": "write-zeroes", "offset": offset, "length": length}], CONTENT)
    assert ran.answers == [{"result": 0}]
    assert ran.files == [CONTENT[:offset] + bytes(length) + CONTENT[offset + length :]]
    ran = exerciser.run([{"call": "discard", "offset": offset, "length": length}], CONTENT)
    assert ran.answers == [{"result": 0}]
    (after,) = ran.files
    assert len(after) == 5000
    assert after[:offset] == CONTENT[:offset]
    assert after[offset + length :] == CONTENT[offset + length :]


def test_zeroes_past_the_end_are_refused(exerciser: Exerciser) -> None:
    for call in ("write-zeroes", "discard"):
        ran = exerciser.run([{"call": call, "offset": 4999, "length": 2}], CONTENT)
        assert ran.answers == [{"result": -ct.ERROR_RANGE}]
        ran = exerciser.run([{"call": call, "offset": 0, "length": 2}], CONTENT, read_only=True)
        assert ran.answers == [{"result": -ct.ERROR_READ_ONLY}]


def test_set_length_and_flush(exerciser: Exerciser) -> None:
    steps: list[Step] = [
        {"call": "set-length", "length": 7777},
        _read(4998, 4),
        {"call": "set-length", "length": 3},
        _read(0, 3),
        _read(0, 4),
        {"call": "flush"},
        {"call": "flush", "device": 5},
        {"call": "set-length", "length": 10001},
    ]
    ran = exerciser.run(steps, CONTENT, max_length=10000, resizable=True)
    results = [answer["result"] for answer in ran.answers]
    assert results == [0, 0, 0, 0, -ct.ERROR_RANGE, 0, -ct.ERROR_NO_DEVICE, -ct.ERROR_NO_SPACE]
    assert ran.answers[1]["data"] == CONTENT[4998:] + b"\0\0"
    assert ran.files == [CONTENT[:3]]
    assert exerciser.run(steps[:1], CONTENT).answers[0]["result"] == -ct.ERROR_UNSUPPORTED


def test_block_status(exerciser: Exerciser) -> None:
    def dig(fd: int) -> None:
        os.ftruncate(fd, 0)
        os.ftruncate(fd, 1 << 20)
        os.pwrite(fd, b"d" * 65536, 65536)

    step = {"call": "block-status", "offset": 10, "length": (1 << 20) - 10}
    ran = exerciser.run([step], bytes(1 << 20), prepare=dig)
    numbers = ran.answers[0]["numbers"]
    extents = [tuple(numbers[at : at + 3]) for at in range(0, len(numbers), 3)]
    assert extents == [(10, 65526, 0), (65536, 65536, ct.EXTENT_DATA), (131072, (1 << 20) - 131072, 0)]
    ran = exerciser.run([{**step, "length": 1 << 20}, {**step, "length": 0}], bytes(1 << 20))
    assert [answer["result"] for answer in ran.answers] == [-ct.ERROR_RANGE, 0]


def test_a_file_that_shrinks_is_an_io_error(exerciser: Exerciser) -> None:
    ran = exerciser.run([_read(0, 5000)], CONTENT, prepare=lambda fd: os.ftruncate(fd, 1000))
    assert ran.answers[0]["result"] == -ct.ERROR_IO
    assert ran.outcome.device_errors == ("the file now ends at or before byte 1000, it had 5000",)


def test_alloc(exerciser: Exerciser) -> None:
    def alloc(size: int, alignment: int) -> Step:
        return {"call": "alloc", "length": size, "offset": alignment}

    steps = [alloc(100, 1), alloc(100, 4096), alloc(1 << 20, 2 << 20), alloc(1 << 40, 8), alloc(2**64 - 1, 1)]
    for _ in range(2):
        # The second run gets zeroes again, although the first wrote to all of it.
        ran = exerciser.run(steps, b"")
        assert [answer["result"] for answer in ran.answers] == [0, 0, 0, -ct.ERROR_MEMORY, -ct.ERROR_MEMORY]
        addresses = [answer["numbers"] for answer in ran.answers[:3]]
        assert [zero for _, zero in addresses] == [1, 1, 1]
        assert addresses[1][0] % 4096 == 0
        assert addresses[2][0] % (2 << 20) == 0


@pytest.mark.parametrize("alignment", [0, 3, 4 << 20, 2**63, 2**64 - 1])
def test_alloc_with_an_alignment_that_makes_no_sense(exerciser: Exerciser, alignment: int) -> None:
    ran = exerciser.run([{"call": "alloc", "length": 1, "offset": alignment}], b"")
    assert ran.outcome.failure is None
    assert ran.answers[0]["result"] == -ct.ERROR_INVALID


def test_budget(exerciser: Exerciser) -> None:
    limits = Limits(max_read=100_000, max_write=200_000, max_messages=50, max_memory=MEMORY)
    ran = exerciser.run([_read(0, 1024), {"call": "budget"}], CONTENT, limits=limits)
    read, write, messages, memory = ran.answers[1]["numbers"]
    # The first answer is still in the runtime's buffer.
    assert (read, write, messages) == (100_000 - 1024, 200_000, 50)
    assert 0 < memory < MEMORY + ct.ARENA_HOT


def test_log_and_progress_cost_nothing_when_not_wanted(exerciser: Exerciser) -> None:
    steps: list[Step] = [{"call": "log", "device": level, "data": b"line"} for level in (1, 2, 3, 4, 0, 9)]
    steps += [{"call": "progress", "offset": done, "length": 1000} for done in range(1001)]
    exerciser.run(steps, b"")
    ran = exerciser.run(steps, b"")
    assert (ran.logs, ran.progress) == ([], [])
    assert ran.outcome.usage.exits <= 3
    ran = exerciser.run(steps, b"", log_level=2, progress=True)
    assert ran.logs == [(1, b"line"), (2, b"line")]
    assert 400 <= len(ran.progress) <= 600
    assert ran.progress[-1] == (1000, 1000)


def test_emit_batches_and_limits(exerciser: Exerciser) -> None:
    sizes = [1, ct.MESSAGE_MAX, 100, ct.MESSAGE_MAX, ct.MESSAGE_MAX + 1, 0, 5000]
    ran = exerciser.run([{"call": "emit", "length": size} for size in sizes], b"")
    results = [answer["result"] for answer in ran.answers]
    assert results == [0, 0, 0, 0, -ct.ERROR_TOO_LARGE, -ct.ERROR_INVALID, 0]
    raw = [len(event.payload) for event in ran.events if isinstance(event, MessageEvent) and event.payload[0] == 0xEE]
    assert raw == [1, ct.MESSAGE_MAX, 100, ct.MESSAGE_MAX, 5000]


def test_request(exerciser: Exerciser) -> None:
    ran = exerciser.run([{"call": "request"}], b"")
    assert ran.answers[0]["numbers"] == [ct.REQUEST_BASE]
    assert ran.answers[0]["result"] > 0


def test_bad_arguments_are_refused(exerciser: Exerciser) -> None:
    ran = exerciser.run([{"call": "null-pointers"}], CONTENT)
    assert ran.outcome.failure is None
    assert ran.answers[0]["statuses"] == [-ct.ERROR_INVALID] * 12


def test_a_buffer_that_the_device_may_not_write_is_contained(exerciser: Exerciser) -> None:
    for address in (ct.OPERATION_BASE, ct.BOOT_INFO, 0x7FFF_FFFF_0000):
        ran = exerciser.run([{"call": "wild-pointer", "offset": address, "length": 512}], CONTENT)
        failure = ran.outcome.failure
        assert failure is not None
        assert failure.kind == FailureKind.PANIC
        assert "needs a reset" in failure.message
        assert any("not writable memory" in line for line in failure.recent_requests)
        # The machine is as good as new afterwards.
        assert exerciser.run([_read(0, 5)], CONTENT).answers[0]["data"] == CONTENT[:5]


def test_exit_and_panic_deliver_what_was_emitted(exerciser: Exerciser) -> None:
    ran = exerciser.run([{"call": "device-count"}, {"call": "exit", "length": 3}], CONTENT)
    assert ran.outcome.status == 3
    assert ran.answers == [{"result": 1}]
    ran = exerciser.run([{"call": "device-count"}, {"call": "panic"}], CONTENT)
    assert ran.answers == [{"result": 1}]
    failure = ran.outcome.failure
    assert failure is not None
    assert failure.kind == FailureKind.PANIC
    assert "as asked" in failure.message
    assert failure.backtrace


def test_a_request_that_does_not_fit_is_refused_by_name(exerciser: Exerciser) -> None:
    ran = exerciser.run([{"call": "read", "wrong": 1}], CONTENT)
    assert ran.outcome.status == 1
    assert ran.answers[0]["error"]["code"] == "invalid-option"
    assert "'wrong'" in ran.answers[0]["error"]["message"]


@pytest.mark.parametrize("name", ["max-read", "max-write"])
def test_budgets_end_the_run(exerciser: Exerciser, name: str) -> None:
    steps = [_read(0, 5000), {"call": "write", "data": b"x" * 5000}]
    limits = replace(Limits(max_memory=MEMORY), **{name.replace("-", "_"): 1000})
    ran = exerciser.run(steps, CONTENT, limits=limits)
    failure = ran.outcome.failure
    assert failure is not None
    assert (failure.kind, failure.limit, failure.limit_value) == (FailureKind.LIMIT, name, 1000)


_offsets = st.integers(0, 3000)
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("read"), _offsets, st.integers(0, 2000)),
        st.tuples(st.just("write"), _offsets, st.binary(max_size=1200)),
        st.tuples(st.just("write-zeroes"), _offsets, st.integers(0, 1500)),
        st.tuples(st.just("set-length"), st.integers(0, 4000), st.just(0)),
        st.tuples(st.just("write-many"), st.just(0), st.lists(st.binary(max_size=300), max_size=6)),
    ),
    max_size=12,
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_steps, st.integers(0, 2500))
def test_any_sequence_against_a_bytearray(exerciser: Exerciser, steps: list[Any], length: int) -> None:
    """The whole way there and back, at byte granularity, against the simplest model."""
    content = CONTENT[:length]
    model = bytearray(content)
    calls: list[Step] = []
    expected: list[dict[str, Any]] = []
    for kind, number, value in steps:
        if kind == "read":
            inside = number + value <= len(model)
            data = bytes(model[number : number + value]) if inside else b"\xee" * value
            expected.append({"result": 0 if inside else -ct.ERROR_RANGE, "data": data})
            calls.append(_read(number, value))
        elif kind == "write":
            if number + len(value) > len(model):
                model.extend(bytes(number + len(value) - len(model)))
            model[number : number + len(value)] = value
            expected.append({"result": 0})
            calls.append({"call": "write", "offset": number, "data": value})
        elif kind == "write-zeroes":
            inside = number + value <= len(model)
            if inside:
                model[number : number + value] = bytes(value)
            expected.append({"result": 0 if inside else -ct.ERROR_RANGE})
            calls.append({"call": kind, "offset": number, "length": value})
        elif kind == "set-length":
            del model[number:]
            model.extend(bytes(number - len(model)))
            expected.append({"result": 0})
            calls.append({"call": kind, "length": number})
        else:
            # One after another from 0, given in reverse.
            starts = list(accumulate((len(data) for data in value), initial=0))
            whole = b"".join(value)
            model.extend(bytes(max(0, len(whole) - len(model))))
            model[: len(whole)] = whole
            ranges = [{"offset": start, "data": data} for start, data in zip(starts, value, strict=False)]
            expected.append({"result": 0, "statuses": [0] * len(value)})
            calls.append({"call": kind, "ranges": ranges[::-1]})
    ran = exerciser.run(calls, content, resizable=True)
    assert ran.outcome.failure is None
    assert ran.answers == expected
    assert ran.files == [bytes(model)]
