"""Pictures of maps: what is added up in cells, which colour a pixel has, and files that appear whole or not at all."""

from __future__ import annotations

import builtins
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import vmm
from calltable import MAP_COMPRESSED, MAP_DATA, MAP_OFFSET, MAP_PRESENT, MAP_ZERO
from calltable.messages import Error, Map, MapExtents
from tests.unit.fake import FakeRunner
from vmm.cli.main import main
from vmm.operations import session as session_module
from vmm.operations.map import Extent, MapReport
from vmm.picture import bins as b
from vmm.picture import drawing as d
from vmm.picture import png, svg

KIB, MIB = 1 << 10, 1 << 20
SVG = "{http://www.w3.org/2000/svg}"

#: A state of each kind: present, zero, data, compressed, depth.
STATES = {
    b.DATA: (True, False, True, False, 0),
    b.COMPRESSED: (True, False, True, True, 0),
    b.BACKING_1: (True, False, True, False, 1),
    b.BACKING_2: (True, False, True, True, 2),
    b.BACKING_3: (True, False, True, False, 9),
    b.PREALLOCATED: (True, True, True, False, 0),
    b.ZERO: (True, True, False, False, 1),
    b.ABSENT: (False, True, False, False, 2),
}


def extent(start: int, length: int, kind: int) -> Extent:
    present, zero, data, compressed, depth = STATES[kind]
    return Extent(start, length, depth, present, zero, data, None, compressed, None)


def chain(*items: tuple[int, int], start: int = 0) -> Iterator[Extent]:
    """Extents of these lengths and kinds, one after another."""
    for length, kind in items:
        yield extent(start, length, kind)
        start += length


def binned(*items: tuple[int, int], start: int = 0) -> b.Bins:
    made = b.Bins()
    made.add(chain(*items, start=start))
    return made


def report(size: int) -> MapReport:
    return MapReport("disk.qcow2", "qcow2", size, 1, 196_616, 200_704)


@pytest.mark.parametrize("kind", STATES)
def test_kinds(kind: int) -> None:
    assert b.kind_of(extent(0, 1, kind)) == kind


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 1 << 40), st.sampled_from(sorted(STATES))), min_size=1, max_size=12))
def test_no_byte_is_lost_or_moved(items: list[tuple[int, int]]) -> None:
    """However often cells were folded: each holds what lies in its part of the disk."""
    made = binned(*items)
    assert made.length == sum(length for length, _ in items)
    assert b.CELLS // 2 < made.count <= b.CELLS or made.size == b.FIRST_SIZE
    for kind in STATES:
        assert made.total(kind) == sum(length for length, what in items if what == kind)
    for cell in {0, made.count // 2, made.count - 1}:
        begin, end = cell * made.size, (cell + 1) * made.size
        wanted = [0] * b.KINDS
        at = 0
        for length, kind in items:
            wanted[kind] += max(0, min(end, at + length) - max(begin, at))
            at += length
        assert [made.bytes[kind][cell] for kind in range(b.KINDS)] == wanted


def test_memory_does_not_grow_with_the_disk() -> None:
    small, large = binned((512, b.DATA)), binned(((1 << 63) - 1, b.ABSENT))
    assert sum(map(len, small.bytes)) == sum(map(len, large.bytes)) == b.KINDS * b.CELLS
    assert large.count <= b.CELLS


def test_a_map_of_a_range_begins_at_its_start() -> None:
    made = binned((512, b.ZERO), (512, b.DATA), start=10 * MIB)
    assert (made.start, made.count) == (10 * MIB, 2)
    assert (made.bytes[b.ZERO][0], made.bytes[b.DATA][1]) == (512, 512)


def test_a_single_byte_of_data_is_seen() -> None:
    empty, full = d.colour_of((0, 0, 0, 0, 0, 0, 0, 9)), d.colour_of((9, 0, 0, 0, 0, 0, 0, 0))
    assert (empty, full) == (d.COLOURS[b.ABSENT], d.COLOURS[b.DATA])
    least = d.colour_of((1, 0, 0, 0, 0, 0, 0, 1 << 40))
    assert sum(abs(one - other) for one, other in zip(least, empty, strict=True)) > 60
    assert d.colour_of((1, 8, 0, 0, 0, 0, 0, 0)) == d.COLOURS[b.COMPRESSED]
    assert d.colour_of((0, 0, 0, 0, 0, 1, 5, 2)) == d.COLOURS[b.ZERO]


def pixel(image: Image.Image, cell: int, height: int) -> Any:
    """The colour in the middle of a cell."""
    row, column = divmod(cell, d.COLUMNS)
    return image.getpixel((d.LEFT + column * d.CELL + d.CELL // 2, d.TOP + row * height + height // 2))


def test_pixels() -> None:
    """A row of 128 cells of 512 bytes each: every kind has its colour where it lies."""
    made = binned(*((16 * 512, kind) for kind in STATES), (5 * 64 * KIB, b.DATA))
    drawing = d.draw(made, report(6 * 64 * KIB))
    image = Image.open(BytesIO(png.encode(drawing)))
    assert (image.format, image.size) == ("PNG", (drawing.width, drawing.height))
    for kind in STATES:
        for cell in (16 * kind, 16 * kind + 15):
            assert pixel(image, cell, 2 * d.CELL) == d.COLOURS[kind]
    assert pixel(image, 128, 2 * d.CELL) == pixel(image, 6 * 128 - 1, 2 * d.CELL) == d.COLOURS[b.DATA]
    # Below the last row there is nothing.
    assert pixel(image, 6 * 128, 2 * d.CELL) == d.BACKGROUND
    colours = {pixel for _, pixel in image.getcolors(1 << 20) or ()}
    assert colours.issuperset(d.COLOURS)


def test_many_rows_are_lower() -> None:
    made = binned((4096 * 512, b.ZERO), (4096 * 512, b.DATA))
    image = Image.open(BytesIO(png.encode(d.draw(made, report(4 * MIB)))))
    assert pixel(image, 4095, d.CELL) == d.COLOURS[b.ZERO]
    assert pixel(image, 4096, d.CELL) == d.COLOURS[b.DATA]


def test_elements() -> None:
    """The SVG has a rectangle for each run of a row, in its colour, and the legend in words."""
    made = binned((32 * KIB, b.DATA), (32 * KIB, b.ABSENT), (64 * KIB, b.ZERO))
    drawing = d.draw(made, report(128 * KIB))
    root = ElementTree.fromstring(svg.encode(drawing))
    assert root.tag == f"{SVG}svg"
    assert (root.get("width"), root.get("height")) == (str(drawing.width), str(drawing.height))
    rows = [
        (int(rect.get("x", "")), int(rect.get("y", "")), int(rect.get("width", "")), rect.get("fill"))
        for rect in root.iter(f"{SVG}rect")
    ][1:4]
    half = 64 * d.CELL
    colours = ["#" + bytes(d.COLOURS[kind]).hex() for kind in (b.DATA, b.ABSENT, b.ZERO)]
    assert rows == [
        (d.LEFT, d.TOP, half, colours[0]),
        (d.LEFT + half, d.TOP, half, colours[1]),
        (d.LEFT, d.TOP + 2 * d.CELL, 2 * half, colours[2]),
    ]
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert texts[:2] == ["disk.qcow2", "qcow2, virtual size 128 KiB, file 192 KiB, on disk 196 KiB"]
    assert texts[2:4] == ["0 B", "64 KiB"]
    assert texts[4:] == [
        "a cell is 512 B, a row 64 KiB",
        "data: 32 KiB (25.00%)",
        "zero: 64 KiB (50.00%)",
        "unallocated: 32 KiB (25.00%)",
    ]


@settings(deadline=None, max_examples=50)
@given(st.text())
def test_any_name_is_well_formed(name: str) -> None:
    named = MapReport(name, "raw", 512, 1, 512, 512)
    drawing = d.draw(binned((512, b.DATA)), named)
    assert ElementTree.fromstring(svg.encode(drawing)) is not None


# The command and the API.

SOUND = (
    MapExtents(
        start=0,
        lengths=(32 * KIB, 32 * KIB, 64 * KIB),
        states=(MAP_PRESENT | MAP_DATA | MAP_OFFSET, MAP_ZERO, MAP_PRESENT | MAP_DATA | MAP_COMPRESSED),
        offsets=(0, 0, 0),
        depths=(0, 0, 0),
        devices=(0, 0, 0),
    ),
    Map(format="qcow2", virtual_size=128 * KIB, extents=3),
)
BROKEN = (SOUND[0], Error(code="corrupt", message="broken"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(session_module, "load_operation", lambda name: name.encode())
    monkeypatch.chdir(tmp_path)
    Path("image").write_bytes(b"x" * 512)
    return tmp_path


def run(*words: str, runner: FakeRunner | None = None) -> int:
    return main(["run", "map", *words], runner or FakeRunner(*SOUND))


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Instead of the table the legend, which a compressed image has as well."""
    assert run("--picture", "out.PNG", "image") == 0
    assert capsys.readouterr().out == (
        "data: 32 KiB (25.00%)\ncompressed data: 64 KiB (50.00%)\nunallocated: 32 KiB (25.00%)\n"
    )
    with Image.open("out.PNG") as image:
        assert image.format == "PNG"
    assert run("--picture", "out.svg", "--output=json", "image") == 0
    assert capsys.readouterr().out.count('"start"') == 3
    assert b"compressed data" in Path("out.svg").read_bytes()
    assert run("-q", "--picture", "out.svg", "image") == 0
    assert capsys.readouterr() == ("", "")
    assert {path.name for path in folder.iterdir()} == {"image", "out.PNG", "out.svg"}


def test_a_map_that_fails_leaves_no_picture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("old.svg").write_text("old")
    for name in ("new.svg", "old.svg"):
        assert run("--picture", name, "image", runner=FakeRunner(*BROKEN, status=1)) == 1
        assert run("--picture", name, "--output=json", "image", runner=FakeRunner(*BROKEN, status=1)) == 1
    assert Path("old.svg").read_text() == "old"
    assert {path.name for path in folder.iterdir()} == {"image", "old.svg"}
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "text", "status"),
    [
        (("--picture", "out.gif", "image"), "ends with .png or .svg, not 'out.gif'", 64),
        (("--picture", "", "image"), "ends with .png or .svg", 64),
        (("--picture", "out.png", "image", "image"), "--picture takes one FILE, not 2", 64),
        (("--picture", "image.svg", "image.svg"), "would replace the image", 64),
        (("--picture", "link.svg", "-L", "image.svg"), "would replace the image", 64),
        (("--picture", "r.svg", "--record", "r.svg", "image"), "would replace a file of the run", 64),
        (("--picture", "missing/out.svg", "image"), "No such file or directory", 1),
        (("--picture", "folder.svg", "image"), "Is a directory", 1),
    ],
)
def test_pictures_that_cannot_be(
    words: tuple[str, ...], text: str, status: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("image.svg").write_bytes(b"x" * 512)
    Path("link.svg").hardlink_to("image.svg")
    Path("folder.svg").mkdir()
    runner = FakeRunner(*SOUND)
    assert run(*words, runner=runner) == status
    assert text in capsys.readouterr().err
    assert runner.jobs == []
    assert Path("image.svg").read_bytes() == b"x" * 512


def test_without_pillow(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == "PIL":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "vmm.picture.png")
    assert run("--picture", "out.png", "image") == 64
    assert "pip install 'pyvmm-sandbox[picture]'" in capsys.readouterr().err
    assert run("--picture", "out.svg", "image") == 0
    assert {path.name for path in folder.iterdir()} == {"image", "out.svg"}


def test_the_api(folder: Path) -> None:
    taken: list[vmm.Extent] = []
    with vmm.Machine(runner=FakeRunner(*SOUND)) as machine:
        kept = machine.map("image", picture="one.svg")
        streamed = machine.map("image", picture=Path("two.svg"), on_extents=taken.extend)
    assert (len(kept.extents), streamed.extents, tuple(taken)) == (3, (), kept.extents)
    assert Path("one.svg").read_bytes() == Path("two.svg").read_bytes()
    assert folder.joinpath("one.svg").stat().st_size > 1000
