"""VMDK against qemu-img: what it writes itself, and what only our writer makes; alone and with the files of extents."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.differential.hosttool import HostTool
from tests.differential.oracle import comparable, comparable_text, make, qemu_img, qemu_io
from tests.differential.ours import Ours, explain
from tests.images import vmdk_writer as v

pytestmark = [pytest.mark.kvm, pytest.mark.qemu_img]

KIB, MIB = 1 << 10, 1 << 20
OPERATIONS: tuple[tuple[str, ...], ...] = (
    ("info",),
    ("check",),
    ("measure", "-O", "raw"),
    ("measure", "-O", "qcow2"),
)
EMBEDDED = ("monolithicSparse", "streamOptimized")
DESCRIBED = ("monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat")


def agree(ours: Ours, path: Path) -> None:
    """Every operation gives qemu-img's answer."""
    for operation in OPERATIONS:
        common = [*operation, "-f", "vmdk", "--output=json", str(path)]
        oracle, answer = qemu_img(*common), ours.run(*common)
        assert answer.rc == oracle.rc, f"{operation}: qemu-img: {explain(oracle)}\nours: {explain(answer)}"
        if oracle.rc == 0:
            assert comparable(answer.json) == comparable(oracle.json), operation
            kept = [key for key in answer.json if key in oracle.json]
            assert kept == [key for key in oracle.json if key in answer.json], "order of keys"


def same_disk(tool: HostTool, path: Path, files: list[tuple[str, Path]] | None = None) -> None:
    """The same extents and the same bytes as qemu-img."""
    given = files or []
    oracle = json.loads(qemu_img("map", "-f", "vmdk", "--output=json", str(path)).stdout)
    assert tool.map("vmdk", path, given) == oracle
    raw = path.with_suffix(".as-raw")
    make("convert", "-f", "vmdk", "-O", "raw", str(path), str(raw))
    done = tool.run("read", "vmdk", path, given)
    assert done.returncode == 0, done
    assert done.stdout == raw.read_bytes()


def extents_of(path: Path) -> list[tuple[str, Path]]:
    """The files of a descriptor that qemu-img wrote."""
    names = [line.split('"')[1] for line in path.read_text().splitlines() if line.startswith("RW ")]
    return [("extent", path.parent / name) for name in names]


@dataclass(frozen=True)
class Content:
    """A disk: its size and where it has data."""

    name: str
    size: int
    writes: tuple[str, ...]


CONTENTS = (
    Content("empty", 4 * MIB, ()),
    Content("sector", 512, ("write -P 1 0 512",)),
    Content("odd", 66_048, ("write -P 1 65536 512",)),
    Content("ends", 40 * MIB, ("write -P 1 0 4k", "write -P 2 40896k 64k")),
    Content("scattered", 70 * MIB, tuple(f"write -P {n} {n * 3}M {n * 5}k" for n in range(1, 22, 4))),
    Content("zeroes", 8 * MIB, ("write -P 3 0 1M", "write -z 128k 512k", "write -P 0 768k 64k")),
    Content("full", 2 * MIB, ("write -P 9 0 2M",)),
)


def source(folder: Path, content: Content) -> Path:
    path = folder / "source.raw"
    path.touch()
    with path.open("r+b") as file:
        file.truncate(content.size)
    qemu_io(path, "raw", *content.writes)
    return path


@pytest.mark.parametrize("content", CONTENTS, ids=lambda c: c.name)
@pytest.mark.parametrize("subformat", EMBEDDED)
def test_converted(subformat: str, content: Content, ours: Ours, host_tool: HostTool, tmp_path: Path) -> None:
    path = tmp_path / "image.vmdk"
    make("convert", "-O", "vmdk", "-o", f"subformat={subformat}", str(source(tmp_path, content)), str(path))
    agree(ours, path)
    same_disk(host_tool, path)
    text = ours.run("info", str(path))
    assert comparable_text(text.stdout) == comparable_text(qemu_img("info", str(path)).stdout)


@pytest.mark.parametrize("content", CONTENTS, ids=lambda c: c.name)
@pytest.mark.parametrize("subformat", DESCRIBED)
def test_converted_to_extents(
    subformat: str, content: Content, ours: Ours, host_tool: HostTool, tmp_path: Path
) -> None:
    """With the extents given the disk is qemu-img's; alone, `info` says what the descriptor says."""
    path = tmp_path / "image.vmdk"
    make("convert", "-O", "vmdk", "-o", f"subformat={subformat}", str(source(tmp_path, content)), str(path))
    same_disk(host_tool, path, extents_of(path))
    oracle, answer = qemu_img("info", "--output=json", str(path)), ours.run("info", "--output=json", str(path))
    assert answer.rc == oracle.rc == 0, explain(answer)
    # docs/differences.json, vmdk-extents-not-opened: the grain size is in the extents.
    assert comparable(answer.json, "cluster-size") == comparable(oracle.json, "cluster-size")
    for operation in OPERATIONS[1:]:
        refused = ours.run(*operation, "--output=json", str(path))
        assert refused.rc == 1, explain(refused)
        assert refused.json["error"]["guest-code"] == "needs-reference"
        assert "--chain" in refused.json["error"]["message"]


def test_split_extents_follow_one_another(host_tool: HostTool, tmp_path: Path) -> None:
    """A disk of three extents, with data around both borders."""
    for subformat in ("twoGbMaxExtentSparse", "twoGbMaxExtentFlat"):
        path = tmp_path / f"{subformat}.vmdk"
        make("create", "-f", "vmdk", "-o", f"subformat={subformat}", str(path), "5G")
        qemu_io(path, "vmdk", "write -P 1 2097088k 128k", "write -P 2 4194303k 2k", "write -P 3 5242879k 1k")
        oracle = json.loads(qemu_img("map", "--output=json", str(path)).stdout)
        assert host_tool.map("vmdk", path, extents_of(path)) == oracle


def grain(number: int, size: int = 64 * KIB) -> bytes:
    return random.Random(number).randbytes(size // 2)


GRAINS: dict[int, bytes | None] = {0: grain(0), 1: grain(1), 3: v.ZERO, 5: grain(5), 511: grain(2), 512: v.ZERO}
STORED: dict[int, bytes | None] = {number: content for number, content in GRAINS.items() if content is not v.ZERO}

SPARSE: dict[str, v.Sparse] = {
    "plain": v.Sparse(70_000, STORED),
    "zeroed": v.Sparse(70_000, GRAINS, version=2),
    "version-0": v.Sparse(70_000, STORED, version=0),
    "version-3": v.Sparse(70_000, STORED, version=3),
    "no-redundant": v.Sparse(70_000, STORED, redundant=False),
    "small-grains": v.Sparse(9000, {0: b"a", 1: b"b", 700: b"c", 1124: b"d"}, grain_sectors=8),
    "one-sector": v.Sparse(1200, {0: b"a", 2: b"b", 1199: b"c"}, grain_sectors=1),
    "odd-grains": v.Sparse(1001, {0: b"a", 1: b"b", 90: b"c"}, grain_sectors=11),
    "small-tables": v.Sparse(1001, {0: b"a", 1: b"b", 90: b"c"}, grain_sectors=8, table_entries=7),
    "part-of-a-grain": v.Sparse(129, {1: b"a"}),
    "nothing": v.Sparse(0),
    "unclean": v.Sparse(70_000, STORED, unclean=True),
    "stream": v.Sparse(70_000, STORED, compressed=True, redundant=False, version=3),
    "stream-footer": v.Sparse(200_000, STORED, compressed=True, footer=True, version=3),
    "stream-redundant": v.Sparse(70_000, STORED, compressed=True),
    "gte-1-without-flag": v.Sparse(70_000, GRAINS, fields={"flags": v.NEWLINE_TEST | v.REDUNDANT}),
}
#: Grains that begin in the header: clean for qemu-img, which only asks whether they begin in the file.
OVER_METADATA = ("gte-1-without-flag",)


@pytest.mark.parametrize("name", SPARSE)
def test_written(name: str, ours: Ours, host_tool: HostTool, tmp_path: Path) -> None:
    path = tmp_path / "image.vmdk"
    path.write_bytes(SPARSE[name].build().data)
    if name in OVER_METADATA:
        assert qemu_img("check", str(path)).rc == 0
        assert ours.run("check", str(path)).rc == 2
    else:
        agree(ours, path)
    if SPARSE[name].sectors:
        same_disk(host_tool, path)


@pytest.mark.parametrize("name", SPARSE)
def test_written_text(name: str, ours: Ours, tmp_path: Path) -> None:
    path = tmp_path / "image.vmdk"
    path.write_bytes(SPARSE[name].build().data)
    assert comparable_text(ours.run("info", str(path)).stdout) == comparable_text(qemu_img("info", str(path)).stdout)


def described(folder: Path, create_type: str, *extents: tuple[str, str, bytes]) -> tuple[Path, list[tuple[str, Path]]]:
    """A descriptor of extents, each a line up to the name, what stands behind it, and its content."""
    lines, files = [], []
    for index, (before, behind, data) in enumerate(extents):
        name = f"extent {index}.vmdk"
        (folder / name).write_bytes(data)
        lines.append(f'{before} "{name}"{behind}')
        files.append(("extent", folder / name))
    path = folder / "image.vmdk"
    path.write_bytes(v.descriptor(lines, create_type=create_type))
    return path, files


COWD = {
    "empty": v.Cowd(10_000),
    "data": v.Cowd(10_000, {0: b"a", 1: b"b", 4095: b"c", 4096: b"d", 9999: b"e"}),
    "grains": v.Cowd(100_001, {0: b"a", 9: b"b", 100_000 // 128: b"c"}, grain_sectors=128),
}
SESPARSE = {
    "empty": v.SeSparse(40_000),
    "data": v.SeSparse(40_000, {0: b"a", 1: v.ZERO, 2: b"b", 4095: b"c", 4096: b"d", 4999: b"e"}, unmapped=(7,)),
    "odd": v.SeSparse(40_005, {5000: b"a"}),
}


@pytest.mark.parametrize("name", COWD)
def test_esx_extents(name: str, host_tool: HostTool, tmp_path: Path) -> None:
    image = COWD[name]
    line = f"RW {image.sectors} VMFSSPARSE"
    path, files = described(tmp_path, "vmfsSparse", (line, "", image.build().data))
    same_disk(host_tool, path, files)
    assert host_tool.run("check", "vmdk", path, files).returncode == qemu_img("check", str(path)).rc == 0


@pytest.mark.parametrize("name", SESPARSE)
def test_sesparse_extents(name: str, host_tool: HostTool, tmp_path: Path) -> None:
    image = SESPARSE[name]
    path, files = described(tmp_path, "seSparse", (f"RW {image.sectors} SESPARSE", "", image.build().data))
    same_disk(host_tool, path, files)
    assert host_tool.run("check", "vmdk", path, files).returncode == qemu_img("check", str(path)).rc == 0


def test_mixed_extents(host_tool: HostTool, ours: Ours, tmp_path: Path) -> None:
    """Flat, hosted, ESX and seSparse in one disk; for such a disk qemu-img says neither cluster size nor dirty flag."""
    path, files = described(
        tmp_path,
        "vmfs",
        ("RW 5 FLAT", " 1", b"f" * 2000),
        ("RW 70016 SPARSE", "", v.Sparse(70_016, STORED, text=None).build().data),
        ("RW 7 VMFS", "", b"g" * 4000),
        ("RW 10000 VMFSSPARSE", "", COWD["data"].build().data),
        ("RW 40000 SESPARSE", "", SESPARSE["data"].build().data),
    )
    same_disk(host_tool, path, files)
    oracle = qemu_img("info", "--output=json", str(path)).json
    facts = dict(host_tool.messages("info", "vmdk", path, files))["info"]
    assert facts["virtual-size"] == oracle["virtual-size"]
    assert facts["vmdk"]["mixed"] is True
    assert "dirty-flag" not in oracle
    alone = ours.run("info", "--output=json", str(path))
    assert comparable(alone.json, "cluster-size") == comparable(oracle, "cluster-size")


def test_extent_that_ends_inside_a_grain(host_tool: HostTool, tmp_path: Path) -> None:
    """qemu-img lets the last grain reach into the next extent (docs/differences.json, vmdk-extent-tail)."""
    path, files = described(
        tmp_path,
        "vmfs",
        ("RW 130 SPARSE", "", v.Sparse(130, {0: b"a"}, text=None).build().data),
        ("RW 2 FLAT", " 0", b"f" * 1024),
    )
    expected = b"a".ljust(130 * 512, b"\0") + b"f" * 1024
    assert host_tool.run("read", "vmdk", path, files).stdout == expected
    make("convert", "-f", "vmdk", "-O", "raw", str(path), str(tmp_path / "theirs"))
    assert (tmp_path / "theirs").read_bytes() == b"a".ljust(132 * 512, b"\0")


def test_parent(host_tool: HostTool, ours: Ours, tmp_path: Path) -> None:
    make("create", "-f", "vmdk", str(tmp_path / "base.vmdk"), "4M")
    qemu_io(tmp_path / "base.vmdk", "vmdk", "write -P 1 0 1M")
    path = tmp_path / "delta.vmdk"
    make("create", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", str(path), cwd=tmp_path)
    qemu_io(path, "vmdk", "write -P 2 2M 64k")
    for operation in (("info",), ("check",), ("measure", "-O", "raw")):
        oracle, answer = (run(*operation, "--output=json", str(path)) for run in (qemu_img, ours.run))
        assert answer.rc == oracle.rc == 0, explain(answer)
        assert comparable(answer.json) == comparable(oracle.json), operation
    needs = ours.run("measure", "-O", "qcow2", "--output=json", str(path))
    assert needs.json["error"]["guest-code"] == "needs-reference"
    assert host_tool.run("check", "vmdk", path, [("parent", tmp_path / "base.vmdk")]).returncode == 0
    references = [fields for _, fields in host_tool.messages("references", "vmdk", path)]
    assert references == [
        {"kind": "parent", "name": "base.vmdk", "format": "vmdk", "source": "parentFileNameHint"},
    ]
    # Another parent than the one that the image was made on.
    make("create", "-f", "vmdk", str(tmp_path / "other.vmdk"), "4M")
    assert host_tool.run("check", "vmdk", path, [("parent", tmp_path / "other.vmdk")]).returncode == 2
