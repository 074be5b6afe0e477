"""Writes a small fixed VHD whose first sector holds a partition table: something for ``make run`` to look at.

Layout: the bytes of the disk, then a footer of 512 bytes (Virtual Hard Disk Image Format Specification 1.0, "Hard Disk
Footer Format"; numbers are big-endian).  The partition table is a classic MBR: four entries of 16 bytes at byte 446 and
the signature 55 AA at byte 510, little-endian.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

SECTOR = 512
CYLINDERS, HEADS, SECTORS_PER_TRACK = 121, 4, 17
#: The geometry's product, so that readers who believe the geometry and readers who believe the size agree.
SIZE = CYLINDERS * HEADS * SECTORS_PER_TRACK * SECTOR
#: 2026-01-01 00:00 UTC in seconds since 2000-01-01: a fixed time, so that the sample is always the same.
TIMESTAMP = 820_454_400


def partition(kind: int, start: int, count: int, *, active: bool) -> bytes:
    """An MBR entry; start and count in sectors, CHS fields at their maximum as for LBA-only tables."""
    return struct.pack("<B3sB3sII", 0x80 if active else 0, b"\xfe\xff\xff", kind, b"\xfe\xff\xff", start, count)


def first_sector() -> bytes:
    """A boot sector with a Linux and a FAT partition and no code."""
    sectors = SIZE // SECTOR
    table = partition(0x83, 64, 4096, active=True) + partition(0x0C, 4160, sectors - 4160, active=False)
    return bytes(440) + struct.pack("<IH", 0x50595644, 0) + table + bytes(32) + b"\x55\xaa"


def footer() -> bytes:
    """The footer of a fixed disk; its checksum is the one's complement of the sum of all other bytes."""
    body = bytearray(SECTOR)
    geometry = struct.pack(">HBB", CYLINDERS, HEADS, SECTORS_PER_TRACK)
    struct.pack_into(">8sIIQI4sI4s", body, 0, b"conectix", 2, 0x10000, 2**64 - 1, TIMESTAMP, b"pyvm", 0x10000, b"Wi2k")
    struct.pack_into(">QQ4sI", body, 40, SIZE, SIZE, geometry, 2)
    body[68:84] = bytes(range(16))
    struct.pack_into(">I", body, 64, ~sum(body) & 0xFFFF_FFFF)
    return bytes(body)


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: sample_vhd.py OUT", file=sys.stderr)
        return 64
    with Path(sys.argv[1]).open("wb") as file:
        file.write(first_sector())
        file.truncate(SIZE)
        file.seek(0, 2)
        file.write(footer())
    return 0


if __name__ == "__main__":
    sys.exit(main())
