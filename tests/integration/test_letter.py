"""Text and JSON to the letter: the real command beside the real qemu-img on the same images."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from tests.integration.command import Done, run

pytestmark = [pytest.mark.kvm, pytest.mark.qemu_img]


def qemu(*words: str, cwd: Path) -> Done:
    done = subprocess.run(["qemu-img", *words], cwd=cwd, capture_output=True, check=False, timeout=60)
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def set_refcounts(path: Path, refcounts: dict[int, int]) -> None:
    """Change 16-bit refcounts in the first refcount block (qcow2 specification, "Host cluster management")."""
    with path.open("r+b") as file:
        file.seek(48)
        (table,) = struct.unpack(">Q", file.read(8))
        file.seek(table)
        (block,) = struct.unpack(">Q", file.read(8))
        for cluster, refcount in refcounts.items():
            file.seek(block + 2 * cluster)
            file.write(struct.pack(">H", refcount))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("letter")
    (folder / "sub").mkdir()

    def make(*words: str) -> None:
        done = qemu(*words, cwd=folder)
        assert done.status == 0, done

    make("create", "-q", "-f", "qcow2", "plain.qcow2", "10M")
    make("create", "-q", "-f", "qcow2", "-o", "compat=0.10", "v2.qcow2", "1G")
    make("create", "-q", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=128k", "extended.qcow2", "1G")
    make("create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on,refcount_bits=1", "lazy.qcow2", "1T")
    make("create", "-q", "-f", "qcow2", "-o", "compression_type=zstd,cluster_size=2M", "zstd.qcow2", "3M")
    make("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", "metadata.qcow2", "5M")
    make("create", "-q", "-f", "qcow2", "-u", "-b", "../plain.qcow2", "-F", "qcow2", "sub/overlay.qcow2", "10M")
    make("create", "-q", "-f", "qcow2", "-u", "-b", "nbd://host:1/x", "-F", "raw", "remote.qcow2", "10M")
    make("create", "-q", "-f", "qcow2", "bitmaps.qcow2", "10M")
    make("bitmap", "--add", "bitmaps.qcow2", "one")
    make("bitmap", "--add", "--disable", "-g", "4k", "bitmaps.qcow2", "two")
    make("create", "-q", "-f", "qcow2", "snapshots.qcow2", "10M")
    make("snapshot", "-c", "s1", "snapshots.qcow2")
    make("snapshot", "-c", "a name that is longer than its column", "snapshots.qcow2")
    make("create", "-q", "-f", "vpc", "dynamic.vhd", "1M")
    make("create", "-q", "-f", "vpc", "-o", "subformat=fixed,force_size", "fixed.vhd", "1M")
    make("create", "-q", "-f", "raw", "zero.raw", "1000")
    (folder / "é \u202e.raw").write_bytes(os.urandom(5000))
    content = folder / "content"
    content.write_bytes(b"".join(bytes([i]) * 65536 for i in range(1, 40)) + bytes(1 << 20))
    make("convert", "-f", "raw", "-O", "qcow2", "content", "data.qcow2")
    make("convert", "-f", "raw", "-c", "-O", "qcow2", "content", "compressed.qcow2")
    for name, damage in (("leaks", {60: 1, 61: 3}), ("corrupt", {5: 0}), ("both", {5: 0, 60: 1})):
        shutil.copy(folder / "data.qcow2", folder / f"{name}.qcow2")
        set_refcounts(folder / f"{name}.qcow2", damage)
    content.unlink()
    return folder


NAMES = [
    *("plain.qcow2", "v2.qcow2", "extended.qcow2", "lazy.qcow2", "zstd.qcow2", "metadata.qcow2", "sub/overlay.qcow2"),
    *("remote.qcow2", "bitmaps.qcow2", "snapshots.qcow2", "data.qcow2", "compressed.qcow2", "leaks.qcow2"),
    *("corrupt.qcow2", "both.qcow2", "dynamic.vhd", "zero.raw"),
]


def without_ours(text: str) -> str:
    """The JSON text without the object ``pyvmm``, which is the last one."""
    head, found, _ = text.partition(',\n    "pyvmm": {')
    assert found, text
    return head + "\n}\n"


@pytest.mark.parametrize("name", NAMES)
class TestSameBytes:
    def test_info(self, name: str, images: Path) -> None:
        assert run("run", "info", name, cwd=images) == qemu("info", name, cwd=images)
        theirs = qemu("info", "--output=json", name, cwd=images)
        ours = run("run", "info", "--output=json", name, cwd=images)
        assert without_ours(ours.out) == theirs.out
        assert ours.status == theirs.status

    @pytest.mark.parametrize("target", ["raw", "qcow2"])
    def test_measure(self, name: str, target: str, images: Path) -> None:
        if name in ("sub/overlay.qcow2", "remote.qcow2"):
            # qemu-img follows the backing file; -f raw asks both about the file's own bytes.
            words = ["-f", "raw", "-O", target, name]
        else:
            words = ["-O", target, name]
        assert run("run", "measure", *words, cwd=images) == qemu("measure", *words, cwd=images)
        words.append("--output=json")
        assert run("run", "measure", *words, cwd=images) == qemu("measure", *words, cwd=images)

    def test_check(self, name: str, images: Path) -> None:
        if name.endswith("vhd"):
            pytest.skip("qemu-img has no checks for VHD")
        theirs, ours = qemu("check", name, cwd=images), run("run", "check", name, cwd=images)
        if name == "remote.qcow2":
            pytest.skip("qemu-img opens the backing file")
        assert (ours.status, ours.out) == (theirs.status, theirs.out)
        if theirs.status == 63:
            assert ours.err.endswith(theirs.err.removeprefix("qemu-img: "))
            return
        assert sorted(line.split(" ")[0] for line in ours.err.splitlines()) == sorted(
            line.split(" ")[0] for line in theirs.err.splitlines()
        )
        theirs = qemu("check", "--output=json", name, cwd=images)
        ours = run("run", "check", "--output=json", name, cwd=images)
        assert (ours.status, without_ours(ours.out)) == (theirs.status, theirs.out)


def test_unprintable_names(images: Path) -> None:
    """Escaped in text, where qemu-img is not; the same in JSON."""
    name = "é \u202e.raw"
    theirs, ours = qemu("info", name, cwd=images), run("run", "info", name, cwd=images)
    assert ours.out == theirs.out.replace("\u202e", "\\u202e")
    assert ours.out != theirs.out
    theirs = qemu("info", "--output=json", name, cwd=images)
    assert without_ours(run("run", "info", "--output=json", name, cwd=images).out) == theirs.out


CREATE = [
    ["-f", "raw", "1M"],
    ["-f", "raw", "-o", "preallocation=full", "64k"],
    ["-f", "qcow2", "1M"],
    ["-f", "qcow2", "-o", "cluster_size=4k,refcount_bits=8", "1.5G"],
    ["-f", "qcow2", "-o", "compat=0.10", "1M"],
    ["-f", "qcow2", "-o", "compat=v3,lazy_refcounts=on,preallocation=metadata", "1M"],
    ["-f", "qcow2", "-o", "extended_l2,compression_type=zstd", "1M"],
    ["-f", "qcow2", "-u", "-b", "a,b", "-F", "raw", "1M"],
    ["-f", "vpc", "1M"],
    ["-f", "vpc", "-o", "subformat=fixed,force_size", "1M"],
    ["-f", "vpc", "-o", "subformat=dynamic,force_size=off", "5M"],
]


@pytest.mark.parametrize("words", CREATE, ids=" ".join)
def test_create(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "theirs").mkdir()
    arguments = [*words[:-1], "new", words[-1]]
    theirs = qemu("create", *arguments, cwd=tmp_path / "theirs")
    ours = run("run", "create", *arguments, cwd=tmp_path / "ours")
    assert ours == theirs
    info = ["info", "-f", words[1], "--output=json", "new"]
    mine = json.loads(qemu(*info, cwd=tmp_path / "ours").out)
    other = json.loads(qemu(*info, cwd=tmp_path / "theirs").out)
    assert {**mine, "actual-size": 0} == {**other, "actual-size": 0}


@pytest.mark.parametrize("words", [["-f", "vdi", "1M"], ["-f", "dmg", "1M"], ["-f", "qcow2"], ["-f", "vpc", "3000G"]])
def test_create_refused_by_both(words: list[str], tmp_path: Path) -> None:
    arguments = [*words[:2], "new", *words[2:]]
    done = run("run", "create", *arguments, cwd=tmp_path)
    if words[1] != "vdi":
        assert qemu("create", *arguments, cwd=tmp_path).status == 1
    (tmp_path / "new").unlink(missing_ok=True)
    assert done.status == 1
    done.one_line()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["measure", "-O", "qcow2", "holes.raw"], ["check", "data.qcow2"]])
def test_progress(words: list[str], images: Path) -> None:
    """What takes long says how far it is, to whoever asks."""
    with (images / "holes.raw").open("wb") as file:
        for index in range(3000):
            os.pwrite(file.fileno(), b"x", index << 17)
    quiet = run("run", *words, cwd=images)
    assert quiet.err == ""
    done = run("run", *words, "-p", cwd=images)
    assert (done.status, done.out) == (quiet.status, quiet.out)
    percentages = [float(line.removeprefix("(").removesuffix("/100%)")) for line in done.err.splitlines()]
    assert percentages
    assert percentages == sorted(percentages)
    assert 0 <= percentages[0] <= percentages[-1] <= 100
