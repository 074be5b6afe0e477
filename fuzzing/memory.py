"""Guest memory without a machine: the regions of a real one, smaller, in plain bytearrays.

It notices what real memory could not: a device that writes where it did not ask to.
"""

from __future__ import annotations

import calltable as ct
from vmm.devices.errors import MemoryAccessError

#: Start, bytes, writable; disjoint, in order.  The places are those of a machine with three devices, so that what a
#: real driver does can be played back.
REGIONS = (
    (ct.RUNTIME_BASE, 0x1000, False),
    (ct.RUNTIME_BASE + 0x4000, 0xC000, True),
    (ct.OPERATION_BASE, 0x1000, False),
    (ct.BOOT_INFO, 0x1000, False),
    (ct.REQUEST_BASE, 0x1000, False),
    (ct.QUEUES_BASE, 0x3000, True),
    (ct.STACK_BASE + ct.STACK_SIZE - 0x2000, 0x2000, True),
    (ct.ARENA_BASE, ct.ARENA_HOT, True),
    (ct.COLD_BASE, 0x10000, True),
)

#: From where an input counts addresses.  The order is part of every corpus file; the last stands for a whole number.
BASES = (
    ct.ARENA_BASE,
    ct.QUEUES_BASE,
    ct.QUEUES_BASE + ct.QUEUE_STRIDE,
    ct.RUNTIME_BASE + 0x4000,
    ct.STACK_BASE + ct.STACK_SIZE - 0x2000,
    ct.COLD_BASE,
    ct.OPERATION_BASE,
    ct.BOOT_INFO,
    ct.ARENA_BASE + ct.ARENA_HOT - 64,
    ct.ARENA_BASE + 0x10000,
    ct.REQUEST_BASE,
    ct.RUNTIME_BASE,
    ct.SYSTEM_BASE,
    ct.CONTROL_BASE,
    0,
)


class Memory:
    """See :class:`vmm.devices.memory.GuestMemory`.  Reused for many inputs."""

    def __init__(self) -> None:
        self._parts = [(start, start + size, writable, bytearray(size)) for start, size, writable in REGIONS]
        #: What memory should hold, as far as devices and the guest said what they write.
        self._expected = [bytearray(size) for _, size, _ in REGIONS]
        #: Ranges of the current access that the device may write: part, offset, length.
        self._granted: list[tuple[int, int, int]] = []
        self._soiled: list[tuple[int, int, int]] = []
        #: At this many further looks at memory, these bytes appear at this address.
        self.surprise: tuple[int, int, bytes] | None = None

    def reset(self) -> None:
        """All zeroes."""
        for part, offset, length in self._soiled:
            zeroes = bytes(length)
            self._parts[part][3][offset : offset + length] = zeroes
            self._expected[part][offset : offset + length] = zeroes
        self._soiled.clear()
        self._granted.clear()
        self.surprise = None

    def view(self, address: int, length: int, *, writable: bool) -> memoryview:
        """The bytes themselves."""
        assert type(address) is int
        assert type(length) is int
        assert address >= 0
        assert length >= 0
        if self.surprise is not None:
            self._count_down(*self.surprise)
        if length == 0:
            return memoryview(b"")
        for part, (start, end, may_write, data) in enumerate(self._parts):
            if start <= address < end:
                if address + length > end or (writable and not may_write):
                    break
                offset = address - start
                view = memoryview(data)[offset : offset + length]
                if not writable:
                    return view.toreadonly()
                self._granted.append((part, offset, length))
                return view
        raise MemoryAccessError(address, length, writable)

    def _count_down(self, looks: int, address: int, data: bytes) -> None:
        self.surprise = (looks - 1, address, data) if looks > 0 else None
        if looks <= 0:
            self.poke(address, data)

    def poke(self, address: int, data: bytes) -> None:
        """Write as the guest, which may write everything but what is read-only for it; what lies outside is lost."""
        for part, (start, end, writable, memory) in enumerate(self._parts):
            if start <= address < end and writable:
                data = data[: end - address]
                offset = address - start
                memory[offset : offset + len(data)] = data
                self._expected[part][offset : offset + len(data)] = data
                self._soiled.append((part, offset, len(data)))

    def peek(self, address: int, length: int) -> bytes:
        """Read as the guest; nothing where nothing is."""
        for start, end, _, memory in self._parts:
            if start <= address < end:
                return bytes(memory[address - start : address - start + length])
        return b""

    def settle(self) -> None:
        """An access is over: what it was allowed to write is as it should be now."""
        for part, offset, length in self._granted:
            self._expected[part][offset : offset + length] = self._parts[part][3][offset : offset + length]
        self._soiled += self._granted
        self._granted.clear()

    def check(self) -> None:
        """Nothing changed that no device asked to write."""
        for (start, _, _, memory), expected in zip(self._parts, self._expected, strict=True):
            assert memory == expected, f"memory of the region at {start:#x} changed behind everybody's back"
