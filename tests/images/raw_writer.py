"""Raw disks for tests: partition tables and the superblocks by which programs recognise file systems.

Sources: MBR and GPT: UEFI Specification 2.10, chapter 5 ("GUID Partition Table (GPT) Disk Layout").  Superblocks:
each file system's own description, only the fields that identify it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

SECTOR = 512


@dataclass(frozen=True)
class Partition:
    """Type (MBR: one byte, GPT: a GUID of 16 bytes), first sector and number of sectors."""

    kind: int | bytes
    start: int
    sectors: int
    active: bool = False


def mbr(size: int, partitions: Sequence[Partition], signature: bytes = b"\x55\xaa", serial: int = 0) -> bytes:
    """A disk of ``size`` bytes that begins with an MBR (section 5.2.1, "Legacy Master Boot Record")."""
    image = bytearray(size)
    struct.pack_into("<I", image, 440, serial)
    for index, partition in enumerate(partitions):
        if not isinstance(partition.kind, int):
            raise TypeError("an MBR partition has a type of one byte")
        at = 446 + 16 * index
        image[at : at + 8] = bytes((0x80 if partition.active else 0, 0, 2, 0, partition.kind, 0xFE, 0xFF, 0xFF))
        struct.pack_into("<II", image, at + 8, partition.start, partition.sectors)
    image[510:512] = signature
    return bytes(image)


def gpt(size: int, partitions: Sequence[Partition], *, entries: int = 128, backup: bool = True) -> bytes:
    """A disk with a protective MBR, a primary and a backup GPT (sections 5.2.3 and 5.3)."""
    sectors = size // SECTOR
    image = bytearray(mbr(size, [Partition(0xEE, 1, min(sectors - 1, 0xFFFF_FFFF))]))
    array = bytearray(entries * 128)
    for index, partition in enumerate(partitions):
        if not isinstance(partition.kind, bytes):
            raise TypeError("a GPT partition has a GUID")
        last = partition.start + partition.sectors - 1
        unique = bytes([index + 1]) * 16
        name = f"part{index}".encode("utf-16-le").ljust(72, b"\0")
        struct.pack_into("<16s16sQQQ72s", array, 128 * index, partition.kind, unique, partition.start, last, 0, name)
    array_sectors = -(-len(array) // SECTOR)

    def header(own: int, other: int, table: int) -> bytes:
        first, last = 2 + array_sectors, sectors - array_sectors - 2
        fields = (own, other, first, last, b"\x42" * 16, table, entries, 128, zlib.crc32(array))
        body = struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x0001_0000, 92, 0, 0, *fields)
        return body[:16] + struct.pack("<I", zlib.crc32(body)) + body[20:]

    image[SECTOR : SECTOR + 92] = header(1, sectors - 1, 2)
    image[2 * SECTOR : 2 * SECTOR + len(array)] = array
    if backup:
        at = (sectors - 1) * SECTOR
        image[at : at + 92] = header(sectors - 1, 1, sectors - 1 - array_sectors)
        image[at - len(array) : at] = array
    return bytes(image)


#: name -> (byte offset, bytes): enough to be recognised, nothing more.
SIGNATURES: dict[str, tuple[int, bytes]] = {
    "ext": (1024 + 56, b"\x53\xef"),
    "xfs": (0, b"XFSB"),
    "btrfs": (0x10040, b"_BHRfS_M"),
    "ntfs": (3, b"NTFS    "),
    "fat32": (82, b"FAT32   "),
    "iso9660": (0x8001, b"CD001"),
    "squashfs": (0, b"hsqs"),
    "swap": (4096 - 10, b"SWAPSPACE2"),
    "lvm2": (512, b"LABELONE"),
    "luks": (0, b"LUKS\xba\xbe\x00\x01"),
    "qcow1": (0, b"QFI\xfb\x00\x00\x00\x01"),
    "qed": (0, b"QED\x00"),
    "vdi": (64, b"\x7f\x10\xda\xbe"),
    "vhdx": (0, b"vhdxfile"),
    "vmdk": (0, b"KDMV\x01\x00\x00\x00"),
    "parallels": (0, b"WithoutFreeSpace"),
}


def signed(size: int, *names: str) -> bytes:
    """A disk of ``size`` zero bytes with the signatures of ``names`` in place."""
    image = bytearray(size)
    for name in names:
        offset, magic = SIGNATURES[name]
        image[offset : offset + len(magic)] = magic
    return bytes(image)
