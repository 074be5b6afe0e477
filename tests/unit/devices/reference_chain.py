"""Descriptor chains as VIRTIO 1.2 section 2.7.5 has them, over a copy of guest memory; for the reference model."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

NEXT, WRITE, INDIRECT = 1, 2, 4

Buffer = tuple[int, int]


class BrokenError(Exception):
    """A driver broke a MUST; the device cannot go on."""


@dataclass
class Memory:
    """Guest memory at one moment: [base, base + len(data)), of which devices may not write the first bytes."""

    base: int
    data: bytearray
    read_only: int

    def holds(self, address: int, length: int, write: bool) -> bool:
        """Whether a device may touch these bytes; of none it may touch any."""
        low = self.base + (self.read_only if write else 0)
        return length == 0 or (low <= address and address + length <= self.base + len(self.data))

    def index(self, address: int) -> int:
        """Where an address lies in ``data``."""
        return address - self.base

    def bytes_at(self, address: int, length: int) -> bytes:
        """What is there.

        :raises BrokenError: nothing is.
        """
        if not self.holds(address, length, False):
            raise BrokenError(f"{length} bytes at {address:#x}")
        start = self.index(address) if length else 0
        return bytes(self.data[start : start + length])


@dataclass
class Chain:
    """The buffers of one chain, and the indirect tables that it came from."""

    readable: list[Buffer] = field(default_factory=list)
    writable: list[Buffer] = field(default_factory=list)
    tables: list[Buffer] = field(default_factory=list)


def walk(memory: Memory, table: int, size: int, head: int, indirect: bool) -> Chain:
    """The chain that begins at descriptor ``head`` of the table of ``size`` descriptors.

    :param indirect: VIRTIO_F_INDIRECT_DESC was accepted.
    :raises BrokenError: it breaks a rule.
    """
    chain = Chain()
    entries, at, inside = size, head, False
    seen = total = 0
    while True:
        if at >= entries:
            raise BrokenError("next outside the table")
        address, length, flags, following = struct.unpack("<QIHH", memory.bytes_at(table + 16 * at, 16))
        if flags & INDIRECT:
            # 2.7.5.3.1: only when accepted, not within a table, not with NEXT; the table is whole descriptors.
            if not indirect or inside or flags & NEXT or length % 16 or length == 0:
                raise BrokenError("indirect")
            memory.bytes_at(address, length)
            chain.tables.append((address, length))
            # 2.7.5.3.2: WRITE means nothing here; the first entry is that of index 0.
            table, entries, at, inside = address, length // 16, 0, True
            continue
        seen += 1
        total += length
        # 2.7.5, 2.7.5.2, 2.7.5.3.1: no longer than the queue, nor than 2^32 bytes.
        if seen > size or total > 2**32:
            raise BrokenError("too long")
        if flags & WRITE:
            chain.writable.append((address, length))
        elif chain.writable:
            # 2.7.4.2.
            raise BrokenError("readable after writable")
        else:
            chain.readable.append((address, length))
        if not flags & NEXT:
            break
        at = following
    for buffers, write in ((chain.readable, False), (chain.writable, True)):
        for address, length in buffers:
            if not memory.holds(address, length, write):
                raise BrokenError("a buffer outside memory")
    return chain
