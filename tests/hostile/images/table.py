"""Bad-input tables: a row for each value of each header field, with what every operation has to say of it.

A format's table is a list of rows, a base image that is sound, and what makes its checksums right again::

    TABLE = Table("vpc", base, seal, (
        *field("features", 8, ">I", (0, None), (1, None), (ONES_32, None)),
        *field("current size", 48, ">Q", (0, None, {"check": 3}), (LIMIT + 512, "above the limit", {"check": 2})),
    ))

    @pytest.mark.parametrize("row", TABLE.rows, ids=str)
    def test_field(row: Row, ours: Ours, tmp_path: Path) -> None:
        TABLE.judge(row, ours, tmp_path / "image")

Where qemu-img has an answer, ours has to be the same: the row fails on another exit status or another JSON, unless it
names the entry of docs/differences.json that says why.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from dataclasses import field as member
from pathlib import Path

from calltable._generated import ERROR_CODES
from tests.differential.oracle import comparable, qemu_img
from tests.differential.ours import Ours, explain

#: Every operation that reads an image, by the name that rows use.
OPERATIONS: dict[str, tuple[str, ...]] = {
    "info": ("info",),
    "check": ("check",),
    "measure": ("measure", "-O", "qcow2"),
    "map": ("map",),
}
#: Part of the error's message; a number: answered with this exit status; None: answered with 0.
Expected = str | int | None

ONES_8, ONES_16, ONES_32, ONES_64 = ((1 << bits) - 1 for bits in (8, 16, 32, 64))


@dataclass(frozen=True)
class Row:
    """One field at one value."""

    name: str
    #: Where it lies in the file; negative: counted from its end.
    offset: int
    #: As for :mod:`struct`, with the byte order.
    form: str
    value: int | bytes
    expected: Expected
    #: What other operations expect instead.
    seen: Mapping[str, Expected] = member(default_factory=dict)
    #: Entry of docs/differences.json where qemu-img's answer is another one.
    differs: str | None = None

    def __str__(self) -> str:
        shown = self.value.hex() if isinstance(self.value, bytes) else f"{self.value:#x}"
        return f"{self.name}={shown}"

    def expects(self, operation: str) -> Expected:
        """What an operation has to say."""
        return self.seen.get(operation, self.expected)


def field(
    name: str,
    offset: int,
    form: str,
    *cases: tuple[int | bytes, Expected] | tuple[int | bytes, Expected, Mapping[str, Expected]],
    differs: str | None = None,
) -> Iterator[Row]:
    """Rows of one field: a value, what every operation says of it, and what some say instead."""
    for value, expected, *seen in cases:
        yield Row(name, offset, form, value, expected, seen[0] if seen else {}, differs)


@dataclass(frozen=True)
class Table:
    """All rows of a format."""

    #: Driver name, as for ``-f``.
    driver: str
    #: A sound image.
    base: Callable[[], bytes]
    rows: tuple[Row, ...]
    #: Makes checksums right again after a field was changed.
    seal: Callable[[bytearray], None] | None = None
    #: Operations that qemu-img does not have for the format: only ours is looked at.
    alone: tuple[str, ...] = ()

    def image(self, row: Row) -> bytes:
        """The base with the field of a row."""
        data = bytearray(self.base())
        offset = row.offset if row.offset >= 0 else len(data) + row.offset
        if isinstance(row.value, bytes):
            data[offset : offset + len(row.value)] = row.value
        else:
            struct.pack_into(row.form, data, offset, row.value)
        if self.seal is not None:
            self.seal(data)
        return bytes(data)

    def judge(self, row: Row, ours: Ours, path: Path) -> None:
        """Run every operation on a row's image."""
        path.write_bytes(self.image(row))
        for name in OPERATIONS:
            judge(ours, self.driver, name, path, row.expects(name))
            if row.differs is None and name not in self.alone:
                agree(ours, self.driver, name, path)


def judge(ours: Ours, driver: str, operation: str, path: Path, expected: Expected) -> None:
    """One operation on one image: answered, or refused with this text and a typed code."""
    answer = ours.run(*OPERATIONS[operation], "-f", driver, "--output=json", str(path))
    shown = json.loads(answer.stdout)
    # A map that was begun ends with its error.
    last = shown[-1] if isinstance(shown, list) else shown
    error = last.get("error")
    if not isinstance(expected, str):
        assert error is None, f"{operation}: {explain(answer)}"
        assert answer.rc == (expected or 0), f"{operation}: {explain(answer)}"
        return
    assert error is not None, f"{operation}: answered, expected '{expected}': {explain(answer)}"
    assert expected in error["message"], f"{operation}: {error['message']}"
    assert error["guest-code"] in ERROR_CODES, error
    assert answer.rc == (63 if error["guest-code"] == "no-checks" else 1), f"{operation}: {explain(answer)}"


def agree(ours: Ours, driver: str, operation: str, path: Path) -> None:
    """qemu-img ends with the same status, and where it answers the answers are equal."""
    if shutil.which("qemu-img") is None:
        return
    common = [*OPERATIONS[operation], "-f", driver, "--output=json", str(path)]
    oracle, answer = qemu_img(*common), ours.run(*common)
    if oracle.timed_out:
        return
    assert answer.rc == oracle.rc, f"{operation}: qemu-img: {explain(oracle)}\nours: {explain(answer)}"
    if oracle.rc in (0, 2, 3):
        if operation == "map":
            assert answer.stdout == oracle.stdout
        else:
            assert comparable(answer.json) == comparable(oracle.json), operation
