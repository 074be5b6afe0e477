"""The persistent bitmaps and header extensions of a qcow2 image, read by code that shares nothing with the product
(QEMU docs/interop/qcow2.txt, "Header extensions", "Bitmaps")."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

_BITMAPS = 0x23852875


def extensions(data: bytes) -> list[tuple[int, bytes]]:
    """Type and content of each, in the order of the file."""
    (backing,) = struct.unpack_from(">Q", data, 8)
    (cluster_bits,) = struct.unpack_from(">I", data, 20)
    (at,) = struct.unpack_from(">I", data, 100)
    end = backing or 1 << cluster_bits
    found = []
    while at + 8 <= end:
        kind, length = struct.unpack_from(">II", data, at)
        if not kind:
            break
        found.append((kind, data[at + 8 : at + 8 + length]))
        at += 8 + (length + 7) // 8 * 8
    return found


@dataclass(frozen=True)
class StoredBitmap:
    """A bitmap as it is stored."""

    name: str
    flags: int
    granularity_bits: int
    #: As many as its table has room for; least significant bit first.
    bits: bytes

    def dirty(self) -> set[int]:
        """Numbers of the granules whose bits are 1."""
        return {8 * at + bit for at, byte in enumerate(self.bits) if byte for bit in range(8) if byte >> bit & 1}


def bitmaps(path: Path) -> list[StoredBitmap]:
    """All of them, in the order of the directory; none where the image says that they are stale."""
    data = path.read_bytes()
    cluster = 1 << struct.unpack_from(">I", data, 20)[0]
    (autoclear,) = struct.unpack_from(">Q", data, 88)
    bodies = [body for kind, body in extensions(data) if kind == _BITMAPS]
    if not bodies or not autoclear & 1:
        return []
    count, _, _, at = struct.unpack(">IIQQ", bodies[-1])
    found = []
    for _ in range(count):
        offset, entries, flags, _, bits, length, _ = struct.unpack_from(">QIIBBHI", data, at)
        name = data[at + 24 : at + 24 + length].decode()
        at += (24 + length + 7) // 8 * 8
        content = bytearray()
        for word in struct.unpack(f">{entries}Q", data[offset : offset + 8 * entries].ljust(8 * entries, b"\0")):
            place = word & 0x00FF_FFFF_FFFF_FE00
            stored = (
                data[place : place + cluster].ljust(cluster, b"\0") if place else bytes([255 * (word & 1)]) * cluster
            )
            content += stored
        found.append(StoredBitmap(name, flags, bits, bytes(content)))
    return found
