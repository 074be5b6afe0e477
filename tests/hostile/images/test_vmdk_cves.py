"""The classes of CVEs and of known bugs that touch VMDK, each by name: none of them happens here."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.differential.ours import Ours, explain
from tests.hostile.images.verdict import survives
from tests.images import vmdk_writer as v
from tests.images.qcow2_writer import Region

pytestmark = pytest.mark.kvm

SECRET = b"only the host may read this"


@pytest.mark.parametrize("kind", ["FLAT", "VMFS", "SPARSE", "VMFSSPARSE", "SESPARSE"])
@pytest.mark.parametrize("name", ["secret", "/etc/passwd", "../secret", "json:{}", "nbd://host/x", "/dev/zero"])
def test_cve_2022_47951_an_extent_names_a_file_of_the_host(kind: str, name: str, ours: Ours, tmp_path: Path) -> None:
    """And GO-2023-1803: it is named, and never opened."""
    (tmp_path / "secret").write_bytes(SECRET * 100)
    path = tmp_path / "image.vmdk"
    line = f'RW 4 {kind} "{name}"' + (" 0" if kind == "FLAT" else "")
    path.write_bytes(v.descriptor([line], create_type="vmfs"))
    survives(ours, path, "vmdk")
    for operation in (("info",), ("check",), ("measure", "-O", "qcow2")):
        answer = ours.run(*operation, "--output=json", str(path))
        assert SECRET.decode() not in answer.stdout + answer.stderr
        assert "root:" not in answer.stdout, explain(answer)
    reference = ours.run("info", "--output=json", str(path)).json["pyvmm"]["references"][0]
    assert reference["name"] == name
    missing = ours.run("info", "--output=json", str(path)).json
    path.write_bytes(v.descriptor([line.replace(name, "absent")], create_type="vmfs"))
    absent = ours.run("info", "--output=json", str(path)).json
    # Whether the file exists cannot be told from the answer.
    assert [len(answer["pyvmm"]["notes"]) for answer in (missing, absent)] == [1, 1]


@pytest.mark.parametrize("name", ["image.vmdk", "/etc/passwd", "json:{", "\x1b]0;title\x07\x1b[31m"])
def test_cve_2015_5163_a_parent_is_named_and_not_opened(name: str, ours: Ours, tmp_path: Path) -> None:
    path = tmp_path / "image.vmdk"
    path.write_bytes(v.Sparse(3000, {0: b"a"}, text=v.descriptor(parent_cid=1, parent=name)).build().data)
    survives(ours, path, "vmdk")
    assert ours.run("info", "--output=json", str(path)).json["backing-filename"] == name
    shown = ours.run("info", str(path))
    assert not [c for c in shown.stdout + shown.stderr if ord(c) < 32 and c != "\n"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("capacity", 2**64 - 1),
        ("capacity", 2**63),
        ("grain_size", 2**64 - 1),
        ("grain_size", 1 << 55),
        ("table_entries", 0xFFFF_FFFF),
        ("directory", 2**64 - 2),
        ("descriptor_size", 2**64 - 1),
        ("overhead", 2**64 - 1),
    ],
)
def test_cve_2014_0142_to_0148_sizes_that_wrap(field: str, value: int, ours: Ours, tmp_path: Path) -> None:
    """Integer overflows, divisions by zero and unbounded tables of the class."""
    path = tmp_path / "image.vmdk"
    for other in (0, 1, 2**32 - 1):
        fields = {field: value, "table_entries": other} if field != "table_entries" else {field: value}
        path.write_bytes(v.Sparse(3000, {0: b"a"}, fields=fields).build().data)
        survives(ours, path, "vmdk")


@pytest.mark.parametrize("length", [131_060, 131_061, 131_072, 131_073, 0, 0xFFFF_FFFF])
def test_cve_2026_2243_a_marker_longer_than_its_grain(length: int, ours: Ours, tmp_path: Path) -> None:
    def damage(image: bytearray, layout: tuple[Region, ...]) -> None:
        at = next(region.offset for region in layout if region.name == "grain[0]")
        struct.pack_into("<I", image, at + 8, length)

    path = tmp_path / "image.vmdk"
    path.write_bytes(v.Sparse(3000, {0: b"a"}, compressed=True, damage=damage).build().data)
    survives(ours, path, "vmdk")
    assert ours.run("check", str(path)).rc == 2
    notes = ours.run("info", "--output=json", str(path)).json["pyvmm"].get("notes", [])
    assert [note["code"] for note in notes] == ([] if length == 131_060 else ["content-unreadable"])


@pytest.mark.parametrize("damage", [b"\0", b"\xff", b"\x78\x9c", b"\x78\x9c\xed\xc1"])
def test_streams_that_end_too_early(damage: bytes, ours: Ours, tmp_path: Path) -> None:
    """std's decoder would panic at the end of its input."""
    path = tmp_path / "image.vmdk"
    built = v.Sparse(3000, {0: b"a"}, compressed=True, redundant=False).build()
    at = built.region("grain[0]").offset
    path.write_bytes(built.data[: at + 12] + damage)
    survives(ours, path, "vmdk")


def test_cve_2015_5162_a_small_file_that_claims_much(ours: Ours, tmp_path: Path) -> None:
    """A directory of 32 Mi entries behind the end of the file costs nothing."""
    path = tmp_path / "image.vmdk"
    path.write_bytes(v.Sparse(3000, {0: b"a"}, fields={"capacity": 512 * 128 << 25}).build().data)
    survives(ours, path, "vmdk")
    answer = ours.run("measure", "--max-read", "1M", "-O", "raw", "--output=json", str(path))
    assert answer.json["required"] == (512 * 128 << 25) * 512, explain(answer)


def test_b1_a2_more_is_allocated_than_the_disk_has(ours: Ours, tmp_path: Path) -> None:
    """A 66,048-byte disk with two grains of 64 KiB: measured as what it is."""
    path = tmp_path / "image.vmdk"
    path.write_bytes(v.Sparse(129, {0: b"a", 1: b"b"}).build().data)
    answer = ours.run("measure", "-O", "raw", "--output=json", str(path))
    assert answer.json["required"] == answer.json["fully-allocated"] == 66_048, explain(answer)


def test_blank_lines_cost_their_number(ours: Ours, tmp_path: Path) -> None:
    """A megabyte of them; reading over line ends, as qemu-img does, would cost the square."""
    path = tmp_path / "image.vmdk"
    path.write_bytes(v.descriptor(['RW 4 FLAT "f" 0'], create_type="vmfs") + b"\n" * 1_000_000)
    survives(ours, path, "vmdk")


def test_a_descriptor_of_many_extents(ours: Ours, tmp_path: Path) -> None:
    path = tmp_path / "image.vmdk"
    path.write_bytes(v.descriptor(['RW 1 FLAT "f" 0'] * 60_000, create_type="vmfs"))
    answer = ours.run("info", "--output=json", str(path))
    assert answer.json["virtual-size"] == 60_000 * 512, explain(answer)
