"""Guest memory: one lazily backed mapping, and who may touch what of it."""

from __future__ import annotations

import mmap
from bisect import bisect_right

from calltable import RAM_BASE
from vmm.devices.errors import MemoryAccessError
from vmm.errors import KvmError
from vmm.machine.layout import RAM_END

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm.machine.layout import Region

_EMPTY = memoryview(b"")
_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)

#: Bytes of memslot 0; the cold arena follows it in the mapping as it does in the guest.
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

    __slots__ = ("_readable", "_writable", "all", "cold_size", "map")

    def __init__(self, cold_size: int) -> None:
        self.cold_size = cold_size
        try:
            self.map = mmap.mmap(-1, RAM_SIZE + cold_size, flags=_FLAGS)
        except OSError as error:
            raise KvmError(f"no address space for {cold_size >> 20} MiB of guest memory: {error.strerror}") from None
        #: All of it, from RAM_BASE on.
        self.all = memoryview(self.map)
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
        """Read as the host may, anywhere in RAM; shorter at the end of RAM."""
        start = address - RAM_BASE
        return bytes(self.all[start : start + length]) if start >= 0 else b""

    def drop_cold(self) -> None:
        """Make the cold arena zero again by giving its pages back to the host."""
        if self.cold_size:
            self.map.madvise(mmap.MADV_DONTNEED, RAM_SIZE, self.cold_size)

    def close(self) -> None:
        """Give up the memory; when somebody still holds a view, the last one of them does.  Idempotent."""
        try:
            self.all.release()
            self.map.close()
        except BufferError:
            pass
