"""The language in which an input tells a guest what to do: one byte, then operands; see ``README.md``.

Small steps (a register, bytes in memory, a descriptor) reach what no driver does; large ones (a handshake, a whole
request) reach what only a driver in order does.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

import calltable as ct
from fuzzing.guest import Ended, Guest
from vmm.devices import block as virtio_blk
from vmm.devices import mmio

#: Registers that a step names by place; a higher number is an offset of its own.
REGISTERS = (
    *(mmio.STATUS, mmio.QUEUE_READY, mmio.QUEUE_NOTIFY, mmio.QUEUE_NUM, mmio.QUEUE_SEL, mmio.DRIVER_FEATURES),
    *(mmio.DRIVER_FEATURES_SEL, mmio.DEVICE_FEATURES_SEL, mmio.DEVICE_FEATURES, mmio.INTERRUPT_ACK),
    *(mmio.INTERRUPT_STATUS, mmio.QUEUE_DESC_LOW, mmio.QUEUE_DESC_HIGH, mmio.QUEUE_DRIVER_LOW, mmio.QUEUE_DRIVER_HIGH),
    *(mmio.QUEUE_DEVICE_LOW, mmio.QUEUE_DEVICE_HIGH, mmio.QUEUE_NUM_MAX, mmio.CONFIG_GENERATION, mmio.MAGIC_VALUE),
    *(mmio.VERSION, mmio.DEVICE_ID, mmio.VENDOR_ID, mmio.SHM_LEN_LOW, mmio.SHM_BASE_HIGH, mmio.CONFIG),
)
SIZES = (4, 8, 1, 2)
KINDS = (
    *(virtio_blk.T_IN, virtio_blk.T_OUT, virtio_blk.T_WRITE_ZEROES, virtio_blk.T_DISCARD, virtio_blk.T_FLUSH),
    *(virtio_blk.T_GET_ID, 2, 5),
)
NEXT, WRITE, INDIRECT = 1, 2, 4

#: Where the large steps put a request: header, status, table of an indirect chain, ranges, data.
_HEADER = ct.ARENA_BASE + 0x100
_STATUS = ct.ARENA_BASE + 0x140
_TABLE = ct.ARENA_BASE + 0x200
_RANGES = ct.ARENA_BASE + 0x800
_DATA = ct.ARENA_BASE + 0x1000
_BATCH = ct.ARENA_BASE + 0x10000

_LOW = 0xFFFF_FFFF


def window(device: int) -> int:
    """Where the registers of a device begin."""
    return ct.VIRTIO_BASE + device * ct.VIRTIO_STRIDE


def rings(device: int, size: int) -> tuple[int, int, int]:
    """Where a driver in order has its descriptor table, available and used ring."""
    start = ct.QUEUES_BASE + device * ct.QUEUE_STRIDE
    available = start + 16 * size
    return start, available, (available + 6 + 2 * size + 3) & ~3


class Driver:
    """What an orderly driver remembers of one queue."""

    def __init__(self) -> None:
        self.size = 16
        self.available = 0


class Player:
    """Performs the steps of an input."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.source = guest.source
        self.drivers = [Driver() for _ in range(4)]

    def device(self) -> int:
        """A device by number; one more than there are."""
        return self.source.byte() % 4

    # Small steps.

    def write_register(self) -> None:
        """Device, register, value."""
        at = window(self.device()) + self._register()
        self.guest.write(at, self.source.number(), 4)

    def read_register(self) -> None:
        """Device, register, size."""
        at = window(self.device()) + self._register()
        self.guest.read(at, SIZES[self.source.byte() % 4])

    def _register(self) -> int:
        register = self.source.byte()
        return REGISTERS[register] if register < len(REGISTERS) else self.source.u16() & 0xFFF

    def write_anywhere(self) -> None:
        """Size, address, value."""
        size = SIZES[self.source.byte() % 4]
        base = self.source.byte()
        at = window(base % 4) + self.source.u16() if base & 0x80 else self.guest.address()
        self.guest.write(at, self.source.number(), size)

    def read_anywhere(self) -> None:
        """Size, address."""
        size = SIZES[self.source.byte() % 4]
        self.guest.read(self.guest.address(), size)

    def poke(self) -> None:
        """Address, bytes."""
        address = self.guest.address()
        self.guest.memory.poke(address, self.source.block())

    def poke_number(self) -> None:
        """Address, size, value."""
        address, size, value = self.guest.address(), SIZES[self.source.byte() % 4], self.source.number()
        self.guest.memory.poke(address, (value & ((1 << 8 * size) - 1)).to_bytes(size, "little"))

    def descriptor(self) -> None:
        """Queue, place, address, length, flags, next."""
        table = rings(self.device(), 0)[0]
        place = self.source.byte()
        self._descriptor(
            table, place, self.guest.address(), self.source.number(), self.source.byte(), self.source.byte()
        )

    def _descriptor(self, table: int, place: int, address: int, length: int, flags: int, following: int) -> None:
        packed = struct.pack("<QIHH", address & (1 << 64) - 1, length & _LOW, flags, following)
        self.guest.memory.poke(table + 16 * place, packed)

    def header(self) -> None:
        """Address, type, sector."""
        address = self.guest.address()
        kind = self.source.number() & _LOW
        self.guest.memory.poke(address, struct.pack("<IIQ", kind, 0, self.source.number()))

    def available(self) -> None:
        """Queue, head: into the ring and counted."""
        device = self.device()
        self._available(device, self.source.byte())

    def _available(self, device: int, head: int) -> None:
        driver = self.drivers[device]
        ring = rings(device, driver.size)[1]
        self.guest.memory.poke(ring + 4 + 2 * (driver.available % driver.size), struct.pack("<H", head))
        driver.available = (driver.available + 1) & 0xFFFF
        self.guest.memory.poke(ring + 2, struct.pack("<H", driver.available))

    def notify(self) -> None:
        """Device, queue."""
        device = self.device()
        self.guest.write(window(device) + mmio.QUEUE_NOTIFY, self.source.number(), 4)

    # Large steps.

    def start(self) -> None:
        """Device, size of the queue, features that are not wanted: the whole handshake."""
        device = self.device()
        size = 1 << self.source.byte() % 9
        unwanted = self.source.number()
        base = window(device)
        driver = self.drivers[device]
        driver.size, driver.available = size, 0
        write, read = self.guest.write, self.guest.read
        write(base + mmio.STATUS, 0, 4)
        write(base + mmio.STATUS, mmio.ACKNOWLEDGE | mmio.DRIVER, 4)
        for select in (0, 1):
            write(base + mmio.DEVICE_FEATURES_SEL, select, 4)
            offered = read(base + mmio.DEVICE_FEATURES, 4)
            write(base + mmio.DRIVER_FEATURES_SEL, select, 4)
            write(base + mmio.DRIVER_FEATURES, offered & ~(unwanted >> 32 * select), 4)
        write(base + mmio.STATUS, mmio.ACKNOWLEDGE | mmio.DRIVER | mmio.FEATURES_OK, 4)
        areas = rings(device, size)
        self.guest.memory.poke(areas[1], bytes(areas[2] + 8 * size + 6 - areas[1]))
        write(base + mmio.QUEUE_SEL, 0, 4)
        write(base + mmio.QUEUE_NUM, size, 4)
        for register, address in zip(
            (mmio.QUEUE_DESC_LOW, mmio.QUEUE_DRIVER_LOW, mmio.QUEUE_DEVICE_LOW), areas, strict=True
        ):
            write(base + register, address & _LOW, 4)
            write(base + register + 4, address >> 32, 4)
        write(base + mmio.QUEUE_READY, 1, 4)
        write(base + mmio.STATUS, mmio.ACKNOWLEDGE | mmio.DRIVER | mmio.FEATURES_OK | mmio.DRIVER_OK, 4)

    def request(self) -> None:
        """Device, style, type, sector, pieces of data: a chain in order, made available; notified unless asked not to.

        The style says whether the chain is indirect, whether the header is cut, whether data go the wrong way, and
        whether the status has a descriptor of its own.
        """
        device, style = self.device(), self.source.byte()
        kind = KINDS[self.source.byte() % len(KINDS)]
        sector = self.source.number()
        self.guest.memory.poke(_HEADER, struct.pack("<IIQ", kind, 0, sector))
        to_guest = (kind in (virtio_blk.T_IN, virtio_blk.T_GET_ID)) != bool(style & 4)
        parts = [(_HEADER, 16, 0)]
        if style & 2:
            parts = [(_HEADER, 3, 0), (_HEADER + 3, 0, 0), (_HEADER + 3, 13, 0)]
        address = _DATA
        for _ in range(self.source.byte() % 8):
            length = self.source.number()
            parts.append((address, length, WRITE if to_guest else 0))
            # Pieces of ordinary size lie one behind the other; the others lie wherever that is.
            address += length if length < 0x4000 else 1
        if style & 8:
            ranges = self._ranges(self.source.byte())
            self.guest.memory.poke(_RANGES, ranges)
            parts.append((_RANGES, len(ranges), 0))
        if not style & 32:
            parts.append((_STATUS, 1, WRITE))
        driver = self.drivers[device]
        head = (driver.available * 8) % driver.size
        table = rings(device, driver.size)[0]
        if style & 1:
            self._descriptor(table, head, _TABLE, 16 * len(parts), INDIRECT, 0)
            self._chain(_TABLE, 0, parts, 256)
        else:
            self._chain(table, head, parts, driver.size)
        self._available(device, head)
        if not style & 16:
            self.guest.write(window(device) + mmio.QUEUE_NOTIFY, 0, 4)

    def _ranges(self, count: int) -> bytes:
        """Ranges of DISCARD and WRITE_ZEROES."""
        out = b""
        for _ in range(count % 40):
            sector, sectors, flags = self.source.number(), self.source.number(), self.source.byte()
            out += struct.pack("<QII", sector, sectors & _LOW, flags & 1 if flags < 0xF0 else flags)
        return out

    def _chain(self, table: int, head: int, parts: list[tuple[int, int, int]], size: int) -> None:
        for place, (address, length, flags) in enumerate(parts):
            last = place == len(parts) - 1
            following = (head + place + 1) % size
            self._descriptor(table, (head + place) % size, address, length, flags | (0 if last else NEXT), following)

    def control(self) -> None:
        """Command, five numbers."""
        command = self.source.number()
        self.guest.ring(command, [self.source.number() for _ in range(5)])

    def control_at(self) -> None:
        """Command, device or level, an address, two numbers, an address, a number: a command about memory."""
        command, first = self.source.byte() % 12, self.source.byte()
        address = self.guest.address()
        numbers = [self.source.number() for _ in range(3)]
        order = {
            ct.COMMAND_DONE: [first, address, *numbers],
            ct.COMMAND_ABORT: [address, numbers[0], numbers[1], address, numbers[2]],
            ct.COMMAND_LOG: [first, address, *numbers],
            ct.COMMAND_EMIT: [address, *numbers, 0],
            ct.COMMAND_BLOCK_STATUS: [first, numbers[0], numbers[1], address, numbers[2]],
            ct.COMMAND_BUDGET: [address, *numbers, 0],
        }
        self.guest.ring(command, order.get(command, [first, *numbers, address]))

    def batch(self) -> None:
        """Command (EMIT, DONE, ABORT), messages with their lengths, a tail: delivered."""
        which, count = self.source.byte(), self.source.byte()
        raw = b""
        for _ in range(count % 16):
            message = self.source.block()
            raw += struct.pack("<I", len(message)) + message
        raw += self.source.take(self.source.byte() & 15)
        self.guest.memory.poke(_BATCH, raw)
        commands = {
            0: (ct.COMMAND_EMIT, [_BATCH, len(raw), 0, 0, 0]),
            1: (ct.COMMAND_DONE, [which >> 2, _BATCH, len(raw), 0, 0]),
            2: (ct.COMMAND_ABORT, [_BATCH, len(raw), which, _BATCH, len(raw)]),
            3: (ct.COMMAND_LOG, [which >> 2 & 7, _BATCH, len(raw), 0, 0]),
        }
        self.guest.ring(*commands[which & 3])

    def block_at(self) -> None:
        """A control block of the input's own bytes at an address, and the doorbell with a size."""
        address = self.guest.address()
        self.guest.memory.poke(address, self.source.take(64))
        self.guest.write(ct.CONTROL_BASE + ct.CONTROL_DOORBELL, address, SIZES[self.source.byte() % 2])

    # The world around.

    def disturb(self) -> None:
        """Device, action, amount: somebody else changes the file."""
        device, action, amount = self.device(), self.source.byte(), self.source.number()
        if device < len(self.guest.files):
            self.guest.files[device].disturb(action % 4, amount)

    def fault(self) -> None:
        """A system call will fail."""
        self.guest.system.plan_fault(self.source)

    def surprise(self) -> None:
        """Looks, address, bytes: memory changes while a device works."""
        looks, address = self.source.byte(), self.guest.address()
        self.guest.memory.surprise = (looks, address, self.source.take(self.source.byte() % 64))

    def inspect(self) -> None:
        """What the host asks for."""
        self.guest.inspect()

    def end_run(self) -> None:
        """The machine ends the run: a fault of the guest, or its deadline."""
        self.guest.end()
        self.guest.begin()


Step = Callable[[Player], None]

#: By number; the order is part of every corpus file.
STEPS: tuple[Step, ...] = (
    Player.write_register,
    Player.read_register,
    Player.write_anywhere,
    Player.read_anywhere,
    Player.poke,
    Player.poke_number,
    Player.descriptor,
    Player.header,
    Player.available,
    Player.notify,
    Player.start,
    Player.request,
    Player.control,
    Player.control_at,
    Player.batch,
    Player.block_at,
    Player.disturb,
    Player.fault,
    Player.surprise,
    Player.inspect,
    Player.end_run,
)


def play(guest: Guest, steps: Iterable[Step]) -> None:
    """Perform steps until the input ends, or has had its share."""
    chosen = tuple(steps)
    player = Player(guest)
    try:
        while guest.source:
            chosen[guest.source.byte() % len(chosen)](player)
    except Ended:
        pass
