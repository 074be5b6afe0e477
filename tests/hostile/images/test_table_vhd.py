"""Every field of footer and dynamic header of a VHD, and of an entry of its table, at 0, 1, all ones and its limits.

Virtual Hard Disk Image Format Specification 1.0, "Hard Disk Footer Format" and "Dynamic Disk Header Format".
"""

from __future__ import annotations

import functools
import struct
from pathlib import Path

import pytest

from tests.differential.ours import Ours
from tests.hostile.images.table import ONES_8, ONES_16, ONES_32, ONES_64, Row, Table, field
from tests.images import vhd_writer as v

pytestmark = pytest.mark.kvm

KIB = 1 << 10
FOOTER, HEADER, BAT = 0, 512, 1536
SIZE, BLOCK = 256 * KIB, 16 * KIB
#: 2040 GiB, in bytes.
LIMIT = 0xFF00_0000 * 512
#: The largest table of blocks of this size: what a disk of LIMIT bytes needs.
ENTRIES_LIMIT = LIMIT // BLOCK


@functools.cache
def dynamic() -> bytes:
    """Two blocks of sixteen."""
    return v.Vhd(SIZE, block_size=BLOCK, blocks={0: b"a", 3: b"b"}, creator=b"win ").build().data


@functools.cache
def fixed() -> bytes:
    return v.Vhd(64 * KIB, v.FIXED, blocks={0: b"z"}, creator=b"win ").build().data


def _sum(data: bytearray, at: int, length: int, field_at: int) -> None:
    struct.pack_into(">I", data, at + field_at, v.checksum(bytes(data[at : at + length]), field_at))


def seal_dynamic(data: bytearray) -> None:
    """Both checksums, and the footer at the end as its copy at byte 0."""
    _sum(data, FOOTER, 512, 64)
    _sum(data, HEADER, 1024, 36)
    data[-512:] = data[:512]


def seal_fixed(data: bytearray) -> None:
    _sum(data, len(data) - 512, 512, 64)


END = len(dynamic())
#: The first sector of a block that just fits the file: one for its bitmap, then its data.
LAST = END // 512 - 1 - BLOCK // 512
BROKEN, WASTE = {"check": 2}, {"check": 3}
NO_FOOTER, NO_HEADER = "invalid VPC image: no footer", "no dynamic disk header at byte"
TABLE_SMALL, TRUNCATED, ABOVE = "Page table too small", "The image has been truncated", "above the limit"
OUTSIDE = f"file has {END}"
BLOCK_SIZE, ENTRIES, COPY = "Invalid block size", "Max Table Entries too large", "its copy at byte 0 is missing"

DYNAMIC = Table(
    "vpc",
    dynamic,
    (
        *field("cookie", 0, ">Q", *((value, NO_FOOTER) for value in (0, 1, ONES_64))),
        *field("cookie", 0, "", (b"conectiy", NO_FOOTER), (b"CONECTIX", NO_FOOTER)),
        *field("features", 8, ">I", *((value, None) for value in (0, 1, 2, 3, 4, ONES_32))),
        *field("version", 12, ">I", *((value, None, BROKEN) for value in (0, 1, 0x2_0000, ONES_32))),
        *field("version", 12, ">I", (0x1_0000, None), (0x1_0001, None)),
        *field("data offset", 16, ">Q", (512, None), *((b, NO_HEADER, BROKEN) for b in (0, 1, 511, 513, END, ONES_64))),
        *field("timestamp", 24, ">I", (0, None), (1, None), (ONES_32, None)),
        *field("creator", 28, ">I", (0, None), (1, None), (ONES_32, None)),
        *field("creator version", 32, ">I", (0, None), (1, None), (ONES_32, None)),
        *field("creator host", 36, ">I", (0, None), (1, None), (ONES_32, None)),
        *field("original size", 40, ">Q", (0, None), (1, None), (ONES_64, None)),
        *field("current size", 48, ">Q", (0, None, WASTE), (512, None, WASTE), (SIZE - 1, None), (SIZE + 1, None)),
        *field("current size", 48, ">Q", (1, None, BROKEN), (511, None, BROKEN)),
        *field("current size", 48, ">Q", *((b, TABLE_SMALL, BROKEN) for b in (SIZE + 512, LIMIT - 1, LIMIT))),
        *field("current size", 48, ">Q", (LIMIT + 512, ABOVE, BROKEN), (ONES_64, ABOVE, BROKEN)),
        *field("cylinders", 56, ">H", (0, None), (1, None), (ONES_16, None)),
        *field("heads", 58, ">B", (0, None), (1, None), (ONES_8, None)),
        *field("sectors a track", 59, ">B", (0, None), (1, None), (ONES_8, None)),
        *field("type", 60, ">I", *((value, None, BROKEN) for value in (0, 1, 5, 6, ONES_32)), (3, None)),
        *field("type", 60, ">I", (2, "says fixed disk", BROKEN), differs="vhd-fixed-in-front"),
        *field("type", 60, ">I", (4, "backing file", {"info": None, **BROKEN}), differs="vhd-differencing"),
        *field("identifier", 68, "", (bytes(16), None), (b"\xff" * 16, None)),
        *field("saved state", 84, ">B", (0, None), (1, None), (ONES_8, None)),
        *field("header cookie", HEADER, ">Q", *((value, NO_HEADER, BROKEN) for value in (0, 1, ONES_64))),
        *field("header data offset", HEADER + 8, ">Q", (0, None), (1, None), (ONES_64, None)),
        # A table over other structures is read as one, and its entries lead out of the file.
        *field("table offset", HEADER + 16, ">Q", *((b, TRUNCATED, BROKEN) for b in (0, 1, HEADER, BAT - 1, BAT + 1))),
        *field("table offset", HEADER + 16, ">Q", (BAT, None), (END - 64, None, BROKEN)),
        *field("table offset", HEADER + 16, ">Q", *((b, OUTSIDE, BROKEN) for b in (END - 63, END, 1 << 63, ONES_64))),
        *field("header version", HEADER + 24, ">I", *((n, None, BROKEN) for n in (0, 1, 0x2_0000, ONES_32))),
        *field("header version", HEADER + 24, ">I", (0x1_0000, None), (0x1_0001, None)),
        *field("table entries", HEADER + 28, ">I", *((n, TABLE_SMALL, BROKEN) for n in (0, 1, 15))),
        *field("table entries", HEADER + 28, ">I", (16, None), (17, None)),
        *field(
            "table entries", HEADER + 28, ">I", *((n, ENTRIES, BROKEN) for n in (ENTRIES_LIMIT + 1, 1 << 31, ONES_32))
        ),
        *field("table entries", HEADER + 28, ">I", (ENTRIES_LIMIT, OUTSIDE, BROKEN)),
        *field("block size", HEADER + 32, ">I", *((b, BLOCK_SIZE, BROKEN) for b in (0, 1, 511, 513, ONES_32))),
        *field("block size", HEADER + 32, ">I", *((b, BLOCK_SIZE, BROKEN) for b in (BLOCK - 512, BLOCK + 512))),
        *field("block size", HEADER + 32, ">I", *((b, TABLE_SMALL, BROKEN) for b in (512, BLOCK // 2))),
        *field("block size", HEADER + 32, ">I", *((b, TRUNCATED, BROKEN) for b in (2 * BLOCK, 1 << 31))),
        *field("entry", BAT, ">I", (4, None), *((n, None, BROKEN) for n in (0, 1, 5, LAST))),
        *field("entry", BAT, ">I", (ONES_32, None, WASTE)),
        *field("entry", BAT, ">I", *((n, TRUNCATED, BROKEN) for n in (LAST + 2, END // 512, ONES_32 - 1))),
    ),
    seal_dynamic,
    alone=("check",),
)

FIXED = Table(
    "vpc",
    fixed,
    (
        *field("cookie", -512, ">Q", *((value, NO_FOOTER) for value in (0, 1, ONES_64))),
        *field("data offset", -496, ">Q", *((value, None) for value in (0, 1, 512, ONES_64))),
        *field("current size", -464, ">Q", (64 * KIB, None), (0, None, WASTE), (512, None, WASTE), (1, None, BROKEN)),
        *field("current size", -464, ">Q", (64 * KIB - 1, None, WASTE), (64 * KIB + 1, None, BROKEN)),
        *field("current size", -464, ">Q", (LIMIT, None, BROKEN), (LIMIT + 512, ABOVE, BROKEN)),
        *field("current size", -464, ">Q", (ONES_64, ABOVE, BROKEN)),
        *field("type", -452, ">I", (2, None), *((value, COPY, BROKEN) for value in (0, 1, 3, 4, 5, ONES_32))),
    ),
    seal_fixed,
    alone=("check",),
)

#: Checksums that are wrong: only the footer's in front is looked at by qemu, and by those who read content.
SUMS = Table(
    "vpc",
    dynamic,
    (
        *field("footer checksum", 64, ">I", *((n, "Incorrect header checksum", BROKEN) for n in (0, 1, ONES_32))),
        *field("header checksum", HEADER + 36, ">I", *((n, None, BROKEN) for n in (0, 1, ONES_32))),
        *field("checksum at the end", -448, ">I", *((n, None, BROKEN) for n in (0, 1, ONES_32))),
    ),
    alone=("check",),
)

ALL = [(table, row) for table in (DYNAMIC, FIXED, SUMS) for row in table.rows]


@pytest.mark.parametrize(("table", "row"), ALL, ids=[f"{index}-{row}" for index, (_, row) in enumerate(ALL)])
def test_field(table: Table, row: Row, ours: Ours, tmp_path: Path) -> None:
    table.judge(row, ours, tmp_path / "image")
