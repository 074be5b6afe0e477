"""What `info` says of a disk's content, of parents, and of files that fit two formats: through the real machine."""

from __future__ import annotations

import struct
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.differential.ours import Ours, explain
from tests.images import qcow2_writer, raw_writer, vhd_writer

pytestmark = pytest.mark.kvm

KIB, MIB = 1 << 10, 1 << 20
EFI = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
SOUND = {"header-valid": True, "entries-valid": True, "backup-valid": True, "protective": True}


def _info(ours: Ours, path: Path, content: bytes, *options: str) -> dict[str, Any]:
    path.write_bytes(content)
    answer = ours.run("info", "--output=json", *options, str(path))
    assert answer.rc == 0, explain(answer)
    report: dict[str, Any] = answer.json
    return report


def _own(ours: Ours, path: Path, content: bytes, *options: str) -> dict[str, Any]:
    own: dict[str, Any] = _info(ours, path, content, *options)["pyvmm"]
    return own


def test_mbr(ours: Ours, tmp_path: Path) -> None:
    partitions = [raw_writer.Partition(0x83, 8, 64, active=True), raw_writer.Partition(0x07, 100, 5000)]
    own = _own(ours, tmp_path / "disk", raw_writer.mbr(MIB, partitions, serial=0x1234ABCD))
    (table,) = own["partition-tables"]
    assert (table["scheme"], table["sector-size"], table["identifier"]) == ("mbr", 512, "1234abcd")
    first, second = table["partitions"]
    assert (first["start"], first["length"], first["type"], first["active"]) == (8 * 512, 64 * 512, "83", True)
    assert (first["kind"], first["index"], first["outside"]) == ("primary", 1, False)
    assert (second["type-name"], second["outside"]) == ("NTFS or exFAT", True)


def test_gpt(ours: Ours, tmp_path: Path) -> None:
    disk = bytearray(raw_writer.gpt(MIB, [raw_writer.Partition(EFI.bytes_le, 64, 128)]))
    disk[64 * 512 + 1080 : 64 * 512 + 1082] = b"\x53\xef"
    own = _own(ours, tmp_path / "disk", bytes(disk))
    (table,) = own["partition-tables"]
    assert {key: table[key] for key in SOUND} == SOUND
    (partition,) = table["partitions"]
    assert (partition["type"], partition["type-name"], partition["name"]) == (str(EFI), "EFI system", "part0")
    assert (partition["start"], partition["length"]) == (64 * 512, 128 * 512)
    assert [(found["type"], found["offset"]) for found in own["filesystems"]] == [("ext2", 64 * 512)]


@pytest.mark.parametrize(
    ("at", "wrong"),
    [
        (512 + 56, {"header-valid", "backup-valid"}),
        (1024 + 40, {"entries-valid"}),
        (MIB - 512 + 20, {"backup-valid"}),
        (446 + 12, {"protective"}),
    ],
)
def test_damaged_gpt(at: int, wrong: set[str], ours: Ours, tmp_path: Path) -> None:
    disk = bytearray(raw_writer.gpt(MIB, [raw_writer.Partition(EFI.bytes_le, 64, 128)]))
    disk[at] ^= 0x40
    own = _own(ours, tmp_path / "disk", bytes(disk))
    (table,) = own["partition-tables"]
    assert {key for key in SOUND if not table[key]} == wrong
    assert len(table["partitions"]) == 1


@pytest.mark.parametrize("kind", [vhd_writer.FIXED, vhd_writer.DYNAMIC])
def test_disk_in_a_vhd(kind: int, ours: Ours, tmp_path: Path) -> None:
    """The first sector of a VHD is that of its disk, not of its file."""
    boot = raw_writer.mbr(512, [raw_writer.Partition(0x83, 8, 64)])
    image = vhd_writer.Vhd(MIB, kind, block_size=64 * KIB, creator=b"win ", blocks={0: b"\0"}).build().data
    at = 0 if kind == vhd_writer.FIXED else 4 * KIB - 1536
    if kind == vhd_writer.DYNAMIC:
        (first,) = struct.unpack_from(">I", image, 1536)
        at = first * 512 + 512
    own = _own(ours, tmp_path / "disk.vhd", image[:at] + boot + image[at + 512 :])
    assert [partition["start"] for partition in own["partition-tables"][0]["partitions"]] == [8 * 512]


def test_parent(ours: Ours, tmp_path: Path) -> None:
    """A differencing VHD names its parent by the header and by the locators that can be read."""
    locators = (
        vhd_writer.Locator(b"W2ku", "C:\\x\\Größe.vhd".encode("utf-16-le")),
        vhd_writer.Locator(b"ZZZZ", b"whatever"),
    )
    image = vhd_writer.Vhd(
        MIB, vhd_writer.DIFFERENCING, parent_name="up\x1b[2J.vhd", parent_identifier=bytes(range(16)), locators=locators
    )
    own = _own(ours, tmp_path / "child.vhd", image.build().data)
    assert own["vhd"]["parent-uuid"] == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert [(found["source"], found["name"]) for found in own["references"]] == [
        ("dynamic-header", "up\x1b[2J.vhd"),
        ("W2ku", "C:\\x\\Größe.vhd"),
    ]
    assert [note["code"] for note in own["notes"]] == ["parent-locator-unreadable"]
    answer = ours.run("measure", "-O", "qcow2", "--output=json", str(tmp_path / "child.vhd"))
    assert answer.rc == 1
    assert answer.json["error"]["guest-code"] == "needs-reference", explain(answer)


@pytest.mark.parametrize(("version", "size"), [("7.2", 4_177_920), ("10.0", 4 * MIB)])
def test_size_of_an_unknown_creator(version: str, size: int, ours: Ours, tmp_path: Path) -> None:
    """Up to qemu 9 the geometry counts, from 10 on the current size."""
    image = vhd_writer.Vhd(4 * MIB, vhd_writer.FIXED, creator=b"pvhd", chs=(120, 4, 17)).build().data
    assert _info(ours, tmp_path / "disk.vhd", image, "--qemu-version", version)["virtual-size"] == size


def test_two_formats_at_once(ours: Ours, tmp_path: Path) -> None:
    """A qcow2 header in front of a VHD footer: qemu-img's choice, and a note of the other."""
    footer = vhd_writer.Vhd(MIB, vhd_writer.FIXED).footer()
    image = qcow2_writer.Qcow2(MIB).build().data
    report = _info(ours, tmp_path / "both", image.ljust(MIB, b"\0") + footer)
    assert report["format"] == "qcow2"
    messages = [note["message"] for note in report["pyvmm"]["notes"]]
    assert messages == ["the content also looks like vpc"]
    report = _info(ours, tmp_path / "raw", image, "-f", "raw")
    assert [note["code"] for note in report["pyvmm"]["notes"]] == ["also-looks-like"]


BASES = {
    "mbr": raw_writer.mbr(64 * KIB, [raw_writer.Partition(0x05, 16, 100), raw_writer.Partition(0x83, 1, 9)]),
    "gpt": raw_writer.gpt(64 * KIB, [raw_writer.Partition(EFI.bytes_le, 40, 10)]),
    "dynamic": vhd_writer.Vhd(64 * KIB, block_size=8 * KIB, blocks={0: b"a", 3: b"b"}).build().data,
    "fixed": vhd_writer.Vhd(64 * KIB, vhd_writer.FIXED).build().data,
    "child": vhd_writer.Vhd(
        64 * KIB, vhd_writer.DIFFERENCING, block_size=8 * KIB, locators=(vhd_writer.Locator(b"W2ru", b"a\0b\0"),)
    )
    .build()
    .data,
}


@pytest.mark.parametrize("operation", ["info", "check", "measure", "map"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    base=st.sampled_from(sorted(BASES)),
    changes=st.lists(st.tuples(st.integers(0, 64 * KIB + 4 * KIB), st.binary(min_size=1, max_size=8)), max_size=6),
    cut=st.integers(0, 1100),
)
def test_random_damage(
    base: str, changes: list[tuple[int, bytes]], cut: int, operation: str, ours: Ours, tmp_path: Path
) -> None:
    """Whatever the bytes are, the guest answers or refuses: no panic, no fault, no limit."""
    image = bytearray(BASES[base])
    for at, value in changes:
        # Metadata lies at the ends: most changes are to hit it.
        place = at % min(len(image), 4 * KIB) if at % 2 else len(image) - 1 - at % 1024
        image[place : place + len(value)] = value
    path = tmp_path / "damaged"
    path.write_bytes(bytes(image[: len(image) - cut]))
    answer = ours.run(operation, "--output=json", *(["-O", "qcow2"] if operation == "measure" else []), str(path))
    assert answer.rc in (0, 1, 2, 3, 63), explain(answer)
