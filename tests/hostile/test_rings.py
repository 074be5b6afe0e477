"""Every field of a queue and of a request, from ring 3 on the real machine: each at its edges, one at a time.

A right request is put into memory, one field of it is changed, and the device is told.  What the device then did to
registers, rings, buffers and the file is judged by the reference model, over copies of the machine's memory taken
before and after.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator
from itertools import product

import pytest

import calltable as ct
from tests.hostile.steps import ONES, Bench, Steps
from tests.hostile.virtio import (
    AVAILABLE,
    DATA,
    DESCRIPTORS,
    HEADER,
    INDIRECT,
    NEXT,
    QUEUE_SIZE,
    STATUS_BYTE,
    TABLE,
    USED,
    WRITE,
    Facts,
    MachineMemory,
    descriptors,
    facts,
    handshake,
    new_model,
    put_accesses,
    request,
    window,
)
from tests.unit.devices import reference_model as model
from vmm.boundary import DeviceSpec, Event, MessageEvent

pytestmark = pytest.mark.kvm

CONTENT = bytes(range(1, 256)) * 16
KINDS = {"in": 0, "out": 1, "flush": 4, "get-id": 8, "discard": 11, "write-zeroes": 13}


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryFile() as file:
        made = Bench((DeviceSpec(file.fileno(), len(CONTENT), read_only=False),), bare=True)
        yield made
        made.close()


@pytest.fixture(scope="module")
def known(bench: Bench) -> Facts:
    return facts(bench)


#: What is compared: the hot arena, where queue and buffers are.
_LOW, _HIGH = ct.ARENA_BASE, ct.ARENA_BASE + ct.ARENA_HOT


class Case:
    """Memory of one right request, to be spoiled."""

    def __init__(self, kind: str = "in", *, indirect: bool = False) -> None:
        number = KINDS[kind]
        self.parts: dict[int, bytearray] = {}
        self.put(HEADER, request(number, 1 if number < 2 else 0))
        length, flags = {
            "in": (512, WRITE),
            "out": (512, 0),
            "flush": (0, 0),
            "get-id": (20, WRITE),
        }.get(kind, (32, 0))
        self.put(DATA, struct.pack("<QIIQII", 1, 2, 0, 4, 1, 0) if length == 32 else b"\xda" * length)
        self.put(STATUS_BYTE, b"\xee")
        table = descriptors((HEADER, 16, NEXT, 1), (DATA, length, flags | NEXT, 2), (STATUS_BYTE, 1, WRITE, 0))
        if indirect:
            self.put(TABLE, table)
            table = descriptors((TABLE, len(table), INDIRECT, 0))
        self.put(DESCRIPTORS, table.ljust(16 * QUEUE_SIZE, b"\0"))
        self.put(AVAILABLE, struct.pack("<HHH", 0, 1, 0).ljust(6 + 2 * QUEUE_SIZE, b"\0"))
        self.put(USED, bytes(6 + 8 * QUEUE_SIZE))

    def put(self, address: int, data: bytes) -> None:
        """New bytes, or other bytes."""
        for start, old in self.parts.items():
            if start <= address and address + len(data) <= start + len(old):
                old[address - start : address - start + len(data)] = data
                return
        self.parts[address] = bytearray(data)


def judge(bench: Bench, known: Facts, case: Case, *, drop: int = 0, notifications: int = 1) -> tuple[int, int]:
    """Run a case; answers the device's status and how many chains were used, after the model agreed with them."""
    fd = bench.devices[0].fd
    os.ftruncate(fd, 0)
    os.pwrite(fd, CONTENT, 0)
    begin = handshake(known, drop=drop)
    steps = Steps()
    for address, data in case.parts.items():
        steps.copy(address, bytes(data))
    put_accesses(steps, begin)
    for _ in range(notifications):
        steps.tell().write(window(model.QUEUE_NOTIFY), 0)
        steps.read(window(model.STATUS)).read(window(model.INTERRUPT_STATUS))
    machine = bench.ready()
    low, high = _LOW - ct.RAM_BASE, _HIGH - ct.RAM_BASE

    def snapshot() -> bytes:
        return bytes(machine.memory.all[low:high])

    memory = MachineMemory(machine.regions, _LOW, b"", machine.memory.get)
    device = new_model(known, memory, CONTENT, read_only=False)
    for _, offset, size, value in begin:
        device.write(offset, value, size)
    pending: list[model.Expectation | None] = []

    def look(event: Event) -> None:
        assert isinstance(event, MessageEvent)
        if pending and pending[-1] is not None:
            device.served(pending[-1], snapshot(), os.pread(fd, 2 * len(CONTENT), 0))
        numbers = struct.unpack(f"<{len(event.payload) // 8}Q", event.payload)
        if pending:
            device.read(model.STATUS, 4, numbers[1])
            device.read(model.INTERRUPT_STATUS, 4, numbers[2])
            last.append(numbers[1])
        device.memory.data[:] = snapshot()
        pending.append(device.notify(0))

    last: list[int] = []
    ran = bench.run(steps, on_event=look)
    assert ran.failed == ""
    assert len(last) == notifications
    return last[-1], device.queue.used


def numbers(bench: Bench, width: int) -> list[int]:
    """0, 1, all ones, and both sides of every edge of the memory map, as far as they fit."""
    edges = {0, 1, 2**31, 2**32 - 1, 2**32, 2**47, 2**63, ONES, ONES - 15}
    for region in bench.ready().regions:
        edges |= {region.start - 1, region.start, region.end - 1, region.end, region.end - 16, region.end - 512}
    edges |= {ct.TRAP_BASE, ct.VIRTIO_BASE, ct.CONTROL_BASE, ct.SYSTEM_BASE, ct.RUNTIME_BASE, ct.COLD_BASE}
    # What else the operation may write is its to lose; what it says afterwards would be nonsense.
    own = [region for region in bench.ready().regions if region.write and region.start != _LOW]
    lost = {edge for edge in edges for region in own if region.start - 512 < edge < region.end}
    return sorted(edge for edge in edges - lost if 0 <= edge < 1 << 8 * width)


#: Fields of a descriptor: offset and width (2.7.5).
FIELDS = {"address": (0, 8), "length": (8, 4), "flags": (12, 2), "next": (14, 2)}
SMALL = (0, 1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 17, 63, 64, 0x8000, 0xFFF8, 0xFFFF)


def spoiled(bench: Bench, field: str) -> list[int]:
    """Values for a field of a descriptor."""
    if field == "address":
        return numbers(bench, 8)
    if field == "length":
        return [0, 1, 15, 16, 17, 32, 48, 511, 512, 513, 1024, 4096, 1 << 20, 2**31, 2**32 - 512, 2**32 - 16, 2**32 - 1]
    return list(SMALL)


class TestDescriptors:
    @pytest.mark.parametrize("place", [0, 1, 2])
    @pytest.mark.parametrize("field", FIELDS)
    def test_of_a_chain(self, bench: Bench, known: Facts, place: int, field: str) -> None:
        offset, width = FIELDS[field]
        seen = set()
        for value, kind in product(spoiled(bench, field), ("in", "out")):
            case = Case(kind)
            case.put(DESCRIPTORS + 16 * place + offset, value.to_bytes(width, "little"))
            seen.add(judge(bench, known, case))
        bench.check_clean()
        # Some are served, and some are too much for the device; but the last one's `next` means nothing.
        assert (15, 1) in seen
        assert ((15 | model.NEEDS_RESET, 0) in seen) == ((field, place) != ("next", 2))

    @pytest.mark.parametrize("field", FIELDS)
    def test_that_refers_to_a_table(self, bench: Bench, known: Facts, field: str) -> None:
        offset, width = FIELDS[field]
        seen = set()
        for value in spoiled(bench, field):
            case = Case(indirect=True)
            case.put(DESCRIPTORS + offset, value.to_bytes(width, "little"))
            seen.add(judge(bench, known, case))
        bench.check_clean()
        assert (15 | model.NEEDS_RESET, 0) in seen or field == "next"

    @pytest.mark.parametrize("place", [0, 1, 2])
    @pytest.mark.parametrize("field", FIELDS)
    def test_inside_a_table(self, bench: Bench, known: Facts, place: int, field: str) -> None:
        offset, width = FIELDS[field]
        seen = set()
        for value in spoiled(bench, field):
            case = Case(indirect=True)
            case.put(TABLE + 16 * place + offset, value.to_bytes(width, "little"))
            seen.add(judge(bench, known, case))
        bench.check_clean()
        # The last one's `next` means nothing.
        assert ((15 | model.NEEDS_RESET, 0) in seen) == ((field, place) != ("next", 2))

    def test_indirect_that_was_not_accepted(self, bench: Bench, known: Facts) -> None:
        case = Case(indirect=True)
        assert judge(bench, known, case, drop=1 << model.INDIRECT_DESC) == (15 | model.NEEDS_RESET, 0)


class TestRings:
    @pytest.mark.parametrize("index", [0, 1, 2, 15, 16, 17, 64, 0x7FFF, 0x8000, 0xFFFF])
    def test_available_index(self, bench: Bench, known: Facts, index: int) -> None:
        case = Case("in", indirect=True)
        case.put(AVAILABLE + 2, struct.pack("<H", index))
        # Every head is that of the same chain; twice, so that an index that stands still is seen as well.
        status, used = judge(bench, known, case, notifications=2)
        assert (status, used) == ((15, index) if index <= QUEUE_SIZE else (15 | model.NEEDS_RESET, 0))

    @pytest.mark.parametrize("head", SMALL)
    def test_available_entry(self, bench: Bench, known: Facts, head: int) -> None:
        case = Case()
        case.put(AVAILABLE + 4, struct.pack("<H", head))
        judge(bench, known, case)

    @pytest.mark.parametrize("flags", [0, 1, 2, 0xFFFF])
    def test_available_flags(self, bench: Bench, known: Facts, flags: int) -> None:
        case = Case()
        case.put(AVAILABLE, struct.pack("<H", flags))
        assert judge(bench, known, case) == (15, 1)

    @pytest.mark.parametrize("where", [0, 4, 8, 12, 4 + 8 * 15])
    def test_used_ring_that_the_driver_wrote_to(self, bench: Bench, known: Facts, where: int) -> None:
        case = Case()
        case.put(USED + where, b"\xff\xff")
        assert judge(bench, known, case) == (15, 1)

    @pytest.mark.parametrize("what", ["data on the table", "data on the rings", "status on the header", "all on one"])
    def test_that_lie_on_each_other(self, bench: Bench, known: Facts, what: str) -> None:
        case = Case()
        address = {"data on the table": DESCRIPTORS, "data on the rings": AVAILABLE, "all on one": HEADER}.get(what)
        if address is not None:
            case.put(DESCRIPTORS + 16, struct.pack("<Q", address))
        if what in ("status on the header", "all on one"):
            case.put(DESCRIPTORS + 32, struct.pack("<Q", HEADER + 3))
        judge(bench, known, case, notifications=1)
        bench.check_clean()


class TestRequests:
    @pytest.mark.parametrize("kind", KINDS)
    def test_as_it_should_be(self, bench: Bench, known: Facts, kind: str) -> None:
        for indirect in (False, True):
            assert judge(bench, known, Case(kind, indirect=indirect)) == (15, 1)

    def test_type(self, bench: Bench, known: Facts) -> None:
        for kind, number in product(("in", "out"), (*range(33), 0x7F, 0x100, 2**31, 2**32 - 1)):
            case = Case(kind)
            case.put(HEADER, struct.pack("<I", number))
            assert judge(bench, known, case) == (15, 1)

    def test_reserved(self, bench: Bench, known: Facts) -> None:
        case = Case()
        case.put(HEADER + 4, b"\xff" * 4)
        assert judge(bench, known, case) == (15, 1)

    @pytest.mark.parametrize("kind", KINDS)
    def test_sector(self, bench: Bench, known: Facts, kind: str) -> None:
        last = -(-len(CONTENT) // 512)
        for sector in (0, last - 1, last, last + 1, 2**31, 2**32, 2**54, 2**55 - 1, 2**55, 2**63, ONES):
            case = Case(kind)
            case.put(HEADER + 8, struct.pack("<Q", sector))
            assert judge(bench, known, case) == (15, 1)

    @pytest.mark.parametrize("kind", ["discard", "write-zeroes"])
    def test_ranges(self, bench: Bench, known: Facts, kind: str) -> None:
        for offset, width in ((0, 8), (8, 4), (12, 4), (16, 8), (24, 4), (28, 4)):
            for value in (0, 1, 2, 3, 7, 8, 9, 2**31, 2**32 - 1, 2**55, 2**63, ONES):
                if value < 1 << 8 * width:
                    case = Case(kind)
                    case.put(DATA + offset, value.to_bytes(width, "little"))
                    assert judge(bench, known, case) == (15, 1)
        bench.check_clean()

    @pytest.mark.parametrize("kind", ["flush", "discard", "write-zeroes"])
    def test_features_that_were_not_accepted(self, bench: Bench, known: Facts, kind: str) -> None:
        drop = 1 << {"flush": 9, "discard": 13, "write-zeroes": 14}[kind]
        assert judge(bench, known, Case(kind), drop=drop) == (15, 1)
