"""A VMDK writer for tests: what qemu-img does not write, or not with these contents, with any damage.

Sources: VMware, "Virtual Disk Format 5.0" (2011) for descriptors, hosted sparse extents, stream-optimized extents and
ESX ("COWD") extents; what is known of seSparse is what readers of it look at.  Numbers are little-endian; places and
lengths in the files are sectors of 512 bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.images.qcow2_writer import Built, Region

SECTOR = 512
NO_PARENT = 0xFFFF_FFFF
AT_END = 0xFFFF_FFFF_FFFF_FFFF

NEWLINE_TEST, REDUNDANT, ZEROED_GRAIN, COMPRESSED, MARKERS = 1, 2, 4, 1 << 16, 1 << 17
GRAIN_TABLE, GRAIN_DIRECTORY, FOOTER = 1, 2, 3

#: Value of a grain that reads as zero without being stored.
ZERO = None

#: Byte offsets of the header's fields, and how they are packed.
HEADER_FIELDS: dict[str, tuple[int, str]] = {
    "magic": (0, "<I"),
    "version": (4, "<I"),
    "flags": (8, "<I"),
    "capacity": (12, "<Q"),
    "grain_size": (20, "<Q"),
    "descriptor_offset": (28, "<Q"),
    "descriptor_size": (36, "<Q"),
    "table_entries": (44, "<I"),
    "redundant_directory": (48, "<Q"),
    "directory": (56, "<Q"),
    "overhead": (64, "<Q"),
    "unclean": (72, "<B"),
    "newlines": (73, "<I"),
    "compression": (77, "<H"),
}

COWD_FIELDS: dict[str, tuple[int, str]] = {
    "version": (4, "<I"),
    "flags": (8, "<I"),
    "capacity": (12, "<I"),
    "grain_size": (16, "<I"),
    "directory": (20, "<I"),
    "directory_entries": (24, "<I"),
    "free_sector": (28, "<I"),
}

SESPARSE_FIELDS: dict[str, tuple[int, str]] = {
    name: (8 * index, "<Q")
    for index, name in enumerate(
        (
            "magic", "version", "capacity", "grain_size", "table_size", "flags",
            "reserved_1", "reserved_2", "reserved_3", "reserved_4",
            "volatile_header", "volatile_header_size", "journal_header", "journal_header_size",
            "journal", "journal_size", "directory", "directory_size", "tables", "tables_size",
            "free_bitmap", "free_bitmap_size", "backmap", "backmap_size", "grains", "grains_size",
        )
    )
}  # fmt: skip


def up(value: int, unit: int) -> int:
    """``value`` rounded up to whole units."""
    return -(-value // unit) * unit


def descriptor(
    extents: Sequence[str] = (),
    *,
    create_type: str = "monolithicSparse",
    cid: int = 0x1234_5678,
    parent_cid: int = NO_PARENT,
    parent: str | None = None,
    end: str = "\n",
    extra: Sequence[str] = (),
) -> bytes:
    """The text of a descriptor; ``extents`` are whole lines."""
    lines = ["# Disk DescriptorFile", "version=1", f"CID={cid:08x}", f"parentCID={parent_cid:08x}"]
    lines.append(f'createType="{create_type}"')
    if parent is not None:
        lines.append(f'parentFileNameHint="{parent}"')
    lines += ["# Extent description", *extents, "# The Disk Data Base", "#DDB", 'ddb.adapterType = "lsilogic"', *extra]
    return "".join(line + end for line in lines).encode("utf-8", "surrogateescape")


Damage = Callable[[bytearray, tuple[Region, ...]], None]


@dataclass
class Sparse:
    """A hosted sparse extent.  ``grains`` maps grain numbers to their content, ``ZERO`` to a zeroed grain."""

    sectors: int
    grains: Mapping[int, bytes | None] = field(default_factory=dict)
    grain_sectors: int = 128
    table_entries: int = 512
    version: int = 1
    redundant: bool = True
    #: zlib streams with markers; ``footer``: directory and tables at the end.
    compressed: bool = False
    footer: bool = False
    #: None: no descriptor in the file.
    text: bytes | None = field(default_factory=descriptor)
    unclean: bool = False
    #: Values of header fields by name, in the end.
    fields: Mapping[str, int] = field(default_factory=dict)
    damage: Damage | None = None

    def _content(self, number: int) -> bytes:
        content = self.grains[number]
        assert content is not None
        return content.ljust(self.grain_sectors * SECTOR, b"\0")

    def build(self) -> Built:
        span = self.grain_sectors * self.table_entries
        tables = -(-self.sectors // span)
        image = bytearray(21 * SECTOR if self.text is not None else SECTOR)
        regions = [Region("header", 0, SECTOR)]
        if self.text is not None:
            image[SECTOR : SECTOR + len(self.text)] = self.text
            regions.append(Region("descriptor", SECTOR, 20 * SECTOR))
        flags = NEWLINE_TEST | (ZEROED_GRAIN if ZERO in self.grains.values() else 0)
        flags |= COMPRESSED | MARKERS if self.compressed else 0
        values = {
            "magic": int.from_bytes(b"KDMV", "little"),
            "version": self.version,
            "capacity": self.sectors,
            "grain_size": self.grain_sectors,
            "descriptor_offset": 1 if self.text is not None else 0,
            "descriptor_size": 20 if self.text is not None else 0,
            "table_entries": self.table_entries,
            "unclean": int(self.unclean),
            "newlines": int.from_bytes(b"\n \r\n", "little"),
            "compression": 1 if self.compressed else 0,
        }
        places: dict[int, int] = {}
        if self.footer:
            values |= {"overhead": 128, "directory": AT_END, "flags": flags}
            image.extend(bytes(128 * SECTOR - len(image)))
            self._put_grains(image, regions, places)
            directory = self._put_tables(image, regions, places, tables, "", markers=True)
            values["directory"] = AT_END
            at = len(image)
            image += self._marker(1, FOOTER) + bytes(SECTOR) + bytes(SECTOR)
            regions += [Region("footer", at + SECTOR, SECTOR), Region("end-of-stream", at + 2 * SECTOR, SECTOR)]
            self._put_header(image, 0, values)
            self._put_header(image, at + SECTOR, values | {"directory": directory})
        else:
            copies = 2 if self.redundant else 1
            one = up(4 * tables, SECTOR) + tables * up(4 * self.table_entries, SECTOR)
            start = up(len(image) + copies * one, self.grain_sectors * SECTOR)
            tail = bytearray(start)
            self._put_grains(tail, regions, places)
            if self.redundant:
                flags |= REDUNDANT
                values["redundant_directory"] = self._put_tables(image, regions, places, tables, "redundant-")
            values["directory"] = self._put_tables(image, regions, places, tables, "")
            values |= {"flags": flags, "overhead": start // SECTOR}
            tail[: len(image)] = image
            image = tail
            self._put_header(image, 0, values)
        if self.damage is not None:
            self.damage(image, tuple(regions))
        return Built(bytes(image), tuple(regions))

    def _put_header(self, image: bytearray, at: int, values: Mapping[str, int]) -> None:
        for name, value in {**values, **(self.fields if at == 0 else {})}.items():
            offset, form = HEADER_FIELDS[name]
            struct.pack_into(form, image, at + offset, value)

    def _put_grains(self, image: bytearray, regions: list[Region], places: dict[int, int]) -> None:
        for number in self.grains:
            if self.grains[number] is ZERO:
                places[number] = 1
                continue
            at = len(image)
            places[number] = at // SECTOR
            content = self._content(number)
            if self.compressed:
                stream = zlib.compress(content)
                image += struct.pack("<QI", number * self.grain_sectors, len(stream)) + stream
                image += bytes(-len(image) % SECTOR)
            else:
                image += content
            regions.append(Region(f"grain[{number}]", at, len(image) - at))

    def _put_tables(
        self,
        image: bytearray,
        regions: list[Region],
        places: Mapping[int, int],
        tables: int,
        prefix: str,
        *,
        markers: bool = False,
    ) -> int:
        """Append directory and tables (in a stream the other way round); answers the directory's sector."""
        size = up(4 * self.table_entries, SECTOR)
        firsts = []

        def put_tables() -> None:
            for index in range(tables):
                numbers = range(index * self.table_entries, (index + 1) * self.table_entries)
                entries = [places.get(number, 0) for number in numbers]
                if markers and not any(entries):
                    firsts.append(0)
                    continue
                if markers:
                    image.extend(self._marker(size // SECTOR, GRAIN_TABLE))
                firsts.append(len(image) // SECTOR)
                regions.append(Region(f"{prefix}table[{index}]", len(image), size))
                image.extend(struct.pack(f"<{len(entries)}I", *entries).ljust(size, b"\0"))

        if markers:
            put_tables()
            image += self._marker(up(4 * tables, SECTOR) // SECTOR, GRAIN_DIRECTORY)
        at = len(image)
        image.extend(bytes(up(4 * tables, SECTOR)))
        regions.append(Region(f"{prefix}directory", at, 4 * tables))
        if not markers:
            put_tables()
        image[at : at + 4 * tables] = struct.pack(f"<{tables}I", *firsts)
        return at // SECTOR

    @staticmethod
    def _marker(sectors: int, kind: int) -> bytes:
        return struct.pack("<QII", sectors, 0, kind).ljust(SECTOR, b"\0")


@dataclass
class Cowd:
    """An ESX sparse extent."""

    sectors: int
    grains: Mapping[int, bytes] = field(default_factory=dict)
    grain_sectors: int = 1
    fields: Mapping[str, int] = field(default_factory=dict)
    damage: Damage | None = None

    TABLE = 4096

    def build(self) -> Built:
        tables = -(-self.sectors // (self.grain_sectors * self.TABLE))
        directory = 4
        image = bytearray((directory * SECTOR) + up(4 * tables, SECTOR))
        regions = [Region("header", 0, 4 * SECTOR), Region("directory", 4 * SECTOR, 4 * tables)]
        for index in range(tables):
            numbers = [number for number in self.grains if number // self.TABLE == index]
            if not numbers:
                continue
            table = len(image)
            struct.pack_into("<I", image, directory * SECTOR + 4 * index, table // SECTOR)
            regions.append(Region(f"table[{index}]", table, 4 * self.TABLE))
            image += bytes(4 * self.TABLE)
            for number in numbers:
                struct.pack_into("<I", image, table + 4 * (number % self.TABLE), len(image) // SECTOR)
                regions.append(Region(f"grain[{number}]", len(image), self.grain_sectors * SECTOR))
                image += self.grains[number].ljust(self.grain_sectors * SECTOR, b"\0")
        values = {
            "version": 1,
            "flags": 3,
            "capacity": self.sectors,
            "grain_size": self.grain_sectors,
            "directory": directory,
            "directory_entries": tables,
            "free_sector": len(image) // SECTOR,
        }
        image[:4] = b"COWD"
        for name, value in (values | dict(self.fields)).items():
            offset, form = COWD_FIELDS[name]
            struct.pack_into(form, image, offset, value)
        if self.damage is not None:
            self.damage(image, tuple(regions))
        return Built(bytes(image), tuple(regions))


@dataclass
class SeSparse:
    """A seSparse extent: grains of 4 KiB, tables of 4096 entries.  ``ZERO`` is a zeroed grain."""

    sectors: int
    grains: Mapping[int, bytes | None] = field(default_factory=dict)
    #: Grain numbers that are marked as unmapped by SCSI.
    unmapped: Sequence[int] = ()
    dirty: bool = False
    fields: Mapping[str, int] = field(default_factory=dict)
    damage: Damage | None = None

    GRAIN, TABLE = 8, 4096

    def build(self) -> Built:
        tables = max(1, -(-self.sectors // (self.GRAIN * self.TABLE)))
        sizes = {
            "volatile_header": 1,
            "journal_header": 2,
            "journal": 8,
            "directory": up(8 * tables, SECTOR) // SECTOR,
            "tables": 64 * tables,
            "free_bitmap": 1,
            "backmap": 1,
            "grains": self.GRAIN * max(1, len(self.grains)),
        }
        values: dict[str, int] = {
            "magic": 0xCAFE_BABE,
            "version": 0x2_0000_0001,
            "capacity": self.sectors,
            "grain_size": self.GRAIN,
            "table_size": 64,
        }
        regions = [Region("const-header", 0, SECTOR)]
        at = 1
        for name, size in sizes.items():
            values[name], values[f"{name}_size"] = at, size
            regions.append(Region(name, at * SECTOR, size * SECTOR))
            at += size
        image = bytearray(at * SECTOR)
        struct.pack_into("<QQQQ", image, values["volatile_header"] * SECTOR, 0xCAFE_CAFE, tables, 1, int(self.dirty))
        for index in range(tables):
            struct.pack_into("<Q", image, values["directory"] * SECTOR + 8 * index, 0x1000_0000_0000_0000 | index)
        stored = 0
        for number, content in self.grains.items():
            if content is ZERO:
                entry = 0x2000_0000_0000_0000
            else:
                # The low 12 bits of the index stand above the others.
                entry = 0x3000_0000_0000_0000 | (stored & 0xFFF) << 48 | stored >> 12
                place = (values["grains"] + stored * self.GRAIN) * SECTOR
                image[place : place + self.GRAIN * SECTOR] = content.ljust(self.GRAIN * SECTOR, b"\0")
                stored += 1
            struct.pack_into("<Q", image, values["tables"] * SECTOR + 8 * number, entry)
        for number in self.unmapped:
            struct.pack_into("<Q", image, values["tables"] * SECTOR + 8 * number, 0x1000_0000_0000_0000)
        for name, value in (values | dict(self.fields)).items():
            offset, form = SESPARSE_FIELDS[name]
            struct.pack_into(form, image, offset, value)
        if self.damage is not None:
            self.damage(image, tuple(regions))
        return Built(bytes(image), tuple(regions))
