"""With --chain VMDKs of several files, overlays on them and over other formats are what qemu-img says they are."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

import vmm
from tests.differential.oracle import Answer, comparable, make, qemu_img, qemu_io
from tests.differential.ours import Ours, explain, run_process
from tests.differential.test_map import settled
from tests.images import vmdk_writer as v

pytestmark = [pytest.mark.kvm, pytest.mark.qemu_img]

KIB, MIB = 1 << 10, 1 << 20
DESCRIBED = ("monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat")
SUBFORMATS = ("monolithicSparse", *DESCRIBED)


def agree(ours: Ours, path: Path, driver: str, *, check: bool = True) -> None:
    """Every operation gives qemu-img's answer, with the format given and with the format detected."""
    for file in path.parent.rglob("*"):
        if file.is_file():
            settled(file)
    operations: list[list[str]] = [["info"], ["measure", "-O", "raw"], ["measure", "-O", "qcow2"], ["map"]]
    operations += [["map", "--output=human"], ["info", "--output=human"]]
    if check:
        operations.append(["check"])
    for words in operations:
        for given in (["-f", driver], []):
            form = [] if "--output=human" in words else ["--output=json"]
            common = [*words, *given, *form, str(path)]
            oracle = qemu_img(*common)
            answer = ours.run(common[0], "--chain", *common[1:])
            # A table cannot show data that QEMU does not see, which includes all of a VHDX.
            expected = (0, 1) if words == ["map", "--output=human"] else (0,)
            assert answer.rc == oracle.rc in expected, f"{words}: qemu-img: {explain(oracle)}\nours: {explain(answer)}"
            compare(words, oracle, answer)
    oracle, answer = (run("info", "--backing-chain", "--output=json", str(path)) for run in (qemu_img, ours.run))
    assert answer.rc == oracle.rc == 0, explain(answer)
    found, expected = json.loads(answer.stdout), json.loads(oracle.stdout)
    assert [comparable(one) for one in found] == [comparable(one) for one in expected]
    assert [one["actual-size"] for one in found] == [one["actual-size"] for one in expected]


def compare(words: list[str], oracle: Answer, answer: Answer) -> None:
    if words[0] == "map" or "--output=human" in words:
        assert answer.stdout == oracle.stdout, words
        return
    assert comparable(answer.json) == comparable(oracle.json), words
    # Nobody writes to these files: what they take is the same for both, that of the extents included.
    assert answer.json.get("actual-size") == oracle.json.get("actual-size"), words
    kept = [key for key in answer.json if key in oracle.json]
    assert kept == [key for key in oracle.json if key in answer.json], "order of keys"


def disk(path: Path, subformat: str, size: str, *writes: str) -> Path:
    make("create", "-q", "-f", "vmdk", "-o", f"subformat={subformat}", str(path), size)
    qemu_io(path, "vmdk", *writes)
    return path


#: Sizes around those at which an extent, a grain or a table begins, and writes over the borders.
SIZES = {
    "sector": ("512", ("write -P 1 0 512",)),
    "grain": ("64k", ()),
    "grain and one": ("66048", ("write -P 1 65536 512",)),
    "table": ("32M", ("write -P 1 0 64k", "write -P 2 31M 1M")),
    "scattered": ("70M", ("write -P 1 3M 5k", "write -P 2 60M 1M", "write -z 1M 1M")),
    "two extents less one": ("4294966784", ("write -P 1 2097088k 128k",)),
    "two extents": ("4G", ("write -P 1 0 4k", "write -P 3 4194240k 64k")),
    "three extents": ("4294967808", ("write -P 1 2097088k 128k", "write -P 2 4194303k 1k")),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_extents(subformat: str, size: str, ours: Ours, tmp_path: Path) -> None:
    length, writes = SIZES[size]
    agree(ours, disk(tmp_path / "image.vmdk", subformat, length, *writes), "vmdk")


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_overlays(subformat: str, ours: Ours, tmp_path: Path) -> None:
    """VMDK over each subformat, and VMDK over that."""
    disk(tmp_path / "base.vmdk", subformat, "20M", "write -P 1 0 1M", "write -P 2 10M 64k")
    # Writing changes the identity that a child knows its parent by.
    make("create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "middle.vmdk", cwd=tmp_path)
    qemu_io(tmp_path / "middle.vmdk", "vmdk", "write -P 3 5M 64k", "write -P 4 512k 64k")
    make("create", "-q", "-f", "vmdk", "-b", "middle.vmdk", "-F", "vmdk", "top.vmdk", cwd=tmp_path)
    qemu_io(tmp_path / "top.vmdk", "vmdk", "write -P 5 19M 1M", "write -P 6 576k 4k")
    for name in ("middle.vmdk", "top.vmdk"):
        agree(ours, tmp_path / name, "vmdk")


@pytest.mark.parametrize("driver", ["vmdk", "vhdx", "vpc", "luks"])
def test_qcow2_over_other_formats(driver: str, ours: Ours, tmp_path: Path) -> None:
    base = tmp_path / f"base.{driver}"
    if driver == "luks":
        # Ours: qemu-img measures the machine's time for it, and gives up where that is uncertain.
        vmm.create(base, "luks", "8M", luks_passphrase=b"x", iterations=1000)
        make("create", "-q", "-f", "qcow2", "-u", "-b", base.name, "-F", driver, str(tmp_path / "top"), "8M")
        # Without the passphrase qemu-img does not open it; here only what is read of it is refused.
        assert ours.run("measure", "--chain", "-O", "qcow2", str(tmp_path / "top")).rc in (0, 1)
        described = ours.run("info", "--backing-chain", "--output=json", str(tmp_path / "top"))
        assert [one["format"] for one in json.loads(described.stdout)] == ["qcow2", "luks"]
        return
    make("create", "-q", "-f", driver, str(base), "8M")
    qemu_io(base, driver, "write -P 1 0 64k", "write -P 2 4M 1M")
    make("create", "-q", "-f", "qcow2", "-b", base.name, "-F", driver, "top", "12M", cwd=tmp_path)
    qemu_io(tmp_path / "top", "qcow2", "write -P 3 32k 64k", "write -P 4 11M 64k", "write -z 4M 128k")
    agree(ours, tmp_path / "top", "qcow2")


@pytest.mark.parametrize("subformat", DESCRIBED)
def test_qcow2_over_extents(subformat: str, ours: Ours, tmp_path: Path) -> None:
    disk(tmp_path / "base.vmdk", subformat, "2098M", "write -P 1 0 1M", "write -P 2 2047M 2M")
    make("create", "-q", "-f", "qcow2", "-b", "base.vmdk", "-F", "vmdk", "top", cwd=tmp_path)
    qemu_io(tmp_path / "top", "qcow2", "write -P 3 512k 64k", "write -z 2047M 64k")
    agree(ours, tmp_path / "top", "qcow2")


def renamed_parent(path: Path, old: str, new: str) -> None:
    data = path.read_bytes()
    assert data.count(old.encode()) == 1
    path.write_bytes(data.replace(old.encode(), new.encode()))


@pytest.mark.parametrize("driver", ["raw", "qcow2"])
def test_vmdk_over_what_is_no_vmdk(driver: str, ours: Ours, tmp_path: Path) -> None:
    """VMDK states no format of its parent but means VMDK; both refuse anything else."""
    disk(tmp_path / "base.vmdk", "monolithicSparse", "4M")
    make("create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "top.vmdk", cwd=tmp_path)
    make("create", "-q", "-f", driver, str(tmp_path / "othr.vmdk"), "4M")
    renamed_parent(tmp_path / "top.vmdk", "base.vmdk", "othr.vmdk")
    for words in (["measure", "-O", "qcow2"], ["map"], ["check"], ["info", "--backing-chain"]):
        oracle = qemu_img(*words, "-f", "vmdk", str(tmp_path / "top.vmdk"))
        answer = ours.run(words[0], "--chain", *words[1:], "-f", "vmdk", str(tmp_path / "top.vmdk"))
        if words[0] != "info":
            assert oracle.rc == 1, (words, explain(oracle))
        assert answer.rc in ((1,) if words[0] != "check" else (1, 2)), (words, explain(answer))


@pytest.mark.parametrize("raw", ["off", "on"])
def test_data_files(raw: str, ours: Ours, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images with a data file, overlays on them, and overlays that have one themselves."""
    make("create", "-q", "-f", "qcow2", "-o", f"data_file=d.raw,data_file_raw={raw}", "base", "4M", cwd=tmp_path)
    writes = ("write -P 1 0 64k", "write -P 2 1M 200k", "write -z 2M 128k", "discard 1M 64k")
    # qemu-img looks for data files in its own directory, and not in the image's.
    monkeypatch.chdir(tmp_path)
    qemu_io(Path("base"), "qcow2", *writes)
    make("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "middle", "6M", cwd=tmp_path)
    qemu_io(Path("middle"), "qcow2", "write -P 3 32k 64k", "write -P 4 5M 4k")
    make("create", "-q", "-f", "qcow2", "-o", "data_file=e.raw", "-b", "middle", "-F", "qcow2", "top", cwd=tmp_path)
    qemu_io(Path("top"), "qcow2", "write -P 3 3M 64k", "write -z 0 4k")
    for name in ("base", "middle", "top"):
        agree(ours, Path(name), "qcow2")


def described(folder: Path, lines: list[str]) -> Path:
    path = folder / "image.vmdk"
    path.write_bytes(v.descriptor(lines, create_type="vmfs"))
    return path


def test_one_file_as_several_extents(ours: Ours, tmp_path: Path) -> None:
    """Pieces of one file, in another order; what it takes counts each time, as qemu-img has it."""
    (tmp_path / "flat").write_bytes(b"a" * 8192 + b"b" * 8192)
    agree(ours, described(tmp_path, ['RW 16 FLAT "flat" 16', 'RW 16 FLAT "flat" 0']), "vmdk")


@dataclass(frozen=True)
class Bad:
    lines: tuple[str, ...]
    #: Part of what is said.
    says: str


BAD = {
    "itself": Bad(('RW 1 FLAT "image.vmdk" 0',), "loop"),
    "itself-sparse": Bad(('RW 1 SPARSE "image.vmdk"',), "loop"),
    "null": Bad(('RW 1 FLAT "/dev/null" 0',), "not followed"),
    "descriptor": Bad(('RW 1 FLAT "/proc/self/fd/0" 0',), "not followed"),
    "relative-proc": Bad(('RW 1 FLAT "../../../../../../proc/self/mem" 0',), "not followed"),
    "fifo": Bad(('RW 1 FLAT "fifo" 0',), "not followed"),
    "link": Bad(('RW 1 FLAT "link" 0',), "not followed"),
    "directory": Bad(('RW 1 FLAT "sub" 0',), "not followed"),
    "dot": Bad(('RW 1 FLAT "." 0',), "not followed"),
    "dot-dot": Bad(('RW 1 FLAT "../secret" 0',), "not followed"),
    "absolute": Bad(('RW 1 FLAT "/etc/passwd" 0',), "not followed"),
    "protocol": Bad(('RW 1 FLAT "nbd:localhost:1" 0',), "not followed"),
    "missing": Bad(('RW 1 FLAT "missing" 0',), "not followed"),
    "long": Bad((f'RW 1 FLAT "{"a" * 500}" 0',), "not followed"),
    "second-missing": Bad(('RW 1 FLAT "flat" 0', 'RW 1 FLAT "missing" 0'), "not followed"),
    "too-many": Bad(tuple(f'RW 1 FLAT "flat" {n}' for n in range(129)), "leads to more than"),
    "thousands": Bad(tuple('RW 1 FLAT "f" 0' for _ in range(1200)), "leads to more than"),
}


@pytest.mark.parametrize("name", BAD)
def test_extents_that_lead_elsewhere(name: str, ours: Ours, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(bytes(512))
    (folder / "flat").write_bytes(bytes(512 * 200))
    os.mkfifo(folder / "fifo")
    (folder / "link").symlink_to("flat")
    path = described(folder, list(BAD[name].lines))
    for words in (["info"], ["check"], ["measure", "-O", "raw"], ["map"], ["info", "--backing-chain"]):
        answer = ours.run(words[0], "--chain", *words[1:], str(path))
        assert answer.rc == 1, (words, explain(answer))
        assert answer.stderr.count("\n") == 1
        assert BAD[name].says in answer.stderr, words
    # Without --chain nothing is opened at all.
    assert ours.run("info", str(path)).rc == 0


def test_as_many_extents_as_fit(ours: Ours, tmp_path: Path) -> None:
    """The last number of files that is followed, each a device of the machine."""
    from calltable import MAX_DEVICES

    count = MAX_DEVICES - 1
    for number in range(count):
        (tmp_path / f"f{number}").write_bytes(bytes([number + 1]) * 512)
    lines = [f'RW 1 FLAT "f{number}" 0' for number in range(count)]
    agree(ours, described(tmp_path, lines), "vmdk")
    described(tmp_path, [*lines, 'RW 1 FLAT "f0" 0'])
    assert ours.run("check", "--chain", str(tmp_path / "image.vmdk")).rc == 1


def test_real_command(tmp_path: Path) -> None:
    """In the sandbox of every run: two disks of extents and an overlay on one command line; recorded, and replayed
    without the files."""
    disk(tmp_path / "one.vmdk", "twoGbMaxExtentSparse", "5G", "write -P 1 2097088k 128k")
    disk(tmp_path / "two.vmdk", "monolithicFlat", "1M", "write -P 1 0 4k")
    make("create", "-q", "-f", "vmdk", "-b", "two.vmdk", "-F", "vmdk", "top.vmdk", cwd=tmp_path)
    names = ["one.vmdk", "two.vmdk", "top.vmdk"]
    words = ["measure", "-O", "qcow2", "--output=json"]
    answer = run_process("run", *words, "--chain", "--record", "run.pyvmm", *names, cwd=tmp_path)
    assert (answer.rc, answer.stderr) == (0, ""), explain(answer)
    expected = [qemu_img(*words, name, cwd=tmp_path).json for name in names]
    assert [comparable(json.loads(line), "filename") for line in answer.stdout.splitlines()] == expected
    for path in tmp_path.glob("*.vmdk"):
        path.unlink()
    replayed = run_process("replay", "run.pyvmm", cwd=tmp_path)
    assert (replayed.rc, replayed.stderr) == (0, ""), explain(replayed)
