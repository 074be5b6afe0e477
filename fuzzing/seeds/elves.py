"""Seeds of the target that reads ELF files: by hand, and from the compiler, cut to what the readers look at."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from elftools.elf.elffile import ELFFile

import calltable as ct
from tests import elf_writer
from tests.hostile.build import CACHE, ROOT, compile_c

_SOURCE = """
#include "pyvmm.h"
PYVMM_OPERATION(0);
static int64_t walk(int64_t depth) { return depth ? 1 + walk(depth - 1) : 0; }
int64_t _start(const struct pyvmm_table *table) { return walk(table->entry_count); }
"""
_SECTIONS = (
    *(".debug_info", ".debug_abbrev", ".debug_line", ".debug_str", ".debug_line_str", ".debug_str_offsets"),
    *(".debug_addr", ".symtab", ".strtab"),
)
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_NOBITS = 8


def with_sections(sections: Sequence[tuple[str, int, bytes, int | None]]) -> bytes:
    """A small operation with these sections: name, type, content, and size where it is not the content's."""
    base = elf_writer.operation()
    names = b"\0" + b"".join(name.encode() + b"\0" for name, *_ in sections) + b".shstrtab\0"
    body = b""
    headers = [bytes(_SECTION_HEADER.size)]
    index = {name: place + 1 for place, (name, *_) in enumerate(sections)}
    for name, kind, content, size in [*sections, (".shstrtab", 3, names, None)]:
        link = index.get(".strtab", 0) if kind == 2 else 0
        offset = len(base) + len(body)
        length = len(content) if size is None else size
        entry = 24 if kind == 2 else 0
        headers.append(
            _SECTION_HEADER.pack(names.find(name.encode() + b"\0"), kind, 0, 0, offset, length, link, 0, 1, entry)
        )
        body += content
    patched = bytearray(base + body)
    struct.pack_into("<Q", patched, 40, len(patched))
    struct.pack_into("<HHH", patched, 58, _SECTION_HEADER.size, len(headers), len(headers) - 1)
    return bytes(patched) + b"".join(headers)


def _compiled() -> bytes:
    CACHE.mkdir(parents=True, exist_ok=True)
    source = CACHE / "fuzz-seed.c"
    source.write_text(_SOURCE)
    # Not where this machine keeps things, and no other length: offsets stay right.
    root = str(ROOT).encode()
    whole = compile_c(source).replace(root, b"/" + b"f" * (len(root) - 1))
    file: Any = ELFFile(io.BytesIO(whole))
    found = [(s.name, int(s.header["sh_type"] == "SHT_SYMTAB") + 1, s.data()) for s in file.iter_sections()]
    wanted = [(name, 3 if name == ".strtab" else kind, data, None) for name, kind, data in found if name in _SECTIONS]
    return with_sections(wanted)


def _by_hand() -> Iterator[bytes]:
    base, size = ct.OPERATION_BASE, ct.OPERATION_SIZE
    yield elf_writer.operation()
    yield elf_writer.operation(minor=9)
    yield elf_writer.operation(data_size=0x2000)
    text = elf_writer.Part(base, b"\xf4", elf_writer.R | elf_writer.X)
    note = elf_writer.Part(0, elf_writer.note(), kind=elf_writer.NOTE, align=8)
    yield elf_writer.elf([text, note], base)
    yield elf_writer.elf([text, elf_writer.Part(0, b"\0" * 16, kind=2)], base)
    yield elf_writer.elf([text, elf_writer.Part(base + size - 1, b"", elf_writer.W, memory_size=2)], base)
    yield elf_writer.elf([text], base, machine=3)
    yield elf_writer.elf([text, elf_writer.Part(base + 0x800, b"x")], base)


def elf() -> Iterable[bytes]:
    """Of the target ``elf``."""
    yield from _by_hand()
    yield _compiled()
    # Sections that are all promise.
    for name in (".debug_info", ".debug_line", ".symtab", ".debug_abbrev"):
        lines = [(".debug_info", 1, b"", None), (".debug_abbrev", 1, b"", None), (".debug_line", 1, b"", None)]
        others = [section for section in lines if section[0] != name]
        yield with_sections([*others, (name, _NOBITS, b"", 1 << 20)])
