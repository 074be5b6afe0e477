"""Recorded runs repeat without their images: on real machines, from the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.images import raw_writer
from tests.integration import command
from tests.integration.recording import Command, messages

pytestmark = pytest.mark.kvm


# --- the operations of the package ------------------------------------------------------------------------------------

IMAGES: dict[str, tuple[str, ...]] = {
    "raw": ("-f", "raw", "image", "10M"),
    "dynamic-vhd": ("-f", "vpc", "image", "10M"),
    "fixed-vhd": ("-f", "vpc", "-o", "subformat=fixed", "image", "10M"),
    "qcow2": ("-f", "qcow2", "image", "10G"),
    "preallocated-qcow2": ("-f", "qcow2", "-o", "preallocation=metadata,cluster_size=4k", "image", "64M"),
}
RUNS: dict[str, tuple[str, ...]] = {
    "info": ("info",),
    "info-json": ("info", "--output=json"),
    "check": ("check",),
    "measure-raw": ("measure",),
    "measure-qcow2": ("measure", "-O", "qcow2", "-o", "cluster_size=4k"),
    "measure-vpc": ("measure", "-O", "vpc"),
    "map": ("map",),
    "map-json": ("map", "--output=json", "-s", "1M", "-l", "4M"),
    "verbose": ("info", "-vv"),
}


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("run", RUNS)
def test_replay_without_the_image(pyvmm: Command, image: str, run: str) -> None:
    assert pyvmm("run", "create", *IMAGES[image]).status == 0
    plain = pyvmm("run", *RUNS[run], "image")
    recorded = pyvmm("run", *RUNS[run], "--record", "run.pyvmm", "image")
    assert recorded == plain
    os.unlink("image")
    answer = pyvmm("replay", "run.pyvmm")
    assert (answer.status, answer.err) == (0, "")
    assert answer.last.startswith("run.pyvmm: reproduced: status "), answer.last
    shown = [json.loads(line) for line in answer.out.splitlines()[:-1]]
    assert [[line["message"], line["fields"]] for line in shown] == json.loads(
        json.dumps(messages("run.pyvmm"), default=bytes.hex)
    )
    assert len(shown) >= 1
    assert os.path.getsize("run.pyvmm") < 32 << 10


CREATE: dict[str, tuple[str, ...]] = {
    **IMAGES,
    "terabyte": ("-f", "qcow2", "image", "1T"),
    "full": ("-f", "qcow2", "-o", "preallocation=full", "image", "5M"),
    "falloc": ("-f", "raw", "-o", "preallocation=falloc", "image", "5M"),
    "data-file": ("-f", "qcow2", "-o", "data_file=data,data_file_raw=on", "image", "5M"),
}


@pytest.mark.parametrize("image", CREATE)
def test_replay_of_create(pyvmm: Command, image: str) -> None:
    fixed = ("--force", "--seed", "one and the same")
    assert pyvmm("run", "create", *fixed, *CREATE[image]).status == 0
    plain = Path("image").read_bytes()
    assert pyvmm("run", "create", *fixed, "--record", "run.pyvmm", *CREATE[image]).status == 0
    assert Path("image").read_bytes() == plain
    os.unlink("image")
    answer = pyvmm("replay", "run.pyvmm")
    assert (answer.status, answer.err) == (0, "")
    assert not os.path.exists("image")
    once = Path("run.pyvmm").read_bytes()
    assert pyvmm("run", "create", *fixed, "--record", "run.pyvmm", *CREATE[image]).status == 0
    assert Path("run.pyvmm").read_bytes() == once


RESIZE: dict[str, tuple[str, ...]] = {
    "raw": ("-f", "raw", "image", "20M"),
    "dynamic-vhd": ("image", "600G"),
    "fixed-vhd": ("-f", "vpc", "--shrink", "image", "5M"),
    "qcow2": ("image", "100T"),
    "preallocated-qcow2": ("--shrink", "image", "-60M"),
}


@pytest.mark.parametrize("image", RESIZE)
def test_replay_of_resize(pyvmm: Command, image: str) -> None:
    """The bundle holds what the file was, as far as it was read."""
    assert pyvmm("run", "create", *IMAGES[image]).status == 0
    before = Path("image").read_bytes() if image == "preallocated-qcow2" else b""
    assert pyvmm("run", "resize", "--record", "run.pyvmm", *RESIZE[image]).status == 0
    os.unlink("image")
    answer = pyvmm("replay", "run.pyvmm")
    assert (answer.status, answer.err) == (0, "")
    assert not os.path.exists("image")
    assert os.path.getsize("run.pyvmm") < 128 << 10
    if before:
        Path("image").write_bytes(before)
        assert pyvmm("run", "resize", *RESIZE[image]).status == 0


def test_several_files_in_one_bundle(pyvmm: Command) -> None:
    for name in ("one", "two"):
        assert pyvmm("run", "create", "-f", "qcow2", name, "1M").status == 0
    recorded = pyvmm("run", "check", "--record", "run.pyvmm", "one", "missing", "two")
    assert recorded.status == 1
    answer = pyvmm("replay", "-q", "run.pyvmm")
    assert answer.status == 0
    assert len(answer.out.splitlines()) == 2


def test_json(pyvmm: Command) -> None:
    pyvmm("run", "create", "-f", "qcow2", "image", "1M")
    pyvmm("run", "info", "--record", "run.pyvmm", "image")
    answer = pyvmm("replay", "--output=json", "run.pyvmm")
    verdict = json.loads(answer.last)["replay"]
    assert verdict["verdict"] == "reproduced"
    assert verdict["exit-status"] == verdict["status"] == 0
    assert verdict["device-calls"] == verdict["recorded-device-calls"] > 3
    assert 0 < verdict["image-bytes"] < 1 << 20


def test_a_hundred_gigabytes_travel_as_kilobytes(pyvmm: Command) -> None:
    size = 100 << 30
    small = raw_writer.gpt(1 << 20, [raw_writer.Partition(b"p" * 16, 64, 100)])
    with open("image", "wb") as file:
        file.truncate(size)
        file.write(small[: 1 << 16])
        for place in range(1 << 30, size, 10 << 30):
            file.seek(place)
            file.write(os.urandom(4096))
    for words in (("info",), ("measure", "-O", "qcow2"), ("measure",)):
        recorded = pyvmm("run", *words, "--record", "run.pyvmm", "image")
        assert recorded.status == 0
        assert os.path.getsize("run.pyvmm") < 32 << 10
        assert pyvmm("replay", "run.pyvmm").status == 0


# --- operations of one's own ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["c", "zig"])
def test_an_operation_of_ones_own(pyvmm: Command, examples: dict[str, Path], language: str) -> None:
    elf = str(examples[language])
    content = os.urandom(70_000) + bytes(3 << 20) + b"end"
    Path("image").write_bytes(content)
    recorded = pyvmm("run", elf, "--record", "run.pyvmm", "image")
    os.unlink("image")
    missing = pyvmm("replay", "run.pyvmm")
    assert missing.status == 64
    assert "give its ELF with --op-elf" in missing.err
    answer = pyvmm("replay", "--op-elf", elf, "run.pyvmm")
    assert answer.status == 0
    assert answer.out.splitlines()[0] == recorded.out.rstrip("\n").replace('"image"', '"run.pyvmm"')
    assert f"bytes of the image: {len(content)}" in answer.last
    other = pyvmm("replay", "--op-elf", str(examples["zig" if language == "c" else "c"]), "run.pyvmm")
    assert other.status == 64
    assert other.err.count("SHA-256") == 1
    assert "is not the one that was recorded" in other.err


def test_another_runtime(pyvmm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    pyvmm("run", "create", "image", "1M")
    pyvmm("run", "info", "--record", "run.pyvmm", "image")
    monkeypatch.setattr("vmm.replay.player.load_runtime", lambda: b"another")
    answer = pyvmm("replay", "run.pyvmm")
    assert answer.status == 1
    assert "with another guest runtime: SHA-256 " in answer.err


def test_the_real_command(tmp_path: Path) -> None:
    assert command.run("run", "create", "-f", "vpc", "image", "1M", cwd=tmp_path).status == 0
    done = command.run("run", "measure", "--record", "run.pyvmm", "-O", "qcow2", "image", cwd=tmp_path)
    assert (done.status, done.err) == (0, "")
    (tmp_path / "image").unlink()
    done = command.run("replay", "-v", "run.pyvmm", cwd=tmp_path)
    assert done.status == 0
    assert done.err.startswith("sandbox: process ")
    assert [path.name for path in tmp_path.iterdir()] == ["run.pyvmm"]


# --- limits, and files that must not be replaced ----------------------------------------------------------------------


def test_max_record(pyvmm: Command) -> None:
    pyvmm("run", "create", "-f", "qcow2", "image", "1G")
    answer = pyvmm("run", "check", "--max-record", "1k", "--record", "run.pyvmm", "--output=json", "image")
    assert answer.status == 75
    error = json.loads(answer.out)["error"]
    assert (error["limit"], error["value"]) == ("max-record", 1024)
    assert "nothing is recorded in 'run.pyvmm'" in answer.err
    assert sorted(os.listdir()) == ["image"]
    pyvmm("run", "check", "--record", "run.pyvmm", "image")
    answer = pyvmm("replay", "--max-record", "1k", "run.pyvmm")
    assert answer.status == 75
    assert "max-record is 1024" in answer.err
    assert pyvmm("run", "check", "--max-record", "1k", "image").status == 64


def test_the_record_never_replaces_a_file_of_the_run(pyvmm: Command) -> None:
    pyvmm("run", "create", "-f", "qcow2", "image", "1M")
    before = Path("image").read_bytes()
    os.link("image", "hard")
    os.symlink("image", "soft")
    for words in (
        ("check", "--record", "image", "image"),
        ("check", "--record", "./image", "image"),
        ("check", "--record", "hard", "image"),
        ("check", "-L", "--record", "image", "soft"),
        ("create", "--record", "new", "new", "1M"),
        ("create", "-f", "qcow2", "-o", "data_file=data", "--record", "data", "new", "1M"),
    ):
        answer = pyvmm("run", *words)
        assert answer.status == 64, words
        assert "The record would replace a file of the run" in answer.err
    assert Path("image").read_bytes() == before
    assert sorted(os.listdir()) == ["hard", "image", "soft"]


def test_a_run_that_never_began_is_no_record(pyvmm: Command) -> None:
    pyvmm("run", "create", "image", "1M")
    answer = pyvmm("run", "info", "--record", "run.pyvmm", "missing")
    assert answer.status == 1
    assert "nothing is recorded in 'run.pyvmm'" in answer.err
    Path("no.elf").write_bytes(b"\x7fELF")
    assert pyvmm("run", "info", "--op-elf", "no.elf", "--record", "run.pyvmm", "image").status == 64
    assert sorted(os.listdir()) == ["image", "no.elf"]
    assert pyvmm("run", "info", "--record", "no/such/folder", "image").status == 1


def test_words(pyvmm: Command) -> None:
    assert pyvmm("replay").status == 64
    assert pyvmm("replay", "a", "b").status == 64
    assert pyvmm("replay", "--zork").status == 64
    assert pyvmm("replay", "missing").status == 1
    assert "--op-elf PATH" in pyvmm("replay", "--help").out
