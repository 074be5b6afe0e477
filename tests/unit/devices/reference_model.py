"""A virtio-mmio block device with one split queue, as VIRTIO 1.2 describes it: a small model to compare ours with.

Written from the standard's text and from nothing else; a number in parentheses is the section that a rule comes from.
The model keeps no rings and no addresses of its own: it reads guest memory as it was before a notification, says what
has to be true afterwards, and is then told what is.  Where the standard leaves a device freedom it allows a set.  What
it leaves open altogether (a driver that breaks a MUST) the model settles by what this project promises, and says so
with "promise":

* what a driver may not do has no effect, or makes the device need a reset, and then nothing more is served;
* selectors and addresses are 0 after a reset, and chains are served in the driver's order;
* the last sector of a file of odd length reads as zero behind the end, and what is written there is dropped.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from tests.unit.devices.reference_chain import BrokenError, Memory, walk
from tests.unit.devices.reference_request import Disk, Effect, perform

MASK = 0xFFFF_FFFF

# Table 4.1 (4.2.2).
MAGIC_VALUE, VERSION, DEVICE_ID, VENDOR_ID = 0x000, 0x004, 0x008, 0x00C
DEVICE_FEATURES, DEVICE_FEATURES_SEL, DRIVER_FEATURES, DRIVER_FEATURES_SEL = 0x010, 0x014, 0x020, 0x024
QUEUE_SEL, QUEUE_NUM_MAX, QUEUE_NUM, QUEUE_READY, QUEUE_NOTIFY = 0x030, 0x034, 0x038, 0x044, 0x050
INTERRUPT_STATUS, INTERRUPT_ACK, STATUS = 0x060, 0x064, 0x070
QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE = 0x080, 0x090, 0x0A0
SHM_LEN, SHM_BASE, CONFIG_GENERATION, CONFIG = 0x0B0, 0x0B8, 0x0FC, 0x100

# Device status (2.1).
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128
# Interrupt status (4.2.2).
USED, CONFIGURATION = 1, 2
# Features (6).
INDIRECT_DESC, VERSION_1 = 28, 32

SECTOR = 512


@dataclass
class Bits:
    """A register of which some bits are known and some may be either."""

    value: int = 0
    free: int = 0

    def allows(self, found: int) -> bool:
        """Whether a reading is one of those possible."""
        return found & ~self.free == self.value & ~self.free

    def set(self, bits: int) -> None:
        """These are set now."""
        self.value |= bits
        self.free &= ~bits

    def may_set(self, bits: int) -> None:
        """These may be set now; those that were set stay."""
        self.free |= bits & ~self.value

    def clear(self, bits: int) -> None:
        """These are clear now."""
        self.value &= ~bits
        self.free &= ~bits


@dataclass
class QueueModel:
    """What a driver has told about the queue (4.2.3.2)."""

    size: int = 0
    areas: dict[int, int] = field(default_factory=lambda: {QUEUE_DESC: 0, QUEUE_DRIVER: 0, QUEUE_DEVICE: 0})
    ready: bool = False
    #: Free-running positions, modulo 2^16 (2.7.6, 2.7.8).
    taken: int = 0
    used: int = 0


@dataclass
class Expectation:
    """What has to be true after a notification that is served."""

    effects: list[Effect]
    #: The next chain breaks the standard: everything behind it stays untouched and the device needs a reset.
    broken: bool
    #: ``flags`` of the available ring.
    flags: int
    #: The device's writes meet what it reads, so that the result depends on its order (it may choose).
    fuzzy: bool = False


class Model:
    """The device.

    :param offered: the features that the device under test offers (free, but for what :meth:`check_offer` says).
    :param queue_size_max: what it shows in QueueNumMax.
    """

    def __init__(self, memory: Memory, disk: Disk, offered: int, queue_size_max: int) -> None:
        self.memory = memory
        self.disk = disk
        self.offered = offered
        self.queue_size_max = queue_size_max
        self.status = Bits()
        self.interrupt = Bits()
        #: A generation that was read, and whether the configuration has changed since (2.5).
        self.generation: int | None = None
        self.config_changed = False
        self._forget()

    def _forget(self) -> None:
        self.status = Bits()
        self.interrupt = Bits()
        self.features: dict[int, int] = {}
        #: Words without meaning (2.2: 128 and above) that were ever written with a bit.
        self.reserved_words: set[int] = set()
        self.device_select = self.driver_select = self.queue_select = 0
        self.queue = QueueModel()

    def check_offer(self, read_only: bool) -> None:
        """What a device that is not transitional has to offer (6.1), and this one (5.2.3)."""
        assert self.offered >> VERSION_1 & 1
        assert bool(self.offered >> 5 & 1) == read_only

    def negotiated(self, bit: int) -> bool:
        """Whether the driver accepted a feature."""
        return bool(self.features.get(bit // 32, 0) >> bit % 32 & 1)

    # Reads (4.2.2).

    def read(self, offset: int, size: int, found: int) -> None:
        """A read brought this value; fails when no conforming device would have answered it."""
        assert 0 <= found < 1 << 8 * size
        if offset >= CONFIG:
            self._read_config(offset - CONFIG, size, found)
            return
        if size != 4 or offset % 4:
            return
        known = {MAGIC_VALUE: 0x74726976, VERSION: 2, DEVICE_ID: 2}
        known |= dict.fromkeys(range(SHM_LEN, SHM_BASE + 8, 4), MASK)
        if offset in known:
            assert found == known[offset]
        elif offset == DEVICE_FEATURES:
            assert found == self.offered >> 32 * self.device_select & MASK if self.device_select < 4 else not found
        elif offset == QUEUE_NUM_MAX:
            assert found == (self.queue_size_max if self.queue_select == 0 else 0)
        elif offset == QUEUE_READY:
            assert found == int(self.queue.ready and self.queue_select == 0)
        elif offset == INTERRUPT_STATUS:
            assert self.interrupt.allows(found)
            self.interrupt = Bits(found)
        elif offset == STATUS:
            assert self.status.allows(found)
            self.status = Bits(found)
        elif offset == CONFIG_GENERATION:
            if self.generation is not None:
                assert not (self.config_changed and found == self.generation)
                assert self.config_changed or found == self.generation
            self.generation, self.config_changed = found, False

    def _read_config(self, offset: int, size: int, found: int) -> None:
        # Fields have their own width, of 64 bits two reads (4.2.2.2); offsets from 5.2.4.
        if size == 4 and offset in (0, 4):
            assert found == self.disk.sectors >> 8 * offset & MASK
        elif size == 4 and offset in (12, 20, 36, 40, 48, 52):
            assert found > 0
        elif size == 1 and offset in (33, 57, 58, 59):
            assert found == 0
        elif size == 1 and offset == 56:
            assert found in (0, 1)

    # Writes (4.2.2).

    def write(self, offset: int, value: int, size: int) -> None:
        """Any write but that of QueueNotify."""
        if offset >= CONFIG or size != 4 or offset % 4:
            # No field is writable without CONFIG_WCE (5.2.5); other widths a driver may not use: promise.
            return
        if offset == STATUS:
            self._write_status(value)
        elif offset == DEVICE_FEATURES_SEL:
            self.device_select = value
        elif offset == DRIVER_FEATURES_SEL:
            self.driver_select = value
        elif offset == DRIVER_FEATURES:
            # Negotiation ends with FEATURES_OK (2.2, 3.1.1).
            if not self.status.value & FEATURES_OK:
                self.features[self.driver_select] = value
                if value and self.driver_select >= 4:
                    self.reserved_words.add(self.driver_select)
        elif offset == QUEUE_SEL:
            self.queue_select = value
        elif offset == INTERRUPT_ACK:
            self.interrupt.clear(value)
        elif self.queue_select == 0:
            self._write_queue(offset, value)

    def _write_status(self, value: int) -> None:
        if value == 0:
            # 2.1.2, 4.2.2.1: status, interrupts and ready bits are clear.
            self._forget()
            return
        status = self.status
        status.set(value & (ACKNOWLEDGE | DRIVER | FAILED))
        # Bits that a driver may not clear stay: promise.  (The device alone sets NEEDS_RESET.)
        if value & FEATURES_OK and not status.value & FEATURES_OK:
            accepted = sum(word << 32 * select for select, word in self.features.items() if select < 4)
            beyond = any(word for select, word in self.features.items() if select >= 4)
            if accepted & ~self.offered or beyond:
                # 2.2.2: what was never offered is not accepted.
                status.clear(FEATURES_OK)
            elif accepted >> VERSION_1 & 1 and not self.reserved_words:
                status.set(FEATURES_OK)
            else:
                # 6.2: a device may refuse to work without VERSION_1.  Nothing says how a reserved bit is taken back.
                status.may_set(FEATURES_OK)
        if value & DRIVER_OK and not status.value & DRIVER_OK:
            if (status.value & ~status.free) & FEATURES_OK:
                status.set(DRIVER_OK)
            else:
                status.may_set(DRIVER_OK | NEEDS_RESET)
                self.interrupt.may_set(CONFIGURATION)

    def _write_queue(self, offset: int, value: int) -> None:
        queue = self.queue
        if offset == QUEUE_READY:
            if not value & 1:
                queue.ready = False
            elif not queue.ready:
                self._start()
        elif queue.ready:
            # 4.2.2.2: not while the queue is in use; promise.
            return
        elif offset == QUEUE_NUM:
            queue.size = value
        elif offset in queue.areas:
            queue.areas[offset] = queue.areas[offset] & ~MASK | value
        elif offset - 4 in queue.areas:
            queue.areas[offset - 4] = queue.areas[offset - 4] & MASK | value << 32

    def _start(self) -> None:
        queue = self.queue
        size = queue.size
        # 2.7: sizes are powers of two; alignments and lengths of the three areas.
        right = size in {1 << power for power in range(16)} and size <= self.queue_size_max
        for area, alignment, length, write in (
            (QUEUE_DESC, 16, 16 * size, False),
            (QUEUE_DRIVER, 2, 6 + 2 * size, False),
            (QUEUE_DEVICE, 4, 6 + 8 * size, True),
        ):
            address = queue.areas[area]
            right = right and address % alignment == 0 and self.memory.holds(address, length, write)
        if right:
            queue.ready = True
            queue.taken = queue.used = 0
        else:
            self.need_reset()

    def need_reset(self) -> None:
        """2.1.2: the bit SHOULD be set (promise: it is), and a driver that is up MUST be told."""
        self.status.set(NEEDS_RESET)
        if self.status.value & DRIVER_OK:
            self.interrupt.set(CONFIGURATION)

    # The length of the file: not in the standard, but what it does to the configuration is (2.5, 5.2.6.2).

    def resized(self, length: int) -> None:
        """The file is so many bytes long now."""
        before = self.disk.sectors
        self.disk.resize(length)
        if self.disk.sectors != before:
            self.config_changed = True
            self.interrupt.may_set(CONFIGURATION)

    # Notifications (2.7.13, 4.2.3.3).

    def notify(self, index: int) -> Expectation | None:
        """What a write of QueueNotify has to do; None: nothing."""
        status = self.status.value
        # 2.1.2: nothing is consumed before DRIVER_OK; 4.2.2.1: nor while the queue is not ready; promise: nor later.
        if status & (DRIVER_OK | NEEDS_RESET | FAILED) != DRIVER_OK or index or not self.queue.ready:
            return None
        queue, memory = self.queue, self.memory
        ring = queue.areas[QUEUE_DRIVER]
        flags, position = struct.unpack("<HH", memory.bytes_at(ring, 4))
        count = (position - queue.taken) & 0xFFFF
        if count > queue.size:
            # 2.7.13: never more than there are descriptors, for each of them has at least one.
            return Expectation([], True, flags)
        expected = Expectation([], False, flags)
        reads = [(ring, 6 + 2 * queue.size), (queue.areas[QUEUE_DESC], 16 * queue.size)]
        for step in range(count):
            place = (queue.taken + step) % queue.size
            head = struct.unpack("<H", memory.bytes_at(ring + 4 + 2 * place, 2))[0]
            try:
                chain = walk(memory, queue.areas[QUEUE_DESC], queue.size, head, self.negotiated(INDIRECT_DESC))
                effect = perform(self.disk, memory, head, chain, self.negotiated)
            except BrokenError:
                expected.broken = True
                break
            reads += chain.tables + chain.readable
            expected.effects.append(effect)
        writes = [buffer for effect in expected.effects for buffer in effect.chain.writable]
        writes.append((queue.areas[QUEUE_DEVICE], 6 + 8 * queue.size))
        expected.fuzzy = _meet(writes, reads) or any(
            _meet([one], writes[place + 1 :]) for place, one in enumerate(writes)
        )
        return expected

    def served(self, expected: Expectation, after: bytes, file: bytes) -> bool:
        """Compare memory and file after the notification with what was expected, and take over what was free.

        False: the order mattered, so that nothing is known of the device but that it kept to its buffers.
        """
        queue, memory = self.queue, self.memory
        allowed = bytearray(memory.data)
        free = bytearray(len(allowed))
        ring = queue.areas[QUEUE_DEVICE]
        found = struct.unpack_from("<H", after, memory.index(ring) + 2)[0]
        count = (found - queue.used) & 0xFFFF
        total = len(expected.effects)
        if not expected.fuzzy:
            # What was in flight when the device gave up may be done or not (2.1.1).
            assert count <= total if expected.broken else count == total
        for place, effect in enumerate(expected.effects):
            if expected.fuzzy or place >= count:
                for address, length in effect.chain.writable:
                    at = memory.index(address) if length else 0
                    free[at : at + length] = b"\xff" * length
            if place < count and not expected.fuzzy:
                effect.check(memory, allowed, free, after, self.disk)
                element = ring + 4 + 8 * ((queue.used + place) % queue.size)
                self._check_element(effect, allowed, after, element)
        at = memory.index(ring)
        if expected.fuzzy:
            free[at : at + 6 + 8 * queue.size] = b"\xff" * (6 + 8 * queue.size)
        else:
            allowed[at + 2 : at + 4] = after[at + 2 : at + 4]
        different = [i for i in range(len(after)) if after[i] != allowed[i] and not free[i]] if after != allowed else []
        assert not different, f"memory differs at {[hex(memory.base + i) for i in different[:8]]}"
        self.disk.compare(file, anything=expected.fuzzy)
        queue.taken = (queue.taken + total) & 0xFFFF
        queue.used = found
        if expected.broken:
            self.need_reset()
        if count:
            # 2.7.7.2: with flags 0 the driver MUST be told, with 1 it SHOULD NOT be.
            (self.interrupt.set if expected.flags == 0 else self.interrupt.may_set)(USED)
        memory.data[:] = after
        return not expected.fuzzy

    def _check_element(self, effect: Effect, allowed: bytearray, after: bytes, element: int) -> None:
        at = self.memory.index(element)
        head, length = struct.unpack_from("<II", after, at)
        assert head == effect.head
        # 2.7.8.2: at least so many bytes were written, from the first on.
        assert length <= effect.written
        allowed[at : at + 8] = after[at : at + 8]


def _meet(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> bool:
    """Whether any two ranges of two lists share a byte."""
    return any(a < b + m and b < a + n for a, n in one for b, m in other if n and m)
