"""Our device beside the reference model: the same accesses to both, and every answer compared.

``HYPOTHESIS_PROFILE=long`` runs for minutes instead of seconds.
"""

from __future__ import annotations

import os
import struct
import tempfile

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import calltable as ct
from tests.unit.devices import reference_model as model
from tests.unit.devices.mock_driver import FakeMemory
from tests.unit.devices.reference_chain import Memory
from tests.unit.devices.reference_request import Disk
from vmm.boundary import DeviceSpec, Job, Limits
from vmm.devices.bus import Bus

BASE, SIZE, READ_ONLY = 0x10_0000, 0x8000, 0x800
DESCRIPTORS, AVAILABLE, USED = BASE + 0x1000, BASE + 0x1400, BASE + 0x1600
TABLES, HEADERS, DATA, CONTROL, END = BASE + 0x2000, BASE + 0x2800, BASE + 0x3000, BASE + 0x7F00, BASE + SIZE
NEXT, WRITE, INDIRECT = 1, 2, 4
MAX_LENGTH = 6000

settings.register_profile("model", max_examples=120, stateful_step_count=40)
settings.register_profile("long", max_examples=20_000, stateful_step_count=60)
PROFILE = settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "model"))

_edges = (0, 1, 2, 16, 64, 2**16, 2**31, 2**32 - 1)
_values = st.sampled_from(_edges) | st.integers(0, 2**32 - 1)
_offsets = st.sampled_from(range(0, 0x140, 4)) | st.integers(0, 0x1FF)
_registers = st.sampled_from(
    (
        *(model.STATUS, model.QUEUE_READY, model.QUEUE_NUM, model.QUEUE_SEL, model.QUEUE_NOTIFY, model.INTERRUPT_ACK),
        *(model.DRIVER_FEATURES, model.DRIVER_FEATURES_SEL, model.DEVICE_FEATURES_SEL, model.QUEUE_DESC),
        *(model.QUEUE_DRIVER, model.QUEUE_DEVICE, model.QUEUE_DESC + 4, model.QUEUE_DRIVER + 4, 0x0C0),
    )
)
_addresses = st.one_of(
    st.integers(BASE, END),
    st.sampled_from((0, READ_ONLY, BASE - 1, BASE + READ_ONLY - 1, BASE + READ_ONLY, END - 1, END, 2**32, 2**64 - 1)),
    st.sampled_from((DESCRIPTORS, AVAILABLE, USED, TABLES, HEADERS, DATA)),
)
_lengths = st.one_of(st.integers(0, 40), st.sampled_from((512, 1024, 1025, 4096, 2**31, 2**32 - 1, 2**32 - 16)))
_descriptor = st.tuples(_addresses, _lengths, st.integers(0, 7) | st.just(0xFFF8), st.integers(0, 9) | st.just(0xFFFF))
_sectors = st.integers(0, 13) | st.sampled_from((2**32, 2**55, 2**63, 2**64 - 1))
_cuts = st.lists(st.integers(0, 700), max_size=4)


class DeviceComparison(RuleBasedStateMachine):
    """A driver that does right and wrong, a device, and the model."""

    @initialize(content=st.binary(max_size=MAX_LENGTH), read_only=st.booleans(), seed=st.integers(0, 255))
    def power_on(self, content: bytes, read_only: bool, seed: int) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  (closed by teardown)
        content = (content + bytes((seed + i * 7) & 0xFF for i in range(seed * 20)))[:MAX_LENGTH]
        os.pwrite(self.file.fileno(), content, 0)
        self.real = FakeMemory(SIZE, BASE, READ_ONLY)
        self.bus = Bus(1, self.real)
        spec = DeviceSpec(self.file.fileno(), len(content), read_only, not read_only, MAX_LENGTH)
        self.bus.begin_run(Job(b"", b"", (spec,), Limits()), lambda event: None)
        offered = 0
        for select in range(4):
            self.bus.write(ct.VIRTIO_BASE + model.DEVICE_FEATURES_SEL, select, 4)
            offered |= self.register(model.DEVICE_FEATURES) << 32 * select
        self.bus.write(ct.VIRTIO_BASE + model.STATUS, 0, 4)
        segments = struct.unpack("<II", struct.pack("<II", self.register(0x128), self.register(0x134)))
        assert segments[0] == segments[1]
        memory = Memory(BASE, bytearray(SIZE), READ_ONLY)
        disk = Disk(bytearray(content), read_only, segments[0])
        self.model = model.Model(memory, disk, offered, self.register(model.QUEUE_NUM_MAX))
        self.model.check_offer(read_only)
        self._bring_up(16, 0, 0, AVAILABLE, USED)

    def teardown(self) -> None:
        if hasattr(self, "file"):
            self.file.close()

    # Accesses to both.

    def register(self, offset: int) -> int:
        return self.bus.read(ct.VIRTIO_BASE + offset, 4)

    def get(self, offset: int, size: int = 4) -> int:
        found = self.bus.read(ct.VIRTIO_BASE + offset, size)
        self.model.read(offset, size, found)
        return found

    def set(self, offset: int, value: int, size: int = 4) -> None:
        if offset == model.QUEUE_NOTIFY and size == 4:
            self.notify_queue(value)
            return
        self.model.write(offset, value, size)
        self.bus.write(ct.VIRTIO_BASE + offset, value, size)
        self.get(model.STATUS)
        self.get(model.INTERRUPT_STATUS)

    def notify_queue(self, index: int) -> None:
        memory = self.model.memory
        queue = self.model.queue
        if queue.ready:
            # The index of the used ring is the device's (2.7.8): what scribbled over it could not be told from it.
            self.put(queue.areas[model.QUEUE_DEVICE] + 2, struct.pack("<H", queue.used))
        memory.data[:] = self.real.bytes
        expected = self.model.notify(index)
        self.bus.write(ct.VIRTIO_BASE + model.QUEUE_NOTIFY, index, 4)
        if expected is None:
            assert self.real.bytes == memory.data
            return
        fd = self.file.fileno()
        known = self.model.served(expected, bytes(self.real.bytes), os.pread(fd, 2 * MAX_LENGTH, 0))
        if not known:
            # Only what the order of its reads and writes decides is open; a reset makes both agree again.
            self.set(model.STATUS, 0)

    def put(self, address: int, data: bytes) -> None:
        self.real.put(address, data)

    # Rules.

    @rule(offset=_offsets, size=st.sampled_from((1, 2, 4, 4, 4, 8)))
    def read(self, offset: int, size: int) -> None:
        self.get(offset, size)

    @rule(offset=_registers, value=_values)
    def write(self, offset: int, value: int) -> None:
        self.set(offset, value)

    @rule(offset=_offsets, size=st.sampled_from((1, 2, 4, 8)), value=st.integers(0, 2**64 - 1))
    def write_anything(self, offset: int, size: int, value: int) -> None:
        self.set(offset, value & (1 << 8 * size) - 1, size)

    @rule(value=st.sampled_from((1, 3, 11, 15, 4, 5, 7, 8, 64, 128, 0, 0x100, 0xFF)))
    def write_status(self, value: int) -> None:
        self.set(model.STATUS, value)

    @rule(
        size=st.sampled_from((16, 8, 4, 4, 64)),
        drop=st.sampled_from((0, 0, 1 << 28, 1 << 9, 1 << 13, 1 << 14)),
    )
    def bring_up(self, size: int, drop: int) -> None:
        self._bring_up(size, drop, 0, AVAILABLE, USED)

    @rule(
        size=st.sampled_from((16, 16, 2, 1, 3, 0, 128, 2**15, 2**16)),
        drop=st.sampled_from((0, 0, 0, 1 << 28, 1 << 32)),
        add=st.sampled_from((0, 0, 0, 1 << 24, 1 << 34, 1 << 63, 1 << 64, 1 << 127, 1 << 200)),
        used=st.sampled_from((USED, USED, USED + 2, BASE, END - 16, AVAILABLE, DESCRIPTORS)),
        available=st.sampled_from((AVAILABLE, AVAILABLE, AVAILABLE + 1, END - 4, DESCRIPTORS)),
    )
    def bring_up_wrongly(self, size: int, drop: int, add: int, used: int, available: int) -> None:
        self._bring_up(size, drop, add, available, used)

    def _bring_up(self, size: int, drop: int, add: int, available: int, used: int) -> None:
        self.set(model.STATUS, 0)
        for status in (1, 3):
            self.set(model.STATUS, status)
        features = self.model.offered & ~drop | add
        for select in (0, 1, 2, 3, add.bit_length() // 32):
            self.set(model.DRIVER_FEATURES_SEL, select)
            self.set(model.DRIVER_FEATURES, features >> 32 * select & model.MASK)
        self.set(model.STATUS, 11)
        self.set(model.QUEUE_SEL, 0)
        self.set(model.QUEUE_NUM, size)
        for register, address in (
            (model.QUEUE_DESC, DESCRIPTORS),
            (model.QUEUE_DRIVER, available),
            (model.QUEUE_DEVICE, used),
        ):
            self.set(register, address)
            self.set(register + 4, 0)
        self.put(DESCRIPTORS, bytes(TABLES - DESCRIPTORS))
        self.set(model.QUEUE_READY, 1)
        self.set(model.STATUS, 15)
        self.size = size
        self.position = self.heap = self.next_descriptor = 0

    @precondition(lambda self: self.model.queue.ready)
    @rule(stop=st.booleans())
    def restart_queue(self, stop: bool) -> None:
        self.set(model.QUEUE_READY, 0)
        if not stop:
            # All indexes begin anew (2.7.6, 2.7.8).
            self.put(AVAILABLE + 2, bytes(2))
            self.position = 0
            self.set(model.QUEUE_READY, 1)
            self._simple_request()

    @rule(word=st.sampled_from((0, 1)), value=st.sampled_from((0, 2**32 - 1, 1 << 28)))
    def features_too_late(self, word: int, value: int) -> None:
        """After FEATURES_OK they are settled (3.1.1)."""
        self._revive()
        self.set(model.DRIVER_FEATURES_SEL, word)
        self.set(model.DRIVER_FEATURES, value)
        self._simple_request()

    @rule(value=st.integers(0, 3) | st.just(2**32 - 4))
    def acknowledge(self, value: int) -> None:
        self._revive()
        self._simple_request()
        self.set(model.INTERRUPT_ACK, value)

    @rule(size=st.sampled_from((4, 8, 16)), more=st.sampled_from((-1, 0, 1)))
    def chain_as_long_as_the_queue(self, size: int, more: int) -> None:
        """An indirect one, right but for its length."""
        self._bring_up(size, 0, 0, AVAILABLE, USED)
        buffers = [(self._place(struct.pack("<IIQ", 0, 0, 0)), 16, 0)]
        buffers += [(self._place(b"\xee"), 0, WRITE)] * (size + more - 2)
        buffers.append((self._place(b"\xee"), 1, WRITE))
        self._chain(buffers, True)
        self.set(model.QUEUE_NOTIFY, 0)

    def _simple_request(self) -> None:
        """A read, indirect as it is when that was accepted."""
        if self.model.queue.ready and self.size:
            buffers = [(self._place(struct.pack("<IIQ", 8, 0, 0)), 16, 0), (self._place(b"\xee" * 21), 21, WRITE)]
            self._chain(buffers, self.model.negotiated(model.INDIRECT_DESC) or self.size < 2)
            self.set(model.QUEUE_NOTIFY, 0)

    @rule(
        kind=st.sampled_from((0, 0, 1, 1, 4, 8, 11, 13, 2, 10, 14, 0xFFFF_FFFF)),
        sector=_sectors,
        count=st.integers(0, 4),
        odd=st.sampled_from((0, 0, 0, 1, -1)),
        cuts=_cuts,
        seed=st.integers(0, 255),
        indirect=st.booleans(),
        flags=st.sampled_from((0, 0, 0, 1, 2, 2**31)),
        wrong=st.sampled_from((0,) * 8 + (1, 2, 3, 4)),
        twist=st.sampled_from((0,) * 6 + (1, 2, 3, 4)),
        tell=st.booleans(),
    )
    def add_request(
        self,
        kind: int,
        sector: int,
        count: int,
        odd: int,
        cuts: list[int],
        seed: int,
        indirect: bool,
        flags: int,
        wrong: int,
        twist: int,
        tell: bool,
    ) -> None:
        self._revive()
        header = struct.pack("<IIQ", kind, 0, sector)
        out, room = b"", 1
        if kind in (11, 13):
            ranges = [
                struct.pack("<QII", (sector + step) & 2**64 - 1, step % 3, flags if step else flags & 1)
                for step in range(count)
            ]
            out = b"".join(ranges)
        elif kind == 8:
            room += 20 + odd
        elif kind == 1:
            out = bytes((seed + step) & 0xFF for step in range(max(0, 512 * count + odd)))
        elif kind != 4:
            room += max(0, 512 * count + odd)
        if wrong == 1:
            out += b"more"
        elif wrong == 2:
            room += 3
        elif wrong == 3:
            header = header[: seed % 16]
        elif wrong == 4:
            room = 0
        outgoing = self._cut(header + out, cuts if seed & 1 else [16])
        incoming = self._cut(bytes(room), cuts if seed & 2 else [])
        buffers = [(self._place(part), len(part), 0) for part in outgoing]
        buffers += [(self._place(b"\xee" * len(part)), len(part), WRITE) for part in incoming]
        self._chain(buffers, indirect, twist)
        if tell:
            self.set(model.QUEUE_NOTIFY, 0)

    def _revive(self) -> None:
        """A device that serves, or most of what hypothesis thinks of would meet a dead one."""
        if self.model.status.value != 15 or not self.model.queue.ready:
            self._bring_up(16, 0, 0, AVAILABLE, USED)

    @staticmethod
    def _cut(data: bytes, cuts: list[int]) -> list[bytes]:
        parts = []
        for cut in cuts:
            parts.append(data[:cut])
            data = data[cut:]
        return [*parts, data]

    def _place(self, data: bytes) -> int:
        if self.heap + len(data) > CONTROL - HEADERS:
            self.heap = 0
        address = HEADERS + self.heap
        self.heap += len(data)
        self.put(address, data)
        return address

    def _chain(self, buffers: list[tuple[int, int, int]], indirect: bool, twist: int = 0) -> None:
        size = max(self.size, 1)
        count = len(buffers)
        last = count - 1
        if indirect and count <= 28:
            table = TABLES + 0x1C0 * (self.next_descriptor % 4)
            for place, (address, length, flags) in enumerate(buffers):
                following = (NEXT, place + 1) if place < last else (0, 0)
                entry = struct.pack("<QIHH", address, length, flags | following[0], following[1])
                self.put(table + 16 * place, entry)
            pointer = (table, 16 * count, INDIRECT, 0)
            if twist == 1:
                pointer = (table, 16 * count + 8, INDIRECT, 0)
            elif twist == 2:
                # A table whose only entry refers to the table.
                outer = TABLES + 0x700
                self.put(outer, struct.pack("<QIHH", *pointer))
                pointer = (outer, 16, INDIRECT, 0)
            elif twist == 3:
                pointer = (table, 16 * count, INDIRECT | NEXT, (self.next_descriptor + 1) % size)
            elif twist == 4:
                pointer = (table, 0x800, INDIRECT | WRITE, 0xFFFF)
            self._put_descriptor(self.next_descriptor % size, pointer)
            self._make_available(self.next_descriptor % size)
            self.next_descriptor += 1
            return
        indexes = [(self.next_descriptor + place) % size for place in range(count)]
        self.next_descriptor += count
        for place, (address, length, flags) in enumerate(buffers):
            following = (NEXT, indexes[place + 1]) if place < last else (0, 0)
            self._put_descriptor(indexes[place], (address, length, flags | following[0], following[1]))
        self._make_available(indexes[0])

    def _put_descriptor(self, index: int, descriptor: tuple[int, int, int, int]) -> None:
        self.put(DESCRIPTORS + 16 * index, struct.pack("<QIHH", *descriptor))

    def _make_available(self, head: int) -> None:
        self.put(AVAILABLE + 4 + 2 * (self.position % max(self.size, 1)), struct.pack("<H", head))
        self.position = (self.position + 1) & 0xFFFF
        self.put(AVAILABLE + 2, struct.pack("<H", self.position))

    @rule(
        chain=st.lists(_descriptor, min_size=1, max_size=5),
        table=st.none() | st.lists(_descriptor, min_size=1, max_size=20),
        head=st.just(0) | st.integers(0, 5) | st.sampled_from((15, 16, 63, 64, 0xFFFF)),
        tail=st.sampled_from((0, 0, 0, 8, 15)),
        tell=st.booleans(),
    )
    def add_garbage(
        self,
        chain: list[tuple[int, int, int, int]],
        table: list[tuple[int, int, int, int]] | None,
        head: int,
        tail: int,
        tell: bool,
    ) -> None:
        self._revive()
        for place, descriptor in enumerate(chain):
            self._put_descriptor(place, descriptor)
        if table is not None:
            for place, descriptor in enumerate(table):
                self.put(TABLES + 16 * place, struct.pack("<QIHH", *descriptor))
            self._put_descriptor(0, (TABLES, 16 * len(table) + tail, INDIRECT, 0))
        self._make_available(head)
        if tell:
            self.set(model.QUEUE_NOTIFY, 0)

    @rule(
        kind=st.sampled_from((0, 1)),
        lengths=st.lists(st.sampled_from((0, 1, 512, 2**31, 2**32 - 1)), min_size=1, max_size=20),
        writable=st.integers(0, 20),
        indirect=st.booleans(),
        late=st.booleans(),
    )
    def add_long_chain(self, kind: int, lengths: list[int], writable: int, indirect: bool, late: bool) -> None:
        """A header, many buffers, of which those from a place on are writable, a status; perhaps one more readable."""
        self._revive()
        buffers = [(self._place(struct.pack("<IIQ", kind, 0, 0)), 16, 0)]
        for place, length in enumerate(lengths):
            flags = WRITE if place >= writable else 0
            buffers.append((self._place(b"\xee" * min(length, 512)), length, flags))
        buffers.append((self._place(b"\xee"), 1, WRITE))
        if late:
            buffers.append((self._place(bytes(4)), 4, 0))
        self._chain(buffers, indirect)
        self.set(model.QUEUE_NOTIFY, 0)

    @rule(jump=st.sampled_from((-1, 1, 4, 8, 15, 16, 17, 64, 65, 2**15)))
    def jump(self, jump: int) -> None:
        """The available index moves and nothing was put there."""
        self._revive()
        self.position = (self.position + jump) & 0xFFFF
        self.put(AVAILABLE + 2, struct.pack("<H", self.position))
        self.set(model.QUEUE_NOTIFY, 0)

    @rule(place=st.integers(0, TABLES + 0x300 - DESCRIPTORS), data=st.binary(min_size=1, max_size=8))
    def scribble(self, place: int, data: bytes) -> None:
        self.put(DESCRIPTORS + place, data)

    @rule(flags=st.sampled_from((0, 1, 0xFFFF)))
    def interrupt_wish(self, flags: int) -> None:
        self.put(AVAILABLE, struct.pack("<H", flags))

    @rule(index=st.sampled_from((0,) * 8 + (1, 0x1_0000, 2**32 - 1)))
    def notify(self, index: int) -> None:
        self.set(model.QUEUE_NOTIFY, index)

    @rule(length=st.integers(0, MAX_LENGTH + 1) | st.just(2**64 - 1))
    def set_length(self, length: int) -> None:
        block = struct.pack(ct.CONTROL_BLOCK_FORMAT, ct.COMMAND_SET_LENGTH, 0, 0, 0, length, 0, 0, 0, 0)
        self.put(CONTROL, block)
        self.bus.write(ct.CONTROL_BASE, CONTROL, 8)
        result = struct.unpack("<q", self.real.get(CONTROL + 8, 8))[0]
        disk = self.model.disk
        if disk.read_only:
            assert result == -ct.ERROR_READ_ONLY
        elif length > MAX_LENGTH and length != len(disk.data):
            assert result == -ct.ERROR_NO_SPACE
        else:
            assert result == 0
            self.model.resized(length)
        # The file of an image that is changed in place becomes longer with the next request.
        backend = self.bus.blocks[0].backend
        assert backend is not None
        backend.settle()
        assert os.fstat(self.file.fileno()).st_size == len(disk.data)

    @invariant()
    def registers_agree(self) -> None:
        if not hasattr(self, "model"):
            return
        for offset in (model.STATUS, model.INTERRUPT_STATUS, model.QUEUE_READY, model.CONFIG, model.CONFIG_GENERATION):
            self.get(offset)
        assert (self.bus.blocks[0].fault is not None) <= bool(self.register(model.STATUS) & model.NEEDS_RESET)


def test_device_and_model_agree() -> None:
    profile = settings(PROFILE, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(DeviceComparison, settings=profile)
