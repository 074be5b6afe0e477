"""A VHDX writer for tests: fixed, dynamic and differencing disks, with a log, any sector size and any damage.

Source: [MS-VHDX] Virtual Hard Disk v2 (VHDX) File Format, revision 8.0.  Numbers are little-endian, sizes are bytes.
Files are sparse in memory and on disk: a header of 1 MiB and regions of 1 MiB cost nothing that nobody writes.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

MIB = 1 << 20
HEADERS = (64 << 10, 128 << 10)
REGION_TABLES = (192 << 10, 256 << 10)
REGION_TABLE = 64 << 10
HEADER = 4096
SECTOR = 4096

#: States of a payload block (2.5.1.1); 6 is also that of a sector bitmap block that is there.
ABSENT, UNDEFINED, ZERO, UNMAPPED, RESERVED, UNMAPPED_OLD, PRESENT, PARTIAL = range(8)

BAT = uuid.UUID("2DC27766-F623-4200-9D64-115E9BFD4A08").bytes_le
METADATA = uuid.UUID("8B7CA206-4790-4B9A-B8FE-575F050F886E").bytes_le
FILE_PARAMETERS = uuid.UUID("CAA16737-FA36-4D43-B3B6-33F0AA44E76B").bytes_le
VIRTUAL_DISK_SIZE = uuid.UUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8").bytes_le
VIRTUAL_DISK_ID = uuid.UUID("BECA12AB-B2E6-4523-93EF-C309E000C746").bytes_le
LOGICAL_SECTOR = uuid.UUID("8141BF1D-A96F-4709-BA47-F233A8FAAB5F").bytes_le
PHYSICAL_SECTOR = uuid.UUID("CDA348C7-445D-4471-9CC9-E9885251C556").bytes_le
PARENT_LOCATOR = uuid.UUID("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C").bytes_le
VHDX_LOCATOR = uuid.UUID("B04AEFB7-D19E-4A81-B789-25B8E9445913").bytes_le
LOG_GUID = bytes(range(1, 17))
NO_GUID = bytes(16)
DATA_WRITE_GUID = uuid.UUID("11223344-5566-7788-99aa-bbccddeeff00")

#: Where items lie in the metadata region.
ITEMS = 64 << 10


def _table() -> tuple[int, ...]:
    rows = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F6_3B78 if value & 1 else 0)
        rows.append(value)
    return tuple(rows)


_CRC_TABLE = _table()


@lru_cache(maxsize=256)
def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli)."""
    crc = 0xFFFF_FFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFF_FFFF


def sealed(data: bytes) -> bytes:
    """A structure with its checksum, which lies in bytes 4 to 8 of all of them."""
    return data[:4] + struct.pack("<I", crc32c(data[:4] + bytes(4) + data[8:])) + data[8:]


class File:
    """A file in memory, sparse."""

    PAGE = 64 << 10

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.length = 0

    def put(self, at: int, data: bytes) -> None:
        self.length = max(self.length, at + len(data))
        done = 0
        while done < len(data):
            page, inside = divmod(at + done, self.PAGE)
            part = data[done : done + self.PAGE - inside]
            self.pages.setdefault(page, bytearray(self.PAGE))[inside : inside + len(part)] = part
            done += len(part)

    def get(self, at: int, length: int) -> bytes:
        out = bytearray()
        while len(out) < length:
            page, inside = divmod(at + len(out), self.PAGE)
            out += self.pages.get(page, bytes(self.PAGE))[inside : inside + length - len(out)]
        return bytes(out)

    def put_int(self, at: int, size: int, value: int) -> None:
        self.put(at, value.to_bytes(size, "little"))

    def get_int(self, at: int, size: int) -> int:
        return int.from_bytes(self.get(at, size), "little")

    def seal(self) -> None:
        """Make the checksums of headers and region tables right again."""
        for at in HEADERS:
            self.put(at, sealed(self.get(at, HEADER)))
        for at in REGION_TABLES:
            self.put(at, sealed(self.get(at, REGION_TABLE)))

    def write(self, path: Path, length: int | None = None) -> Path:
        end = self.length if length is None else length
        with path.open("wb") as out:
            for page, data in sorted(self.pages.items()):
                at = page * self.PAGE
                if at < end and any(data):
                    out.seek(at)
                    out.write(data[: end - at])
            out.truncate(end)
        return path


@dataclass
class Data:
    """A write of 4 KiB that a log entry holds."""

    offset: int
    data: bytes


@dataclass
class Zeros:
    """A range that a log entry zeroes."""

    offset: int
    length: int


@dataclass
class Entry:
    """A log entry.  ``tail`` is the sector of the log where its sequence begins; None: where the first entry lies."""

    sequence: int
    writes: Iterable[Data | Zeros] = ()
    tail: int | None = None
    guid: bytes = LOG_GUID
    flushed: int | None = None
    last: int | None = None
    #: Bytes that are changed behind the checksum's back: offset in the entry -> bytes.
    damage: Mapping[int, bytes] = field(default_factory=dict)
    #: The same before the checksum is made.
    change: Mapping[int, bytes] = field(default_factory=dict)
    #: Sectors of zeros behind the data that count to the entry.
    padding: int = 0

    def build(self, tail: int, length: int) -> bytes:
        writes = list(self.writes)
        descriptors = b""
        data = b""
        for write in writes:
            if isinstance(write, Zeros):
                descriptors += struct.pack("<4sIQQQ", b"zero", 0, write.length, write.offset, self.sequence)
            else:
                whole = write.data.ljust(SECTOR, b"\0")
                descriptors += struct.pack("<4s4s8sQQ", b"desc", whole[-4:], whole[:8], write.offset, self.sequence)
                high, low = self.sequence >> 32, self.sequence & 0xFFFF_FFFF
                data += struct.pack("<4sI4084sI", b"data", high, whole[8:-4], low)
        size = -(-(64 + len(descriptors)) // SECTOR) * SECTOR + len(data) + self.padding * SECTOR
        flushed = length if self.flushed is None else self.flushed
        last = length if self.last is None else self.last
        fields = (b"loge", 0, size, tail * SECTOR, self.sequence, len(writes), 0, self.guid, flushed, last)
        head = struct.pack("<4sIIIQII16sQQ", *fields) + descriptors
        entry = bytearray(head.ljust(-(-len(head) // SECTOR) * SECTOR, b"\0") + data)
        entry += bytes(self.padding * SECTOR)
        for at, value in self.change.items():
            entry[at : at + len(value)] = value
        entry[:] = sealed(bytes(entry))
        for at, value in self.damage.items():
            entry[at : at + len(value)] = value
        return bytes(entry)


@dataclass
class Block:
    """A payload block: its state, the bytes that fill it, and (partially present) which sectors are in it."""

    state: int = PRESENT
    fill: bytes = b"\xaa"
    sectors: tuple[tuple[int, int], ...] = ()


def locator(pairs: Mapping[str, str], kind: bytes = VHDX_LOCATOR) -> bytes:
    """A parent locator item (2.6.2.6)."""
    texts = b""
    table = b""
    start = 20 + 12 * len(pairs)
    for key, value in pairs.items():
        words = key.encode("utf-16-le"), value.encode("utf-16-le")
        at = start + len(texts)
        table += struct.pack("<IIHH", at, at + len(words[0]), len(words[0]), len(words[1]))
        texts += words[0] + words[1]
    return kind + struct.pack("<HH", 0, len(pairs)) + table + texts


def parent_pairs(linkage: uuid.UUID = DATA_WRITE_GUID, path: str = "..\\parent.vhdx") -> dict[str, str]:
    return {
        "parent_linkage": "{" + str(linkage) + "}",
        "relative_path": path,
        "volume_path": "\\\\?\\Volume{26a21bda-a627-11d7-9931-806e6f6e6963}\\images\\parent.vhdx",
        "absolute_win32_path": "\\\\?\\d:\\images\\parent.vhdx",
    }


@dataclass
class Vhdx:
    """What to write.  Log at 1 MiB, metadata behind it, then the BAT, then blocks in the order of ``blocks``."""

    size: int
    block_size: int = MIB
    blocks: dict[int, Block] = field(default_factory=dict)
    fixed: bool = False
    #: Key-value pairs of the parent locator; None: no parent.
    parent: Mapping[str, str] | None = None
    sector: int = 512
    physical: int = 512
    sequences: tuple[int, int] = (1, 2)
    log: list[Entry] = field(default_factory=list)
    #: Sector of the log where the first entry lies; entries wrap around its end.
    log_start: int = 0
    log_length: int = MIB
    log_guid: bytes | None = None
    #: More items: GUID, bytes, flags.
    items: tuple[tuple[bytes, bytes, int], ...] = ()
    #: More regions: GUID, offset, length, required.
    more_regions: tuple[tuple[bytes, int, int, int], ...] = ()
    creator: str = "vhdx_writer"

    @property
    def ratio(self) -> int:
        """Payload blocks of a chunk."""
        return (1 << 23) * self.sector // self.block_size

    @property
    def entries(self) -> int:
        count = -(-self.size // self.block_size)
        if self.parent is not None:
            return -(-count // self.ratio) * (self.ratio + 1)
        return count + (count - 1) // self.ratio if count else 0

    @property
    def log_offset(self) -> int:
        return MIB

    @property
    def metadata_offset(self) -> int:
        return MIB + self.log_length

    @property
    def bat_offset(self) -> int:
        return self.metadata_offset + MIB

    @property
    def bat_length(self) -> int:
        return max(1, -(-self.entries * 8 // MIB)) * MIB

    @property
    def first_block(self) -> int:
        return self.bat_offset + self.bat_length

    def entry_offset(self, block: int) -> int:
        """Where a payload block's BAT entry lies in the file."""
        return self.bat_offset + 8 * (block + block // self.ratio)

    def bitmap_entry_offset(self, chunk: int) -> int:
        return self.bat_offset + 8 * (chunk * (self.ratio + 1) + self.ratio)

    def header(self, index: int) -> bytes:
        guid = self.log_guid if self.log_guid is not None else LOG_GUID if self.log else NO_GUID
        fields = (b"head", 0, self.sequences[index], bytes(range(16)), DATA_WRITE_GUID.bytes_le, guid)
        head = struct.pack("<4sIQ16s16s16sHHIQ", *fields, 0, 1, self.log_length, self.log_offset)
        return sealed(head.ljust(HEADER, b"\0"))

    def region_table(self) -> bytes:
        rows = [(BAT, self.bat_offset, self.bat_length, 1), (METADATA, self.metadata_offset, MIB, 1)]
        rows.extend(self.more_regions)
        data = struct.pack("<4sIII", b"regi", 0, len(rows), 0)
        data += b"".join(struct.pack("<16sQII", *row) for row in rows)
        return sealed(data.ljust(REGION_TABLE, b"\0"))

    def metadata(self) -> bytes:
        flags = (1 if self.fixed else 0) | (2 if self.parent is not None else 0)
        items = [
            (FILE_PARAMETERS, struct.pack("<II", self.block_size, flags), 4),
            (VIRTUAL_DISK_SIZE, struct.pack("<Q", self.size), 6),
            (VIRTUAL_DISK_ID, bytes(range(16)), 6),
            (LOGICAL_SECTOR, struct.pack("<I", self.sector), 6),
            (PHYSICAL_SECTOR, struct.pack("<I", self.physical), 6),
        ]
        if self.parent is not None:
            items.append((PARENT_LOCATOR, locator(self.parent), 4))
        items.extend(self.items)
        table = struct.pack("<8sHH20s", b"metadata", 0, len(items), b"")
        data = b""
        for guid, value, bits in items:
            table += struct.pack("<16sIIII", guid, ITEMS + len(data) if value else 0, len(value), bits, 0)
            data += value
        return table.ljust(ITEMS, b"\0") + data

    def build(self) -> File:
        file = File()
        file.put(0, b"vhdxfile" + self.creator.encode("utf-16-le"))
        for index in (0, 1):
            file.put(HEADERS[index], self.header(index))
            file.put(REGION_TABLES[index], self.region_table())
        file.put(self.metadata_offset, self.metadata())
        file.length = self.first_block
        place = self.first_block
        bitmaps: dict[int, int] = {}
        for number, block in self.blocks.items():
            if block.state not in (PRESENT, PARTIAL):
                file.put_int(self.entry_offset(number), 8, block.state)
                continue
            if block.state == PARTIAL and number // self.ratio not in bitmaps:
                bitmaps[number // self.ratio] = place
                file.put_int(self.bitmap_entry_offset(number // self.ratio), 8, place | PRESENT)
                place += MIB
            file.put_int(self.entry_offset(number), 8, place | block.state)
            file.put(place, (block.fill * 512)[:4096])
            if block.state == PARTIAL:
                self._set_bits(file, bitmaps[number // self.ratio], number, block.sectors)
            place += self.block_size
            file.length = place
        self._put_log(file)
        return file

    def _set_bits(self, file: File, bitmap: int, number: int, sectors: Iterable[tuple[int, int]]) -> None:
        first = number % self.ratio * (self.block_size // self.sector)
        for start, count in sectors:
            for one in range(first + start, first + start + count):
                file.put(bitmap + one // 8, bytes([file.get(bitmap + one // 8, 1)[0] | 1 << one % 8]))

    def _put_log(self, file: File) -> None:
        sector = self.log_start
        count = self.log_length // SECTOR
        for entry in self.log:
            tail = self.log_start if entry.tail is None else entry.tail
            data = entry.build(tail, file.length)
            for at in range(0, len(data), SECTOR):
                file.put(self.log_offset + sector % count * SECTOR, data[at : at + SECTOR])
                sector += 1

    def write(self, path: Path) -> Path:
        return self.build().write(path)
