"""A ring that changes while it is read: at every moment at which another processor of a guest could write to it.

The device is run under a trace function that sees each instruction of the interpreter.  Before one of them, and for
each in turn, a value in guest memory is changed.  A value that is read once was either the old or the new one; so the
outcome has to be that of a run with the old value or that of a run with the new one, whole, and never a third.
"""

from __future__ import annotations

import dis
import os
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

import pytest

from tests.unit.devices.conftest import Make, file_of
from tests.unit.devices.mock_driver import IN, INDIRECT, NEXT, OUT, WRITE, WRITE_ZEROES, Driver
from vmm.devices import block, queue
from vmm.devices.block import BlockDevice

#: Where instructions are watched: what reads guest memory.
WATCHED = {queue.__file__, block.__file__}
#: Instructions that can read it: calls, subscripts, iteration and comparison.
READERS = ("CALL", "BINARY", "FOR_ITER", "UNPACK", "LIST_EXTEND", "COMPARE", "CONTAINS")
CONTENT = b"".join(bytes([number]) * 512 for number in range(16))
HEADER, DATA, OTHER, STATUS, STATUS_2, TABLE, RANGES = (0x12_0000 + 0x1000 * place for place in range(7))
FAR = 0x7FFF_0000_0000


@dataclass(frozen=True)
class Outcome:
    """All that a driver and the file's owner can see."""

    memory: bytes
    file: bytes
    status: int
    interrupt: int


class Moments:
    """Counts the moments of a run, and acts at one of them."""

    def __init__(self, when: int, act: Callable[[], None]) -> None:
        self.when = when
        self.act = act
        self.count = 0

    def trace(self, frame: FrameType, event: str, _: object) -> object:
        if event == "call":
            if frame.f_code.co_filename not in WATCHED:
                return None
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
        elif event == "opcode" and dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith(READERS):
            if self.count == self.when:
                self.act()
            self.count += 1
        return self.trace

    def run(self, work: Callable[[], None]) -> None:
        before = sys.gettrace()
        sys.settrace(self.trace)  # type: ignore[arg-type]  # typeshed wants its own alias of this
        try:
            work()
        finally:
            sys.settrace(before)


class Race:
    """A device with one request in its ring."""

    def __init__(self, make: Make, kind: int, indirect: bool) -> None:
        self.driver: Driver = make(CONTENT)
        self.driver.start()
        put = self.driver.memory.put
        put(HEADER, struct.pack("<IIQ", kind, 0, 0 if kind == WRITE_ZEROES else 1))
        put(DATA, b"\xda" * 1024)
        put(OTHER, b"\x07" * 1024)
        put(STATUS, b"\xee")
        put(STATUS_2, b"\xee")
        put(RANGES, struct.pack("<QIIQII", 1, 2, 1, 5, 1, 0))
        data = (RANGES, 32, NEXT, 2) if kind == WRITE_ZEROES else (DATA, 512, NEXT | (WRITE if kind == IN else 0), 2)
        self.table = TABLE if indirect else self.driver.ring_addresses[0]
        for place, entry in enumerate(((HEADER, 16, NEXT, 1), data, (STATUS, 1, WRITE, 0))):
            self.driver.put_descriptor(place, entry, self.table)
        if indirect:
            self.driver.put_descriptor(0, (TABLE, 48, INDIRECT, 0))
        # Another request, for indexes and heads that change to it.
        for place, entry in enumerate(((HEADER, 16, NEXT, 9), (OTHER, 512, WRITE, 10), (STATUS_2, 1, WRITE, 0))):
            flags = entry[2] | (NEXT if place == 1 else 0)
            self.driver.put_descriptor(8 + place, (entry[0], entry[1], flags, entry[3]))
        self.driver.make_available(0)
        ring = self.driver.ring_addresses[1]
        put(ring + 6, struct.pack("<H", 8))
        self.driver.publish()
        device = self.driver.device
        assert isinstance(device, BlockDevice)
        self.device = device
        self._state = device.state()
        self._memory = bytes(self.driver.memory.bytes)

    def go(self, when: int, address: int, new: bytes) -> tuple[Outcome, int]:
        """Serve the request; before moment ``when`` (-1: before all of them) the bytes change."""
        memory = self.driver.memory
        self.device.restore(self._state)
        memory.bytes[:] = self._memory
        assert self.device.backend is not None
        os.pwrite(self.device.backend.fd, CONTENT, 0)
        if when < 0:
            memory.put(address, new)
        moments = Moments(when, lambda: memory.put(address, new))
        moments.run(lambda: self.driver.set(0x050, 0))
        if when >= moments.count:
            memory.put(address, new)
        # What changed is the driver's own; and the device may have written there as well.
        memory.put(address, new)
        interrupt, status = self.driver.reg(0x060), self.driver.reg(0x070)
        return Outcome(bytes(memory.bytes), file_of(self.driver), status, interrupt), moments.count

    def race(self, address: int, new: bytes) -> set[bool]:
        """Every moment; which outcomes there were: True for that of the new value."""
        with_new, _ = self.go(-1, address, new)
        with_old, moments = self.go(1 << 30, address, new)
        assert moments > 20
        seen = set()
        for when in range(moments):
            outcome, _ = self.go(when, address, new)
            assert outcome in (with_old, with_new), f"a third outcome at moment {when}"
            seen.add(outcome == with_new)
        return seen if with_old != with_new else {True, False}


#: Changes of one descriptor: offset in it and the new bytes.
CHANGES = {
    "address": (0, struct.pack("<Q", OTHER)),
    "address far away": (0, struct.pack("<Q", FAR)),
    "length": (8, struct.pack("<I", 1024)),
    "length 2^32-1": (8, struct.pack("<I", 0xFFFF_FFFF)),
    "flags": (12, struct.pack("<H", INDIRECT)),
    "direction": (12, struct.pack("<H", NEXT | WRITE)),
    "end": (12, struct.pack("<H", 0)),
    "next": (14, struct.pack("<H", 0)),
    "all of it": (0, struct.pack("<QIHH", OTHER, 1024, WRITE | NEXT, 2)),
}


@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_descriptor(make: Make, change: str, indirect: bool) -> None:
    race = Race(make, IN, indirect)
    offset, new = CHANGES[change]
    for place in range(3):
        assert race.race(race.table + 16 * place + offset, new) == {True, False}


def test_a_descriptor_that_refers_to_a_table(make: Make) -> None:
    race = Race(make, IN, True)
    for offset, new in CHANGES.values():
        assert race.race(race.driver.ring_addresses[0] + offset, new) == {True, False}


@pytest.mark.parametrize(
    ("offset", "number"), [(0, 1), (2, 0), (2, 2), (2, 17), (2, 0xFFFF), (4, 8), (4, 99), (4, 0xFFFF)]
)
def test_the_available_ring(make: Make, offset: int, number: int) -> None:
    race = Race(make, IN, False)
    assert race.race(race.driver.ring_addresses[1] + offset, struct.pack("<H", number)) == {True, False}


@pytest.mark.parametrize(
    ("offset", "new"), [(0, struct.pack("<I", OUT)), (0, b"\xff" * 4), (8, struct.pack("<Q", 3)), (8, b"\xff" * 8)]
)
def test_a_header(make: Make, offset: int, new: bytes) -> None:
    race = Race(make, IN, False)
    assert race.race(HEADER + offset, new) == {True, False}


@pytest.mark.parametrize(
    ("offset", "new"),
    [
        (0, struct.pack("<Q", 8)),
        (0, b"\xff" * 8),
        (8, b"\xff" * 4),
        (12, b"\x02"),
        (16, b"\xff" * 8),
        (28, b"\x80" * 4),
    ],
)
def test_ranges_that_were_checked(make: Make, offset: int, new: bytes) -> None:
    race = Race(make, WRITE_ZEROES, False)
    assert race.race(RANGES + offset, new) == {True, False}


def test_the_used_ring_is_the_devices_own(make: Make) -> None:
    """What a driver writes there at any moment changes nothing but those bytes."""
    race = Race(make, IN, False)
    used = race.driver.ring_addresses[2]
    quiet, moments = race.go(1 << 30, used + 2, b"\xff\xff")
    for when in range(moments):
        assert race.go(when, used + 2, b"\xff\xff")[0] == quiet


def test_a_second_read_is_found(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that looks at the index again, as one that is not careful would, has a third outcome."""
    real = queue.Queue.available
    assert real.__code__.co_filename in WATCHED

    source = "def available(self, memory):\n"
    source += "    ring = memory.view(self.driver, 4 + 2 * self.size, writable=False)\n"
    source += "    if unpack_from(ring, 2)[0] - self.last_available > self.size:\n"
    source += "        return [], True\n"
    source += "    heads = []\n"
    source += "    while self.last_available != unpack_from(ring, 2)[0] and len(heads) < 9:\n"
    source += "        heads.append(0)\n"
    source += "        self.last_available += 1\n"
    source += "    return heads, True\n"
    names: dict[str, object] = {"unpack_from": struct.Struct("<H").unpack_from}
    exec(compile(source, queue.__file__, "exec"), names)
    monkeypatch.setattr(queue.Queue, "available", names["available"])
    race = Race(make, IN, False)
    with pytest.raises(AssertionError, match="third outcome"):
        race.race(race.driver.ring_addresses[1] + 2, struct.pack("<H", 17))
