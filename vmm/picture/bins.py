"""How many bytes of each kind lie in each part of a disk, in memory that does not grow with the disk."""

from __future__ import annotations

from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm.operations.map import Extent

#: Kinds of storage, in the order of the legend; the first five are stored data.
DATA, COMPRESSED, BACKING_1, BACKING_2, BACKING_3, PREALLOCATED, ZERO, ABSENT = range(8)
KINDS = 8
#: Those of which a file holds bytes that count.
STORED = (DATA, COMPRESSED, BACKING_1, BACKING_2, BACKING_3)

#: Bytes of a cell at the beginning: a sector.
FIRST_SIZE = 512
#: Cells at most; an even number.
CELLS = 8192


def kind_of(extent: Extent) -> int:
    """The kind of an extent."""
    if not extent.present:
        return ABSENT
    if extent.zero:
        return PREALLOCATED if extent.data else ZERO
    if extent.depth:
        return min(BACKING_1 + extent.depth - 1, BACKING_3)
    return COMPRESSED if extent.compressed else DATA


class Bins:
    """Cells of equal size, each with the bytes of every kind in it.

    The disk's size is not known before its end, so that the cells begin small; whenever there are too many, each two
    become one.
    """

    def __init__(self) -> None:
        #: Bytes of a cell: a power of two.
        self.size = FIRST_SIZE
        #: Bytes that were added.
        self.length = 0
        #: By kind and cell.
        self.bytes = [array("Q", bytes(8 * CELLS)) for _ in range(KINDS)]
        self._start: int | None = None

    @property
    def start(self) -> int:
        """Byte of the disk where the first cell begins."""
        return self._start or 0

    @property
    def count(self) -> int:
        """Cells that anything was added to."""
        return -(-self.length // self.size)

    def total(self, kind: int) -> int:
        """Bytes of a kind."""
        return sum(self.bytes[kind])

    def add(self, extents: Iterable[Extent]) -> None:
        """Add extents, which follow one another and those before them."""
        for extent in extents:
            if self._start is None:
                self._start = extent.start
            at, end = extent.start - self._start, extent.start - self._start + extent.length
            self.length = end
            while end > CELLS * self.size:
                self._fold()
            cells = self.bytes[kind_of(extent)]
            size = self.size
            for cell in range(at // size, -(-end // size)):
                cells[cell] += min(end, (cell + 1) * size) - max(at, cell * size)

    def _fold(self) -> None:
        self.size *= 2
        for cells in self.bytes:
            for cell in range(CELLS // 2):
                cells[cell] = cells[2 * cell] + cells[2 * cell + 1]
            cells[CELLS // 2 :] = array("Q", bytes(4 * CELLS))
