"""Chains on real machines: what is read through them, VHD parents, data files, records, many files, the API."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import vmm
from tests.images.vhd_writer import DIFFERENCING, Locator, Vhd
from tests.integration.recording import Command
from vmm.errors import EXIT_FAILED, EXIT_USAGE

pytestmark = pytest.mark.kvm

CLUSTER = 1 << 16
EXT4 = 1024 + 56


def ext4() -> bytes:
    """The first bytes of a disk with an ext4 superblock on it."""
    data = bytearray(CLUSTER)
    data[EXT4 : EXT4 + 2] = b"\x53\xef"
    data[1024 + 24 : 1024 + 28] = (2).to_bytes(4, "little")
    data[1024 + 96 : 1024 + 100] = (0x40).to_bytes(4, "little")
    return bytes(data)


def overlay(path: str, name: str, driver: str = "raw", size: int = 1 << 20) -> None:
    """A qcow2 image that holds nothing."""
    from tests.differential.oracle import make

    make("create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", driver, path, str(size))


def filesystems(answer: str) -> list[str]:
    return [one["type"] for one in json.loads(answer)["pyvmm"].get("filesystems", [])]


@pytest.mark.qemu_img
def test_the_content_is_seen_through_the_chain(pyvmm: Command) -> None:
    Path("base.raw").write_bytes(ext4() + bytes(CLUSTER))
    overlay("mid", "base.raw")
    overlay("top", "mid", "qcow2", 2 << 20)
    alone = pyvmm("run", "info", "--output=json", "top")
    assert (alone.status, filesystems(alone.out)) == (0, [])
    assert "followed" not in json.loads(alone.out)["pyvmm"]
    chained = pyvmm("run", "info", "--chain", "--output=json", "top")
    assert (chained.status, filesystems(chained.out)) == (0, ["ext4"])
    followed = json.loads(chained.out)["pyvmm"]["followed"]
    assert [(one["filename"], one["owner"], one["kind"]) for one in followed] == [
        ("mid", 0, "backing-file"),
        ("base.raw", 1, "backing-file"),
    ]
    # Each image of the chain has its own disk.
    whole = json.loads(pyvmm("run", "info", "--backing-chain", "--output=json", "top").out)
    assert [one["filename"] for one in whole] == ["top", "mid", "base.raw"]
    assert [[fs["type"] for fs in one["pyvmm"]["filesystems"]] for one in whole] == [["ext4"]] * 3


@pytest.mark.qemu_img
def test_the_content_of_a_data_file(pyvmm: Command) -> None:
    from tests.differential.oracle import make, qemu_io

    make("create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", "image", "1M")
    qemu_io(Path("image"), "qcow2", "write -P 1 0 64k")
    with open("data.raw", "r+b") as file:
        file.write(ext4())
    alone = pyvmm("run", "info", "--output=json", "image")
    assert (alone.status, filesystems(alone.out)) == (0, [])
    chained = pyvmm("run", "info", "--chain", "--output=json", "image")
    assert (chained.status, filesystems(chained.out)) == (0, ["ext4"])
    for operation in (["check"], ["measure", "-O", "qcow2"]):
        assert pyvmm("run", *operation, "--chain", "image").status == 0
        os.rename("data.raw", "away")
        answer = pyvmm("run", *operation, "--chain", "image")
        assert answer.status == EXIT_FAILED
        assert "names the data file 'data.raw', which is not followed" in answer.err
        os.rename("away", "data.raw")


# --- VHD parents ------------------------------------------------------------------------------------------------------

SIZE = 4 << 20
BASE = bytes(range(16))
OTHER = bytes(range(16, 32))


def child(*locators: tuple[bytes, str], name: str = "", parent: bytes = BASE) -> bytes:
    """A differencing VHD whose first block is its own, with every other sector the parent's."""

    def clear(image: bytearray, regions: Sequence[Any]) -> None:
        place = next(region for region in regions if region.name == "bitmap[0]")
        image[place.offset : place.offset + place.length] = b"\xaa" * place.length

    made = [Locator(platform, text.encode("utf-16-le")) for platform, text in locators]
    return (
        Vhd(
            SIZE,
            disk_type=DIFFERENCING,
            blocks={0: b"c"},
            identifier=OTHER,
            parent_name=name,
            parent_identifier=parent,
            locators=tuple(made),
            damage=clear,
        )
        .build()
        .data
    )


@pytest.mark.parametrize(
    ("locators", "name", "place"),
    [
        (((b"W2ru", ".\\base.vhd"),), "", "base.vhd"),
        (((b"W2ru", "sub\\base.vhd"),), "", "sub/base.vhd"),
        (((b"W2ku", "C:\\images\\base.vhd"),), "", "base.vhd"),
        (((b"W2ru", "..\\elsewhere\\base.vhd"), (b"W2ku", "D:\\x\\base.vhd")), "", "base.vhd"),
        ((), "base.vhd", "base.vhd"),
        ((), "\\\\server\\share\\base.vhd", "base.vhd"),
    ],
)
def test_the_parent_of_a_differencing_vhd(
    pyvmm: Command, locators: tuple[tuple[bytes, str], ...], name: str, place: str
) -> None:
    Path(place).parent.mkdir(exist_ok=True)
    Path(place).write_bytes(Vhd(SIZE, blocks={1: b"p"}, identifier=BASE).build().data)
    Path("child.vhd").write_bytes(child(*locators, name=name))
    alone = pyvmm("run", "measure", "-O", "qcow2", "-f", "vpc", "child.vhd")
    assert alone.status == EXIT_FAILED
    assert "--chain" in alone.err
    answer = pyvmm("run", "measure", "-O", "qcow2", "-f", "vpc", "--chain", "--output=json", "child.vhd")
    assert answer.status == 0, answer
    # Both blocks hold data now: the child's sectors, and the parent's.
    empty = pyvmm("run", "measure", "-O", "qcow2", "--size", str(SIZE), "--output=json")
    assert json.loads(answer.out)["required"] == json.loads(empty.out)["required"] + SIZE
    assert pyvmm("run", "check", "--chain", "child.vhd").status == 0
    listed = json.loads(pyvmm("run", "info", "--backing-chain", "--output=json", "child.vhd").out)
    assert [one["format"] for one in listed] == ["vpc", "vpc"]


def test_a_file_that_is_not_the_parent(pyvmm: Command) -> None:
    Path("child.vhd").write_bytes(child((b"W2ru", ".\\base.vhd")))
    Path("base.vhd").write_bytes(Vhd(SIZE, identifier=OTHER).build().data)
    answer = pyvmm("run", "measure", "-O", "qcow2", "--chain", "child.vhd")
    assert answer.status == EXIT_FAILED
    assert "another identifier" in answer.err
    Path("base.vhd").write_bytes(bytes(SIZE))
    answer = pyvmm("run", "measure", "-O", "qcow2", "--chain", "child.vhd")
    assert answer.status == EXIT_FAILED
    assert answer.err.startswith("pyvmm: child.vhd: ")
    os.unlink("base.vhd")
    answer = pyvmm("run", "measure", "-O", "qcow2", "--chain", "child.vhd")
    assert "names the parent './base.vhd', which is not followed" in answer.err


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.qemu_img
def test_a_refusal_is_the_same_to_the_letter(pyvmm: Command) -> None:
    """On stdout, on stderr and in the status, whatever lies where the name leads."""
    overlay("top", "secret")
    states: dict[str, Callable[[], object]] = {
        "missing": lambda: None,
        "directory": lambda: os.mkdir("secret"),
        "fifo": lambda: os.mkfifo("secret"),
        "link": lambda: os.symlink("/etc/passwd", "secret"),
        "magic": lambda: os.symlink("/proc/self/fd/0", "secret"),
        "device": lambda: os.symlink("/dev/null", "secret"),
        "loop": lambda: os.symlink("secret", "secret"),
    }
    for words in (
        ["measure", "--chain"],
        ["measure", "--chain", "--output=json"],
        ["check", "--chain"],
        ["info", "--chain"],
        ["info", "--backing-chain"],
    ):
        seen = set()
        for state, make in states.items():
            make()
            answer = pyvmm("run", *words, "top")
            seen.add(answer)
            if os.path.lexists("secret"):
                os.rmdir("secret") if state == "directory" else os.unlink("secret")
        assert len(seen) == 1
        assert seen.pop().status == (0 if words == ["info", "--chain"] else EXIT_FAILED)


@pytest.mark.qemu_img
def test_the_error_names_the_file_at_fault(pyvmm: Command) -> None:
    overlay("top", "base", "qcow2")
    Path("base").write_bytes(b"QFI\xfb\0\0\0\x09" + bytes(100))
    answer = pyvmm("run", "measure", "--chain", "top")
    assert answer.status == EXIT_FAILED
    assert answer.err.startswith("pyvmm: top: base: qcow2: ")
    error = json.loads(pyvmm("run", "measure", "--chain", "--output=json", "top").out)["error"]
    assert error["file"] == "base"
    # info says what it can.
    answer = pyvmm("run", "info", "--chain", "--output=json", "top")
    assert answer.status == 0
    assert [note["code"] for note in json.loads(answer.out)["pyvmm"]["notes"]] == ["content-unreadable", "not-followed"]


def test_usage(pyvmm: Command) -> None:
    Path("image").write_bytes(bytes(512))
    assert pyvmm("run", "info", "--allow-dir", ".", "image").status == EXIT_USAGE
    assert pyvmm("run", "create", "--chain", "image", "1M").status == EXIT_USAGE
    answer = pyvmm("run", "info", "--chain", "--allow-dir", "missing", "-f", "raw", "image")
    assert (answer.status, answer.err.count("\n")) == (EXIT_FAILED, 1)


@pytest.mark.qemu_img
def test_deepest_and_too_deep(pyvmm: Command) -> None:
    Path("i16").write_bytes(bytes(CLUSTER))
    for number in reversed(range(16)):
        overlay(f"i{number}", f"i{number + 1}", "qcow2" if number < 15 else "raw")
    listed = json.loads(pyvmm("run", "info", "--backing-chain", "--output=json", "i0").out)
    assert [one["filename"] for one in listed] == [f"i{number}" for number in range(17)]
    assert pyvmm("run", "measure", "--chain", "i0").status == 0
    overlay("one-more", "i0", "qcow2")
    for words in (["measure", "--chain"], ["check", "--chain"], ["info", "--backing-chain"]):
        answer = pyvmm("run", *words, "one-more")
        assert (answer.status, answer.err.count("\n")) == (EXIT_FAILED, 1)
        assert "'i15' is 16 files away from the first image" in answer.err


# --- records, many files, the API -------------------------------------------------------------------------------------


@pytest.mark.qemu_img
@pytest.mark.parametrize(
    "words",
    [["info", "--chain"], ["info", "--backing-chain"], ["measure", "-O", "qcow2", "--chain"], ["check", "--chain"]],
)
def test_replay_without_the_files(pyvmm: Command, words: list[str]) -> None:
    Path("base.raw").write_bytes(ext4())
    overlay("mid", "base.raw")
    overlay("top", "mid", "qcow2")
    plain = pyvmm("run", *words, "top")
    assert pyvmm("run", *words, "--record", "run.pyvmm", "top") == plain
    for name in ("base.raw", "mid", "top"):
        os.unlink(name)
    answer = pyvmm("replay", "run.pyvmm")
    assert (answer.status, answer.err) == (0, "")
    runs = [line for line in answer.out.splitlines() if line.startswith("run.pyvmm: ")]
    # References of two images, and the operation: once for each of three images with --backing-chain.
    assert len(runs) == (5 if "--backing-chain" in words else 3)
    assert all(": reproduced: status 0" in line for line in runs), runs


@pytest.mark.qemu_img
def test_a_record_does_not_replace_a_file_of_the_chain(pyvmm: Command) -> None:
    Path("base.raw").write_bytes(ext4())
    overlay("top", "base.raw")
    answer = pyvmm("run", "measure", "--chain", "--record", "base.raw", "top")
    assert answer.status == EXIT_USAGE
    assert Path("base.raw").read_bytes() == ext4()


@pytest.mark.qemu_img
def test_many_files_each_with_its_chain(pyvmm: Command) -> None:
    Path("base.raw").write_bytes(ext4())
    for number in range(3):
        os.mkdir(f"d{number}")
        overlay(f"d{number}/top", "base" if number == 1 else "../base.raw")
    answer = pyvmm(
        *("run", "measure", "-O", "qcow2", "--chain", "--allow-dir", ".", "--output=json"),
        *(f"d{number}/top" for number in range(3)),
    )
    assert answer.status == EXIT_FAILED
    lines = [json.loads(line) for line in answer.out.splitlines()]
    assert [("required" in line, line.get("filename")) for line in lines] == [
        (True, "d0/top"),
        (False, None),
        (True, "d2/top"),
    ]
    assert lines[1]["error"]["reason"] == "not-opened"
    answer = pyvmm("run", "info", "--backing-chain", "--allow-dir", ".", "--output=json", "d0/top", "d2/top")
    assert [[one["filename"] for one in json.loads(line)] for line in answer.out.splitlines()] == [
        ["d0/top", "d0/../base.raw"],
        ["d2/top", "d2/../base.raw"],
    ]


@pytest.mark.qemu_img
def test_api(pyvmm: Command, tmp_path: Path) -> None:
    assert pyvmm("version").status == 0
    Path("base.raw").write_bytes(ext4())
    os.mkdir("sub")
    overlay("sub/top", "../base.raw")
    top = tmp_path / "sub/top"
    with vmm.Machine() as machine:
        report = machine.info(top, chain=True, allow_dirs=[tmp_path])
        assert [one.type for one in report.filesystems] == ["ext4"]
        assert [one.filename for one in report.followed] == [f"{tmp_path}/sub/../base.raw"]
        assert report.backing_chain == ()
        whole = machine.info(top, backing_chain=True, allow_dirs=tmp_path)
        assert [one.format for one in whole.backing_chain] == ["raw"]
        assert machine.check(top, chain=True, allow_dirs=(str(tmp_path),)).clean
        with pytest.raises(vmm.ReferenceRefusedError) as caught:
            machine.measure(top, chain=True)
        assert caught.value.details["reference"] == "../base.raw"
        with pytest.raises(vmm.UsageError, match="--chain"):
            machine.check(top, allow_dirs=[tmp_path])
        assert machine.measure(top, target="qcow2", chain=True, allow_dirs=[tmp_path]).required > 0
    assert vmm.measure(top, chain=True, allow_dirs=[tmp_path]).format == "qcow2"
    assert vmm.check(top, chain=True, allow_dirs=[tmp_path]).clean
    assert vmm.info(top, backing_chain=True, allow_dirs=[tmp_path]).backing_chain[0].virtual_size == CLUSTER
