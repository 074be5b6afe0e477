"""A VHD writer for tests: fixed, dynamic and differencing disks by any creator, of any length, with any damage.

Source: Microsoft, "Virtual Hard Disk Image Format Specification" (version 1.0, October 2006): "Hard Disk Footer
Format", "Dynamic Disk Header Format", "Block Allocation Table and Data Blocks", appendix "CHS Calculation".
Numbers are big-endian; the BAT counts 512-byte sectors, everything else here is bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.images.qcow2_writer import Built, Region

SECTOR = 512
FOOTER = 512
DYNAMIC_HEADER = 1024
UNUSED = 0xFFFF_FFFF
NO_OFFSET = 0xFFFF_FFFF_FFFF_FFFF

FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4


def geometry(sectors: int) -> tuple[int, int, int]:
    """Cylinders, heads, sectors a track of a disk of ``sectors`` sectors (appendix "CHS Calculation")."""
    sectors = min(sectors, 65535 * 16 * 255)
    if sectors >= 65535 * 16 * 63:
        per_track, heads = 255, 16
        tracks = sectors // per_track
    else:
        per_track = 17
        tracks = sectors // per_track
        heads = max(4, (tracks + 1023) // 1024)
        if tracks >= heads * 1024 or heads > 16:
            per_track, heads = 31, 16
            tracks = sectors // per_track
        if tracks >= heads * 1024:
            per_track, heads = 63, 16
            tracks = sectors // per_track
    return tracks // heads, heads, per_track


def checksum(data: bytes, field_offset: int) -> int:
    """One's complement of the sum of all bytes, the checksum field itself counted as zero."""
    return ~(sum(data) - sum(data[field_offset : field_offset + 4])) & 0xFFFF_FFFF


@dataclass(frozen=True)
class Locator:
    """A parent locator: platform code ("W2ku", "W2ru", "MacX", ...) and the bytes it points at."""

    platform: bytes
    data: bytes


@dataclass
class Vhd:
    """What to write.  ``size`` is the current size in bytes; ``blocks`` maps block numbers to fill bytes."""

    size: int
    disk_type: int = DYNAMIC
    block_size: int = 2 << 20
    blocks: dict[int, bytes] = field(default_factory=dict)
    creator: bytes = b"qemu"
    creator_version: int = 0x0005_0003
    creator_os: bytes = b"Wi2k"
    chs: tuple[int, int, int] | None = None
    original_size: int | None = None
    features: int = 2
    version: int = 0x0001_0000
    timestamp: int = 0x1234_5678
    identifier: bytes = bytes(range(16))
    saved_state: int = 0
    parent_name: str = ""
    parent_identifier: bytes = bytes(16)
    locators: tuple[Locator, ...] = ()
    bat_entries: int | None = None
    #: Bytes of the trailing footer that are written: 511 in images of the first Virtual PC versions.
    footer_length: int = FOOTER
    trailing: bytes = b""
    damage: Callable[[bytearray, tuple[Region, ...]], None] | None = None

    def footer(self) -> bytes:
        chs = geometry(-(-self.size // SECTOR)) if self.chs is None else self.chs
        data = struct.pack(
            ">8sIIQI4sI4sQQHBBII16sB",
            b"conectix",
            self.features,
            self.version,
            NO_OFFSET if self.disk_type == FIXED else FOOTER,
            self.timestamp,
            self.creator,
            self.creator_version,
            self.creator_os,
            self.size if self.original_size is None else self.original_size,
            self.size,
            *chs,
            self.disk_type,
            0,
            self.identifier,
            self.saved_state,
        ).ljust(FOOTER, b"\0")
        return _sealed(data, 64)

    def build(self) -> Built:
        """Fixed: data, footer.  Otherwise: copy of the footer, header, BAT, locators, blocks, footer."""
        image = bytearray()
        regions: list[Region] = []
        if self.disk_type == FIXED:
            regions.append(Region("data", 0, self.size))
            image.extend(bytes(self.size))
            for number, fill in self.blocks.items():
                at = number * self.block_size
                length = min(self.block_size, self.size - at)
                image[at : at + length] = (fill * length)[:length]
        else:
            self._dynamic(image, regions)
        regions.append(Region("footer", len(image), self.footer_length))
        image.extend(self.footer()[: self.footer_length])
        image.extend(self.trailing)
        if self.damage is not None:
            self.damage(image, tuple(regions))
        return Built(bytes(image), tuple(regions))

    def _dynamic(self, image: bytearray, regions: list[Region]) -> None:
        entries = -(-self.size // self.block_size) if self.bat_entries is None else self.bat_entries
        bat_offset = FOOTER + DYNAMIC_HEADER
        bat_length = -(-max(4 * entries, 1) // SECTOR) * SECTOR
        image.extend(self.footer())
        regions.append(Region("footer-copy", 0, FOOTER))
        regions.append(Region("dynamic-header", FOOTER, DYNAMIC_HEADER))
        regions.append(Region("bat", bat_offset, 4 * entries))
        position = bat_offset + bat_length
        places = []
        for locator in self.locators:
            space = -(-len(locator.data) // SECTOR) * SECTOR
            places.append((locator, position, space))
            regions.append(Region(f"locator[{locator.platform.decode('latin-1')}]", position, len(locator.data)))
            position += space
        image.extend(self._header(bat_offset, entries, places))
        image.extend(b"\xff" * bat_length)
        for locator, offset, space in places:
            image.extend(bytes(offset - len(image)))
            image.extend(locator.data.ljust(space, b"\0"))
        bitmap = -(-self.block_size // SECTOR // 8 // SECTOR) * SECTOR or SECTOR
        for number, fill in self.blocks.items():
            struct.pack_into(">I", image, bat_offset + 4 * number, len(image) // SECTOR)
            regions.append(Region(f"bitmap[{number}]", len(image), bitmap))
            image.extend(b"\xff" * bitmap)
            regions.append(Region(f"block[{number}]", len(image), self.block_size))
            image.extend((fill * self.block_size)[: self.block_size])

    def _header(self, bat_offset: int, entries: int, places: list[tuple[Locator, int, int]]) -> bytes:
        name = self.parent_name.encode("utf-16-be")[:512].ljust(512, b"\0")
        data = struct.pack(
            ">8sQQIIII16sII512s",
            b"cxsparse",
            NO_OFFSET,
            bat_offset,
            0x0001_0000,
            entries,
            self.block_size,
            0,
            self.parent_identifier,
            0,
            0,
            name,
        )
        for locator, offset, space in places:
            data += struct.pack(">4sIIIQ", locator.platform, space, len(locator.data), 0, offset)
        return _sealed(data.ljust(DYNAMIC_HEADER, b"\0"), 36)


def _sealed(data: bytes, at: int) -> bytes:
    return data[:at] + struct.pack(">I", checksum(data, at)) + data[at + 4 :]
