"""The virtio-mmio transport, version 2 (VIRTIO 1.2 section 4.2.2), and the device status machine (section 2.1).

A device is a subclass that says what it is and serves a queue.  The driver in the guest is not trusted: registers
that may not be written in a state are not, and what contradicts the standard ends in DEVICE_NEEDS_RESET.
"""

from __future__ import annotations

from vmm.devices.errors import MemoryAccessError, QueueError
from vmm.devices.queue import Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from vmm.devices.memory import GuestMemory

#: Register offsets (table 4.1).
MAGIC_VALUE = 0x000
VERSION = 0x004
DEVICE_ID = 0x008
VENDOR_ID = 0x00C
DEVICE_FEATURES = 0x010
DEVICE_FEATURES_SEL = 0x014
DRIVER_FEATURES = 0x020
DRIVER_FEATURES_SEL = 0x024
QUEUE_SEL = 0x030
QUEUE_NUM_MAX = 0x034
QUEUE_NUM = 0x038
QUEUE_READY = 0x044
QUEUE_NOTIFY = 0x050
INTERRUPT_STATUS = 0x060
INTERRUPT_ACK = 0x064
STATUS = 0x070
QUEUE_DESC_LOW = 0x080
QUEUE_DESC_HIGH = 0x084
QUEUE_DRIVER_LOW = 0x090
QUEUE_DRIVER_HIGH = 0x094
QUEUE_DEVICE_LOW = 0x0A0
QUEUE_DEVICE_HIGH = 0x0A4
SHM_LEN_LOW = 0x0B0
SHM_BASE_HIGH = 0x0BC
CONFIG_GENERATION = 0x0FC
CONFIG = 0x100

#: "virt", little endian.
MAGIC = 0x74726976
#: Nobody's PCI vendor number; "pvmm", little endian.
VENDOR = 0x6D6D7670

#: Device status bits (section 2.1).
ACKNOWLEDGE = 1
DRIVER = 2
DRIVER_OK = 4
FEATURES_OK = 8
DEVICE_NEEDS_RESET = 64
FAILED = 128
_STATUS_BITS = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED

#: Interrupt status bits (section 4.2.2).
INTERRUPT_USED = 1
INTERRUPT_CONFIG = 2

#: Feature bits of every device (section 6).
F_INDIRECT_DESC = 1 << 28
F_VERSION_1 = 1 << 32

#: Words of feature bits that the standard gives a meaning (section 2.2: bits 0 to 127).  What a driver writes behind
#: them is kept together, until a reset.
_FEATURE_WORDS = 4

_LOW = 0xFFFF_FFFF
_ADDRESS_REGISTERS = {
    QUEUE_DESC_LOW: ("descriptors", 0),
    QUEUE_DESC_HIGH: ("descriptors", 32),
    QUEUE_DRIVER_LOW: ("driver", 0),
    QUEUE_DRIVER_HIGH: ("driver", 32),
    QUEUE_DEVICE_LOW: ("device", 0),
    QUEUE_DEVICE_HIGH: ("device", 32),
}


class MmioDevice:
    """One device window.

    :param memory: guest memory as far as devices may touch it.
    :param queue_sizes: the largest size of each queue.
    """

    #: Section 5; set by the subclass.
    device_id: ClassVar[int] = 0

    def __init__(self, memory: GuestMemory, queue_sizes: tuple[int, ...]) -> None:
        self.memory = memory
        self.queues = tuple(Queue(size) for size in queue_sizes)
        #: Why the device needs a reset; None while all is well.
        self.fault: str | None = None
        self._clear()

    # What a subclass provides.

    def features(self) -> int:
        """The feature bits to offer, without those of the transport."""
        return 0

    def config(self) -> bytes:
        """The device's configuration space."""
        return b""

    def write_config(self, offset: int, value: int, size: int) -> None:
        """A write of ``size`` bytes at byte ``offset`` of the configuration space; ignored where none is writable."""

    def serve(self, queue: Queue) -> None:
        """Process what is available.  QueueError and MemoryAccessError make the device need a reset."""
        raise NotImplementedError

    # State.

    def _clear(self) -> None:
        self.status = 0
        self.interrupt_status = 0
        self.config_generation = 0
        self.driver_features = 0
        self._device_features_select = 0
        self._driver_features_select = 0
        self._queue_select = 0
        self.fault = None
        for queue in self.queues:
            queue.reset()

    def reset(self) -> None:
        """What a write of 0 to Status does (section 2.1.2)."""
        generation = self.config_generation
        self._clear()
        # A driver that compares generations across a reset must not see an old one come back.
        self.config_generation = generation

    def state(self) -> object:
        """Everything that the driver knows of this device, for :meth:`restore`."""
        return (
            self.status,
            self.interrupt_status,
            self.config_generation,
            self.driver_features,
            self._device_features_select,
            self._driver_features_select,
            self._queue_select,
            self.fault,
            tuple(queue.state() for queue in self.queues),
        )

    def restore(self, state: object) -> None:
        """Back to an earlier :meth:`state` of this device."""
        assert isinstance(state, tuple)
        (
            self.status,
            self.interrupt_status,
            self.config_generation,
            self.driver_features,
            self._device_features_select,
            self._driver_features_select,
            self._queue_select,
            self.fault,
            queues,
        ) = state
        for queue, saved in zip(self.queues, queues, strict=True):
            queue.restore(saved)

    def offered(self) -> int:
        """All feature bits the device offers."""
        return self.features() | F_VERSION_1 | F_INDIRECT_DESC

    def has(self, feature: int) -> bool:
        """Whether a feature was negotiated."""
        return bool(self.driver_features & feature)

    def fail(self, reason: str) -> None:
        """The device cannot go on until it is reset (section 2.1.2)."""
        self.fault = reason
        self.status |= DEVICE_NEEDS_RESET
        if self.status & DRIVER_OK:
            self.interrupt_status |= INTERRUPT_CONFIG

    def config_changed(self) -> None:
        """The configuration space changed after the driver may have read it (section 2.5)."""
        self.config_generation = (self.config_generation + 1) & _LOW
        if self.status & DRIVER_OK:
            self.interrupt_status |= INTERRUPT_CONFIG

    # Accesses.

    def read(self, offset: int, size: int) -> int:
        """A read of ``size`` bytes at ``offset`` of the window; what is not there reads as 0."""
        if offset >= CONFIG:
            start = offset - CONFIG
            if size == 8 or offset % size:
                return 0
            return int.from_bytes(self.config()[start : start + size], "little")
        # Section 4.2.2.2: control registers are accessed in aligned 32-bit units and no others.
        if size != 4 or offset % 4:
            return 0
        if SHM_LEN_LOW <= offset <= SHM_BASE_HIGH:
            # There are no shared memory regions: their length and base read as -1.
            return _LOW
        if offset == DEVICE_FEATURES:
            select = self._device_features_select
            return self.offered() >> (32 * select) & _LOW if select < 2 else 0
        if offset in (QUEUE_NUM_MAX, QUEUE_READY):
            if self._queue_select >= len(self.queues):
                return 0
            queue = self.queues[self._queue_select]
            return queue.size_max if offset == QUEUE_NUM_MAX else int(queue.ready)
        return {
            MAGIC_VALUE: MAGIC,
            VERSION: 2,
            DEVICE_ID: self.device_id,
            VENDOR_ID: VENDOR,
            INTERRUPT_STATUS: self.interrupt_status,
            STATUS: self.status,
            CONFIG_GENERATION: self.config_generation,
        }.get(offset, 0)

    def write(self, offset: int, value: int, size: int) -> None:
        """A write of ``size`` bytes at ``offset`` of the window; what is not there is ignored."""
        if offset == QUEUE_NOTIFY and size == 4:
            self._notify(value)
            return
        if offset >= CONFIG:
            self.write_config(offset - CONFIG, value, size)
            return
        if size != 4 or offset % 4:
            return
        value &= _LOW
        if offset == STATUS:
            self._write_status(value)
        elif offset == DEVICE_FEATURES_SEL:
            self._device_features_select = value
        elif offset == DRIVER_FEATURES_SEL:
            self._driver_features_select = value
        elif offset == DRIVER_FEATURES:
            self._write_features(value)
        elif offset == INTERRUPT_ACK:
            self.interrupt_status &= ~value
        elif offset == QUEUE_SEL:
            self._queue_select = value
        elif self._queue_select < len(self.queues):
            self._write_queue(self.queues[self._queue_select], offset, value)

    def _write_features(self, value: int) -> None:
        # Section 3.1.1: features are settled by FEATURES_OK.
        if self.status & FEATURES_OK:
            return
        # A bit that is not offered must make FEATURES_OK fail, in whichever word it is.
        if self._driver_features_select >= _FEATURE_WORDS:
            self.driver_features |= value << 32 * _FEATURE_WORDS
            return
        shift = 32 * self._driver_features_select
        self.driver_features = self.driver_features & ~(_LOW << shift) | value << shift

    def _write_status(self, value: int) -> None:
        if value == 0:
            self.reset()
            return
        added = value & _STATUS_BITS & ~self.status
        if added & FEATURES_OK and (self.driver_features & ~self.offered() or not self.has(F_VERSION_1)):
            # Refused: the driver reads the bit back as 0 (sections 2.2.2 and 6.1).
            added &= ~FEATURES_OK
        if added & DRIVER_OK and not (self.status | added) & FEATURES_OK:
            added &= ~DRIVER_OK
            self.fail("DRIVER_OK before FEATURES_OK")
        # A driver may not clear bits (section 2.1.1): what was set stays set until a reset.
        self.status |= added

    def _write_queue(self, queue: Queue, offset: int, value: int) -> None:
        if offset == QUEUE_READY:
            if not value & 1:
                queue.ready = False
            elif not queue.ready:
                self._start(queue)
            return
        # Section 4.2.2.2: not while the queue is in use.
        if queue.ready:
            return
        if offset == QUEUE_NUM:
            queue.size = value
        elif offset in _ADDRESS_REGISTERS:
            name, shift = _ADDRESS_REGISTERS[offset]
            old: int = getattr(queue, name)
            setattr(queue, name, old & ~(_LOW << shift) | value << shift)

    def _start(self, queue: Queue) -> None:
        # A queue that is made ready again begins anew; it keeps its addresses.
        queue.last_available = queue.used_index = 0
        try:
            queue.check(self.memory)
        except QueueError as error:
            self.fail(error.message)
        except MemoryAccessError as error:
            self.fail(f"queue memory: {error}")
        else:
            queue.ready = True

    def _notify(self, index: int) -> None:
        # Section 2.1.2: nothing is consumed before DRIVER_OK, nor by a device that has failed or was given up.
        if self.status & (DRIVER_OK | DEVICE_NEEDS_RESET | FAILED) != DRIVER_OK:
            return
        if index >= len(self.queues):
            return
        queue = self.queues[index]
        if not queue.ready:
            return
        try:
            self.serve(queue)
        except QueueError as error:
            self.fail(error.message)
        except MemoryAccessError as error:
            self.fail(str(error))
