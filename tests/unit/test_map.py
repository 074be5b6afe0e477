"""`map` above the boundary: extents as they come, what contradicts itself, how a map ends that fails half-way."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

import vmm
from calltable import MAP_COMPRESSED, MAP_DATA, MAP_OFFSET, MAP_PRESENT, MAP_ZERO
from calltable.messages import Error, Map, MapExtents
from tests.unit.fake import FakeRunner
from vmm.cbor import decode
from vmm.cli.main import main
from vmm.operations import map as map_module
from vmm.operations import session as session_module

DATA = MAP_PRESENT | MAP_DATA
PLACED = DATA | MAP_OFFSET
HOLE = MAP_ZERO


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "load_operation", lambda name: name.encode())
    monkeypatch.chdir(tmp_path)
    Path("image").write_bytes(b"x" * 512)
    Path("other").write_bytes(b"x" * 512)


def extents(start: int, *items: tuple[int, int, int], depth: int = 0, device: int = 0) -> MapExtents:
    """A message of lengths, states and offsets."""
    lengths, states, offsets = zip(*items, strict=True)
    count = len(items)
    return MapExtents(
        start=start, lengths=lengths, states=states, offsets=offsets, depths=(depth,) * count, devices=(device,) * count
    )


def end(size: int, count: int) -> Map:
    return Map(format="raw", virtual_size=size, extents=count)


SOUND = (extents(0, (512, PLACED, 4096), (512, HOLE, 0)), extents(1024, (1024, DATA | MAP_COMPRESSED, 0)), end(2048, 3))


def test_a_report_keeps_what_nobody_takes() -> None:
    with vmm.Machine(runner=FakeRunner(*SOUND)) as machine:
        report = machine.map("image")
        assert (report.format, report.virtual_size, report.count, report.exit_status) == ("raw", 2048, 3, 0)
        first, second, third = report.extents
        assert first == vmm.Extent(0, 512, 0, True, False, True, 4096, False, "image")
        assert second == vmm.Extent(512, 512, 0, False, True, False, None, False, None)
        assert third == vmm.Extent(1024, 1024, 0, True, False, True, None, True, None)
        taken: list[vmm.Extent] = []
        assert machine.map("image", on_extents=taken.extend).extents == ()
        assert tuple(taken) == report.extents
        assert machine.run("map", "image") == report


def test_what_is_asked() -> None:
    runner = FakeRunner(extents(1 << 20, (1 << 20, HOLE, 0)), end(1 << 30, 1))
    with vmm.Machine(runner=runner) as machine:
        machine.map("image", format="raw", start="1M", length=1 << 20, qemu_version="8.2", mapped_only=True)
        request = decode(runner.jobs[0].request)
        wanted = {"start": 1 << 20, "length": 1 << 20, "format": "raw", "qemu-version": "8.2", "mapped-only": True}
        assert request == wanted
        for words in ({"start": -1}, {"start": 1 << 63}, {"length": "x"}):
            with pytest.raises(vmm.UsageError, match=r"Invalid (start offset|max length)"):
                machine.map("image", **words)


def test_a_range_behind_the_end_is_empty() -> None:
    with vmm.Machine(runner=FakeRunner(end(512, 0))) as machine:
        assert machine.map("image", start=512).extents == ()
        assert machine.map("image", start=1 << 40, length=5).count == 0


def broken(**changes: Any) -> MapExtents:
    fields = extents(0, (512, PLACED, 0), (512, HOLE, 0)).as_fields() | changes
    return MapExtents.from_fields(fields)


CONTRADICTIONS: dict[str, tuple[tuple[MapExtents | Map, ...], str]] = {
    "no extents in a message": ((broken(lengths=(), states=(), offsets=(), depths=(), devices=()),), "or empty"),
    **{
        f"{name} shorter": ((broken(**{name: (1,)}),), "not equally long")
        for name in ("lengths", "states", "offsets", "depths", "devices")
    },
    "a gap in front": ((broken(start=1),), "from byte 1, not from 0"),
    "a gap": ((extents(0, (512, HOLE, 0)), extents(513, (512, HOLE, 0))), "from byte 513, not from 512"),
    "an overlap": ((extents(0, (512, HOLE, 0)), extents(511, (512, HOLE, 0))), "from byte 511, not from 512"),
    "no length": ((broken(lengths=(512, 0)),), "an extent at byte 512 that contradicts itself"),
    "neither zero nor data": ((broken(states=(PLACED, MAP_PRESENT)),), "contradicts itself"),
    "an unknown state": ((broken(states=(PLACED, HOLE | 32)),), "contradicts itself"),
    "an offset that is not valid": ((broken(offsets=(0, 1)),), "contradicts itself"),
    "a file that is not there": ((broken(devices=(0, 1)),), "in file 1 of 1"),
    "behind 2^63": ((broken(lengths=(512, 1 << 63)),), "behind the end"),
    "more than was counted": ((extents(0, (512, HOLE, 0)), end(512, 0)), "counted 0 extents and emitted 1"),
    "less than was counted": ((extents(0, (512, HOLE, 0)), end(512, 2)), "counted 2 extents and emitted 1"),
    "less than the disk": ((extents(0, (512, HOLE, 0)), end(1024, 1)), "up to byte 512 of a disk of 1024"),
    "more than the disk": ((extents(0, (512, HOLE, 0)), end(511, 1)), "up to byte 512 of a disk of 511"),
    "nothing of a disk": ((end(1, 0),), "up to byte 0 of a disk of 1"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_guest_that_contradicts_itself(name: str) -> None:
    messages, text = CONTRADICTIONS[name]
    with vmm.Machine(runner=FakeRunner(*messages)) as machine, pytest.raises(vmm.GuestFailedError, match=text):
        machine.map("image")


def test_more_than_was_asked_for() -> None:
    runner = FakeRunner(extents(10, (11, HOLE, 0)), end(512, 1))
    text = "up to byte 21, behind the end 20"
    with vmm.Machine(runner=runner) as machine, pytest.raises(vmm.GuestFailedError, match=text):
        machine.map("image", start=10, length=10)


def test_a_report_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_module, "MAX_EXTENTS", 2)
    with vmm.Machine(runner=FakeRunner(*SOUND)) as machine:
        with pytest.raises(vmm.RefusedError, match="more than 2 extents: take them with on_extents"):
            machine.map("image")
        assert machine.map("image", on_extents=lambda found: None).count == 3


def run(capsys: pytest.CaptureFixture[str], runner: FakeRunner, *words: str) -> tuple[int, str, str]:
    status = main(["run", "map", *words], runner)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


REFUSED = Error(code="corrupt", message="raw: broken", format="raw", offset=7)


def test_a_map_that_fails_half_way_ends_with_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    runner = FakeRunner(*SOUND[:2], REFUSED, status=1)
    status, out, err = run(capsys, runner, "--output=json", "image")
    assert (status, err) == (1, "")
    *found, last = json.loads(out)
    assert [extent["start"] for extent in found] == [0, 512, 1024]
    assert list(last) == ["error"]
    assert (last["error"]["code"], last["error"]["guest-code"]) == ("refused", "corrupt")
    assert (last["error"]["exit-status"], last["error"]["file"]) == (1, "image")
    status, out, err = run(capsys, runner, "image")
    assert (status, err) == (1, "pyvmm: image: raw: broken\n")
    assert out == f"{'Offset':16}{'Length':16}{'Mapped to':16}File\n{'0':16}{'0x200':16}{'0x1000':16}image\n"


def test_a_map_that_fails_at_once_is_one_error(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, FakeRunner(REFUSED, status=1), "--output=json", "image")
    assert status == 1
    assert json.loads(out)["error"]["message"] == "raw: broken"


def test_many_files_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """One line an extent, so that they stream as well; one for a disk without bytes; one for an error."""
    status, out, _ = run(capsys, FakeRunner(*SOUND), "--output=json", "image", "missing", "other")
    assert status == 1
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line.get("filename") for line in lines] == ["image"] * 3 + [None] + ["other"] * 3
    assert [line["start"] for line in lines if "start" in line] == [0, 512, 1024] * 2
    assert lines[3]["error"]["file"] == "missing"
    status, out, _ = run(capsys, FakeRunner(end(0, 0)), "--output=json", "image", "other")
    assert [json.loads(line)["length"] for line in out.splitlines()] == [0, 0]
    status, out, _ = run(capsys, FakeRunner(*SOUND[:2], REFUSED, status=1), "--output=json", "image", "other")
    lines = [json.loads(line) for line in out.splitlines()]
    assert ["error" in line for line in lines] == [False, False, False, True] * 2


def test_names_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    name = "\x1b[31m\u202e"
    Path(name).write_bytes(b"x")
    _, out, _ = run(capsys, FakeRunner(*SOUND), name)
    assert "\\x1b[31m\\u202e" in out
    assert "\x1b" not in out
    for words in ((name, "other"), (name,)):
        _, out, _ = run(capsys, FakeRunner(*SOUND), "--output=json", *words)
        assert out.isascii()
        assert out.replace("\n", "").isprintable()


def test_quiet_leaves_the_table_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, FakeRunner(*SOUND), "-q", "image") == (0, "", "")


def test_a_million_extents_take_no_memory(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch is printed and forgotten: the peak does not grow with the number of batches."""
    monkeypatch.setattr("vmm.cli.run_map.out", lambda text: None)
    peaks = []
    for batches in (20, 400):
        lengths = ((1, PLACED, 9), (1, HOLE, 0)) * 32
        messages = [extents(64 * number, *lengths) for number in range(batches)]
        runner = FakeRunner(*messages, end(64 * batches, 64 * batches))
        del messages
        tracemalloc.start()
        try:
            assert main(["run", "map", "--output=json", "image"], runner) == 0
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000
