"""Four-level page tables (Intel SDM volume 3, section 4.5; AMD64 APM volume 2, section 5.3).

Guest-virtual and guest-physical addresses are equal.  The accessed and dirty bits are set from the start, so that the
processor never writes into the tables: they are the same before and after a run.
"""

from __future__ import annotations

from struct import pack

from calltable import LARGE_PAGE_SIZE, PAGE_SIZE
from vmm.errors import UsageError
from vmm.machine.layout import PAGE_TABLES, SYSTEM_END

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm.machine.layout import Region

PRESENT = 1 << 0
WRITABLE = 1 << 1
USER = 1 << 2
WRITE_THROUGH = 1 << 3
CACHE_DISABLE = 1 << 4
ACCESSED = 1 << 5
DIRTY = 1 << 6
LARGE = 1 << 7
NO_EXECUTE = 1 << 63

#: Upper levels forbid nothing; the last level decides.
_LINK = PRESENT | WRITABLE | USER | ACCESSED
_ENTRIES = 512


def leaf_flags(region: Region) -> int:
    """The flags of the last-level entries of a region.

    :raises ValueError: it would be writable and executable.
    """
    if region.write and region.execute:
        raise ValueError(f"{region.name} is writable and executable")
    flags = PRESENT | ACCESSED
    if region.write:
        flags |= WRITABLE | DIRTY
    if region.user:
        flags |= USER
    if not region.execute:
        flags |= NO_EXECUTE
    if region.device:
        flags |= CACHE_DISABLE | WRITE_THROUGH
    if region.large:
        flags |= LARGE
    return flags


class PageTables:
    """Writes tables into guest memory.

    :param ram: the memory below the cold arena.
    :param ram_base: its guest address.
    """

    __slots__ = ("_base", "_next", "_tables", "_words")

    def __init__(self, ram: memoryview, ram_base: int) -> None:
        self._words = ram.cast("Q")
        self._base = ram_base
        self._next = PAGE_TABLES
        self._tables: dict[tuple[int, int], int] = {}
        self._new_table()

    @property
    def root(self) -> int:
        """Guest-physical address of the top table, for CR3."""
        return PAGE_TABLES

    @property
    def end(self) -> int:
        """Guest-physical address after the last table."""
        return self._next

    def _new_table(self) -> int:
        table = self._next
        if table >= SYSTEM_END:
            raise UsageError("the page tables of that much guest memory do not fit the system area")
        self._next = table + PAGE_SIZE
        return table

    def _table(self, level: int, address: int) -> int:
        """Word index of the table of ``level`` (3 directory pointers, 2 directory, 1 pages) that maps ``address``."""
        key = (level, address >> (12 + 9 * level))
        table = self._tables.get(key)
        if table is None:
            parent = PAGE_TABLES - self._base >> 3 if level == 3 else self._table(level + 1, address)
            made = self._new_table()
            table = self._tables[key] = made - self._base >> 3
            self._words[parent + (address >> (12 + 9 * level) & _ENTRIES - 1)] = made | _LINK
        return table

    def map(self, regions: Iterable[Region]) -> None:
        """Map each region onto itself.

        :raises UsageError: too much memory for the room that tables have.
        """
        for region in regions:
            level, size = (2, LARGE_PAGE_SIZE) if region.large else (1, PAGE_SIZE)
            flags = leaf_flags(region)
            address = region.start
            while address < region.end:
                table = self._table(level, address)
                index = address // size % _ENTRIES
                count = min(_ENTRIES - index, (region.end - address) // size)
                end = address + count * size
                # (Not array: importing it brings collections, which costs more than this.)
                entries = pack(f"{count}Q", *range(address | flags, end | flags, size))
                self._words[table + index : table + index + count] = memoryview(entries).cast("Q")
                address = end

    def release(self) -> None:
        """Let go of guest memory."""
        self._words.release()
