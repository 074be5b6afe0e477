"""Writes sectors into differencing disks, VHD and VHDX, which qemu-io cannot.

Sources: "Virtual Hard Disk Image Format Specification" 1.0, "Block Allocation Table and Data Blocks"; [MS-VHDX] 2.5
"BAT" and 2.6 "Metadata Region".  Images are those that nobody has open and that have no log to replay.
"""

from __future__ import annotations

import struct
from pathlib import Path

from tests.images.vhd_writer import SECTOR, UNUSED
from tests.images.vhdx_writer import BAT, FILE_PARAMETERS, METADATA, MIB, PARTIAL, REGION_TABLES, VIRTUAL_DISK_SIZE

_FOOTER = 512


def write_vhd(path: Path, sector: int, data: bytes) -> None:
    """Whole sectors into the blocks of a dynamic or differencing VHD, which are allocated as they are met."""
    image = bytearray(path.read_bytes())
    header = int.from_bytes(image[16:24], "big")
    table = int.from_bytes(image[header + 16 : header + 24], "big")
    block = int.from_bytes(image[header + 32 : header + 36], "big")
    per_block = block // SECTOR
    bitmap = -(-per_block // 8 // SECTOR) * SECTOR
    for number in range(len(data) // SECTOR):
        index, inside = divmod(sector + number, per_block)
        entry = table + 4 * index
        place = int.from_bytes(image[entry : entry + 4], "big")
        if place == UNUSED:
            footer = bytes(image[-_FOOTER:])
            place = (len(image) - _FOOTER) // SECTOR
            image[-_FOOTER:] = bytes(bitmap + block) + footer
            image[entry : entry + 4] = place.to_bytes(4, "big")
        start = place * SECTOR
        image[start + inside // 8] |= 0x80 >> inside % 8
        at = start + bitmap + inside * SECTOR
        image[at : at + SECTOR] = data[number * SECTOR : (number + 1) * SECTOR]
    path.write_bytes(image)


def write_vhdx(path: Path, sector: int, data: bytes) -> None:
    """Sectors of 512 bytes into the blocks of a differencing VHDX; new ones become partially present."""
    with path.open("r+b") as file:

        def read(at: int, form: str) -> tuple[int, ...]:
            file.seek(at)
            return struct.unpack(form, file.read(struct.calcsize(form)))

        def region(guid: bytes) -> int:
            for row in range(16):
                file.seek(REGION_TABLES[0] + 16 + 32 * row)
                if file.read(16) == guid:
                    return read(REGION_TABLES[0] + 32 + 32 * row, "<Q")[0]
            raise AssertionError("no such region")

        def item(guid: bytes) -> int:
            metadata = region(METADATA)
            for row in range(1, 64):
                file.seek(metadata + 32 * row)
                if file.read(16) == guid:
                    return metadata + read(metadata + 32 * row + 16, "<I")[0]
            raise AssertionError("no such item")

        def allocate(length: int) -> int:
            end = -(-file.seek(0, 2) // MIB) * MIB
            file.truncate(end + length)
            return end

        (block,) = read(item(FILE_PARAMETERS), "<I")
        (size,) = read(item(VIRTUAL_DISK_SIZE), "<Q")
        assert sector * 512 + len(data) <= size
        table, ratio, per_block = region(BAT), (1 << 23) * 512 // block, block // 512
        for number in range(len(data) // 512):
            index, inside = divmod(sector + number, per_block)
            chunk = index // ratio
            payload, map_entry = table + 8 * (index + chunk), table + 8 * (chunk * (ratio + 1) + ratio)
            (bitmap,) = read(map_entry, "<Q")
            if not bitmap & 7:
                bitmap = allocate(MIB) | 6
                file.seek(map_entry)
                file.write(struct.pack("<Q", bitmap))
            (place,) = read(payload, "<Q")
            if place & 7 == 0:
                place = allocate(block) | PARTIAL
                file.seek(payload)
                file.write(struct.pack("<Q", place))
            assert place & 7 == PARTIAL
            bit = (index % ratio) * per_block + inside
            at = (bitmap >> 20 << 20) + bit // 8
            (byte,) = read(at, "<B")
            file.seek(at)
            file.write(bytes([byte | 1 << bit % 8]))
            file.seek((place >> 20 << 20) + inside * 512)
            file.write(data[number * 512 : (number + 1) * 512])
