"""The block device as ring 3 sees it, and the reference model beside it: what tests of the real machine share.

Layout of the queue's memory: in the hot arena, which nobody else uses where there is no runtime.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import calltable as ct
from tests.hostile.steps import Bench, Steps
from tests.unit.devices import reference_model as model
from tests.unit.devices.reference_chain import Memory
from tests.unit.devices.reference_request import Disk
from vmm.machine.layout import Region

DESCRIPTORS = ct.ARENA_BASE
AVAILABLE = ct.ARENA_BASE + 0x400
USED = ct.ARENA_BASE + 0x600
TABLE = ct.ARENA_BASE + 0x900
HEADER = ct.ARENA_BASE + 0xC00
STATUS_BYTE = ct.ARENA_BASE + 0xE00
DATA = ct.ARENA_BASE + 0x1000
QUEUE_SIZE = 16
NEXT, WRITE, INDIRECT = 1, 2, 4


class MachineMemory(Memory):
    """A copy of a part of a machine's memory, with the rights that its page tables give ring 3.

    :param get: reads the rest of it, where that is wanted.
    """

    def __init__(
        self, regions: list[Region], base: int, data: bytes, get: Callable[[int, int], bytes] | None = None
    ) -> None:
        super().__init__(base, bytearray(data), 0)
        self._get = get
        self._rights = {}
        for region in regions:
            if region.user and not region.device:
                for page in range(region.start, region.end, ct.PAGE_SIZE):
                    self._rights[page] = region.write

    def holds(self, address: int, length: int, write: bool) -> bool:
        if length == 0:
            return True
        if length > len(self._rights) * ct.PAGE_SIZE:
            return False
        first = address & -ct.PAGE_SIZE
        pages = [self._rights.get(page) for page in range(first, address + length, ct.PAGE_SIZE)]
        return all(page is not None and (page or not write) for page in pages)

    def bytes_at(self, address: int, length: int) -> bytes:
        inside = self.base <= address and address + length <= self.base + len(self.data)
        if self._get is None or inside or not self.holds(address, length, False):
            return super().bytes_at(address, length)
        return self._get(address, length)


@dataclass(frozen=True)
class Facts:
    """What a device shows of itself and the standard leaves open."""

    offered: int
    queue_size_max: int
    segments: int


def window(offset: int, device: int = 0) -> int:
    """Address of a register."""
    return ct.VIRTIO_BASE + device * ct.VIRTIO_STRIDE + offset


def facts(bench: Bench) -> Facts:
    """Ask the device."""
    steps = Steps()
    for select in range(4):
        steps.write(window(model.DEVICE_FEATURES_SEL), select).read(window(model.DEVICE_FEATURES))
    steps.write(window(model.QUEUE_SEL), 0).read(window(model.QUEUE_NUM_MAX)).read(window(0x128))
    *words, size, segments = bench.run(steps).results
    return Facts(sum(word << 32 * place for place, word in enumerate(words)), size, segments)


def new_model(known: Facts, memory: Memory, content: bytes, *, read_only: bool) -> model.Model:
    """A model of the device after a reset."""
    made = model.Model(memory, Disk(bytearray(content), read_only, known.segments), known.offered, known.queue_size_max)
    made.check_offer(read_only)
    return made


#: One access: "r" or "w", offset, size, value.
Access = tuple[str, int, int, int]


def handshake(known: Facts, until: str = "live", drop: int = 0) -> list[Access]:
    """The accesses of a driver that does right (3.1.1), up to a state: reset, features, or live.

    :param drop: features not to accept.
    """
    out: list[Access] = [("w", model.STATUS, 4, value) for value in (0, 1, 3)]
    if until == "reset":
        return out[:1]
    for select in range(2):
        out.append(("w", model.DRIVER_FEATURES_SEL, 4, select))
        out.append(("w", model.DRIVER_FEATURES, 4, (known.offered & ~drop) >> 32 * select & model.MASK))
    out.append(("w", model.STATUS, 4, 11))
    if until == "features":
        return out
    out += [("w", model.QUEUE_SEL, 4, 0), ("w", model.QUEUE_NUM, 4, QUEUE_SIZE)]
    for register, address in (
        (model.QUEUE_DESC, DESCRIPTORS),
        (model.QUEUE_DRIVER, AVAILABLE),
        (model.QUEUE_DEVICE, USED),
    ):
        out += [("w", register, 4, address & model.MASK), ("w", register + 4, 4, address >> 32)]
    out += [("w", model.QUEUE_READY, 4, 1), ("w", model.STATUS, 4, 15)]
    return out


def put_accesses(steps: Steps, accesses: list[Access]) -> None:
    """Have ring 3 do them."""
    for kind, offset, size, value in accesses:
        if kind == "w":
            steps.write(window(offset), value, size)
        else:
            steps.read(window(offset), size)


def replay(device: model.Model, accesses: list[Access], results: list[int]) -> None:
    """Have the model judge what ring 3 was answered; its queue has nothing to do."""
    found = iter(results)
    for number, (kind, offset, size, value) in enumerate(accesses):
        try:
            if kind == "r":
                device.read(offset, size, next(found))
            elif offset == model.QUEUE_NOTIFY and size == 4:
                expected = device.notify(value)
                assert expected is None or not (expected.effects or expected.broken)
            else:
                device.write(offset, value & (1 << 8 * size) - 1, size)
        except AssertionError as error:
            raise AssertionError(f"access {number} ({kind} {offset:#x}, {size} bytes, {value:#x}): {error}") from error
    assert next(found, None) is None


def request(kind: int = 0, sector: int = 0) -> bytes:
    """A header (5.2.6)."""
    return struct.pack("<IIQ", kind, 0, sector)


def descriptors(*entries: tuple[int, int, int, int]) -> bytes:
    """A table (2.7.5)."""
    return b"".join(struct.pack("<QIHH", *entry) for entry in entries)
