"""Plays a recorded trace back: each call must be the one that was recorded, and gets the answer that was recorded.

The bytes come from the devices' descriptors, which hold what the recorded run read and nothing else; what the run
writes goes there too.  A trace is hostile input: whatever is in it, the run ends with
:class:`~vmm.devices.errors.ReplayDiverged` or takes its answers, which a guest can be given without danger.
"""

from __future__ import annotations

from io import BytesIO
from zlib import crc32

from vmm.boundary import TraceEvent
from vmm.cbor import DecodeError, SequenceDecoder, encode
from vmm.devices.backend import FileBackend
from vmm.devices.errors import BackendError, ReplayDiverged
from vmm.devices.trace import CALLS, END, PIECE, ZEROES, TracedBackend

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeGuard

    from vmm.boundary import DeviceSpec
    from vmm.cbor import Value

_U64 = 1 << 64
_CODE_MAX = 1 << 16


def _free(_: int) -> None:
    """The replay's own memory is charged by the size of its bundle, not by the run's budgets."""


def describe(kind: Value, device: Value, arguments: Sequence[Value]) -> str:
    """A call in words: ``read of device 0, offset 512, length 512``.  Whatever is in a record makes a short text."""
    if not isinstance(kind, str) or kind not in CALLS:
        return "something unknown"
    names, _ = CALLS[kind]
    if len(arguments) != len(names) or not all(_is_number(value, _U64) for value in (device, *arguments)):
        return f"something unknown that is called {kind}"
    parts = [f"{kind} of device {device!r}"]
    parts += [f"{name} {value!r}" for name, value in zip(names, arguments, strict=True)]
    return ", ".join(parts)


class Script:
    """The calls of a recorded run, in order, for all of its devices.

    :param trace: a CBOR sequence (RFC 8742) of the calls of :mod:`vmm.devices.trace`, without the data.
    """

    def __init__(self, trace: bytes) -> None:
        self._source = BytesIO(trace)
        self._decoder = SequenceDecoder(self._source)
        self._length = len(trace)
        #: Calls that were as recorded.
        self.calls = 0

    def backends(
        self, devices: Sequence[DeviceSpec], check: Callable[[], None], max_output: int | None = None
    ) -> list[FileBackend]:
        """The devices of a run that replays this.

        :param max_output: see :class:`FileBackend`.
        """
        buffer = memoryview(bytearray(PIECE))
        return [ReplayBackend(spec, check, index, buffer, self, max_output) for index, spec in enumerate(devices)]

    def take(
        self, kind: str, device: int, arguments: list[int], length: int = 0
    ) -> tuple[BackendError | None, list[Value]]:
        """The recorded answer to this call, if it is the next one: the error, and :data:`CALLS`' answers.

        :param length: bytes that an error may have done.
        :raises ReplayDiverged: another call was recorded here, or none.
        """
        came = describe(kind, device, arguments)
        if self._source.tell() == self._length:
            raise self.diverged(f"the recorded run had ended its calls; now came: {came}")
        try:
            entry = self._decoder.item()
        except DecodeError as wrong:
            raise self.diverged(f"the record is damaged: {wrong}; now came: {came}") from None
        if not isinstance(entry, list) or len(entry) < 4 or not isinstance(entry[2], list):
            raise self.diverged(f"the record is damaged: this is no call; now came: {came}")
        if entry[:3] != [kind, device, arguments]:
            raise self.diverged(f"recorded: {describe(entry[0], entry[1], entry[2])}; now came: {came}")
        answers = entry[4:]
        if len(answers) != CALLS[kind][1]:
            raise self.diverged(f"the record is damaged: {len(answers)} answers to: {came}")
        error = self._error(entry[3], length)
        self.calls += 1
        return error, answers

    def _error(self, recorded: Value, length: int) -> BackendError | None:
        if recorded is None:
            return None
        if isinstance(recorded, list) and len(recorded) == 4:
            code, message, number, done = recorded
            if (
                _is_number(code, _CODE_MAX)
                and isinstance(message, str)
                and (number is None or _is_number(number, _CODE_MAX))
                and _is_number(done, length + 1)
            ):
                return BackendError(int(code), message, number, int(done))
        raise self.diverged("the record is damaged: the error is none")

    def diverged(self, message: str) -> ReplayDiverged:
        """The end of a replay, at the call after those that were as recorded."""
        text = f"device call {self.calls + 1}: {message}"
        return ReplayDiverged("".join(c if c.isprintable() else "?" for c in text))

    def unusable(self, message: str) -> ReplayDiverged:
        """The end of a replay, at the call just taken: what was recorded for it is of no use."""
        self.calls -= 1
        return self.diverged(message)

    def end(self) -> TraceEvent:
        """How much of the record was used."""
        return TraceEvent(encode((END, self.calls)))


def _is_number(value: Value, limit: int) -> TypeGuard[int]:
    return isinstance(value, int) and 0 <= value < limit


class ReplayBackend(TracedBackend):
    """A file that answers as it did in the recorded run."""

    __slots__ = ("_script",)

    def __init__(
        self,
        spec: DeviceSpec,
        check: Callable[[], None],
        device: int,
        buffer: memoryview,
        script: Script,
        max_output: int | None = None,
    ) -> None:
        super().__init__(spec, check, device, buffer, max_output)
        self._script = script

    def _number(self, kind: str, limit: int) -> int:
        _, (value,) = self._script.take(kind, self.device, [])
        if not _is_number(value, limit):
            raise self._script.unusable(f"the record is damaged: {kind} of device {self.device} is no number")
        return value

    def flags(self) -> int:
        """See :class:`FileBackend`."""
        return self._number("flags", 1 << 32)

    def allocated(self) -> int:
        """See :class:`FileBackend`."""
        return self._number("allocated", _U64)

    def read(self, offset: int, views: Sequence[memoryview], length: int) -> None:
        """See :class:`FileBackend`."""
        error, (recorded,) = self._script.take("read", self.device, [offset, length], length)
        done = length if error is None else error.done
        crc = 0
        try:
            for _, piece in self._pieces(offset, views, done):
                crc = crc32(piece, crc)
        except BackendError as failure:
            raise self._own(failure) from None
        if crc != recorded:
            raise self._script.unusable(
                f"{describe('read', self.device, [offset, length])} answers other bytes (CRC-32 {crc}) than were read "
                f"when it was recorded ({recorded!r}): the image was changed while it was recorded, or the bundle since"
            )
        if error is not None:
            raise error

    def write(self, offset: int, views: Sequence[memoryview], length: int) -> None:
        """See :class:`FileBackend`."""
        crc = self._checksum(views)
        error, _ = self._script.take("write", self.device, [offset, length, crc], length)
        done = length if error is None else error.done
        try:
            for start, piece in _pieces_of(views, done):
                if ZEROES.startswith(piece):
                    FileBackend.zero(self, offset + start, len(piece), True, _free)
                else:
                    self._put(offset + start, [memoryview(piece)], len(piece))
                self.check()
        except BackendError as failure:
            raise self._own(failure) from None
        if error is not None:
            raise error

    def flush(self) -> None:
        """See :class:`FileBackend`."""
        error, _ = self._script.take("flush", self.device, [])
        if error is not None:
            raise error

    def set_length(self, length: int) -> None:
        """See :class:`FileBackend`."""
        error, _ = self._script.take("length", self.device, [length])
        if error is not None:
            raise error
        try:
            super().set_length(length)
        except BackendError as failure:
            raise self._own(failure) from None

    def zero(self, offset: int, length: int, unmap: bool, charge: Callable[[int], None]) -> None:
        """See :class:`FileBackend`."""
        error, (charged, refused) = self._script.take("zero", self.device, [offset, length, unmap], length)
        if not _is_number(charged, _U64) or not _is_number(refused, _U64):
            raise self._script.unusable("the record is damaged: what was charged is no number")
        for count in (charged, refused):
            if count:
                charge(count)
        if refused:
            raise self._script.unusable(f"the limit on writes let {refused} bytes pass that it had refused")
        self._make_hole(offset, length if error is None else error.done)
        if error is not None:
            raise error

    def _make_hole(self, offset: int, length: int) -> None:
        try:
            if length > 0:
                FileBackend.zero(self, offset, length, True, _free)
        except BackendError as failure:
            raise self._own(failure) from None

    def discard(self, offset: int, length: int) -> bool:
        """See :class:`FileBackend`."""
        error, (hole,) = self._script.take("discard", self.device, [offset, length])
        if error is not None:
            raise error
        if hole is True:
            self._make_hole(offset, length)
        return hole is True

    def block_status(self, offset: int, length: int, capacity: int) -> list[tuple[int, int, int]]:
        """See :class:`FileBackend`."""
        _, (extents,) = self._script.take("status", self.device, [offset, length, capacity])
        if isinstance(extents, list) and len(extents) <= capacity:
            found = [tuple(extent) for extent in extents if isinstance(extent, list)]
            if len(found) == len(extents) and all(map(_is_extent, found)):
                return found  # type: ignore[return-value]  # _is_extent has looked
        raise self._script.unusable("the record is damaged: the extents are none")

    def _own(self, failure: BackendError) -> ReplayDiverged:
        return self._script.unusable(f"the replay's memory for device {self.device} cannot follow: {failure.message}")


def _is_extent(extent: tuple[Value, ...]) -> bool:
    return len(extent) == 3 and all(_is_number(value, _U64) for value in extent)


def _pieces_of(views: Sequence[memoryview], length: int) -> Iterator[tuple[int, bytes]]:
    """The first ``length`` bytes of the views, with their places."""
    position = 0
    for view in views:
        for start in range(0, len(view), PIECE):
            piece = bytes(view[start : start + min(PIECE, length - position)])
            if not piece:
                return
            yield position, piece
            position += len(piece)
