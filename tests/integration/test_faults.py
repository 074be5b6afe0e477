"""Files that fail: a typed error that names file, place and errno; nothing left over, the original intact."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import vmm
from tests.integration.command import Done, listing
from tests.integration.mounts import ORDINARY_USER, Faults, Stage, fails
from vmm.machine.runner import MachineRunner

if TYPE_CHECKING:
    from vmm.boundary import Event, Job, Outcome

pytestmark = pytest.mark.kvm

MIB = 1 << 20
OPERATIONS = ("info", "measure", "check", "map")

#: Images of the reading tests: name -> what makes it.
IMAGES: dict[str, list[str]] = {
    "disk.qcow2": ["-f", "qcow2", "disk.qcow2", "1G"],
    "disk.vhd": ["-f", "vpc", "disk.vhd", "1G"],
    "disk.raw": ["disk.raw", "1M"],
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage(tmp_path_factory.mktemp("stage"), "256M") as made:
        yield made


@pytest.fixture(scope="module")
def mounted(stage: Stage) -> Faults:
    """A file system that fails on demand, with the images in it."""
    made = stage.faults(stage.folder / "faults")
    for words in IMAGES.values():
        done = stage.run("run", "create", "--force", *words, cwd=made.on)
        assert done.status == 0, done
    return made


@pytest.fixture
def faults(mounted: Faults) -> Iterator[Faults]:
    yield mounted
    mounted.rules()


def contents(folder: Path) -> dict[str, str]:
    """Names and hashes of everything in a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def failed(done: Done, name: str, number: str | None, text: str, *, code: str = "file") -> dict[str, Any]:
    """The JSON error of a failed command, compared with what it has to say."""
    assert (done.status, done.err) == (1, ""), done
    error: dict[str, Any] = done.json["error"]
    assert (error["code"], error["file"], error.get("errno"), error["exit-status"]) == (code, name, number, 1)
    assert name in error["message"]
    assert text in error["message"]
    if number is not None:
        said = error["message"].removesuffix("; the image keeps its old content, and has its old size or the new one")
        assert said.endswith(f": {os.strerror(getattr(errno, number))}")
    return error


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("number", ["EIO", "ESTALE", "EREMOTEIO"])
def test_reading(operation: str, name: str, number: str, stage: Stage, mounted: Faults, faults: Faults) -> None:
    before = contents(stage.path(mounted.folder))
    faults.rules(read=fails(number))
    words = ["run", operation, name]
    error = failed(stage.run(*words, "--output=json", cwd=mounted.on), name, number, "reading at byte ")
    done = stage.run(*words, cwd=mounted.on)
    assert (done.status, done.one_line()) == (1, f"pyvmm: {error['message']}\n")
    faults.rules()
    assert contents(stage.path(mounted.folder)) == before


def test_reading_names_the_first_byte_that_fails(stage: Stage, mounted: Faults, faults: Faults) -> None:
    """A file that is read through: what the system could read is not what is blamed."""
    (stage.path(mounted.folder) / "large").write_bytes(os.urandom(3 * MIB))
    from examples.build import build_zig

    elf = stage.path(stage.folder) / "count.elf"
    shutil.copy(build_zig(Path(str(elf.parent))), elf)
    faults.rules(read=fails("EIO", MIB + 1))
    done = stage.run("run", str(stage.folder / "count.elf"), "--output=json", "large", cwd=mounted.on)
    failed(done, "large", "EIO", f"reading at byte {MIB} failed")
    (stage.path(mounted.folder) / "large").unlink()


def test_a_file_that_cannot_be_opened_or_looked_at(stage: Stage, mounted: Faults, faults: Faults) -> None:
    for rules, number in (({"open": fails("EIO")}, "EIO"), ({"getattr": fails("ESTALE", name="vhd")}, "ESTALE")):
        faults.rules(**rules)
        done = stage.run("run", "info", "disk.vhd", "--output=json", cwd=mounted.on)
        failed(done, "disk.vhd", number, "Could not open 'disk.vhd'")


#: What fails, with which errno, and what the error says.
WRITING: list[tuple[dict[str, Any], str, str]] = [
    ({"create": fails("EACCES")}, "EACCES", "Could not create"),
    ({"create": fails("EROFS")}, "EROFS", "Could not create"),
    ({"truncate": fails("EFBIG")}, "EFBIG", "making the file"),
    ({"truncate": fails("ENOSPC")}, "ENOSPC", "making the file"),
    ({"write": fails("EIO")}, "EIO", "writing at byte"),
    ({"write": fails("EIO", 65536 + 1)}, "EIO", "writing at byte"),
    ({"write": fails("ENOSPC", 65536 + 1)}, "ENOSPC", "writing at byte"),
    ({"write": fails("EDQUOT", 65536 + 1)}, "EDQUOT", "writing at byte"),
    ({"write": fails("ESTALE")}, "ESTALE", "writing at byte"),
    ({"fsync": fails("EIO")}, "EIO", "flushing"),
    ({"rename": fails("ENOSPC")}, "ENOSPC", "Could not create"),
    ({"rename": fails("EIO")}, "EIO", "Could not create"),
]


#: The same of a file that is changed in place.
RESIZING: list[tuple[dict[str, Any], str, str]] = [
    ({"open": fails("EACCES")}, "EACCES", "Could not open"),
    ({"open": fails("EROFS")}, "EROFS", "Could not open"),
    ({"truncate": fails("EFBIG")}, "EFBIG", "making the file"),
    ({"truncate": fails("ENOSPC")}, "ENOSPC", "making the file"),
    ({"write": fails("EIO")}, "EIO", "writing at byte"),
    ({"write": fails("ENOSPC", 65536 + 1)}, "ENOSPC", "writing at byte"),
    ({"fsync": fails("EIO")}, "EIO", "flushing"),
]


@pytest.mark.parametrize(("rules", "number", "text"), RESIZING, ids=lambda value: "".join(value))
def test_resizing(rules: dict[str, Any], number: str, text: str, stage: Stage, mounted: Faults, faults: Faults) -> None:
    """Consistent afterwards, with the old size or the new one."""
    words = ("-f", "qcow2", "-o", "cluster_size=512", "changed.qcow2", "1M")
    assert stage.run("run", "create", *words, cwd=mounted.on).status == 0
    faults.rules(**rules)
    done = stage.run("run", "resize", "--output=json", "changed.qcow2", "1G", cwd=mounted.on)
    failed(done, "changed.qcow2", number, text)
    faults.rules()
    assert stage.run("run", "check", "changed.qcow2", cwd=mounted.on).status in (0, 3)
    assert stage.run("run", "resize", "changed.qcow2", "2G", cwd=mounted.on).status == 0
    assert stage.run("run", "check", "changed.qcow2", cwd=mounted.on).status in (0, 3)
    (stage.path(mounted.folder) / "changed.qcow2").unlink()


@pytest.mark.parametrize("name", ["new", "disk.qcow2"])
@pytest.mark.parametrize(("rules", "number", "text"), WRITING, ids=lambda value: "".join(value))
def test_writing(
    rules: dict[str, Any], number: str, text: str, name: str, stage: Stage, mounted: Faults, faults: Faults
) -> None:
    before = contents(stage.path(mounted.folder))
    faults.rules(**rules)
    done = stage.run("run", "create", "--force", "-f", "qcow2", name, "1G", "--output=json", cwd=mounted.on)
    failed(done, name, number, text)
    faults.rules()
    assert contents(stage.path(mounted.folder)) == before


def test_keeping_the_mode_fails(stage: Stage, mounted: Faults, faults: Faults) -> None:
    before = contents(stage.path(mounted.folder))
    faults.rules(chmod=fails("EPERM"))
    done = stage.run("run", "create", "--force", "disk.raw", "1M", "--output=json", cwd=mounted.on)
    failed(done, "disk.raw", "EPERM", "Could not create 'disk.raw'")
    assert contents(stage.path(mounted.folder)) == before


def test_what_closing_says_is_too_late(stage: Stage, mounted: Faults, faults: Faults) -> None:
    """Everything was made durable before."""
    faults.rules(flush=fails("EIO"))
    assert stage.run("run", "create", "--force", "-f", "qcow2", "closed", "1G", cwd=mounted.on).status == 0
    faults.rules()
    assert stage.run("run", "check", "closed", cwd=mounted.on).status == 0
    (stage.path(mounted.folder) / "closed").unlink()


def test_a_directory_that_cannot_be_made_durable(stage: Stage, mounted: Faults, faults: Faults) -> None:
    """The file is in place by then, whole; whether it survives a crash of the host is not known."""
    faults.rules(fsyncdir=fails("EIO"))
    done = stage.run("run", "create", "--force", "-f", "qcow2", "placed", "1G", "--output=json", cwd=mounted.on)
    failed(done, "placed", "EIO", "Could not make durable the directory of 'placed'")
    faults.rules(fsyncdir=fails("EINVAL"))
    assert stage.run("run", "create", "--force", "-f", "qcow2", "placed", "1G", cwd=mounted.on).status == 0
    faults.rules()
    assert stage.run("run", "check", "placed", cwd=mounted.on).status == 0
    assert listing(stage.path(mounted.folder)) == {*IMAGES, "placed"}
    (stage.path(mounted.folder) / "placed").unlink()


def test_a_temporary_name_that_cannot_be_removed_is_named(stage: Stage, mounted: Faults, faults: Faults) -> None:
    """As when a file system turns read-only under way: nobody can remove it then, but somebody can be told."""
    faults.rules(rename=fails("EROFS"), unlink=fails("EROFS"))
    done = stage.run("run", "create", "--force", "stuck", "1M", "--output=json", cwd=mounted.on)
    (left,) = listing(stage.path(mounted.folder)) - set(IMAGES)
    assert done.status == 1
    assert done.json["error"]["message"] == f"Could not remove '{left}': Read-only file system"
    (stage.path(mounted.folder) / left).unlink()


#: What needs space: each is larger than the file systems below have.
LARGE: list[list[str]] = [
    ["-f", "qcow2", "-o", "preallocation=full", "image", "16M"],
    ["-f", "qcow2", "-o", "preallocation=falloc", "image", "16M"],
    ["-o", "preallocation=full", "image", "16M"],
    ["-o", "preallocation=falloc", "image", "16M"],
]


def refused_for_space(stage: Stage, folder: Path, number: str, *prefix: str) -> None:
    """Whatever does not fit leaves a folder as it was: empty, or with the image that it has."""
    there = stage.path(folder)
    for existing in (False, True):
        if existing:
            done = stage.run("run", "create", "--force", "-f", "qcow2", "image", "1G", prefix=prefix, cwd=folder)
            assert done.status == 0, done
        before = contents(there)
        for words in LARGE:
            done = stage.run("run", "create", "--force", *words, "--output=json", prefix=prefix, cwd=folder)
            failed(done, "image", number, "image")
            assert contents(there) == before
        if existing:
            assert stage.run("run", "check", "image", prefix=prefix, cwd=folder).status == 0


def test_no_space(stage: Stage) -> None:
    folder = stage.folder / "small"
    stage.mount(folder, "tmpfs", "size=2M")
    refused_for_space(stage, folder, "ENOSPC")


def test_no_space_as_an_ordinary_user(stage: Stage) -> None:
    folder = stage.folder / "small-of-a-user"
    stage.mount(folder, "tmpfs", "size=2M,uid=1000,gid=1000")
    refused_for_space(stage, folder, "ENOSPC", *ORDINARY_USER)


def test_no_inode(stage: Stage) -> None:
    folder = stage.folder / "no-inodes"
    stage.mount(folder, "tmpfs", "size=2M,nr_inodes=1")
    done = stage.run("run", "create", "--force", "image", "1M", "--output=json", cwd=folder)
    failed(done, "image", "ENOSPC", "Could not create 'image'")
    assert listing(stage.path(folder)) == set()


def test_quota(stage: Stage) -> None:
    """A limit of a btrfs subvolume, which root has to keep as well."""
    folder, disk = stage.folder / "quota", stage.folder / "btrfs"
    with stage.path(stage.folder).joinpath("btrfs").open("wb") as file:
        file.truncate(120 * MIB)
    stage.call("mkfs.btrfs", "-q", disk)
    stage.mount(folder, "btrfs", "loop", disk)
    stage.call("btrfs", "quota", "enable", folder)
    stage.call("btrfs", "qgroup", "limit", "4M", folder)
    refused_for_space(stage, folder, "EDQUOT")


def test_file_size_limit(stage: Stage) -> None:
    """RLIMIT_FSIZE; what is in place already is longer than that."""
    folder = stage.folder / "limited"
    stage.call("mkdir", folder)
    assert stage.run("run", "create", "--force", "image", "2M", cwd=folder).status == 0
    before = contents(stage.path(folder))
    for name in ("image", "new"):
        for words in (["-f", "qcow2", name, "1G"], [name, "2M"], ["-o", "preallocation=full", name, "2M"]):
            done = stage.run(
                "run", "create", "--force", *words, "--output=json", prefix=("prlimit", "--fsize=100000"), cwd=folder
            )
            failed(done, name, "EFBIG", name)
    assert contents(stage.path(folder)) == before


@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_read_only_file_system(kind: str, stage: Stage) -> None:
    """Images can be read there, and nothing else."""
    source, folder = stage.folder / f"writable-{kind}", stage.folder / f"read-only-{kind}"
    stage.mount(source, "tmpfs", "size=2M")
    assert stage.run("run", "create", "--force", "-f", "qcow2", "image", "1G", cwd=source).status == 0
    if kind == "bind":
        stage.call("mkdir", folder)
        stage.call("mount", "--bind", source, folder)
        stage.call("mount", "-o", "remount,bind,ro", folder)
    else:
        folder = source
        stage.call("mount", "-o", "remount,ro", folder)
    before = contents(stage.path(folder))
    for operation in OPERATIONS:
        assert stage.run("run", operation, "image", cwd=folder).status == 0
    for name in ("image", "new"):
        for prefix in ((), ORDINARY_USER):
            done = stage.run("run", "create", "--force", name, "1M", "--output=json", prefix=prefix, cwd=folder)
            failed(done, name, "EROFS", f"Could not create '{name}'")
    assert contents(stage.path(folder)) == before


class Meddling(MachineRunner):
    """Does something to a file after it was opened and before the guest reads it."""

    meddle: Callable[[], object] = staticmethod(lambda: None)

    def run(self, job: Job, on_event: Callable[[Event], None]) -> Outcome:
        self.meddle()
        return super().run(job, on_event)


@pytest.fixture(scope="module")
def runner() -> Iterator[Meddling]:
    with Meddling() as made:
        yield made


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    vmm.create(path, "qcow2", "1G", unix_time=0, uuid=bytes(16))
    return path


def replace_by_another(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"something else")
    other.replace(path)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    "meddle",
    [
        pytest.param(Path.unlink, id="vanishes"),
        pytest.param(replace_by_another, id="is replaced"),
        pytest.param(lambda path: path.chmod(0), id="is forbidden"),
        pytest.param(lambda path: os.truncate(path, 1 << 30), id="grows"),
    ],
)
def test_what_was_opened_is_what_is_read(
    operation: str, meddle: Callable[[Path], object], runner: Meddling, image: Path
) -> None:
    """A file is opened once, and its length is that of then."""
    runner.meddle = lambda: None
    machine = vmm.Machine(runner=runner)
    expected = machine.run(operation, image)
    runner.meddle = lambda: meddle(image)
    assert machine.run(operation, image) == expected


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("length", [0, 512, 65536, 131072 + 8])
def test_a_file_that_shrinks(operation: str, length: int, runner: Meddling, image: Path) -> None:
    had = image.stat().st_size
    runner.meddle = lambda: os.truncate(image, length)
    with pytest.raises(vmm.FileError) as caught:
        vmm.Machine(runner=runner).run(operation, image)
    assert caught.value.details["file"] == str(image)
    assert caught.value.message.startswith(f"{image}: ")
    found = re.search(r"the file now ends at or before byte (\d+), it had (\d+)$", caught.value.message)
    assert found is not None, caught.value.message
    assert length <= int(found[1]) < int(found[2]) == had


def test_a_target_that_changes_meanwhile(runner: Meddling, tmp_path: Path) -> None:
    """Whoever comes later wins, as with any two programs; a directory is not replaced."""
    target = tmp_path / "new"
    machine = vmm.Machine(runner=runner)
    runner.meddle = lambda: target.write_bytes(b"theirs")
    machine.create(target, "raw", "1M", force=True)
    assert target.stat().st_size == MIB
    runner.meddle = target.unlink
    machine.create(target, "raw", "2M", force=True)
    assert target.stat().st_size == 2 * MIB

    def become_a_directory() -> None:
        target.unlink()
        target.mkdir()

    runner.meddle = become_a_directory
    with pytest.raises(vmm.FileError, match="Is a directory"):
        machine.create(target, "raw", "1M", force=True)
    assert listing(tmp_path) == {"new"}


def test_an_image_whose_data_file_is_in_place_already(runner: Meddling, tmp_path: Path) -> None:
    """Two outputs: each is whole, and the image never refers to a data file that is not there."""
    target, data = tmp_path / "image", tmp_path / "data"
    target.write_bytes(b"old")

    def become_a_directory() -> None:
        target.unlink()
        target.mkdir()

    runner.meddle = become_a_directory
    with pytest.raises(vmm.FileError, match=r"Could not create .*image': Is a directory"):
        vmm.Machine(runner=runner).create(target, "qcow2", "1M", data_file=str(data), force=True)
    assert listing(tmp_path) == {"image", "data"}
    assert data.stat().st_size == MIB


def test_block_device(stage: Stage) -> None:
    """Read like a file; a medium that fails gives the same error; an output never replaces it."""
    disk = stage.folder / "medium"
    assert stage.run("run", "create", "--force", "-f", "qcow2", "-o", "preallocation=full", str(disk), "4M").status == 0
    there = stage.path(disk)
    os.truncate(there, 8 * MIB)
    device = stage.call("losetup", "--find", "--show", disk)
    try:
        for operation in OPERATIONS:
            done = stage.run("run", operation, device)
            assert done.status == 0, done
        done = stage.run("run", "create", "--force", device, "1M", "--output=json")
        failed(done, device, None, "is not replaced")
        # The medium ends before the device does; nothing of it may be in the cache.
        os.truncate(there, 0)
        stage.call("blockdev", "--flushbufs", device)
        for operation in OPERATIONS:
            done = stage.run("run", operation, device, "--output=json")
            failed(done, device, "EIO", "reading at byte ")
    finally:
        stage.call("losetup", "--detach", device)
