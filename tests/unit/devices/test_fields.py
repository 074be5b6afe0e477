"""Every field of a right request at its edges, and every two of them at once, judged by the reference model."""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator
from itertools import combinations

import pytest

import calltable as ct
from tests.unit.devices import reference_model as model
from tests.unit.devices.mock_driver import FakeMemory
from tests.unit.devices.reference_chain import Memory
from tests.unit.devices.reference_request import Disk
from vmm.boundary import DeviceSpec, Job, Limits
from vmm.devices.bus import Bus

BASE, SIZE, READ_ONLY = 0x10_0000, 0x4000, 0x800
DESCRIPTORS, AVAILABLE, USED, TABLE = BASE + 0x1000, BASE + 0x1400, BASE + 0x1600, BASE + 0x1800
HEADER, STATUS, DATA, END = BASE + 0x1C00, BASE + 0x1E00, BASE + 0x2000, BASE + SIZE
QUEUE_SIZE = 8
CONTENT = bytes(range(1, 256)) * 16
NEXT, WRITE, INDIRECT = 1, 2, 4
IN, OUT, WRITE_ZEROES = 0, 1, 13

ADDRESSES = (
    *(
        0,
        1,
        BASE - 1,
        BASE,
        BASE + READ_ONLY - 1,
        BASE + READ_ONLY,
        DESCRIPTORS,
        AVAILABLE,
        USED,
        TABLE,
        HEADER,
        STATUS,
    ),
    *(DATA, DATA + 1, END - 512, END - 16, END - 1, END, 2**32 - 1, 2**32, 2**63, 2**64 - 512, 2**64 - 1),
)
LENGTHS = (0, 1, 2, 15, 16, 17, 20, 48, 64, 511, 512, 513, 1024, SIZE, 2**31, 2**32 - 512, 2**32 - 1)
FLAGS = (0, 1, 2, 3, 4, 5, 6, 7, 0xFFF8, 0xFFFF)
NEXTS = (0, 1, 2, 3, 7, 8, 0xFFFF)

#: Where a field is, how wide, and what it is given.
Field = tuple[int, int, tuple[int, ...]]


def of_descriptor(at: int) -> list[Field]:
    return [(at, 8, ADDRESSES), (at + 8, 4, LENGTHS), (at + 12, 2, FLAGS), (at + 14, 2, NEXTS)]


class Comparison:
    """A device and a model at the same point, again and again."""

    def __init__(self, kind: int, indirect: bool) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  (closed below)
        self.file.write(CONTENT)
        self.file.flush()
        self.real = FakeMemory(SIZE, BASE, READ_ONLY)
        self.bus = Bus(1, self.real)
        spec = DeviceSpec(self.file.fileno(), len(CONTENT), read_only=False)
        self.bus.begin_run(Job(b"", b"", (spec,), Limits(max_read=1 << 50, max_write=1 << 50)), lambda event: None)
        self.accesses: list[tuple[int, int]] = [(model.STATUS, value) for value in (0, 1, 3)]
        self.offered = 0
        for select in range(2):
            self.write(model.DEVICE_FEATURES_SEL, select)
            word = self.read(model.DEVICE_FEATURES)
            self.offered |= word << 32 * select
            self.accesses += [(model.DRIVER_FEATURES_SEL, select), (model.DRIVER_FEATURES, word)]
        self.accesses += [(model.STATUS, 11), (model.QUEUE_NUM, QUEUE_SIZE), (model.QUEUE_DESC, DESCRIPTORS)]
        self.accesses += [(model.QUEUE_DRIVER, AVAILABLE), (model.QUEUE_DEVICE, USED), (model.QUEUE_READY, 1)]
        self.accesses.append((model.STATUS, 15))
        for offset, value in self.accesses:
            self.write(offset, value)
        assert self.read(model.STATUS) == 15
        self._state = self.bus.state()
        self._put_request(kind, indirect)
        self._memory = bytes(self.real.bytes)

    def _put_request(self, kind: int, indirect: bool) -> None:
        put = self.real.put
        put(HEADER, struct.pack("<IIQ", kind, 0, 0 if kind == WRITE_ZEROES else 1))
        put(STATUS, b"\xee")
        ranges = struct.pack("<QIIQII", 1, 2, 0, 4, 1, 1)
        put(DATA, ranges if kind == WRITE_ZEROES else b"\xda" * 512)
        data = (DATA, 32 if kind == WRITE_ZEROES else 512, NEXT | (WRITE if kind == IN else 0), 2)
        entries = ((HEADER, 16, NEXT, 1), data, (STATUS, 1, WRITE, 0))
        table = b"".join(struct.pack("<QIHH", *entry) for entry in entries)
        put(TABLE if indirect else DESCRIPTORS, table)
        if indirect:
            put(DESCRIPTORS, struct.pack("<QIHH", TABLE, 48, INDIRECT, 0))
        put(AVAILABLE, struct.pack("<HHH", 0, 1, 0))

    def write(self, offset: int, value: int) -> None:
        self.bus.write(ct.VIRTIO_BASE + offset, value, 4)

    def read(self, offset: int) -> int:
        return self.bus.read(ct.VIRTIO_BASE + offset, 4)

    def judge(self, changes: list[tuple[int, int, int]]) -> bool:
        """Change fields (place, width, value) and notify twice; whether the device still serves."""
        self.bus.restore(self._state)
        self.real.bytes[:] = self._memory
        os.pwrite(self.file.fileno(), CONTENT, 0)
        for place, width, value in changes:
            self.real.put(place, value.to_bytes(width, "little"))
        memory = Memory(BASE, bytearray(self.real.bytes), READ_ONLY)
        device = model.Model(memory, Disk(bytearray(CONTENT), False, 32), self.offered, 64)
        for offset, value in self.accesses:
            device.write(offset, value, 4)
        for _ in range(2):
            expected = device.notify(0)
            self.write(model.QUEUE_NOTIFY, 0)
            if expected is None:
                assert self.real.bytes == memory.data
                continue
            known = device.served(expected, bytes(self.real.bytes), os.pread(self.file.fileno(), 2 * len(CONTENT), 0))
            if not known:
                break
            device.read(model.STATUS, 4, self.read(model.STATUS))
            device.read(model.INTERRUPT_STATUS, 4, self.read(model.INTERRUPT_STATUS))
        return not self.read(model.STATUS) & model.NEEDS_RESET

    def before(self, place: int, width: int) -> int:
        """A field of the right request."""
        return int.from_bytes(self._memory[place - BASE : place - BASE + width], "little")

    def close(self) -> None:
        self.bus.end_run()
        self.file.close()


@pytest.fixture(
    params=[(IN, False), (IN, True), (OUT, False), (WRITE_ZEROES, True)], ids=["in", "table", "out", "zero"]
)
def comparison(request: pytest.FixtureRequest) -> Iterator[Comparison]:
    made = Comparison(*request.param)
    yield made
    made.close()


def fields(indirect: bool) -> list[Field]:
    found: list[Field] = []
    for place in range(3):
        found += of_descriptor((TABLE if indirect else DESCRIPTORS) + 16 * place)
    if indirect:
        found += of_descriptor(DESCRIPTORS)
    found += [(AVAILABLE, 2, (0, 1, 0xFFFF)), (AVAILABLE + 2, 2, (0, 1, 2, 8, 9, 0x8000, 0xFFFF))]
    found += [(AVAILABLE + 4, 2, NEXTS), (USED, 2, (1, 0xFFFF)), (USED + 4, 4, (2**32 - 1,))]
    found += [(HEADER, 4, (*range(16), 2**31, 2**32 - 1)), (HEADER + 4, 4, (1, 2**32 - 1))]
    found.append((HEADER + 8, 8, (0, 1, 6, 7, 8, 2**32, 2**55, 2**63, 2**64 - 1)))
    found += [(DATA, 8, (0, 7, 8, 2**64 - 1)), (DATA + 8, 4, (0, 8, 2**32 - 1)), (DATA + 12, 4, (1, 2, 2**31))]
    return found


def test_every_field(comparison: Comparison) -> None:
    verdicts = set()
    for indirect in (False, True):
        for place, width, given in fields(indirect):
            for value in given:
                verdicts.add(comparison.judge([(place, width, value)]))
            for bit in range(8 * width):
                old = comparison.before(place, width)
                verdicts.add(comparison.judge([(place, width, old ^ 1 << bit)]))
    assert verdicts == {True, False}


def test_every_two_fields(comparison: Comparison) -> None:
    """Of each field the values at the ends of its list and between: the first, the last, and every third."""
    indirect = comparison.before(DESCRIPTORS + 12, 2) == INDIRECT
    verdicts = set()
    for (one, width, given), (other, other_width, other_given) in combinations(fields(indirect), 2):
        for value in {given[0], given[-1], *given[1::5]}:
            for other_value in {other_given[0], other_given[-1], *other_given[2::6]}:
                verdicts.add(comparison.judge([(one, width, value), (other, other_width, other_value)]))
    assert verdicts == {True, False}
