"""A virtio-blk driver in Python, written from VIRTIO 1.2 and not from this project's guest driver.

Section numbers are those of the standard.  The driver can be told to misbehave: everything it does is also available in
small steps.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from vmm.devices.errors import MemoryAccessError
from vmm.devices.mmio import MmioDevice

# Table 4.1, MMIO device register layout.
MAGIC_VALUE, VERSION, DEVICE_ID, VENDOR_ID = 0x000, 0x004, 0x008, 0x00C
DEVICE_FEATURES, DEVICE_FEATURES_SEL, DRIVER_FEATURES, DRIVER_FEATURES_SEL = 0x010, 0x014, 0x020, 0x024
QUEUE_SEL, QUEUE_NUM_MAX, QUEUE_NUM, QUEUE_READY, QUEUE_NOTIFY = 0x030, 0x034, 0x038, 0x044, 0x050
INTERRUPT_STATUS, INTERRUPT_ACK, STATUS = 0x060, 0x064, 0x070
QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE = 0x080, 0x090, 0x0A0
SHM_LEN_LOW, SHM_LEN_HIGH, SHM_BASE_LOW, SHM_BASE_HIGH = 0x0B0, 0x0B4, 0x0B8, 0x0BC
CONFIG_GENERATION, CONFIG = 0x0FC, 0x100

# Section 2.1.
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128

# Sections 5.2.3 and 6.
BLK_F_RO, BLK_F_FLUSH, BLK_F_DISCARD, BLK_F_WRITE_ZEROES = 1 << 5, 1 << 9, 1 << 13, 1 << 14
F_INDIRECT, F_VERSION_1 = 1 << 28, 1 << 32
ALL = BLK_F_RO | BLK_F_FLUSH | BLK_F_DISCARD | BLK_F_WRITE_ZEROES | F_INDIRECT | F_VERSION_1

# Section 2.7.5.
NEXT, WRITE, INDIRECT = 1, 2, 4

# Section 5.2.6.
IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2

Descriptor = tuple[int, int, int, int]


class FakeMemory:
    """Guest RAM in a bytearray: [base, base + size), the first ``read_only`` bytes not writable for devices."""

    def __init__(self, size: int = 1 << 20, base: int = 0x10_0000, read_only: int = 0) -> None:
        self.bytes = bytearray(size)
        self.base = base
        self.read_only = read_only

    def view(self, address: int, length: int, *, writable: bool) -> memoryview:
        """See vmm.devices.memory.GuestMemory."""
        assert address >= 0
        assert length >= 0
        start = address - self.base
        if length == 0:
            return memoryview(b"")
        if start < (self.read_only if writable else 0) or start + length > len(self.bytes):
            raise MemoryAccessError(address, length, writable)
        view = memoryview(self.bytes)[start : start + length]
        return view if writable else view.toreadonly()

    def put(self, address: int, data: bytes) -> None:
        """Write as the guest."""
        self.bytes[address - self.base : address - self.base + len(data)] = data

    def get(self, address: int, length: int) -> bytes:
        """Read as the guest."""
        return bytes(self.bytes[address - self.base : address - self.base + length])


@dataclass
class Driver:
    """The driver of one device.  Its queue lies at ``queue``, its buffers are taken from ``heap`` on."""

    device: MmioDevice
    memory: FakeMemory
    queue: int = 0x10_0000
    heap: int = 0x12_0000
    size: int = 16
    features: int = 0
    free: list[int] = field(default_factory=list)
    available_index: int = 0
    used_index: int = 0
    indirect: bool = False
    next_buffer: int = 0

    def reg(self, offset: int) -> int:
        """A 32-bit register read."""
        return self.device.read(offset, 4)

    def set(self, offset: int, value: int) -> None:
        """A 32-bit register write."""
        self.device.write(offset, value, 4)

    # Section 3.1.1, in its steps.

    def reset(self) -> None:
        self.set(STATUS, 0)
        assert self.reg(STATUS) == 0
        self.available_index = self.used_index = 0
        self.free = list(range(self.size))
        self.next_buffer = self.heap

    def offered(self) -> int:
        value = 0
        for select in range(2):
            self.set(DEVICE_FEATURES_SEL, select)
            value |= self.reg(DEVICE_FEATURES) << (32 * select)
        return value

    def choose(self, features: int) -> bool:
        """Write the features and FEATURES_OK; whether the device took them."""
        for select in range(2):
            self.set(DRIVER_FEATURES_SEL, select)
            self.set(DRIVER_FEATURES, features >> (32 * select) & 0xFFFFFFFF)
        self.set(STATUS, self.reg(STATUS) | FEATURES_OK)
        self.features = features
        return bool(self.reg(STATUS) & FEATURES_OK)

    @property
    def ring_addresses(self) -> tuple[int, int, int]:
        """Descriptor table, available ring, used ring, aligned as section 2.7 wants."""
        available = self.queue + 16 * self.size
        used = (available + 6 + 2 * self.size + 3) // 4 * 4
        return self.queue, available, used

    def set_up_queue(self) -> bool:
        self.set(QUEUE_SEL, 0)
        assert self.reg(QUEUE_READY) == 0
        self.set(QUEUE_NUM, self.size)
        for register, address in zip((QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE), self.ring_addresses, strict=True):
            self.set(register, address & 0xFFFFFFFF)
            self.set(register + 4, address >> 32)
        self.set(QUEUE_READY, 1)
        return self.reg(QUEUE_READY) == 1

    def start(self, features: int = ALL) -> None:
        """All of it."""
        self.reset()
        self.set(STATUS, ACKNOWLEDGE)
        self.set(STATUS, ACKNOWLEDGE | DRIVER)
        assert self.choose(self.offered() & features)
        assert self.set_up_queue()
        self.set(STATUS, self.reg(STATUS) | DRIVER_OK)
        assert self.reg(STATUS) == ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK

    # The virtqueue (section 2.7.13).

    def buffer(self, length: int, content: bytes = b"") -> int:
        """The address of a new buffer."""
        address = self.next_buffer
        self.next_buffer += (length + 15) // 16 * 16
        self.memory.put(address, content.ljust(length, b"\xee"))
        return address

    def put_descriptor(self, index: int, descriptor: Descriptor, table: int | None = None) -> None:
        where = self.ring_addresses[0] if table is None else table
        self.memory.put(where + 16 * index, struct.pack("<QIHH", *descriptor))

    def make_available(self, head: int) -> None:
        """Put a head into the ring; the device does not see it before :meth:`publish`."""
        ring = self.ring_addresses[1]
        self.memory.put(ring + 4 + 2 * (self.available_index % self.size), struct.pack("<H", head))
        self.available_index = (self.available_index + 1) & 0xFFFF

    def publish(self) -> None:
        self.memory.put(self.ring_addresses[1] + 2, struct.pack("<H", self.available_index))

    def notify(self) -> None:
        self.publish()
        self.set(QUEUE_NOTIFY, 0)

    def used(self) -> list[tuple[int, int]]:
        """New elements of the used ring: (id, length)."""
        ring = self.ring_addresses[2]
        index = struct.unpack("<H", self.memory.get(ring + 2, 2))[0]
        out = []
        while self.used_index != index:
            out.append(struct.unpack("<II", self.memory.get(ring + 4 + 8 * (self.used_index % self.size), 8)))
            self.used_index = (self.used_index + 1) & 0xFFFF
        return out

    def add(self, buffers: list[tuple[int, int, bool]]) -> int:
        """A chain of (address, length, device-writable) buffers; its head."""
        if self.indirect:
            table = self.buffer(16 * len(buffers))
            for index, (address, length, writable) in enumerate(buffers):
                last = index == len(buffers) - 1
                flags = (WRITE if writable else 0) | (0 if last else NEXT)
                self.put_descriptor(index, (address, length, flags, 0 if last else index + 1), table)
            head = self.free.pop()
            self.put_descriptor(head, (table, 16 * len(buffers), INDIRECT, 0))
        else:
            chosen = [self.free.pop() for _ in buffers]
            for place, (address, length, writable) in enumerate(buffers):
                last = place == len(buffers) - 1
                flags = (WRITE if writable else 0) | (0 if last else NEXT)
                self.put_descriptor(chosen[place], (address, length, flags, 0 if last else chosen[place + 1]))
            head = chosen[0]
        self.make_available(head)
        return head

    # Requests (section 5.2.6).

    def request(
        self, kind: int, sector: int, data: list[bytes] | None = None, room: list[int] | None = None
    ) -> tuple[int, bytes, int]:
        """One request from start to end: its status, the device-written data, and the used length.

        A status of 0xEE means that the device wrote none.
        """
        saved = self.next_buffer, list(self.free)
        header = self.buffer(16, struct.pack("<IIQ", kind, 0, sector))
        buffers = [(header, 16, False)]
        buffers += [(self.buffer(len(part), part), len(part), False) for part in data or []]
        inputs = [(self.buffer(length), length, True) for length in room or []]
        status = self.buffer(1)
        head = self.add([*buffers, *inputs, (status, 1, True)])
        self.notify()
        done = self.used()
        got = b"".join(self.memory.get(address, length) for address, length, _ in inputs)
        self.next_buffer, self.free = saved
        if not done:
            return self.memory.get(status, 1)[0], got, 0
        assert [element[0] for element in done] == [head]
        return self.memory.get(status, 1)[0], got, done[0][1]

    def read(self, sector: int, length: int) -> bytes:
        status, data, used = self.request(IN, sector, room=[length])
        assert status == OK
        assert used == length + 1
        return data

    def write(self, sector: int, data: bytes) -> None:
        assert self.request(OUT, sector, data=[data]) == (OK, b"", 1)
