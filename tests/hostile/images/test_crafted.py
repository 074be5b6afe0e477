"""Images built to be misread: structures that refer to themselves, counts and sizes at their limits, false magics."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.differential import corruptor
from tests.differential.ours import Ours, explain
from tests.hostile.images.verdict import survives
from tests.images import qcow2_writer as q
from tests.images import raw_writer, vhd_writer

pytestmark = pytest.mark.kvm

KIB, MIB = 1 << 10, 1 << 20


@pytest.mark.parametrize("name", corruptor.KNOWN)
def test_qcow2_known_damage(name: str, ours: Ours, tmp_path: Path) -> None:
    base, damage = corruptor.KNOWN[name]
    path = tmp_path / "image"
    path.write_bytes(replace(base(), damage=damage).build().data)
    survives(ours, path, "qcow2")


@pytest.mark.parametrize("name", ["image.qcow2", "./image.qcow2", "json:{", "nbd://host/x", "x" * 1023])
def test_qcow2_backing_itself(name: str, ours: Ours, tmp_path: Path) -> None:
    """qemu-img does not come back from an image that is its own backing file; this one is reported and not followed."""
    path = tmp_path / "image.qcow2"
    image = q.Qcow2(MIB, backing_file=name, backing_format="qcow2", clusters={0: q.Data()})
    path.write_bytes(image.build().data)
    survives(ours, path, "qcow2")
    info = ours.run("info", "--output=json", str(path))
    assert info.json["backing-filename"] == name, explain(info)


def test_qcow2_names_never_reach_the_terminal_raw(ours: Ours, tmp_path: Path) -> None:
    path = tmp_path / "image"
    evil = "\x1b]0;title\x07\x1b[31mred\r\n\x9b1m"
    image = q.Qcow2(
        MIB,
        backing_file=evil,
        snapshots=(q.Snapshot("\x1b[2J", evil),),
        bitmaps=(q.Bitmap(evil),),
        feature_names=((0, 9, evil),),
    )
    path.write_bytes(image.build().data)
    survives(ours, path, "qcow2")
    for answer in (ours.run("info", str(path)), ours.run("check", str(path)), ours.run("measure", str(path))):
        shown = answer.stdout + answer.stderr
        assert not [c for c in shown if (ord(c) < 32 and c != "\n") or 0x7F <= ord(c) < 0xA0], explain(answer)


def _header_field(offset: int, form: str, value: int) -> Callable[[bytearray, tuple[q.Region, ...]], None]:
    """Change a field of the VHD dynamic header and make its checksum right again."""

    def apply(image: bytearray, _layout: tuple[q.Region, ...]) -> None:
        struct.pack_into(form, image, 512 + offset, value)
        header = bytes(image[512:1536])
        struct.pack_into(">I", image, 512 + 36, vhd_writer.checksum(header, 36))

    return apply


def _bat(slot: int, value: int) -> Callable[[bytearray, tuple[q.Region, ...]], None]:
    def apply(image: bytearray, _layout: tuple[q.Region, ...]) -> None:
        struct.pack_into(">I", image, 1536 + 4 * slot, value)

    return apply


VHD_DAMAGE = {
    "bat-header": _bat(0, 0),
    "bat-itself": _bat(0, 3),
    "bat-unaligned-overlap": _bat(0, 5),
    "bat-outside": _bat(1, 0x7FFF_FFFF),
    "bat-last": _bat(1, 0xFFFF_FFFE),
    "entries-0": _header_field(28, ">I", 0),
    "entries-huge": _header_field(28, ">I", 0xFFFF_FFFF),
    "entries-2^30": _header_field(28, ">I", 1 << 30),
    "block-0": _header_field(32, ">I", 0),
    "block-1": _header_field(32, ">I", 1),
    "block-odd": _header_field(32, ">I", 3 * 512),
    "block-2^31": _header_field(32, ">I", 1 << 31),
    "block-max": _header_field(32, ">I", 0xFFFF_FFFF),
    "table-0": _header_field(16, ">Q", 0),
    "table-header": _header_field(16, ">Q", 512),
    "table-end": _header_field(16, ">Q", 1 << 40),
    "table-wraps": _header_field(16, ">Q", 0xFFFF_FFFF_FFFF_FF00),
    "header-version": _header_field(24, ">I", 0x0002_0000),
    "locator-length": _header_field(576 + 8, ">I", 0xFFFF_FFFF),
    "locator-offset": _header_field(576 + 16, ">Q", 0xFFFF_FFFF_FFFF_FFF0),
    "locator-itself": _header_field(576 + 16, ">Q", 512),
}


@pytest.mark.parametrize("kind", [vhd_writer.DYNAMIC, vhd_writer.DIFFERENCING])
@pytest.mark.parametrize("name", VHD_DAMAGE)
def test_vhd(name: str, kind: int, ours: Ours, tmp_path: Path) -> None:
    image = vhd_writer.Vhd(256 * KIB, kind, 16 * KIB, blocks={0: b"a", 1: b"b"}, parent_name="self.vhd")
    image.locators = (vhd_writer.Locator(b"W2ku", "self.vhd".encode("utf-16-le")),)
    image.damage = VHD_DAMAGE[name]
    path = tmp_path / "self.vhd"
    path.write_bytes(image.build().data)
    survives(ours, path, "vpc")


@pytest.mark.parametrize("size", [0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 512, 0xFF00_0000 * 512])
@pytest.mark.parametrize("kind", [vhd_writer.FIXED, vhd_writer.DYNAMIC])
def test_vhd_size(size: int, kind: int, ours: Ours, tmp_path: Path) -> None:
    image = vhd_writer.Vhd(64 * KIB, kind, 16 * KIB, creator=b"win ")
    honest = image.build()
    image.size = size
    image.chs = (65_535, 16, 255)
    footer = image.footer()
    data = bytearray(honest.data)
    data[-512:] = footer
    if kind == vhd_writer.DYNAMIC:
        data[:512] = footer
    path = tmp_path / "image"
    path.write_bytes(bytes(data))
    survives(ours, path, "vpc")


def _extended_loop() -> bytes:
    """An extended partition whose chain of boot records leads back to its first."""
    image = bytearray(raw_writer.mbr(64 * KIB, [raw_writer.Partition(0x05, 16, 100)]))
    again = raw_writer.mbr(512, [raw_writer.Partition(0x83, 1, 1), raw_writer.Partition(0x05, 0, 100)])
    image[16 * 512 : 17 * 512] = again
    return bytes(image)


def _gpt_with(offset: int, form: str, value: int) -> bytes:
    image = bytearray(raw_writer.gpt(128 * KIB, []))
    struct.pack_into(form, image, 512 + offset, value)
    return bytes(image)


RAW: dict[str, Callable[[], bytes]] = {
    "mbr-extended-loop": _extended_loop,
    "mbr-all-extended": lambda: raw_writer.mbr(64 * KIB, [raw_writer.Partition(0x05, i, 1) for i in range(4)]),
    "mbr-far": lambda: raw_writer.mbr(64 * KIB, [raw_writer.Partition(0x83, 0xFFFF_FFFF, 0xFFFF_FFFF)]),
    "gpt-entries-max": lambda: _gpt_with(80, "<I", 0xFFFF_FFFF),
    "gpt-entry-size-0": lambda: _gpt_with(84, "<I", 0),
    "gpt-entry-size-max": lambda: _gpt_with(84, "<I", 0xFFFF_FFFF),
    "gpt-header-size-max": lambda: _gpt_with(12, "<I", 0xFFFF_FFFF),
    "gpt-entries-far": lambda: _gpt_with(72, "<Q", (1 << 64) - 1),
    "gpt-backup-far": lambda: _gpt_with(32, "<Q", (1 << 64) - 1),
}


@pytest.mark.parametrize("name", RAW)
def test_raw(name: str, ours: Ours, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(RAW[name]())
    survives(ours, path, "raw")


@pytest.mark.parametrize("size", [512, 4 * KIB, 128 * KIB])
@pytest.mark.parametrize("name", raw_writer.SIGNATURES)
def test_magic_and_nothing_else(name: str, size: int, ours: Ours, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(raw_writer.signed(max(size, raw_writer.SIGNATURES[name][0] + 16), name))
    survives(ours, path, None)
    filled = bytearray(b"\xff" * size)
    offset, magic = raw_writer.SIGNATURES[name]
    filled[offset : offset + len(magic)] = magic
    path.write_bytes(bytes(filled))
    survives(ours, path, None)


def _one_table_for_all(entries: int) -> bytes:
    """An L1 table of ``entries`` entries that all name one L2 table, whose entries all name that table itself."""
    size = 1 << 16
    l1_clusters = -(-8 * entries // size)
    image = bytearray((4 + l1_clusters) * size)
    fields = (b"QFI\xfb", 3, 0, 0, 16, entries * size * size // 8, 0, entries, 4 * size, size, 1, 0, 0)
    struct.pack_into(">4sIQIIQIIQQIIQ", image, 0, *fields)
    struct.pack_into(">QQQII", image, 72, 0, 0, 0, 4, 104)
    struct.pack_into(">Q", image, size, 2 * size)
    for cluster in range(4 + l1_clusters):
        struct.pack_into(">H", image, 2 * size + 2 * cluster, 1)
    entry = struct.pack(">Q", 3 * size)
    image[3 * size : 4 * size] = entry * (size // 8)
    image[4 * size : 4 * size + 8 * entries] = entry * entries
    return bytes(image)


def test_qcow2_multiplied_work_ends(ours: Ours, tmp_path: Path) -> None:
    """A 3 MiB file that claims 536 million clusters: qemu-img is busy with it for hours, here the deadline holds."""
    path = tmp_path / "image"
    path.write_bytes(_one_table_for_all(65_536))
    for operation in (("check",), ("measure", "-O", "qcow2"), ("measure", "-O", "raw"), ("info",), ("map",)):
        answer = ours.run(*operation, "--timeout", "1", "--output=json", str(path))
        assert answer.rc in (0, 2, 75), explain(answer)
        if answer.rc == 75:
            shown = json.loads(answer.stdout)
            last = shown[-1] if isinstance(shown, list) else shown
            assert last["error"]["limit"] == "timeout"
    # The machine is as good as new afterwards.
    assert ours.run("info", str(path)).rc == 0
