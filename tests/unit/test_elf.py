"""The ELF loader: what it accepts, what it refuses, and that nothing else happens."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import calltable
from tests.elf_writer import LOAD, NOTE, Part, R, W, X, elf, note, operation
from vmm.errors import OperationLoadError
from vmm.machine.elf import Contract, Image, check_contract, parse

BASE, SIZE = calltable.OPERATION_BASE, calltable.OPERATION_SIZE
PAGE = calltable.PAGE_SIZE


def load(data: bytes) -> Image:
    return parse(data, BASE, SIZE, "operation")


def test_segments_and_entry() -> None:
    image = load(elf([Part(BASE, b"\xc3", R | X), Part(BASE + PAGE, b"abc", R | W, memory_size=9000)], BASE))
    text, data = image.segments
    assert image.entry == BASE
    assert (text.address, text.data, text.write, text.execute, text.kind) == (BASE, b"\xc3", False, True, "text")
    assert (data.page_start, data.page_end, data.data, data.kind) == (BASE + PAGE, BASE + 4 * PAGE, b"abc", "data")
    assert image.contract is None


def test_contract_note() -> None:
    assert load(operation(minor=1)).contract == Contract(calltable.TABLE_MAJOR, 1)


def test_contract_note_among_others() -> None:
    foreign = struct.pack("<III", 4, 5, 1) + b"GNU\0" + b"12345\0\0\0"
    parts = [Part(BASE, b"\xc3", R | X), Part(0, foreign + note(minor=1), kind=NOTE, align=4)]
    assert load(elf(parts, BASE)).contract == Contract(calltable.TABLE_MAJOR, 1)


def test_older_minor_is_served() -> None:
    check_contract(Contract(calltable.TABLE_MAJOR, 0), "operation")
    check_contract(Contract(calltable.TABLE_MAJOR, calltable.TABLE_MINOR), "operation")


@pytest.mark.parametrize(
    ("major", "minor"),
    [
        (calltable.TABLE_MAJOR + 1, 0),
        (calltable.TABLE_MAJOR - 1, 0),
        (calltable.TABLE_MAJOR, calltable.TABLE_MINOR + 1),
    ],
)
def test_other_versions_are_refused_with_both_names(major: int, minor: int) -> None:
    with pytest.raises(OperationLoadError) as caught:
        check_contract(Contract(major, minor), "operation")
    assert f"{major}.{minor}" in caught.value.message
    assert f"{calltable.TABLE_MAJOR}.{calltable.TABLE_MINOR}" in caught.value.message


def test_missing_note_is_refused() -> None:
    with pytest.raises(OperationLoadError, match="note"):
        check_contract(None, "operation")


GOOD = [Part(BASE, b"\xc3", R | X)]
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "ELF"),
    "text": (b"#!/bin/sh\n" * 20, "ELF"),
    "32 bits": (elf(GOOD, BASE)[:4] + b"\x01" + elf(GOOD, BASE)[5:], "ELF"),
    "big endian": (elf(GOOD, BASE)[:5] + b"\x02" + elf(GOOD, BASE)[6:], "ELF"),
    "other machine": (elf(GOOD, BASE, machine=183), "x86-64"),
    "position independent": (elf(GOOD, BASE, kind=3), "static"),
    "no segments": (elf([], BASE), "program headers"),
    "cut headers": (elf(GOOD, BASE)[:100], "not inside the file"),
    "cut segment": (elf([Part(BASE, bytes(100), R | X)], BASE)[:-1], "ends at byte"),
    "dynamic": (elf([*GOOD, Part(BASE + PAGE, bytes(16), kind=2)], BASE), "loader"),
    "interpreter": (elf([*GOOD, Part(BASE + PAGE, b"/lib\0", kind=3)], BASE), "loader"),
    "thread-local": (elf([*GOOD, Part(BASE + PAGE, b"x", kind=7)], BASE), "thread-local"),
    "below the window": (elf([Part(BASE - PAGE, bytes(PAGE + 1), R | X)], BASE), "is not inside"),
    "above the window": (elf([*GOOD, Part(BASE + SIZE - 1, b"ab", R)], BASE), "is not inside"),
    "wraps": (elf([*GOOD, Part(2**64 - 8, b"", R, memory_size=16)], BASE), "is not inside"),
    "negative bss": (elf([Part(BASE, b"abc", R | X, memory_size=2)], BASE), "more bytes in the file"),
    "writable text": (elf([Part(BASE, b"\xc3", R | W | X)], BASE), "writable and executable"),
    "shared page": (elf([*GOOD, Part(BASE + 16, b"x", R | W)], BASE), "share the page"),
    "same segment twice": (elf([*GOOD, *GOOD], BASE), "share the page"),
    "entry in data": (elf([*GOOD, Part(BASE + PAGE, b"x", R | W)], BASE + PAGE), "entry"),
    "entry nowhere": (elf(GOOD, 0), "entry"),
    "entry behind the text": (elf(GOOD, BASE + 1), "entry"),
    "note outside the file": (
        elf([*GOOD, Part(0, note(), kind=NOTE, align=4)], BASE)[:-1],
        "note is not inside the file",
    ),
    "note longer than its segment": (
        elf([*GOOD, Part(0, struct.pack("<III", 6, 800, 1) + b"pyvmm\0\0\0", kind=NOTE, align=4)], BASE),
        "longer than its segment",
    ),
    "note without versions": (
        elf([*GOOD, Part(0, struct.pack("<III", 6, 2, 1) + b"pyvmm\0\0\0\1\0\0\0", kind=NOTE, align=4)], BASE),
        "too short",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(name: str) -> None:
    data, reason = BAD[name]
    with pytest.raises(OperationLoadError, match=reason) as caught:
        load(data)
    assert caught.value.exit_status == 64


def check_image(image: Image) -> None:
    """What the machine relies on, whatever the file was."""
    end = BASE
    for segment in image.segments:
        assert segment.page_start >= end
        end = segment.page_end
        assert end <= BASE + SIZE
        assert not (segment.write and segment.execute)
        assert len(segment.data) <= segment.size
    assert any(s.execute and s.address <= image.entry < s.address + s.size for s in image.segments)


SAMPLE = elf(
    [
        Part(BASE, b"\xc3" * 64, R | X),
        Part(BASE + PAGE, bytes(64), R),
        Part(BASE + 2 * PAGE, bytes(64), R | W, memory_size=PAGE),
        Part(0, note(), kind=NOTE, align=4),
    ],
    BASE,
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), min_size=1, max_size=6))
@example([(0x20, 0xFF)])
def test_changed_bytes_are_refused_or_harmless(changes: list[tuple[int, int]]) -> None:
    data = bytearray(SAMPLE)
    for at, value in changes:
        data[at] = value
    try:
        image = load(bytes(data))
    except OperationLoadError:
        return
    check_image(image)


WORDS = st.sampled_from([0, 1, 7, 8, BASE - 1, BASE, BASE + PAGE, BASE + SIZE, 2**32, 2**63, 2**64 - 1, 2**64 - PAGE])


@settings(max_examples=400, deadline=None)
@given(
    st.integers(0, 3),
    st.sampled_from([8, 16, 32, 40]),
    WORDS | st.integers(0, 2**64 - 1),
    st.sampled_from([LOAD, NOTE]),
)
def test_extreme_program_headers_are_refused_or_harmless(index: int, field: int, value: int, kind: int) -> None:
    data = bytearray(SAMPLE)
    struct.pack_into("<I", data, 64 + 56 * index, kind)
    struct.pack_into("<Q", data, 64 + 56 * index + field, value)
    try:
        image = load(bytes(data))
    except OperationLoadError:
        return
    check_image(image)


@given(st.integers(0, len(SAMPLE) - 1))
def test_every_truncation_is_refused_or_harmless(length: int) -> None:
    try:
        image = load(SAMPLE[:length])
    except OperationLoadError:
        return
    check_image(image)
