"""What a raw disk can be given: any bytes, any length.  Nothing of it is refused when it is meant (-f raw)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.differential.ours import Ours, explain
from tests.hostile.images.table import ONES_64, Row, Table, agree, field, judge
from tests.images.raw_writer import SIGNATURES

pytestmark = pytest.mark.kvm

#: The longest file that qemu opens: the last multiple of 2^30 below 2^63.
LONGEST = (1 << 63) - (1 << 30)
NO_CHECKS = {"check": "does not support checks"}

#: A disk that begins like any other format is a disk of these bytes all the same.
TABLE = Table(
    "raw",
    lambda: bytes(65_536),
    (
        *field("first word", 0, ">Q", *((value, None, NO_CHECKS) for value in (0, 1, ONES_64))),
        *field("last word", -8, ">Q", *((value, None, NO_CHECKS) for value in (0, 1, ONES_64))),
        *(
            row
            for name, (offset, magic) in SIGNATURES.items()
            if offset + len(magic) <= 65_536
            for row in field(name, offset, "", (magic, None, NO_CHECKS))
        ),
    ),
)


@pytest.mark.parametrize("row", TABLE.rows, ids=lambda row: f"{row.name}={row}"[:60])
def test_field(row: Row, ours: Ours, tmp_path: Path) -> None:
    TABLE.judge(row, ours, tmp_path / "image")


@pytest.mark.parametrize("length", [0, 1, 511, 512, 513, 4095, 4096, 4097, (1 << 31) - 1, 1 << 31, (1 << 40) + 1])
def test_length(length: int, ours: Ours, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.touch()
    os.truncate(path, length)
    for operation in ("info", "measure", "map"):
        judge(ours, "raw", operation, path, None)
        agree(ours, "raw", operation, path)


@pytest.mark.parametrize("length", [LONGEST, LONGEST + 1])
def test_longest(length: int, ours: Ours, tmp_path: Path) -> None:
    """Where the file system takes such a file, it is answered up to the limit and refused above it."""
    path = tmp_path / "image"
    path.touch()
    try:
        os.truncate(path, length)
    except OSError:
        pytest.skip("the file system has no file of this length")
    answer = ours.run("map", "-f", "raw", "--output=json", str(path))
    assert answer.rc == (0 if length <= LONGEST else 1), explain(answer)
