"""Writes small ELF files for tests, byte by byte from the generic ABI: no compiler, and nothing of the loader's."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import calltable

LOAD, NOTE = 1, 4
R, W, X = 4, 2, 1


@dataclass(frozen=True)
class Part:
    """A program header and its bytes."""

    address: int
    data: bytes
    flags: int = R
    memory_size: int | None = None
    kind: int = LOAD
    align: int = 0x1000


def note(major: int = calltable.TABLE_MAJOR, minor: int = 0, name: bytes = b"pyvmm\0\0\0", name_size: int = 6) -> bytes:
    """The contract note of an operation."""
    return struct.pack("<III", name_size, 8, calltable.TABLE_NOTE_TYPE) + name + struct.pack("<HHI", major, minor, 0)


def elf(parts: list[Part], entry: int, *, kind: int = 2, machine: int = 62) -> bytes:
    """An ELF64 file of these parts, laid out one after another."""
    offset = 64 + 56 * len(parts)
    headers = b""
    body = b""
    for part in parts:
        size = len(part.data) if part.memory_size is None else part.memory_size
        headers += struct.pack(
            "<IIQQQQQQ",
            *(part.kind, part.flags, offset + len(body), part.address, part.address),
            *(len(part.data), size, part.align),
        )
        body += part.data
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, entry, 64, 0, 0, 64, 56, len(parts), 0, 0, 0)
    return header + headers + body


def operation(code: bytes = b"\xf4", minor: int = 0, data_size: int = 0) -> bytes:
    """An operation of one text page, a note, and some zeroed data."""
    base = calltable.OPERATION_BASE
    parts = [Part(base, code, R | X), Part(0, note(minor=minor), kind=NOTE, align=4)]
    if data_size:
        parts.append(Part(base + 0x10000, b"", R | W, memory_size=data_size))
    return elf(parts, base)
