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


def sections(parts: dict[str, bytes]) -> bytes:
    """An ELF64 file of nothing but named sections (generic ABI, chapter 4), ``.symtab`` linked to ``.strtab``."""
    names = b"\0"
    places = []
    body = b""
    for name, data in (*parts.items(), (".shstrtab", None)):
        places.append((len(names), 64 + len(body), data))
        names += name.encode() + b"\0"
        body += data or b""
    order = list(parts)
    headers = bytes(64)
    for name, (at, offset, data) in zip((*order, ".shstrtab"), places, strict=True):
        kind = {".symtab": 2, ".strtab": 3, ".shstrtab": 3}.get(name, 1)
        link = order.index(".strtab") + 1 if kind == 2 else 0
        size = len(names) if data is None else len(data)
        headers += struct.pack("<IIQQQQIIQQ", at, kind, 0, 0, offset, size, link, 0, 1, 24 if kind == 2 else 0)
    table = 64 + len(body) + len(names)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, 0, 0, table, 0, 64, 56, 0, 64, len(headers) // 64, len(headers) // 64 - 1
    )
    return header + body + names + headers


def line_table(address: int, file_name: bytes, lines: int) -> dict[str, bytes]:
    """Sections of one compilation unit with ``lines`` lines, a byte of code each (DWARF 4, sections 6.2.4 and 7.5)."""
    abbreviations = bytes([1, 0x11, 0, 0x10, 0x17, 0, 0, 0])  # DW_TAG_compile_unit with DW_AT_stmt_list
    unit = struct.pack("<HIB", 4, 0, 8) + b"\x01" + struct.pack("<I", 0)
    header = bytes([1, 1, 1, 0xFB, 14, 13, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1])
    header += b"\0" + file_name + b"\0\0\0\0" + b"\0"
    # Set the address, a line there, the other lines with a special opcode each, one byte more, the end.
    program = b"\0\x09\x02" + struct.pack("<Q", address) + b"\x01" + bytes([13 + 5 + 14]) * (lines - 1)
    program += b"\x02\x01\0\x01\x01"
    body = struct.pack("<HI", 4, len(header)) + header + program
    return {
        ".debug_info": struct.pack("<I", len(unit)) + unit,
        ".debug_abbrev": abbreviations,
        ".debug_line": struct.pack("<I", len(body)) + body,
    }
