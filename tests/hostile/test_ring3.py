"""What ring 3 can do to itself and to the runtime beside it, which is none of the host's business and must stay so.

The runtime lies in ring 3 too: an operation can jump into the middle of it, write to its data, call it with nonsense.
Whatever comes of that is a status or a failure of the run, and the next run finds the machine as new.
"""

from __future__ import annotations

import os
import random
import struct
import tempfile
from collections.abc import Iterator, Sequence

import pytest

import calltable as ct
from tests.hostile.steps import ENTRIES, ONES, Bench, Ran, Steps
from tests.hostile.virtio import window
from vmm.boundary import DeviceSpec, Event, FailureKind, LogEvent, MessageEvent, ProgressEvent
from vmm.machine.layout import Region

pytestmark = pytest.mark.kvm

SECRET = 0x5EC2_E75E_C2E7_5EC2
#: A whole number of words, so that the file is the secret over and over.
CONTENT = struct.pack("<Q", SECRET) * 1024
MEMORY = 4 << 20
#: Where a call's answer may be put, and where its buffers are.
OUT, ROOM = ct.ARENA_BASE, ct.ARENA_BASE + 0x1000
CONTAINED = {
    *(FailureKind.PAGE_FAULT, FailureKind.EXCEPTION, FailureKind.PANIC, FailureKind.PROTOCOL, FailureKind.LIMIT),
    None,
}


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryFile() as file:
        file.write(CONTENT)
        file.flush()
        device = DeviceSpec(file.fileno(), len(CONTENT), False, True, len(CONTENT))
        made = Bench((device,), memory=MEMORY)
        yield made
        made.close()


def kind(ran: Ran) -> FailureKind | None:
    return None if ran.outcome.failure is None else ran.outcome.failure.kind


def region(bench: Bench, name: str) -> Region:
    return next(region for region in bench.ready().regions if region.name == name)


def restore(bench: Bench) -> None:
    """The file as it was."""
    fd = bench.devices[0].fd
    os.pwrite(fd, CONTENT, 0)
    os.ftruncate(fd, len(CONTENT))


#: Arguments that are right for each entry, as far as there are any; exit and abort end the run.
RIGHT: dict[str, tuple[int, ...]] = {
    "abort": (ROOM, 8, 0),
    "exit": (5,),
    "log": (1, ROOM, 8),
    "progress": (1, 2),
    "request": (OUT,),
    "device_count": (),
    "device_info": (0, OUT),
    "read": (0, 100, ROOM, 3000),
    "read_many": (ROOM, 2),
    "write": (0, 100, ROOM, 3000),
    "write_zeroes": (0, 100, 3000),
    "discard": (0, 0, 4096),
    "flush": (0,),
    "set_length": (0, len(CONTENT)),
    "block_status": (0, 0, len(CONTENT), OUT, 4),
    "alloc": (100, 16, OUT),
    "emit": (ROOM, 8),
    "budget": (OUT,),
    "write_many": (ROOM, 2),
}
REQUESTS = struct.pack("<IiQQQ", 0, 0, 10, ROOM + 0x200, 700) + struct.pack("<IiQQQ", 0, 0, 600, ROOM + 0x800, 5)


def prepared() -> Steps:
    return Steps().copy(ROOM, REQUESTS)


class TestTheRuntime:
    def test_entries_as_they_should_be_called(self, bench: Bench) -> None:
        """So that the tests below attack what works."""
        assert tuple(RIGHT) == ENTRIES
        for entry, arguments in RIGHT.items():
            ran = bench.run(prepared().call(entry, *arguments))
            assert kind(ran) == (FailureKind.PANIC if entry == "abort" else None), (entry, ran.failed)
            if entry not in ("exit", "abort", "log", "progress"):
                assert ran.results[0] < 1 << 63, entry
        restore(bench)
        bench.check_clean()

    @pytest.mark.parametrize("entry", ENTRIES)
    def test_every_argument_at_every_edge(self, bench: Bench, entry: str) -> None:
        values = (
            *(0, 1, 7, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, ONES - 7, ONES, ct.CONTROL_BASE, ct.TRAP_BASE),
            *(ct.VIRTIO_BASE, ct.SYSTEM_BASE, ct.RUNTIME_BASE, ct.OPERATION_BASE, ct.BOOT_INFO, ct.REQUEST_BASE),
            *(ct.QUEUES_BASE, ct.STACK_BASE + ct.STACK_SIZE, ct.ARENA_BASE - 1, ct.ARENA_BASE + ct.ARENA_HOT - 4),
            *(ct.COLD_BASE + MEMORY - 4, ct.COLD_BASE + MEMORY, len(CONTENT), len(CONTENT) + 1),
        )
        for place in range(len(RIGHT[entry])):
            for value in values:
                arguments = list(RIGHT[entry])
                arguments[place] = value
                ran = bench.run(prepared().call(entry, *arguments), log_level=4, progress=True, timeout=5.0)
                assert kind(ran) in CONTAINED, (entry, place, hex(value), ran.failed)
                assert ran.failed.isprintable() or ran.failed == ""
        restore(bench)
        bench.check_clean()

    @pytest.mark.parametrize("word", [0, 1, ONES, 0xAAAA_AAAA_AAAA_AAAA, ct.ARENA_BASE, ct.VIRTIO_BASE, "random"])
    def test_its_data_overwritten(self, bench: Bench, word: int | str) -> None:
        """All of it, or one word of it, and then every entry is called."""
        data = region(bench, "runtime data")
        dice = random.Random(5)
        for entry, arguments in RIGHT.items():
            steps = prepared()
            if isinstance(word, int):
                steps.fill(data.start, data.end - data.start, word)
            else:
                for _ in range(200):
                    steps.write(dice.randrange(data.start, data.end) & -8, dice.getrandbits(64), 8)
            ran = bench.run(steps.call(entry, *arguments), timeout=2.0, log_level=4, progress=True)
            assert kind(ran) in CONTAINED, (entry, ran.failed)
        restore(bench)
        bench.check_clean()

    def test_queues_overwritten_under_it(self, bench: Bench) -> None:
        dice = random.Random(6)
        for _ in range(100):
            steps = prepared()
            for _ in range(40):
                place = ct.QUEUES_BASE + dice.randrange(0, ct.QUEUE_STRIDE - 8)
                steps.write(
                    place, dice.choice((0, 1, ONES, dice.getrandbits(64), ct.ARENA_BASE)), dice.choice((2, 4, 8))
                )
            ran = bench.run(steps.call("read", *RIGHT["read"]).call("write", *RIGHT["write"]), timeout=2.0)
            assert kind(ran) in CONTAINED
        restore(bench)
        bench.check_clean()

    def test_devices_changed_under_it(self, bench: Bench) -> None:
        """Reset, stopped, given up, set up elsewhere: the runtime says that the device does not answer."""
        changes: tuple[Sequence[tuple[int, int]], ...] = (
            [(0x70, 0)],
            [(0x70, 128)],
            [(0x44, 0)],
            [(0x44, 0), (0x44, 1)],
            [(0x44, 0), (0x80, ROOM), (0x90, ROOM + 0x400), (0xA0, ROOM + 0x600), (0x44, 1)],
            [(0x44, 0), (0xA0, ct.RUNTIME_BASE), (0x44, 1)],
            [(0x44, 0), (0x38, 1), (0x44, 1)],
            [(0x30, 7), (0x44, 0)],
        )
        seen = set()
        for change in changes:
            steps = prepared()
            for offset, value in change:
                steps.write(window(offset), value)
            ran = bench.run(steps.call("read", *RIGHT["read"]))
            seen.add(kind(ran))
            assert kind(ran) in (None, FailureKind.PANIC), ran.failed
        assert seen == {None, FailureKind.PANIC}
        bench.check_clean()

    def test_jumps_into_the_middle_of_it(self, bench: Bench) -> None:
        text = region(bench, "runtime text")
        dice = random.Random(7)
        kinds = set()
        for _ in range(120):
            ran = bench.run(prepared().jump(dice.randrange(text.start, text.end)), timeout=0.3)
            kinds.add(kind(ran))
        assert kinds <= CONTAINED
        assert FailureKind.PAGE_FAULT in kinds
        restore(bench)
        bench.check_clean()

    @pytest.mark.parametrize(
        ("name", "offset", "region_name"),
        [("text", 0, "runtime text"), ("text of its own", 0, "operation text"), ("constants", 8, "runtime constants")],
    )
    def test_code_is_not_changed(self, bench: Bench, name: str, offset: int, region_name: str) -> None:
        """Neither by a store, nor by any device: reads of the file, statuses, answers of the doorbell."""
        place = region(bench, region_name).start + offset
        failure = bench.run(Steps().write(place, 0x90, 1)).outcome.failure
        assert failure is not None
        assert (failure.kind, failure.access, failure.region) == (FailureKind.PAGE_FAULT, "write", region_name)
        machine = bench.ready()
        before = machine.memory.get(place, 64)
        for steps in (
            Steps().call("read", 0, 0, place, 64),
            Steps().ring(ct.COMMAND_BUDGET, place),
            Steps().ring(ct.COMMAND_BLOCK_STATUS, 0, 0, len(CONTENT), place, 1),
            Steps().write(ct.CONTROL_BASE, place, 8),
            Steps().call("alloc", 1, 1, place),
            Steps().call("device_info", 0, place),
        ):
            bench.run(steps)
            assert bench.ready().memory.get(place, 64) == before, name
        bench.check_clean()


class TestSecrets:
    #: Ways for the run with the secret to end.
    ENDS = ("done", "fault", "panic", "timeout", "protocol", "limit")

    @pytest.mark.parametrize("end", ENDS)
    def test_a_run_finds_nothing_of_the_one_before(self, bench: Bench, end: str) -> None:
        before = bench.machines
        writable = [region for region in bench.ready().regions if region.write and region.user and not region.device]
        own = region(bench, "operation data")
        steps = Steps()
        # Of the last request in memory at least, and from the device.
        steps.copy(ROOM, struct.pack("<Q", SECRET) * 6000)
        steps.call("read", 0, 0, ROOM + 0x10000, len(CONTENT))
        for place in writable:
            size = place.end - place.start
            if place.name == "stack":
                size //= 2
            if place.start not in (own.start, region(bench, "runtime data").start):
                steps.fill(place.start, size, SECRET)
        steps.count(ct.ARENA_BASE, ct.ARENA_HOT, SECRET).tell()
        steps.fill(region(bench, "runtime data").start, 0x800, SECRET)
        # The runtime is lost by now: the operation ends the run itself.
        if end == "done":
            steps.ring(ct.COMMAND_DONE, 0, ROOM, 0)
        elif end == "fault":
            steps.write(0, 0)
        elif end == "panic":
            steps.ring(ct.COMMAND_ABORT, ROOM, 8)
        elif end == "protocol":
            steps.ring(99)
        elif end == "limit":
            steps.write(ROOM, 1, 8).ring(ct.COMMAND_EMIT, ROOM, 5)
        if end == "timeout":
            with steps.loop(ONES):
                steps.read(window(0))
        ran = bench.run(steps, timeout=0.5 if end == "timeout" else 20.0, max_messages=1)
        kinds = {"done": None, "fault": "page-fault", "panic": "panic", "protocol": "protocol"}
        assert kind(ran) == kinds.get(end, "limit"), ran.failed
        assert bench.ready().reusable
        look = Steps()
        for place in bench.ready().regions:
            if place.user and not place.device and place.name != "request":
                look.count(place.start, place.end - place.start, SECRET)
        # Behind the steps of this request itself.
        look.count(ct.REQUEST_BASE + 0x1000, ct.REQUEST_SIZE - 0x1000, SECRET)
        found = bench.run(look)
        assert ran.results[1:] == [ct.ARENA_HOT // 8]
        assert found.results == [0] * len(found.results)
        assert bench.machines == before or end == "timeout"
        bench.check_clean()

    def test_the_search_finds_what_is_there(self, bench: Bench) -> None:
        """So that the test above can fail."""
        steps = Steps().write(ct.STACK_BASE + 64, SECRET, 8).count(ct.STACK_BASE, 4096, SECRET)
        steps.call("read", 0, 0, ROOM, 800).count(ROOM, 4096, SECRET)
        assert bench.run(steps).results == [1, 0, 100]


class TestMemory:
    def test_alloc_at_every_edge(self, bench: Bench) -> None:
        total = ct.ARENA_HOT + MEMORY
        sizes = (0, 1, 4095, ct.ARENA_HOT, ct.ARENA_HOT + 1, MEMORY, MEMORY + 1, total, 2**32, 2**63, ONES - 4095, ONES)
        for size in sizes:
            for alignment in (0, 1, 2, 3, 8, 4096, 4097, 2 << 20, 4 << 20, 2**32, 2**63, ONES):
                steps = Steps().call("alloc", size, alignment, OUT).read(OUT, 8)
                answer, address = bench.run(steps).results
                case = (size, alignment, hex(answer), hex(address))
                right = alignment and not alignment & (alignment - 1) and alignment <= ct.LARGE_PAGE_SIZE
                if not right:
                    assert answer == ONES + 1 - ct.ERROR_INVALID, case
                elif size > MEMORY:
                    assert answer == ONES + 1 - ct.ERROR_MEMORY, case
                else:
                    hot = address >= ct.ARENA_BASE and address + size <= ct.ARENA_BASE + ct.ARENA_HOT
                    cold = address >= ct.COLD_BASE and address + size <= ct.COLD_BASE + MEMORY
                    assert (answer, address % alignment, hot or cold) == (0, 0, True), case
        bench.check_clean()

    def test_all_of_it(self, bench: Bench) -> None:
        """Every byte that alloc gives, touched; then there is no more; then there is all of it again."""
        steps = Steps()
        with steps.loop(2):
            steps.call("alloc", MEMORY // 2, 1, OUT).fill(ct.COLD_BASE, MEMORY, ONES)
        steps.call("alloc", MEMORY // 2, 1, OUT).call("alloc", 1 << 17, 1, OUT)
        for _ in range(3):
            first, second, third, hot = bench.run(steps).results
            assert (first, second) == (0, 0)
            assert third == ONES + 1 - ct.ERROR_MEMORY
            assert hot in (0, ONES + 1 - ct.ERROR_MEMORY)
        failure = bench.run(Steps().write(ct.COLD_BASE + MEMORY, 1)).outcome.failure
        assert failure is not None
        assert failure.region == "guard gap above the arena"
        bench.check_clean()

    def test_emit_from_everywhere(self, bench: Bench) -> None:
        error = {0: ONES + 1 - ct.ERROR_INVALID, ct.MESSAGE_MAX + 1: ONES + 1 - ct.ERROR_TOO_LARGE}
        error[ONES] = error[ct.MESSAGE_MAX + 1]
        for length in (0, 1, ct.MESSAGE_MAX, ct.MESSAGE_MAX + 1, ONES):
            assert bench.run(Steps().call("emit", 0, length)).results[0] == error[0]
            results = bench.run(Steps().call("emit", ROOM, length)).events
            assert len(results) == 1 + (0 < length <= ct.MESSAGE_MAX)
        for address in (8, ct.SYSTEM_BASE, ct.ARENA_BASE + ct.ARENA_HOT - 4, ONES - 7, ct.STACK_BASE - 1):
            ran = bench.run(Steps().call("emit", address, 100))
            assert kind(ran) in (FailureKind.PAGE_FAULT, FailureKind.EXCEPTION, FailureKind.PANIC), hex(address)
        # What only the host may not be told of, ring 3 may read: its own text is no secret.
        data = region(bench, "runtime data")
        assert kind(bench.run(Steps().call("emit", data.start, ct.MESSAGE_MAX))) in CONTAINED
        bench.check_clean()


class TestFloods:
    """Bounded here; ``tests/hostile/test_guests.py`` has those that never end."""

    def count(self, events: list[Event], what: type[Event]) -> int:
        return sum(isinstance(event, what) for event in events)

    def test_exits(self, bench: Bench) -> None:
        steps = Steps()
        with steps.loop(20_000):
            steps.write(window(0x14), 0)
        ran = bench.run(steps, timeout=60.0)
        assert ran.failed == ""
        assert ran.outcome.usage.exits >= 20_000
        bench.check_clean()

    def test_tiny_messages(self, bench: Bench) -> None:
        steps = Steps()
        with steps.loop(50_000):
            steps.call("emit", ROOM, 1)
        seen = [0]

        def see(event: Event) -> None:
            seen[0] += isinstance(event, MessageEvent) and len(event.payload) == 1

        failure = bench.run(steps, on_event=see, timeout=60.0, max_messages=40_000).outcome.failure
        assert failure is not None
        assert (failure.limit, failure.limit_value) == ("max-messages", 40_000)
        assert 30_000 < seen[0] <= 40_000
        bench.check_clean()

    def test_empty_batches(self, bench: Bench) -> None:
        steps = Steps()
        with steps.loop(1000):
            steps.write(ROOM, ct.COMMAND_EMIT, 4).write(ct.CONTROL_BASE, ROOM, 8)
        ran = bench.run(steps, timeout=60.0, max_messages=0)
        assert (ran.failed, ran.events) == ("", [])
        bench.check_clean()

    @pytest.mark.parametrize("wanted", [False, True])
    def test_progress(self, bench: Bench, wanted: bool) -> None:
        steps = Steps().write(ROOM, ct.COMMAND_PROGRESS, 8).write(ROOM + 16, ONES, 16)
        with steps.loop(5000):
            steps.write(ct.CONTROL_BASE, ROOM, 8)
        ran = bench.run(steps, timeout=60.0, progress=wanted)
        assert ran.failed == ""
        assert self.count(ran.events, ProgressEvent) == (5000 if wanted else 0)
        bench.check_clean()

    def test_log_lines_of_escapes(self, bench: Bench) -> None:
        text = b"\x1b]0;t\x07\x9b31m\r\xe2\x80\xae\xff\n" * 8
        steps = Steps().copy(ROOM, text)
        with steps.loop(3000):
            steps.call("log", 1, ROOM, len(text))
        failure = bench.run(steps, timeout=60.0, log_level=4, max_messages=2000).outcome.failure
        assert failure is not None
        assert failure.limit == "max-messages"
        failure = bench.run(steps, timeout=60.0, log_level=4, max_report=100_000).outcome.failure
        assert failure is not None
        assert failure.limit == "max-report"
        assert self.count(bench.run(steps, timeout=60.0).events, LogEvent) == 0
        bench.check_clean()
