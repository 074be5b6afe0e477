"""The file behind a block device: bytes between an open descriptor and guest RAM, without a copy in Python.

Nothing here knows what the bytes mean.
"""

from __future__ import annotations

import errno
import os

from calltable import (
    DEVICE_HAS_BLOCK_STATUS,
    DEVICE_READ_ONLY,
    DEVICE_RESIZABLE,
    ERROR_IO,
    ERROR_NO_SPACE,
    ERROR_READ_ONLY,
    ERROR_UNSUPPORTED,
    EXTENT_DATA,
)
from vmm.devices.errors import BackendError, LimitExceeded
from vmm.host import system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import ClassVar

    from vmm.boundary import DeviceSpec

#: Bytes moved between two looks at the deadline.
CHUNK = 16 << 20
#: Zeroes written at once where the file system cannot make a hole.
_ZEROES = bytes(1 << 20)

_PUNCH_HOLE = system.FALLOC_PUNCH_HOLE | system.FALLOC_KEEP_SIZE
_ZERO_RANGE = system.FALLOC_ZERO_RANGE | system.FALLOC_KEEP_SIZE
#: The largest length of a file: off_t is signed.
_OFFSET_MAX = (1 << 63) - 1
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def _nothing() -> None:
    pass


def cut(views: Sequence[memoryview], start: int, end: int) -> list[memoryview]:
    """Bytes [start, end) of the views one after another."""
    out: list[memoryview] = []
    for view in views:
        size = len(view)
        if start < size and end > 0:
            out.append(view[max(start, 0) : min(end, size)])
        start -= size
        end -= size
        if end <= 0:
            break
    return out


class FileBackend:
    """An open file as a range of bytes.

    :param spec: the descriptor and what may be done with it; its position is changed, the file is not closed.
    :param check: called between large pieces of work; may raise to end the run.
    :param max_output: length in bytes above which growing ends the run; None: no such limit.
    """

    __slots__ = (
        *("_allocated", "_owed", "_status", "_waits", "check", "fd", "length", "max_length", "max_output"),
        *("read_only", "resizable"),
    )

    #: The granularity of the device in bytes.  The guest's runtime hides it.
    block_size: ClassVar[int] = 512

    def __init__(self, spec: DeviceSpec, check: Callable[[], None] = _nothing, max_output: int | None = None) -> None:
        self.fd = spec.fd
        #: Exact length in bytes.
        self.length = spec.length
        self.read_only = spec.read_only
        self.resizable = spec.resizable and not spec.read_only
        self._allocated = spec.allocated
        self.max_length = spec.max_length
        self.max_output = max_output
        self.check = check
        #: Whether growing waits for the next call, so that a write past the end is one step: whoever looks at an image
        #: that is changed in place finds it as it was, or longer and with those bytes at its end.
        self._waits = self.resizable and spec.length > 0
        #: Whether the file is yet to become as long as ``length`` says.
        self._owed = False
        #: Whether the file system tells data from holes; found out when first asked.
        self._status: bool | None = None

    def flags(self) -> int:
        """DEVICE_* flags of the call table."""
        out = DEVICE_READ_ONLY if self.read_only else 0
        if self.resizable:
            out |= DEVICE_RESIZABLE
        if self._has_status():
            out |= DEVICE_HAS_BLOCK_STATUS
        return out

    def allocated(self) -> int:
        """Bytes that the file system has allocated for the file.

        :raises BackendError: the system does not say.
        """
        if self._allocated is not None:
            return self._allocated
        try:
            return os.fstat(self.fd).st_blocks * 512
        except OSError as error:
            raise _failure("looking at the file", None, error) from None

    def _has_status(self) -> bool:
        if self._status is None:
            try:
                os.lseek(self.fd, 0, os.SEEK_HOLE)
            except OSError as error:
                # ENXIO: the file is empty, which says nothing against the file system.
                self._status = error.errno == errno.ENXIO
            else:
                self._status = True
        return self._status

    def read(self, offset: int, views: Sequence[memoryview], length: int) -> None:
        """Fill ``views`` (together ``length`` bytes) from byte ``offset``; past the end they read as zero.

        :raises BackendError: the system refused, or the file is shorter than it was.
        """
        self.settle()
        inside = min(length, max(self.length - offset, 0))
        done = self._move(os.preadv, "reading", offset, views, length, inside)
        if done < inside:
            message = f"the file now ends at or before byte {offset + done}, it had {self.length}"
            raise BackendError(ERROR_IO, message, done=done)
        if inside < length:
            for view in cut(views, inside, length):
                view[:] = bytes(len(view))

    def write(self, offset: int, views: Sequence[memoryview], length: int) -> None:
        """Write ``views`` at byte ``offset``; what would lie past the end of the file is dropped.

        :raises BackendError: the device is read-only, or the system refused.
        """
        if self.read_only:
            raise BackendError(ERROR_READ_ONLY, "the device is read-only")
        self._put(offset, views, length)

    def _put(self, offset: int, views: Sequence[memoryview], length: int) -> None:
        """The work of :meth:`write`, for :meth:`zero` as well."""
        inside = min(length, max(self.length - offset, 0))
        if inside == 0 or offset + inside < self.length:
            self.settle()
        done = self._move(os.pwritev, "writing", offset, views, length, inside)
        if done == inside > 0:
            # Either it was as long before, or these bytes have made it so.
            self._owed = False
        if done < inside:
            raise BackendError(ERROR_IO, f"writing at byte {offset + done} wrote nothing", done=done)

    def _move(
        self,
        call: Callable[[int, Sequence[memoryview], int], int],
        doing: str,
        offset: int,
        views: Sequence[memoryview],
        length: int,
        inside: int,
    ) -> int:
        """Move the first ``inside`` bytes of ``views`` (together ``length``), a chunk at a time.

        Answers the bytes moved: fewer than asked once the system moves none, or the run would stay here for ever.

        :param call: ``os.preadv`` or ``os.pwritev``.
        :raises BackendError: the system refused.
        """
        done = 0
        while done < inside:
            whole = done == 0 and inside == length <= CHUNK
            part = views if whole else cut(views, done, min(inside, done + CHUNK))
            try:
                moved = call(self.fd, part, offset + done)
            except OSError as error:
                raise _failure(doing, offset + done, error, done) from None
            if moved == 0:
                break
            done += moved
            if done < inside:
                self.check()
        return done

    def flush(self) -> None:
        """What was written is durable when this returns.

        :raises BackendError: the system refused.
        """
        if self.read_only:
            return
        self.settle()
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            # EINVAL: something that cannot be synchronised, such as a character device.
            if error.errno != errno.EINVAL:
                raise _failure("flushing", None, error) from None

    def set_length(self, length: int) -> None:
        """Make the file ``length`` bytes long; new bytes read as zero.  Nothing else makes a file longer.

        :raises LimitExceeded: it would be longer than ``max_output``.
        :raises BackendError: read-only, not resizable, above the limit, or the system refused.
        """
        if self.read_only:
            raise BackendError(ERROR_READ_ONLY, "the device is read-only")
        if length == self.length:
            return
        if not self.resizable:
            raise BackendError(ERROR_UNSUPPORTED, "the device has a fixed length")
        most = _OFFSET_MAX if self.max_length is None else min(self.max_length, _OFFSET_MAX)
        if length > most:
            raise BackendError(ERROR_NO_SPACE, f"{length} bytes are more than the {most} allowed")
        if self.max_output is not None and length > max(self.length, self.max_output):
            raise LimitExceeded("max-output", self.max_output)
        self.settle()
        if self._waits and length > self.length:
            self.length = length
            self._owed = True
            return
        self._truncate(length)
        self.length = length

    def _truncate(self, length: int) -> None:
        try:
            os.ftruncate(self.fd, length)
        except OSError as error:
            raise _failure(f"making the file {length} bytes long", None, error) from None

    def settle(self) -> None:
        """Make the file as long as it is said to be, if that is still to be done.

        :raises BackendError: the system refused.
        """
        if self._owed:
            self._truncate(self.length)
            self._owed = False

    def zero(self, offset: int, length: int, unmap: bool, charge: Callable[[int], None]) -> None:
        """The range reads as zero afterwards, as far as it lies in the file.

        :param unmap: a hole may be left.
        :param charge: told the bytes of each piece that is really written, before it is.
        :raises BackendError: read-only, or the system refused.
        """
        if self.read_only:
            raise BackendError(ERROR_READ_ONLY, "the device is read-only")
        self.settle()
        length = min(length, max(self.length - offset, 0))
        if length == 0:
            return
        if unmap and self._allocate(_PUNCH_HOLE, offset, length):
            return
        if self._allocate(_ZERO_RANGE, offset, length):
            return
        # Holes are zero already; without `unmap` they may stay, since nothing there is taken away.
        for start, size, flags in self._walk(offset, length):
            self.check()
            position, left = start, size if flags & EXTENT_DATA else 0
            while left > 0:
                piece = memoryview(_ZEROES)[: min(left, len(_ZEROES))]
                charge(len(piece))
                try:
                    self._put(position, [piece], len(piece))
                except BackendError as error:
                    error.done += position - offset
                    raise
                position += len(piece)
                left -= len(piece)
                self.check()

    def discard(self, offset: int, length: int) -> bool:
        """``length`` bytes from ``offset`` are no longer needed: a hole where the file system can, otherwise nothing.

        Answers whether there is a hole now, so that the range reads as zero.

        :raises BackendError: read-only, or no space for what the hole leaves.
        """
        if self.read_only:
            raise BackendError(ERROR_READ_ONLY, "the device is read-only")
        self.settle()
        length = min(length, max(self.length - offset, 0))
        return length > 0 and self._allocate(_PUNCH_HOLE, offset, length)

    def _allocate(self, mode: int, offset: int, length: int) -> bool:
        """fallocate(2); false when the file system has no such thing."""
        try:
            system.fallocate(self.fd, mode, offset, length)
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise _failure("allocating", offset, error) from None
            return False
        return True

    def block_status(self, offset: int, length: int, capacity: int) -> list[tuple[int, int, int]]:
        """Data and holes of the bytes [offset, offset + length): (offset, length, flags), in order, without gaps.

        :param capacity: at most so many; then less than the range may be covered.
        """
        self.settle()
        out: list[tuple[int, int, int]] = []
        for extent in self._walk(offset, length):
            if out and out[-1][2] == extent[2]:
                start, size, flags = out[-1]
                out[-1] = (start, size + extent[1], flags)
                continue
            if len(out) == capacity:
                break
            out.append(extent)
        return out

    def _walk(self, offset: int, length: int) -> list[tuple[int, int, int]] | Extents:
        if not self._has_status():
            return [(offset, length, EXTENT_DATA)] if length else []
        return Extents(self.fd, offset, offset + length)


class Extents:
    """An iterator over data and holes of a range, by lseek(2)."""

    __slots__ = ("_end", "_fd", "_position")

    def __init__(self, fd: int, start: int, end: int) -> None:
        self._fd = fd
        self._position = start
        self._end = end

    def __iter__(self) -> Extents:
        return self

    def __next__(self) -> tuple[int, int, int]:
        """(offset, length, flags) of the next run; its length is at least 1."""
        start = self._position
        if start >= self._end:
            raise StopIteration
        try:
            data = os.lseek(self._fd, start, os.SEEK_DATA)
            hole = os.lseek(self._fd, start, os.SEEK_HOLE) if data == start else data
            # The file is being changed under us when the two disagree: then all of it is data.
            end, flags = (hole, EXTENT_DATA) if data == start and hole > start else (data, 0)
            if end <= start:
                end, flags = self._end, EXTENT_DATA
        except OSError as error:
            # ENXIO: no data from here to the end of the file.
            end, flags = self._end, 0 if error.errno == errno.ENXIO else EXTENT_DATA
        end = min(end, self._end)
        self._position = end
        return start, end - start, flags


def _failure(doing: str, offset: int | None, error: OSError, done: int = 0) -> BackendError:
    number = error.errno or errno.EIO
    code = ERROR_NO_SPACE if number in _NO_SPACE else ERROR_IO
    where = "" if offset is None else f" at byte {offset}"
    return BackendError(code, f"{doing}{where} failed: {os.strerror(number)}", number, done)
