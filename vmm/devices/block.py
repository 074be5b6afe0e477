"""virtio-blk (VIRTIO 1.2 section 5.2) over a file."""

from __future__ import annotations

import errno as errnos
from struct import Struct

from calltable import ERROR_INVALID, ERROR_IO, ERROR_RANGE, ERROR_READ_ONLY, ERROR_UNSUPPORTED, QUEUE_SIZE
from vmm.devices.errors import BackendError, MemoryAccessError, QueueError
from vmm.devices.mmio import F_INDIRECT_DESC, INTERRUPT_USED, MmioDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from vmm.devices.backend import FileBackend
    from vmm.devices.budget import Meter
    from vmm.devices.memory import GuestMemory
    from vmm.devices.queue import Queue, Segment

SECTOR = 512

#: Feature bits (section 5.2.3).
F_SEG_MAX = 1 << 2
F_RO = 1 << 5
F_BLK_SIZE = 1 << 6
F_FLUSH = 1 << 9
F_DISCARD = 1 << 13
F_WRITE_ZEROES = 1 << 14

#: Request types (section 5.2.6).
T_IN = 0
T_OUT = 1
T_FLUSH = 4
T_GET_ID = 8
T_DISCARD = 11
T_WRITE_ZEROES = 13
_NAMES = {T_IN: "in", T_OUT: "out", T_FLUSH: "flush", T_GET_ID: "get-id", T_DISCARD: "discard", T_WRITE_ZEROES: "zero"}

#: Status (section 5.2.6).
S_OK = 0
S_IOERR = 1
S_UNSUPP = 2

#: Segments of one DISCARD or WRITE_ZEROES request, and sectors of one segment.
RANGES_MAX = 32
RANGE_SECTORS_MAX = 0xFFFF_FFFF
ID_LENGTH = 20
FLAG_UNMAP = 1

_HEADER = Struct("<IIQ")
_RANGE = Struct("<QII")
#: struct virtio_blk_config up to unused1 (section 5.2.4).
_CONFIG = Struct("<QIIHBBIBBHIBBHIIIIIB3x")

#: Requests kept for the report of a fault.
RECENT = 16


class _UnsupportedError(Exception):
    """The request ends with S_UNSUPP."""


class BlockDevice(MmioDevice):
    """One block device.

    The backend may be exchanged between two runs; the driver's handshake stays valid, because what changes (length,
    read-only) reaches the guest through the boot page as well.
    """

    device_id: ClassVar[int] = 2

    def __init__(self, memory: GuestMemory, meter: Meter, index: int = 0) -> None:
        self.backend: FileBackend | None = None
        self.meter = meter
        self.index = index
        #: The reason of the last request that failed, for the report.
        self.last_error: BackendError | None = None
        #: The last RECENT requests.  (A list: collections would be an import on the path of a plain run.)
        self._recent: list[tuple[int, int, int, int]] = []
        super().__init__(memory, (QUEUE_SIZE,))

    def attach(self, backend: FileBackend | None) -> None:
        """Serve this file from now on, or none; forgets what was said about the one before."""
        self.backend = backend
        self.last_error = None
        self._recent.clear()

    @property
    def length(self) -> int:
        """Exact length in bytes; the last sector may go past it."""
        return self.backend.length if self.backend is not None else 0

    @property
    def capacity(self) -> int:
        """Sectors of 512 bytes, rounded up."""
        return (self.length + SECTOR - 1) // SECTOR

    def recent(self) -> tuple[str, ...]:
        """The last requests, newest last, one line each."""
        names = ("ok", "io-error", "unsupported")
        lines = [
            f"device {self.index}: {_NAMES.get(kind, f'type {kind}')} sector {sector}, {size} bytes: {names[status]}"
            for kind, sector, size, status in self._recent
        ]
        if self.last_error is not None:
            lines.append(f"device {self.index}: {self.last_error.message}")
        if self.fault is not None:
            lines.append(f"device {self.index} needs a reset: {self.fault}")
        return tuple(lines)

    def features(self) -> int:
        """See :class:`MmioDevice`."""
        read_only = self.backend is not None and self.backend.read_only
        return F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_DISCARD | F_WRITE_ZEROES | (F_RO if read_only else 0)

    def config(self) -> bytes:
        """See :class:`MmioDevice`."""
        # A chain has a header and a status besides its data.
        seg_max = self.queues[0].size_max - 2
        limits = (RANGE_SECTORS_MAX, RANGES_MAX, 1, RANGE_SECTORS_MAX, RANGES_MAX, 1)
        return _CONFIG.pack(self.capacity, 0, seg_max, 0, 0, 0, SECTOR, 0, 0, 0, 0, 0, 0, 1, *limits)

    def serve(self, queue: Queue) -> None:
        """See :class:`MmioDevice`."""
        memory = self.memory
        heads, interrupt = queue.available(memory)
        indirect = self.has(F_INDIRECT_DESC)
        used: list[tuple[int, int]] = []
        table = queue.table(memory)
        try:
            for head in heads:
                if used and self.backend is not None:
                    # One request moves a chunk, or waits for the disk, unwatched: a full queue of them would be long.
                    self.backend.check()
                readable, writable = queue.chain(memory, table, head, indirect)
                used.append((head, self._request(readable, writable)))
        finally:
            # What was answered before a broken chain, or before a budget ran out, is answered.
            if used:
                self._give_back(queue, used)
                if interrupt:
                    self.interrupt_status |= INTERRUPT_USED

    def _give_back(self, queue: Queue, used: list[tuple[int, int]]) -> None:
        try:
            queue.publish(self.memory, used)
        except MemoryAccessError as error:
            # Not raised: it would hide what ends the run.
            self.fail(str(error))

    def _request(self, readable: list[Segment], writable: list[Segment]) -> int:
        """One request; answers how many bytes of its writable buffers were written."""
        view = self.memory.view
        data_in = [view(address, length, writable=True) for address, length in writable if length]
        if not data_in:
            raise QueueError("a block request without a status byte")
        status_view = data_in[-1]
        if len(status_view) == 1:
            data_in.pop()
        else:
            data_in[-1] = status_view[:-1]
            status_view = status_view[-1:]
        data_out = [view(address, length, writable=False) for address, length in readable if length]
        header, data_out = _split_header(data_out)
        kind, _, sector = _HEADER.unpack(header)
        in_length = sum(map(len, data_in))
        out_length = sum(map(len, data_out))
        written = 0
        try:
            if self.backend is None:
                raise BackendError(ERROR_IO, "there is no file")
            written = self._perform(self.backend, kind, sector, data_in, in_length, data_out, out_length)
            status = S_OK
        except _UnsupportedError:
            status = S_UNSUPP
            self.last_error = BackendError(ERROR_UNSUPPORTED, f"request type {kind} or its flags are not supported")
        except BackendError as error:
            status = S_IOERR
            self.last_error = error
        status_view[0] = status
        self._recent.append((kind, sector, in_length or out_length, status))
        if len(self._recent) > RECENT:
            del self._recent[0]
        # The count may not go past what is known to be written from the first byte on (section 2.7.8.2).
        return written + 1 if written == in_length else written

    def _perform(
        self,
        backend: FileBackend,
        kind: int,
        sector: int,
        data_in: list[memoryview],
        in_length: int,
        data_out: list[memoryview],
        out_length: int,
    ) -> int:
        if kind == T_IN:
            self._check_range(sector, in_length, out_length)
            self.meter.read(in_length)
            backend.read(sector * SECTOR, data_in, in_length)
            return in_length
        if kind == T_OUT:
            if backend.read_only:
                raise BackendError(ERROR_READ_ONLY, "the device is read-only", errnos.EROFS)
            self._check_range(sector, out_length, in_length)
            self.meter.write(out_length)
            backend.write(sector * SECTOR, data_out, out_length)
            return 0
        if kind == T_FLUSH and self.has(F_FLUSH):
            backend.flush()
            return 0
        if kind == T_GET_ID:
            return self._identify(data_in, in_length)
        if kind == T_DISCARD and self.has(F_DISCARD):
            self._ranges(backend, kind, data_out, out_length)
            return 0
        if kind == T_WRITE_ZEROES and self.has(F_WRITE_ZEROES):
            self._ranges(backend, kind, data_out, out_length)
            return 0
        raise _UnsupportedError

    def _check_range(self, sector: int, length: int, other: int) -> None:
        if other:
            raise BackendError(ERROR_INVALID, f"{other} bytes of data in the wrong direction")
        if length % SECTOR:
            raise BackendError(ERROR_INVALID, f"{length} bytes are no whole number of sectors")
        if sector + length // SECTOR > self.capacity:
            raise BackendError(
                ERROR_RANGE, f"sectors {sector} to {sector + length // SECTOR} of a device of {self.capacity}"
            )

    def _identify(self, data_in: list[memoryview], length: int) -> int:
        from vmm.devices.backend import cut

        text = f"pyvmm-{self.index}".encode().ljust(ID_LENGTH, b"\0")
        done = 0
        for view in cut(data_in, 0, min(length, ID_LENGTH)):
            view[:] = text[done : done + len(view)]
            done += len(view)
        return done

    def _ranges(self, backend: FileBackend, kind: int, data_out: list[memoryview], length: int) -> None:
        """DISCARD and WRITE_ZEROES: all segments are checked before the first one is done."""
        if backend.read_only:
            raise BackendError(ERROR_READ_ONLY, "the device is read-only", errnos.EROFS)
        count, rest = divmod(length, _RANGE.size)
        if rest or not 0 < count <= RANGES_MAX:
            raise BackendError(ERROR_INVALID, f"{length} bytes of ranges")
        ranges = list(_RANGE.iter_unpack(b"".join(data_out)))
        # Section 5.2.6.2: unknown flags are unsupported, and so is `unmap` in a discard, whatever else is wrong.
        if any(flags & ~FLAG_UNMAP or (flags and kind == T_DISCARD) for _, _, flags in ranges):
            raise _UnsupportedError
        for sector, sectors, _ in ranges:
            self._check_range(sector, sectors * SECTOR, 0)
        for sector, sectors, flags in ranges:
            backend.check()
            if kind == T_DISCARD:
                backend.discard(sector * SECTOR, sectors * SECTOR)
            else:
                backend.zero(sector * SECTOR, sectors * SECTOR, bool(flags & FLAG_UNMAP), self.meter.write)


def _split_header(views: list[memoryview]) -> tuple[bytes | memoryview, list[memoryview]]:
    """The header and what follows it, however the driver cut its buffers (section 2.7.4: framing means nothing)."""
    if views and len(views[0]) == _HEADER.size:
        return views[0], views[1:]
    header = b""
    rest: list[memoryview] = []
    for view in views:
        missing = _HEADER.size - len(header)
        header += bytes(view[:missing])
        if len(view) > missing:
            rest.append(view[missing:])
    if len(header) < _HEADER.size:
        raise QueueError(f"a block request with a header of {len(header)} bytes")
    return header, rest
