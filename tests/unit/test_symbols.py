"""Source lines from debugging information, which is as untrusted as the ELF that it comes in."""

from __future__ import annotations

import struct
import sys
import tracemalloc
import zlib

import pytest

from tests.elf_writer import line_table, sections
from vmm.boundary import Frame
from vmm.machine import guests, symbols


@pytest.fixture
def debug() -> bytes:
    return guests.debug_of(guests.runtime())


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy host must not make the search give up."""
    monkeypatch.setattr(symbols, "PATIENCE_NS", 600_000_000_000)


def entry(elf: bytes) -> int:
    return int(struct.unpack_from("<Q", elf, 24)[0])


@pytest.mark.usefixtures("patient")
def test_an_elf_with_its_own_debugging_information(debug: bytes) -> None:
    found = symbols._Symbols(debug, shipped=False).frame(entry(debug), entry(debug))
    assert found.function is not None
    assert found.file is not None
    assert found.file.endswith(".zig")
    assert found.line


def test_the_search_ends_by_the_clock(debug: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symbols, "PATIENCE_NS", 0)
    before = sys.getprofile()
    found = symbols._Symbols(debug, shipped=False)
    assert (found.functions, found.lines) == ([], [])
    assert sys.getprofile() is before
    assert symbols._Symbols(debug, shipped=True).lines


def header_of(elf: bytes, name: bytes) -> int:
    """Where the header of a section lies (generic ABI, "Section Header")."""
    table = struct.unpack_from("<Q", elf, 40)[0]
    count, strings = struct.unpack_from("<HH", elf, 60)
    names = struct.unpack_from("<Q", elf, table + strings * 64 + 24)[0]
    for header in range(table, table + count * 64, 64):
        start = names + struct.unpack_from("<I", elf, header)[0]
        if elf[start : elf.index(b"\0", start)] == name:
            return header
    raise AssertionError(f"there is no section {name!r}")


def compressed(elf: bytes, name: bytes) -> bytes:
    """The ELF with one section compressed (SHF_COMPRESSED, generic ABI, "Section Compression")."""
    out = bytearray(elf)
    header = header_of(elf, name)
    offset, size = struct.unpack_from("<QQ", elf, header + 24)
    data = struct.pack("<IIQQ", 1, 0, size, 1) + zlib.compress(elf[offset : offset + size])
    struct.pack_into("<Q", out, header + 8, 1 << 11)
    struct.pack_into("<QQ", out, header + 24, len(out), len(data))
    return bytes(out + data)


def not_in_the_file(elf: bytes, name: bytes, size: int) -> bytes:
    """The ELF with one section of which the file holds nothing (SHT_NOBITS)."""
    out = bytearray(elf)
    header = header_of(elf, name)
    struct.pack_into("<I", out, header + 4, 8)
    struct.pack_into("<Q", out, header + 32, size)
    return bytes(out)


def test_nothing_is_decompressed(debug: bytes) -> None:
    found = symbols._Symbols(compressed(debug, b".debug_str"), shipped=True)
    assert found.functions
    assert found.lines == []


@pytest.mark.parametrize("size", [1 << 27, 1 << 40])
def test_memory_is_not_what_a_header_says(debug: bytes, size: int) -> None:
    bomb = not_in_the_file(debug, b".debug_str", size)
    tracemalloc.start()
    try:
        found = symbols._Symbols(bomb, shipped=False)
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
    finally:
        tracemalloc.stop()
    assert found.lines == []


@pytest.mark.parametrize("size", [0, 64, 4096, 100_000])
def test_broken_files_have_no_symbols(debug: bytes, size: int) -> None:
    address = entry(debug)
    assert symbols._Symbols(debug[:size] + bytes(64), shipped=False).frame(address, address) == Frame(address)


@pytest.mark.usefixtures("patient")
def test_a_long_file_name_is_kept_once_and_cut() -> None:
    """Half a megabyte of name for each of thousands of lines would be gigabytes."""
    elf = sections(line_table(0x40_0000, b"n" * 100_000, 500))
    found = symbols._Symbols(elf, shipped=False)
    assert [line[:2] for line in found.lines[:2]] == [(0x40_0000, 0x40_0001), (0x40_0001, 0x40_0002)]
    assert len(found.lines) == 500
    assert len({id(name) for _, _, name, _ in found.lines}) == 1
    assert found.frame(0x40_0000, 0x40_0000).file == "n" * symbols.MAX_NAME


@pytest.mark.usefixtures("patient")
def test_a_long_function_name_is_cut() -> None:
    symbol = struct.pack("<IBBHQQ", 1, 2, 0, 0, 0x40_0000, 16)
    elf = sections({".symtab": symbol, ".strtab": b"\0" + b"f" * 10_000 + b"\0"})
    assert symbols._Symbols(elf, shipped=False).frame(0x40_0000, 0x40_0000).function == "f" * symbols.MAX_NAME
