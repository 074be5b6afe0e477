"""Split virtqueues from the device's side (VIRTIO 1.2 section 2.7), without any input or output of its own.

A guest may write anything into its rings.  So each index and each descriptor is read once, into integers; a chain has
at most as many descriptors as the queue, whatever ``next`` says; and memory is reached through ``GuestMemory`` only.
"""

from __future__ import annotations

from struct import Struct

from vmm.devices.errors import QueueError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.devices.memory import GuestMemory

#: Descriptor flags (section 2.7.5).
DESC_F_NEXT = 1
DESC_F_WRITE = 2
DESC_F_INDIRECT = 4
#: Flag of the available ring: the driver wants no interrupts (section 2.7.6).
AVAIL_F_NO_INTERRUPT = 1

#: Bytes that one chain may describe (section 2.7.5).
CHAIN_BYTES_MAX = 1 << 32

_DESCRIPTOR = Struct("<QIHH")
_U16 = Struct("<H")
_USED_ELEMENT = Struct("<II")
_DESCRIPTOR_SIZE = 16
_INDEX_MASK = 0xFFFF

#: A buffer of a chain: address and length in bytes.
Segment = tuple[int, int]


class Queue:
    """One virtqueue.

    The transport sets ``size`` and the three addresses while ``ready`` is false.

    :param size_max: the largest size the device allows, a power of two up to 32768.
    """

    __slots__ = ("descriptors", "device", "driver", "last_available", "ready", "size", "size_max", "used_index")

    def __init__(self, size_max: int) -> None:
        self.size_max = size_max
        self.reset()

    def reset(self) -> None:
        """As after a device reset."""
        self.size = 0
        self.descriptors = 0
        self.driver = 0
        self.device = 0
        self.ready = False
        #: How many available entries were taken and used entries written, modulo 2^16.
        self.last_available = 0
        self.used_index = 0

    def state(self) -> tuple[int, int, int, int, bool, int, int]:
        """What :meth:`restore` takes."""
        return (
            self.size,
            self.descriptors,
            self.driver,
            self.device,
            self.ready,
            self.last_available,
            self.used_index,
        )

    def restore(self, state: tuple[int, int, int, int, bool, int, int]) -> None:
        """Back to an earlier :meth:`state`."""
        (
            self.size,
            self.descriptors,
            self.driver,
            self.device,
            self.ready,
            self.last_available,
            self.used_index,
        ) = state

    def check(self, memory: GuestMemory) -> None:
        """Whether the queue can be used as the driver set it up (sections 2.7 and 2.7.1).

        :raises QueueError: the size is no power of two up to ``size_max``, or an area is not aligned.
        :raises MemoryAccessError: an area is not in guest memory.
        """
        size = self.size
        if not 0 < size <= self.size_max or size & (size - 1):
            raise QueueError(f"a queue of size {size}; a power of two up to {self.size_max} is allowed")
        for name, address, alignment, length in (
            ("descriptor table", self.descriptors, 16, 16 * size),
            ("available ring", self.driver, 2, 6 + 2 * size),
            ("used ring", self.device, 4, 6 + 8 * size),
        ):
            if address % alignment:
                raise QueueError(f"the {name} at {address:#x} is not aligned to {alignment} bytes")
            memory.view(address, length, writable=name == "used ring")

    def available(self, memory: GuestMemory) -> tuple[list[int], bool]:
        """Take the heads of all chains that the driver has made available since the last call.

        The second item says whether the driver wants an interrupt.

        :raises QueueError: more chains than the queue has descriptors.
        :raises MemoryAccessError: the ring is not in guest memory.
        """
        size = self.size
        ring = memory.view(self.driver, 4 + 2 * size, writable=False)
        count = (_U16.unpack_from(ring, 2)[0] - self.last_available) & _INDEX_MASK
        if count > size:
            raise QueueError(f"the available index is {count} ahead, the queue has {size} descriptors")
        first = self.last_available
        heads: list[int] = [
            _U16.unpack_from(ring, 4 + 2 * (position & (size - 1)))[0] for position in range(first, first + count)
        ]
        self.last_available = (first + count) & _INDEX_MASK
        return heads, not _U16.unpack_from(ring, 0)[0] & AVAIL_F_NO_INTERRUPT

    def table(self, memory: GuestMemory) -> memoryview:
        """The descriptor table, for :meth:`chain`.

        :raises MemoryAccessError: it is not in guest memory.
        """
        return memory.view(self.descriptors, _DESCRIPTOR_SIZE * self.size, writable=False)

    def chain(
        self, memory: GuestMemory, table: memoryview, head: int, indirect: bool
    ) -> tuple[list[Segment], list[Segment]]:
        """The device-readable and the device-writable buffers of the chain that begins at ``head``.

        :param table: the descriptor table.
        :param indirect: VIRTIO_F_INDIRECT_DESC was negotiated.
        :raises QueueError: the chain breaks section 2.7.4 or 2.7.5.
        :raises MemoryAccessError: an indirect table is not in guest memory.
        """
        count = limit = self.size
        readable: list[Segment] = []
        writable: list[Segment] = []
        index = head
        inside = False
        total = 0
        unpack = _DESCRIPTOR.unpack_from
        while True:
            if index >= count:
                raise QueueError(f"descriptor {index} of a table of {count}")
            address, length, flags, following = unpack(table, index * _DESCRIPTOR_SIZE)
            if flags & DESC_F_INDIRECT:
                if inside:
                    raise QueueError(f"descriptor {index} of an indirect table is indirect")
                if not indirect:
                    raise QueueError(f"descriptor {index} is indirect, which was not negotiated")
                if flags & DESC_F_NEXT:
                    raise QueueError(f"descriptor {index} is indirect and has a next one")
                # As many as it likes: what counts is how many of them the chain uses (section 2.7.5.3.1).
                count, rest = divmod(length, _DESCRIPTOR_SIZE)
                if rest or not count:
                    raise QueueError(f"an indirect table of {length} bytes, which are no whole number of descriptors")
                table = memory.view(address, length, writable=False)
                inside = True
                index = 0
                continue
            limit -= 1
            if limit < 0:
                raise QueueError(f"a chain of more than {self.size} descriptors")
            total += length
            if total > CHAIN_BYTES_MAX:
                raise QueueError(f"a chain of more than {CHAIN_BYTES_MAX} bytes")
            if flags & DESC_F_WRITE:
                writable.append((address, length))
            elif writable:
                raise QueueError(f"descriptor {index} is readable and follows a writable one")
            else:
                readable.append((address, length))
            if not flags & DESC_F_NEXT:
                return readable, writable
            index = following

    def publish(self, memory: GuestMemory, used: list[tuple[int, int]]) -> None:
        """Give chains back to the driver: (head, bytes written), then the index, once for all of them.

        :raises MemoryAccessError: the ring is not in guest memory.
        """
        size = self.size
        ring = memory.view(self.device, 6 + 8 * size, writable=True)
        index = self.used_index
        for head, written in used:
            _USED_ELEMENT.pack_into(ring, 4 + 8 * (index & (size - 1)), head, written)
            index += 1
        self.used_index = index & _INDEX_MASK
        _U16.pack_into(ring, 2, self.used_index)
