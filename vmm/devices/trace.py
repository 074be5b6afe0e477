"""Records what a run asks of its devices: every call and its answer, and the bytes of the image that it read.

The record is a stream of :class:`vmm.boundary.TraceEvent`, each one CBOR item:

* ``[kind, device, [argument, ...], error, answer, ...]``: a call.  ``error`` is null, or ``[code, message, errno,
  done]`` of a :class:`~vmm.devices.errors.BackendError`.  :data:`CALLS` lists kinds, arguments and answers.
* ``["data", device, offset, bytes]``: bytes of the file, at most :data:`PIECE`, or, where there would be zeroes only,
  their number instead of them.  They precede the call that read them; no byte of a file comes twice.
* ``["end", calls]``: from a run that *replays* a trace (:mod:`vmm.devices.script`): how many calls were as recorded.

Bytes that the run wrote itself, or that are zero because it said so, are not recorded: a replay writes them as well.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from zlib import crc32

from vmm.boundary import TraceEvent
from vmm.cbor import encode
from vmm.devices.backend import CHUNK, FileBackend, cut
from vmm.devices.errors import BackendError, LimitExceeded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmm.boundary import DeviceSpec, Event

#: Kinds of calls: names of their arguments, and how many answers follow the error.
#: The answers: ``read`` the CRC-32 of what it read; ``zero`` the bytes that it charged, and the size of a piece that
#: the limit on writes then forbade (otherwise 0); ``discard`` whether it left a hole; ``status`` the extents; ``flags``
#: and ``allocated``, asked for the boot page, a number.
CALLS = {
    "flags": ((), 1),
    "allocated": ((), 1),
    "read": (("offset", "length"), 1),
    "write": (("offset", "length", "CRC-32"), 0),
    "zero": (("offset", "length", "unmap"), 2),
    "discard": (("offset", "length"), 1),
    "flush": ((), 0),
    "length": (("length",), 0),
    "status": (("offset", "length", "capacity"), 1),
}
DATA = "data"
END = "end"

#: Bytes of one piece of data at most.
PIECE = 256 << 10
ZEROES = bytes(PIECE)


class Intervals:
    """A set of integers below 2^64, kept as ranges that do not touch.  16 bytes a range."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts = array("Q")
        self._ends = array("Q")

    def add(self, start: int, end: int) -> list[tuple[int, int]]:
        """Put [start, end) into the set; answers the ranges of it that were not in it."""
        if start >= end:
            return []
        starts, ends = self._starts, self._ends
        first = bisect_left(ends, start)
        last = bisect_right(starts, end)
        gaps = []
        position = start
        for index in range(first, last):
            if starts[index] > position:
                gaps.append((position, starts[index]))
            position = max(position, ends[index])
        if position < end:
            gaps.append((position, end))
        if first < last:
            start = min(start, starts[first])
            end = max(end, ends[last - 1])
        starts[first:last] = array("Q", (start,))
        ends[first:last] = array("Q", (end,))
        return gaps

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)


class TracedBackend(FileBackend):
    """What recording and replaying have in common: a device number, and reads that are seen piece by piece.

    :param buffer: PIECE bytes to read into, shared by the devices of a run.
    """

    __slots__ = ("_buffer", "device")

    def __init__(
        self,
        spec: DeviceSpec,
        check: Callable[[], None],
        device: int,
        buffer: memoryview,
        max_output: int | None = None,
    ) -> None:
        super().__init__(spec, check, max_output)
        self.device = device
        self._buffer = buffer

    def _pieces(self, offset: int, views: Sequence[memoryview], length: int) -> Iterator[tuple[int, memoryview]]:
        """Do what :meth:`FileBackend.read` does; answers offset and bytes of each piece once it is in ``views``.

        The bytes come from a buffer of our own: the views are the guest's choice and may overlap.

        :raises BackendError: after the piece that the file's failure cut short; ``done`` counts from ``offset``.
        """
        done = 0
        while True:
            size = min(length - done, PIECE)
            piece = self._buffer[:size]
            failure = None
            try:
                FileBackend.read(self, offset + done, [piece], size)
            except BackendError as error:
                failure = BackendError(error.code, error.message, error.errno, done + error.done)
                piece = piece[: error.done]
            position = 0
            for view in cut(views, done, done + len(piece)):
                view[:] = piece[position : position + len(view)]
                position += len(view)
            yield offset + done, piece
            if failure is not None:
                raise failure
            done += size
            if done >= length:
                return
            if done % CHUNK == 0:
                self.check()

    def _checksum(self, views: Sequence[memoryview]) -> int:
        """CRC-32 of the views, one after another."""
        crc = seen = 0
        for view in views:
            for start in range(0, len(view), CHUNK):
                crc = crc32(view[start : start + CHUNK], crc)
                seen += CHUNK
                if seen > CHUNK:
                    self.check()
        return crc


class RecordingBackend(TracedBackend):
    """A file that tells what is asked of it, and does it.

    :param on_event: gets the trace.
    """

    __slots__ = ("_known", "_on_event")

    def __init__(
        self,
        spec: DeviceSpec,
        check: Callable[[], None],
        device: int,
        buffer: memoryview,
        on_event: Callable[[Event], None],
        max_output: int | None = None,
    ) -> None:
        super().__init__(spec, check, device, buffer, max_output)
        self._on_event = on_event
        #: Bytes that a replay will have: recorded, or made by the run itself.
        self._known = Intervals()

    def _call(self, kind: str, arguments: Sequence[object], error: BackendError | None, *answers: object) -> None:
        failure = None if error is None else (error.code, error.message, error.errno, error.done)
        self._on_event(TraceEvent(encode((kind, self.device, arguments, failure, *answers))))

    def _inside(self, offset: int, length: int) -> int:
        """The end of what lies in the file of ``length`` bytes from ``offset``."""
        return min(offset + length, max(self.length, offset))

    def flags(self) -> int:
        """See :class:`FileBackend`."""
        flags = super().flags()
        self._call("flags", (), None, flags)
        return flags

    def allocated(self) -> int:
        """See :class:`FileBackend`."""
        allocated = super().allocated()
        self._call("allocated", (), None, allocated)
        return allocated

    def read(self, offset: int, views: Sequence[memoryview], length: int) -> None:
        """See :class:`FileBackend`."""
        crc = 0
        failure = None
        try:
            for position, piece in self._pieces(offset, views, length):
                crc = crc32(piece, crc)
                for start, end in self._known.add(position, self._inside(position, len(piece))):
                    data = bytes(piece[start - position : end - position])
                    zero = ZEROES.startswith(data)
                    item = (DATA, self.device, start, len(data) if zero else data)
                    self._on_event(TraceEvent(encode(item)))
        except BackendError as error:
            failure = error
        self._call("read", (offset, length), failure, crc)
        if failure is not None:
            raise failure

    def write(self, offset: int, views: Sequence[memoryview], length: int) -> None:
        """See :class:`FileBackend`."""
        crc = self._checksum(views)
        failure = None
        try:
            super().write(offset, views, length)
        except BackendError as error:
            failure = error
        self._known.add(offset, self._inside(offset, length if failure is None else failure.done))
        self._call("write", (offset, length, crc), failure)
        if failure is not None:
            raise failure

    def flush(self) -> None:
        """See :class:`FileBackend`."""
        failure = None
        try:
            super().flush()
        except BackendError as error:
            failure = error
        self._call("flush", (), failure)
        if failure is not None:
            raise failure

    def set_length(self, length: int) -> None:
        """See :class:`FileBackend`."""
        before = self.length
        failure = None
        try:
            super().set_length(length)
        except BackendError as error:
            failure = error
        else:
            self._known.add(before, length)
        self._call("length", (length,), failure)
        if failure is not None:
            raise failure

    def zero(self, offset: int, length: int, unmap: bool, charge: Callable[[int], None]) -> None:
        """See :class:`FileBackend`."""
        charged = refused = 0

        def counted(count: int) -> None:
            nonlocal charged, refused
            refused = count
            charge(count)
            charged += count
            refused = 0

        failure: BackendError | LimitExceeded | None = None
        try:
            super().zero(offset, length, unmap, counted)
        except (BackendError, LimitExceeded) as error:
            failure = error
        refusal = failure if isinstance(failure, BackendError) else None
        if not isinstance(failure, LimitExceeded):
            self._known.add(offset, self._inside(offset, length if refusal is None else refusal.done))
        self._call("zero", (offset, length, unmap), refusal, charged, refused)
        if failure is not None:
            raise failure

    def discard(self, offset: int, length: int) -> bool:
        """See :class:`FileBackend`."""
        hole = False
        failure = None
        try:
            hole = super().discard(offset, length)
        except BackendError as error:
            failure = error
        if hole:
            self._known.add(offset, self._inside(offset, length))
        self._call("discard", (offset, length), failure, hole)
        if failure is not None:
            raise failure
        return hole

    def block_status(self, offset: int, length: int, capacity: int) -> list[tuple[int, int, int]]:
        """See :class:`FileBackend`."""
        extents = super().block_status(offset, length, capacity)
        self._call("status", (offset, length, capacity), None, extents)
        return extents


def recording_backends(
    devices: Sequence[DeviceSpec],
    check: Callable[[], None],
    on_event: Callable[[Event], None],
    max_output: int | None = None,
) -> list[FileBackend]:
    """The devices of a run that is recorded.

    :param on_event: gets the trace.
    :param max_output: see :class:`FileBackend`.
    """
    buffer = memoryview(bytearray(PIECE))
    return [RecordingBackend(spec, check, index, buffer, on_event, max_output) for index, spec in enumerate(devices)]
