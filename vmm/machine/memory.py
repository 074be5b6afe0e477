"""Guest memory: one lazily backed mapping, and who may touch what of it."""

from __future__ import annotations

import mmap
from bisect import bisect_right

from calltable import LARGE_PAGE_SIZE, RAM_BASE
from vmm.devices.errors import MemoryAccessError
from vmm.errors import KvmError
from vmm.kvm.binding import address_of
from vmm.machine.layout import RAM_END

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm.machine.layout import Region

_EMPTY = memoryview(b"")
_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)

#: Bytes below the cold arena, which follows in the mapping as it does in the guest.
RAM_SIZE = RAM_END - RAM_BASE


class _Ranges:
    """Disjoint ranges of addresses, neighbours joined."""

    __slots__ = ("ends", "starts")

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []
        for start, end in sorted(ranges):
            if self.ends and self.ends[-1] == start:
                self.ends[-1] = end
            else:
                self.starts.append(start)
                self.ends.append(end)


class GuestMemory:
    """The memory of one machine.

    :param cold_size: bytes of the cold arena.
    :raises KvmError: the host gives no address space for it.
    """

    __slots__ = ("_readable", "_writable", "all", "cold_size", "map", "offset", "size")

    def __init__(self, cold_size: int) -> None:
        self.cold_size = cold_size
        self.size = RAM_SIZE + cold_size
        try:
            self.map = mmap.mmap(-1, self.size + LARGE_PAGE_SIZE, flags=_FLAGS)
        except OSError as error:
            raise KvmError(f"no address space for {cold_size >> 20} MiB of guest memory: {error.strerror}") from None
        #: Where guest memory starts in the mapping: large pages need the same alignment in host and guest.
        self.offset = -address_of(self.map) % LARGE_PAGE_SIZE
        #: All of it, from RAM_BASE on.
        self.all = memoryview(self.map)[self.offset : self.offset + self.size]
        if cold_size:
            try:
                # A fifteenth of the time for each byte that is touched, measured; a host without them loses nothing.
                self.map.madvise(mmap.MADV_HUGEPAGE, self.offset + RAM_SIZE, cold_size)
            except OSError:
                pass
        self._readable = _Ranges(())
        self._writable = _Ranges(())

    def allow(self, regions: Iterable[Region]) -> None:
        """Let devices touch what ring 3 may touch in these regions, and nothing else."""
        user = [region for region in regions if region.user and not region.device]
        self._readable = _Ranges((region.start, region.end) for region in user)
        self._writable = _Ranges((region.start, region.end) for region in user if region.write)

    def view(self, address: int, length: int, *, writable: bool) -> memoryview:
        """The bytes [address, address + length) themselves; see :class:`vmm.devices.memory.GuestMemory`.

        :raises MemoryAccessError: not all of the range may be touched.
        """
        if not length:
            return _EMPTY
        ranges = self._writable if writable else self._readable
        index = bisect_right(ranges.starts, address) - 1
        if index < 0 or address + length > ranges.ends[index]:
            raise MemoryAccessError(address, length, writable)
        start = address - RAM_BASE
        return self.all[start : start + length]

    def put(self, address: int, data: bytes) -> None:
        """Write as the loader does, anywhere in RAM."""
        start = address - RAM_BASE
        self.all[start : start + len(data)] = data

    def get(self, address: int, length: int) -> bytes:
        """Read ``length`` bytes as the host may, anywhere in RAM; fewer at the end of RAM."""
        start = address - RAM_BASE
        return bytes(self.all[start : start + length]) if start >= 0 else b""

    def drop_cold(self) -> None:
        """Make the cold arena zero again by giving its pages back to the host.

        All of it, whoever touched it: with nothing touched this takes 20 us for 256 MiB.  A dirty log would tell what
        was touched in 3 us, but forbids large pages, and each touched MiB then costs 1.1 ms instead of 0.08 ms.
        """
        if self.cold_size:
            self.map.madvise(mmap.MADV_DONTNEED, self.offset + RAM_SIZE, self.cold_size)

    def close(self) -> None:
        """Give up the memory; when somebody still holds a view, the last one of them does.  Idempotent."""
        try:
            self.all.release()
            self.map.close()
        except BufferError:
            pass
