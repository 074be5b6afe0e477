"""Block requests as VIRTIO 1.2 section 5.2.6 describes them, on a disk in memory; for the reference model."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.unit.devices.reference_chain import BrokenError, Buffer, Chain, Memory

SECTOR = 512
IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2
# Feature bits (5.2.3).
F_FLUSH, F_DISCARD, F_WRITE_ZEROES = 9, 13, 14
UNMAP = 1


@dataclass
class Disk:
    """The file behind the device: bytes, of which some may be anything once they were discarded."""

    data: bytearray
    read_only: bool
    #: Segments of a discard or write zeroes request (configuration space, 5.2.4).
    segments_max: int
    #: Device identifier, once it has been seen (it has to stay the same).
    identifier: bytes | None = None
    #: Byte positions that may hold anything since the last comparison.
    unknown: set[int] = field(default_factory=set)

    @property
    def sectors(self) -> int:
        """The capacity (5.2.4)."""
        return -(-len(self.data) // SECTOR)

    def inside(self, sector: int, count: int) -> bool:
        """Whether sectors are within the capacity."""
        return sector + count <= self.sectors

    def get(self, start: int, length: int) -> bytes:
        """Bytes; zeroes behind the end."""
        return bytes(self.data[start : start + length]).ljust(length, b"\0")

    def put(self, start: int, content: bytes) -> None:
        """Write what lies inside."""
        content = content[: max(len(self.data) - start, 0)]
        self.data[start : start + len(content)] = content
        self.unknown.difference_update(range(start, start + len(content)))

    def forget(self, start: int, length: int) -> None:
        """Nothing is known of these bytes."""
        self.unknown.update(range(start, min(start + length, len(self.data))))

    def resize(self, length: int) -> None:
        """Cut, or grow by zeroes."""
        del self.data[length:]
        self.data.extend(bytes(length - len(self.data)))

    def compare(self, file: bytes, *, anything: bool) -> None:
        """The file is what is expected; what was unknown is known afterwards."""
        assert len(file) == len(self.data)
        if not anything:
            different = [i for i in range(len(file)) if file[i] != self.data[i]] if file != self.data else []
            assert self.unknown.issuperset(different), f"the file differs at {different[:8]}"
        self.data[:] = file
        self.unknown.clear()


@dataclass
class Effect:
    """What one request may do."""

    head: int
    chain: Chain
    statuses: set[int]
    #: With status OK, when it is this request's turn: the device-writable data from its first byte on; None: anything.
    content: Callable[[], bytes | None]
    #: With status OK: what happens to the disk.
    change: Callable[[], None] | None
    #: With another status, parts of the disk that may have changed: (start, length).
    damage: list[Buffer]
    #: Bytes of data that the device may write, without the status.
    room: int
    #: The data is the device's identifier, to be compared from its first answer on.
    identifies: bool = False
    #: The most that the used length can be, settled by :meth:`check`.
    written: int = 0

    def check(self, memory: Memory, allowed: bytearray, free: bytearray, after: bytes, disk: Disk) -> None:
        """Put what is expected into ``allowed``, what may be anything into ``free``."""
        positions = [
            memory.index(address) + step for address, length in self.chain.writable if length for step in range(length)
        ]
        status = after[positions[-1]]
        assert status in self.statuses, f"status {status}, expected one of {self.statuses}"
        allowed[positions[-1]] = status
        data = positions[:-1]
        known = 0
        self.written = 0 if data else 1
        if status == OK:
            content = self.content()
            for at, byte in zip(data, content or b"", strict=False):
                allowed[at] = byte
            known = len(content or b"")
            self.written = known if content is not None and known < len(data) else len(data) + 1
            if self.identifies:
                disk.identifier = bytes(after[at] for at in data)
                assert disk.identifier.isascii()
                assert b"\0" not in disk.identifier.rstrip(b"\0")
            if self.change is not None:
                self.change()
        else:
            for start, length in self.damage:
                disk.forget(start, length)
        # Data that the device had no reason to write, or wrote in part, is nobody's (2.7.8.3).
        for at in data[known:]:
            free[at] = 1


def perform(disk: Disk, memory: Memory, head: int, chain: Chain, negotiated: Callable[[int], bool]) -> Effect:
    """What the request in a chain may do.

    :raises BrokenError: there is no room for its header or its status.
    """
    room = sum(length for _, length in chain.writable) - 1
    outgoing = b"".join(memory.bytes_at(address, length) for address, length in chain.readable)
    if room < 0 or len(outgoing) < 16:
        raise BrokenError("no request")
    kind, _, sector = struct.unpack_from("<IIQ", outgoing)
    data = outgoing[16:]
    effect = Effect(head, chain, {OK}, lambda: None if room else b"", None, [], room)
    if kind == IN:
        _read(disk, effect, sector, room, data)
    elif kind == OUT:
        _write(disk, effect, sector, room, data)
    elif kind == FLUSH:
        # Data in a flush SHOULD NOT be (5.2.6.1); without the feature nothing is said.
        effect.statuses = {OK} if negotiated(F_FLUSH) else {OK, UNSUPP}
        if room or data:
            effect.statuses |= {IOERR}
    elif kind == GET_ID:
        # 20 bytes, NUL-padded ASCII; another length is the driver's mistake (5.2.6.1).
        if room != 20 or data:
            effect.statuses = {OK, IOERR, UNSUPP}
        else:
            effect.identifies = True
            effect.content = lambda: disk.identifier
    elif kind in (DISCARD, WRITE_ZEROES) and negotiated(F_DISCARD if kind == DISCARD else F_WRITE_ZEROES):
        _ranges(disk, effect, kind, room, data)
    elif kind in (DISCARD, WRITE_ZEROES) and len(data) % 16 == 0:
        # Not accepted by the driver: unsupported, or done all the same.
        _ranges(disk, effect, kind, room, data)
        effect.statuses |= {UNSUPP}
    else:
        effect.statuses = {UNSUPP}
    return effect


def _read(disk: Disk, effect: Effect, sector: int, room: int, data: bytes) -> None:
    # 5.2.6.1: whole sectors, inside the capacity; otherwise a "driver error".
    if room % SECTOR or not disk.inside(sector, room // SECTOR):
        effect.statuses = {IOERR}
        return
    if data:
        effect.statuses = {OK, IOERR}
    start = sector * SECTOR

    def content() -> bytes | None:
        # What was discarded before, in the same batch, may be anything (5.2.6.1).
        known = not any(start <= position < start + room for position in disk.unknown)
        return disk.get(start, room) if known else None

    effect.content = content


def _write(disk: Disk, effect: Effect, sector: int, room: int, data: bytes) -> None:
    # 5.2.6.2: on a read-only device nothing is written.
    if disk.read_only or len(data) % SECTOR or not disk.inside(sector, len(data) // SECTOR):
        effect.statuses = {IOERR}
        return
    start = sector * SECTOR
    effect.change = lambda: disk.put(start, data)
    if room:
        effect.statuses = {OK, IOERR}
        effect.damage = [(start, len(data))]


def _ranges(disk: Disk, effect: Effect, kind: int, room: int, data: bytes) -> None:
    count, rest = divmod(len(data), 16)
    ranges = [struct.unpack_from("<QII", data, 16 * place) for place in range(count)]
    flags = [flag for _, _, flag in ranges]
    # 5.2.6.2: unknown flags are unsupported, and `unmap` in a discard is.
    strange = any(flag & ~UNMAP or (kind == DISCARD and flag) for flag in flags)
    wrong = bool(rest) or not 0 < count <= disk.segments_max or room > 0
    wrong = wrong or not all(disk.inside(sector, sectors) for sector, sectors, _ in ranges)
    if disk.read_only:
        effect.statuses = {IOERR, UNSUPP} if strange else {IOERR}
    elif strange:
        # With a length that breaks a MUST itself, either is right.
        effect.statuses = {UNSUPP, IOERR} if rest or count > disk.segments_max else {UNSUPP}
    elif wrong:
        effect.statuses = {IOERR, OK} if room and not rest else {IOERR}
    if disk.read_only:
        return
    places = [(sector * SECTOR, sectors * SECTOR) for sector, sectors, _ in ranges if disk.inside(sector, sectors)]
    # After an error each segment may be done or not (5.2.6).
    effect.damage = [] if strange else places

    def change() -> None:
        for start, length in places:
            if kind == DISCARD:
                disk.forget(start, length)
            else:
                disk.put(start, bytes(max(0, min(length, len(disk.data) - start))))

    effect.change = change
