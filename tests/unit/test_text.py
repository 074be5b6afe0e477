"""Small texts: escapes, sizes, JSON."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.cli.failures import SEVERITY, worst
from vmm.cli.jsontext import compact, pretty, qemu_order, quote
from vmm.cli.sizetext import human_size
from vmm.operations.text import printable, printable_bytes


@given(st.text())
def test_printable(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    if text.isprintable():
        assert shown == text


@given(st.binary())
def test_printable_bytes(data: bytes) -> None:
    assert printable_bytes(data).isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b", "a b"),
        ("é漢", "é漢"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\x9b", "\\x9b"),
        ("\n\r\t\x7f", "\\x0a\\x0d\\x09\\x7f"),
        ("\u202e\u2066\u200f", "\\u202e\\u2066\\u200f"),
        ("\u2028", "\\u2028"),
        ("\U000e0041", "\\U000e0041"),
        ("\udcff", "\\xff"),
        ("C:\\dir", "C:\\dir"),
    ],
)
def test_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_every_control_and_format_character_is_escaped() -> None:
    for code in range(0x110000):
        character = chr(code)
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            assert printable(character).isascii()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=10,
)


@given(VALUES)
def test_json_is_json(value: object) -> None:
    for text in (compact(value), pretty(value)):
        assert json.loads(text) == value
        assert text.isascii()
        assert all(line.isprintable() for line in text.split("\n"))
    assert "\n" not in compact(value)


def test_lone_surrogates_are_replaced() -> None:
    assert quote("a\udcff") == '"a\\uFFFD"'


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_what_json_has_no_number_for_is_null(value: float) -> None:
    assert compact([value, 0.5]) == "[null, 0.5]"


def test_empty_containers_take_two_lines() -> None:
    assert pretty({"a": [], "b": {}}) == '{\n    "a": [\n    ],\n    "b": {\n    }\n}'


def test_order_drops_none() -> None:
    assert list(qemu_order({"format": 1, "filename": 2, "virtual-size": None, "dirty-flag": 3})) == [
        "filename",
        "format",
        "dirty-flag",
    ]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (512, "512 B"),
        (999, "999 B"),
        (1000, "0.977 KiB"),
        (1023, "0.999 KiB"),
        (1024, "1 KiB"),
        (200704, "196 KiB"),
        (1079296, "1.03 MiB"),
        (1000 << 30, "0.977 TiB"),
        (1 << 63, "8 EiB"),
        ((1 << 64) - 1, "16 EiB"),
    ],
)
def test_human_size(size: int, text: str) -> None:
    assert human_size(size) == text


def test_worst() -> None:
    assert worst([]) == 0
    assert worst([0, 3, 0]) == 3
    assert worst([2, 3, 63]) == 2
    assert worst([1, 2]) == 1
    assert worst([70, 75, 1]) == 70
    assert len(set(SEVERITY)) == len(SEVERITY)
