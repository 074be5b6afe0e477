"""Reads a bundle: hostile input, whose damage is a :class:`~vmm.errors.BundleError` that names the place.

Memory stays bounded whatever the file unfolds to: the content has a limit, an item of it too, and the decompressor is
given so few bytes at a time that what it answers cannot be large.
"""

from __future__ import annotations

import io
import os

import zstandard

from vmm.boundary import DEFAULT_MAX_RECORD, DeviceSpec, Limits, LogEvent, MessageEvent, TraceEvent
from vmm.cbor import DecodeError, SequenceDecoder
from vmm.errors import BundleError, LimitReachedError
from vmm.operations.files import InputFile, file_error
from vmm.operations.text import printable
from vmm.replay.bundle import (
    END,
    HEADER,
    LIMITS,
    LOG,
    MAGIC,
    MAX_ITEM,
    MESSAGE,
    PREFIX,
    RUN,
    TRACE,
    VERSION,
    WINDOW_LOG,
    RecordedRun,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import NoReturn, Self, TypeGuard, TypeVar

    from vmm.boundary import Event
    from vmm.cbor import Value
    from vmm.errors import VmmError

    T = TypeVar("T")

#: Bytes read from the file at once.
_READ = 64 << 10
#: Bytes given to the decompressor at once: a block of 4 bytes unfolds to 128 KiB at most (RFC 8878 section 3.1.1.2), so
#: that this makes 32 MiB.
_FEED = 1 << 10
_SHA256 = 32
_U64 = 1 << 64
_OFFSET = 1 << 63
#: Nanoseconds of wall time: 2^63 - 1 are 292 years.
_NANOSECONDS = 1 << 63


class _Content(io.RawIOBase):
    """The content of a bundle as a stream that knows its place; what is wrong with it is in ``fault``."""

    def __init__(self, file: InputFile, limit: int) -> None:
        self._file = file
        self._limit = limit
        self._input = b""
        self._input_at = 0
        self._output = b""
        self._output_at = 0
        self._frame = zstandard.ZstdDecompressor(max_window_size=1 << WINDOW_LOG).decompressobj()
        self._ended = False
        #: Bytes of the file, and of the content, that were taken.
        self.file_position = 0
        self.position = 0
        #: Bytes that the item may still have.
        self.item_left = 0
        self.fault: str | None = None
        #: Instead of a fault: what is wrong although the bundle may be whole.
        self.error: VmmError | None = None

    def readable(self) -> bool:
        return True

    def take(self, count: int) -> bytes:
        """So many bytes of the file itself, fewer at its end."""
        while len(self._input) - self._input_at < count:
            try:
                data = os.read(self._file.fd, _READ)
            except OSError as error:
                self.error = file_error(self._file.path, "read", error)
                raise self.error from None
            if not data:
                break
            self._input = self._input[self._input_at :] + data
            self._input_at = 0
        out = self._input[self._input_at : self._input_at + count]
        self._input_at += len(out)
        self.file_position += len(out)
        return out

    def _fail(self, fault: str) -> NoReturn:
        self.fault = self.fault or fault
        raise DecodeError(fault)

    def _unfold(self) -> bool:
        """More output; false at the end of the frame."""
        while self._output_at == len(self._output):
            if self._ended:
                return False
            data = self.take(_FEED)
            if not data:
                self._fail(f"the file ends at byte {self.file_position}, inside its compressed content")
            try:
                self._output = self._frame.decompress(data)
            except zstandard.ZstdError as error:
                before = self.file_position - len(data)
                self._fail(
                    f"the compressed content is damaged between bytes {before} and {self.file_position}: {error}"
                )
            self._output_at = 0
            self._ended = self._frame.eof
            if self._ended and (self._frame.unused_data or self.take(1)):
                self._fail("something follows the compressed content")
        return True

    def at_end(self) -> bool:
        """Whether the content ends here."""
        return not self._unfold()

    def read(self, size: int = -1) -> bytes:
        """So many bytes, fewer only at the end: the decoder takes a short answer for the end."""
        if size > self.item_left:
            self._fail(f"an item is larger than {MAX_ITEM} bytes")
        parts: list[bytes] = []
        missing = size
        while missing > 0 and self._unfold():
            part = self._output[self._output_at : self._output_at + missing]
            self._output_at += len(part)
            missing -= len(part)
            parts.append(part)
        out = parts[0] if len(parts) == 1 else b"".join(parts)
        self.position += len(out)
        self.item_left -= len(out)
        if self.position > self._limit:
            self.error = LimitReachedError(
                f"'{printable(self._file.path)}' unfolds to more than its limit: max-record is {self._limit}",
                file=self._file.path,
                limit="max-record",
                value=self._limit,
            )
            raise self.error
        return out


class BundleReader:
    """The runs of a bundle, one after another: a context manager.

    :param path: the file.
    :param max_record: bytes that its content may have.
    :raises FileError: it cannot be opened.
    :raises BundleError: it is no bundle, or one of another version.
    """

    def __init__(self, path: str, max_record: int = DEFAULT_MAX_RECORD) -> None:
        self.path = path
        #: How the run whose events were read ended: ``{"outcome": ...}`` or ``{"refused": ...}``.
        self.end: dict[str, Value] | None = None
        self._items = 0
        self._item_start = 0
        self._file = InputFile(path, follow_symlinks=True)
        try:
            self._content = _Content(self._file, max_record)
            self._decoder = SequenceDecoder(self._content)
            self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        prefix = self._content.take(PREFIX)
        if prefix[: len(MAGIC)] != MAGIC:
            raise BundleError(f"'{printable(self.path)}' is no bundle of pyvmm", file=self.path)
        version = int.from_bytes(prefix[len(MAGIC) :], "big")
        if len(prefix) == PREFIX and version != VERSION:
            raise BundleError(
                f"'{printable(self.path)}' is a bundle of version {version}; this program reads version {VERSION}",
                file=self.path,
            )
        name, fields = self._item()
        if name != HEADER or len(fields) != 1:
            self.fail("it does not begin with a header")
        header = self.map(fields[0], "the header")
        #: The program that recorded, and the version of the call table that it had.
        self.program = self._field(header, "program", str)
        table = self._field(header, "call-table", list)
        if len(table) != 2 or not all(map(_is_u64, table)):
            self.fail("call-table is no pair of numbers")
        self.call_table: tuple[Value, ...] = tuple(table)

    def fail(self, what: str) -> NoReturn:
        """The bundle is damaged, in the item that was read last.

        :raises BundleError: always.
        """
        raise BundleError(
            f"'{printable(self.path)}' is damaged: {printable(what)} (item {self._items} of its content, at byte "
            f"{self._item_start})",
            file=self.path,
            item=self._items,
            offset=self._item_start,
        )

    def _item(self) -> tuple[str, list[Value]]:
        """The next item: its name and what follows it."""
        content = self._content
        self._items += 1
        self._item_start = content.position
        content.item_left = MAX_ITEM
        try:
            value = self._decoder.item()
        except DecodeError as error:
            self._damaged(error)
        if not isinstance(value, list) or not value or not isinstance(value[0], str):
            self.fail("an item is no array that begins with its name")
        return value[0], value[1:]

    def _damaged(self, error: DecodeError) -> NoReturn:
        content = self._content
        if content.error is not None:
            raise content.error from None
        self.fail(content.fault or str(error))

    def map(self, value: Value, what: str) -> dict[str, Value]:
        """The value, if it is a map.

        :raises BundleError: it is not.
        """
        if not isinstance(value, dict):
            self.fail(f"{what} is no map")
        return value

    def _field(self, fields: dict[str, Value], name: str, kind: type[T]) -> T:
        value = fields.get(name)
        if type(value) is not kind:
            self.fail(f"{name} is missing or of another type")
        return value

    def _number(self, fields: dict[str, Value], name: str, limit: int) -> int:
        value = self._field(fields, name, int)
        if not 0 <= value < limit:
            self.fail(f"{name} is {value}, outside 0 to {limit - 1}")
        return value

    def next_run(self) -> RecordedRun | None:
        """The next run, or None after the last one.  The events of the one before must have been read.

        :raises BundleError: damage.
        """
        try:
            if self._content.at_end():
                return None
        except DecodeError as error:
            self._damaged(error)
        name, fields = self._item()
        if name != RUN or len(fields) != 1:
            self.fail(f"a run was expected, not {name}")
        self.end = None
        run = self.map(fields[0], "a run")
        elf = self.map(run.get("elf"), "elf")
        limits = self.map(run.get("limits"), "limits")
        return RecordedRun(
            elf_sha256=self._digest(elf),
            elf_length=self._number(elf, "length", _U64),
            runtime_sha256=self._digest(self.map(run.get("runtime"), "runtime")),
            request=self._field(run, "request", bytes),
            devices=tuple(self._device(device) for device in self._field(run, "devices", list)),
            limits=Limits(
                timeout=max(1, self._number(limits, "timeout-ns", _NANOSECONDS)) / 1e9,
                **{field: self._number(limits, name, _U64) for name, field in LIMITS.items()},
            ),
            log_level=self._number(run, "log-level", 5),
            progress=self._field(run, "progress", bool),
        )

    def _digest(self, fields: dict[str, Value]) -> bytes:
        digest = self._field(fields, "sha256", bytes)
        if len(digest) != _SHA256:
            self.fail(f"a SHA-256 has {len(digest)} bytes")
        return digest

    def _device(self, value: Value) -> DeviceSpec:
        fields = self.map(value, "a device")
        return DeviceSpec(
            fd=-1,
            length=self._number(fields, "length", _OFFSET),
            read_only=self._field(fields, "read-only", bool),
            resizable=self._field(fields, "resizable", bool),
            max_length=None if fields.get("max-length") is None else self._number(fields, "max-length", _U64),
        )

    def events(self) -> Iterator[Event]:
        """The events of the run, in their order; afterwards ``end`` says how it ended.

        :raises BundleError: damage.
        """
        while True:
            name, fields = self._item()
            if name in (TRACE, MESSAGE):
                if len(fields) != 1 or not isinstance(fields[0], bytes):
                    self.fail(f"a {name} is no byte string")
                yield TraceEvent(fields[0]) if name == TRACE else MessageEvent(fields[0])
            elif name == LOG:
                if len(fields) != 2 or not _is_u64(fields[0]) or not isinstance(fields[1], bytes):
                    self.fail("a log is no level and byte string")
                yield LogEvent(fields[0], fields[1])
            elif name == END:
                if len(fields) != 1:
                    self.fail("an end is no map")
                self.end = self._ending(self.map(fields[0], "an end"))
                return
            else:
                self.fail(f"an event was expected, not {name}")

    def _ending(self, fields: dict[str, Value]) -> dict[str, Value]:
        if set(fields) == {"refused"}:
            refusal = self.map(fields["refused"], "refused")
            self._field(refusal, "code", str)
            self._field(refusal, "message", str)
        elif set(fields) == {"outcome"}:
            outcome = self.map(fields["outcome"], "outcome")
            if outcome.get("failure") is not None:
                failure = self.map(outcome["failure"], "failure")
                self._field(failure, "kind", str)
                self._field(failure, "message", str)
            else:
                self._number(outcome, "status", 1 << 32)
        else:
            self.fail("an end is neither an outcome nor a refusal")
        return fields

    def close(self) -> None:
        """Close the file.  Idempotent."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _is_u64(value: Value) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _U64
