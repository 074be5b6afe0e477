"""``resize`` by the real command: files, locks, limits, words; and a machine that stops after the N-th change."""

from __future__ import annotations

import fcntl
import os
import random
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import vmm
from tests.integration.command import run
from tests.integration.mounts import Stage
from vmm.devices.backend import FileBackend
from vmm.devices.errors import LimitExceeded
from vmm.machine.runner import MachineRunner
from vmm.operations.inplace import InPlaceFile

pytestmark = pytest.mark.kvm

KEPT = "; the image keeps its old content, and has its old size or the new one"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(b"\xa5" * 4096)
    return path


def test_words(image: Path) -> None:
    assert run("run", "resize", "-f", "raw", str(image), "8k").out == "Image resized.\n"
    assert image.stat().st_size == 8192
    assert run("run", "resize", "-q", str(image), "+1k").out == ""
    assert image.read_bytes() == b"\xa5" * 4096 + bytes(5120)
    refused = run("run", "resize", str(image), "-1k")
    assert (refused.status, refused.out) == (1, "")
    assert refused.err == (
        "pyvmm: Use the --shrink option to perform a shrink operation.\n"
        "pyvmm: warning: Shrinking an image will delete all data beyond the shrunken image's end. "
        "Before performing such an operation, make sure there is no important data there.\n"
    )
    answer = run("run", "resize", "--output=json", "--shrink", str(image), "-1k").json
    assert answer == {
        "filename": str(image), "format": "raw",
        "old-virtual-size": 9216, "virtual-size": 8192, "file-length": 8192,
    }  # fmt: skip
    error = run("run", "resize", "--output=json", str(image), "1k").json["error"]
    assert (error["structure"], error["exit-status"]) == ("shrink", 1)


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (("image",), 64, "Expecting image file name and size"),
        (("image", "other", "1M"), 64, "Unexpected argument: other"),
        (("image", "1Z"), 64, "Parameter 'size' expects a non-negative number below 2^64"),
        (("image", "18446744073709551616"), 64, "Parameter 'size' expects a non-negative number below 2^64"),
        (("image", "18446744073709551615"), 1, "raw: virtual size 18446744073709551615 is above 2^63-1"),
        (("image", "9223372036854775807"), 1, "offset(9223372036854775807) exceeds maximum(9223372035781033984)"),
        (("image", "0"), 1, "New image size must be positive"),
        (("image", "-4k"), 1, "New image size must be positive"),
        (("--preallocation=most", "image", "8k"), 1, "Invalid preallocation mode 'most'"),
        (("--preallocation=metadata", "image", "8k"), 1, "Unsupported preallocation mode: metadata"),
        (("--preallocation=full", "--shrink", "image", "1k"), 1, "Preallocation can only be used for growing images"),
        (("-f", "zork", "image", "8k"), 1, "Unknown driver 'zork'"),
        (("-f", "vpc", "image", "8k"), 1, "invalid VPC image"),
        (("missing", "8k"), 1, "No such file or directory"),
        ((".", "8k"), 1, "it is a directory"),
        (("/dev/null", "8k"), 1, "it is a character device"),
        (("link", "8k"), 1, "it is a symbolic link"),
        (("--max-output", "8k", "image", "9k"), 75, "--max-output is 8192" + KEPT),
        (("--preallocation=full", "--max-write", "4k", "image", "1M"), 75, "--max-write is 4096" + KEPT),
    ],
)
def test_refusals(words: Sequence[str], status: int, text: str, image: Path) -> None:
    (image.parent / "link").symlink_to("image")
    done = run("run", "resize", *words, cwd=image.parent)
    assert done.status == status
    assert text in done.one_line()
    assert image.read_bytes()[:4096] == b"\xa5" * 4096
    if status != 75:
        assert image.stat().st_size == 4096


def test_a_link_is_followed_on_request(image: Path) -> None:
    (image.parent / "link").symlink_to("image")
    assert run("run", "resize", "-L", str(image.parent / "link"), "8k").status == 0
    assert image.stat().st_size == 8192


def test_a_file_system_that_is_read_only_or_full(tmp_path: Path) -> None:
    with Stage(tmp_path) as stage:
        full = stage.folder / "full"
        stage.mount(full, "tmpfs", "size=1M")
        made = stage.run("run", "create", "-f", "qcow2", "-o", "cluster_size=512", "image", "1M", cwd=full)
        assert made.status == 0
        assert stage.run("run", "resize", "image", "2M", cwd=full).status == 0
        done = stage.run("run", "resize", "--preallocation=full", "image", "+8M", cwd=full)
        assert done.status == 1
        assert "No space left on device" in done.one_line()
        assert done.err.rstrip().endswith(KEPT)
        assert stage.run("run", "check", "image", cwd=full).status in (0, 3)
        assert stage.run("run", "info", "--output=json", "image", cwd=full).json["virtual-size"] == 2 << 20
        stage.call("mount", "-o", "remount,ro", full)
        done = stage.run("run", "resize", "image", "4M", cwd=full)
        assert (done.status, done.one_line()) == (1, "pyvmm: Could not open 'image': Read-only file system\n")


def test_cve_2026_24708(image: Path) -> None:
    """A raw disk whose guest wrote another format's header: never a guess, and -f decides."""
    heads = {
        b"QFI\xfb\xff\xff\xff\xff": "qcow2",
        b"KDMV": "vmdk",
        b"vhdxfil": None,
        b"# Disk DescriptorFile\nzork": "raw",
        b"LUKS\xba\xbe\x00\x09": "raw",
    }
    for head, name in heads.items():
        image.write_bytes(head.ljust(4096, b"\xa5"))
        done = run("run", "resize", str(image), "8k")
        if name is None:
            assert done.status == 0
            continue
        assert (done.status, image.stat().st_size) == (1, 4096), head
        # What is detected as the other format is refused by its reader, or resized as what it is.
        assert "looks like" in done.one_line() or f"{name}: " in done.err
        assert run("run", "resize", "-f", "raw", str(image), "8k").status == 0
        assert image.read_bytes() == head.ljust(4096, b"\xa5") + bytes(4096)
    vmm.create(image, "vpc", "1M", subformat="fixed", force=True)
    done = run("run", "resize", str(image), "2M")
    assert done.status == 1
    assert "by its last bytes alone" in done.one_line()
    assert run("run", "resize", "-f", "vpc", str(image), "2M").status == 0
    assert vmm.info(image, format="vpc").virtual_size >= 2 << 20


def test_falloc_takes_the_space(image: Path) -> None:
    assert run("run", "resize", "--preallocation=falloc", str(image), "1M").status == 0
    assert image.stat().st_blocks * 512 >= (1 << 20) - 4096
    vmm.create(image, "qcow2", "1M", force=True)
    assert vmm.resize(image, "3M", preallocation="falloc").virtual_size == 3 << 20
    assert image.stat().st_blocks * 512 >= 2 << 20
    assert vmm.check(image).clean


def test_two_at_once(image: Path) -> None:
    with InPlaceFile(str(image)):
        done = run("run", "resize", str(image), "8k")
        assert done.status == 1
        assert 'Failed to get "write" lock' in done.one_line()
        assert run("run", "resize", "-U", str(image), "8k").status == 0
        assert run("run", "info", "-f", "raw", str(image)).status == 0
    assert run("run", "resize", str(image), "+8k").status == 0


@pytest.mark.qemu_img
def test_qemu_holds_the_image(image: Path) -> None:
    vmm.create(image, "qcow2", "1M", force=True)
    with subprocess.Popen(
        ["qemu-io", "-f", "qcow2", str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write(b"read 0 512\n")
        assert b"read" in holder.stdout.readline() + holder.stdout.readline()
        done = run("run", "resize", str(image), "2M")
        assert done.status == 1
        assert 'Failed to get "write" lock. Is another process using the image' in done.one_line()
        holder.stdin.close()
        holder.wait()
    assert run("run", "resize", str(image), "2M").status == 0
    with InPlaceFile(str(image)):
        theirs = subprocess.run(
            ["qemu-img", "resize", "-f", "qcow2", str(image), "4M"], capture_output=True, text=True, check=False
        )
        assert theirs.returncode == 1
        assert "lock" in theirs.stderr


def test_a_file_system_without_locks(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError(37, os.strerror(37))

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with InPlaceFile(str(image)) as file:
        assert file.length == 4096


class Stopping(FileBackend):
    """Counts what changes the file, and stops the run before change number ``last``."""

    __slots__ = ()

    last = 0
    done = 0

    @classmethod
    def _count(cls) -> None:
        if cls.done == cls.last:
            raise LimitExceeded("max-write", cls.last)
        cls.done += 1

    def _put(self, offset: int, views: Sequence[memoryview], length: int) -> None:
        self._count()
        super()._put(offset, views, length)

    def _truncate(self, length: int) -> None:
        self._count()
        super()._truncate(length)

    def zero(self, offset: int, length: int, unmap: bool, charge: Callable[[int], None]) -> None:
        self._count()
        super().zero(offset, length, unmap, charge)


def resized(machine: vmm.Machine, path: Path, size: str, shrink: bool) -> bool:
    """Whether nothing stopped it."""
    try:
        machine.resize(path, size, shrink=shrink)
    except vmm.LimitReachedError as error:
        said = str(error)
    else:
        return True
    assert said.endswith(KEPT)
    return False


@pytest.mark.parametrize(
    ("options", "size", "shrink"),
    [
        ({"cluster_size": 512}, "8M", False),
        ({"cluster_size": 512, "preallocation": "metadata"}, "64k", True),
        ({}, "1G", False),
    ],
)
def test_a_machine_that_stops(
    options: dict[str, Any], size: str, shrink: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each change of the file: consistent, with the old size or the new one."""
    monkeypatch.setattr("vmm.devices.bus.FileBackend", Stopping)
    original = tmp_path / "original"
    vmm.create(original, "qcow2", "1M", force=True, **options)
    path = tmp_path / "image"
    sizes = set()
    with vmm.Machine(runner=MachineRunner(warm=True)) as machine:
        for last in range(1000):
            path.write_bytes(original.read_bytes())
            Stopping.last, Stopping.done = last, 0
            finished = resized(machine, path, size, shrink)
            checked = machine.check(path)
            assert checked.exit_status in (0, 3), last
            sizes.add(machine.info(path).virtual_size)
            if finished:
                break
        assert finished
        assert checked.clean
        assert machine.info(path).virtual_size != 1 << 20
    assert len(sizes) == 2
    assert last > 2


EDGES = (0, 1, 511, 512, 513, 65536, 2**31, 2**32, 2**51, 2**61, 2**63 - 2**30, 2**63 - 1, 2**63, 2**64 - 1)


@pytest.mark.parametrize(
    ("driver", "options"),
    [("raw", {}), ("qcow2", {}), ("qcow2", {"cluster_size": 512}), ("vpc", {}), ("vpc", {"subformat": "fixed"})],
)
def test_any_size(driver: str, options: dict[str, Any], tmp_path: Path) -> None:
    """From 0 to 2^64-1, absolute and relative: done or refused, and the image is what it says."""
    path = tmp_path / "image"
    rng = random.Random(4)
    done = 0
    with vmm.Machine(runner=MachineRunner(warm=True), limits=vmm.Limits(max_write=8 << 20)) as machine:
        for number in range(80):
            size = EDGES[number % len(EDGES)] if number < 2 * len(EDGES) else rng.getrandbits(64) >> rng.randrange(64)
            sign = rng.choice(("", "+", "-"))
            machine.create(path, driver, "1M", force=True, **options)
            before = machine.info(path, format=driver).virtual_size
            try:
                report = machine.resize(path, f"{sign}{size}", format=driver, shrink=True)
            except (vmm.RefusedError, vmm.LimitReachedError, vmm.FileError):
                now = machine.info(path, format=driver).virtual_size
                assert now == before, (sign, size)
                continue
            done += 1
            assert report.old_size == before
            assert machine.info(path, format=driver).virtual_size == report.virtual_size
            asked = {"": size, "+": before + size, "-": before - size}[sign]
            assert report.virtual_size >= asked > 0
            if driver != "raw":
                assert machine.check(path, format=driver).exit_status == 0
    assert done > 5
