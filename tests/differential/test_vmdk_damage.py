"""Damaged and odd VMDK images: the same are refused as by qemu-img, and check says what it does not.

What qemu-img's check calls clean and ours does not is docs/differences.json, vmdk-check.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.differential.hosttool import HostTool
from tests.differential.oracle import comparable, qemu_img
from tests.differential.ours import Ours, explain
from tests.images import vmdk_writer as v
from tests.images.qcow2_writer import Region

pytestmark = [pytest.mark.kvm, pytest.mark.qemu_img]

KIB = 1 << 10
GRAINS: dict[int, bytes | None] = {0: b"a", 3: b"b", 22: b"c"}
BASES = {
    "sparse": lambda **k: v.Sparse(3000, GRAINS, **k),
    "stream": lambda **k: v.Sparse(3000, GRAINS, compressed=True, redundant=False, **k),
}
FIELDS: dict[str, tuple[int, ...]] = {
    "version": (0, 1, 2, 3, 4, 0xFFFF_FFFF),
    "flags": (0, 1, 3, 0x30001, 0xFFFF_FFFF),
    "capacity": (0, 1, 127, 129, (1 << 31) - 1, (128 * 512 << 25) + 1, 1 << 54, 1 << 63, 2**64 - 1),
    "grain_size": (0, 1, 127, 129, 0x1FFFFF, 0x200000, 0x200001, 1 << 32, 2**64 - 1),
    "descriptor_offset": (0, 1, 2, 1 << 40, 2**64 - 1),
    "descriptor_size": (0, 1, 19, 21, 1 << 40, 2**64 - 1),
    "table_entries": (0, 1, 511, 512, 513, 0xFFFF_FFFF),
    "redundant_directory": (0, 1, 20, 1 << 31, (1 << 54) - 1, (1 << 55) - 1, 2**64 - 2),
    "directory": (0, 1, 20, 1 << 31, (1 << 55) - 1, 2**64 - 2, 2**64 - 1),
    "overhead": (0, 1, 1 << 31, 2**64 - 1),
    "unclean": (0, 1, 255),
    "newlines": (0, 0xFFFF_FFFF),
    "compression": (0, 1, 2, 0xFFFF),
}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("base", BASES)
def test_header_field(base: str, field: str, ours: Ours, tmp_path: Path) -> None:
    """Each field at 0, 1, all ones, and around its limit."""
    path = tmp_path / "image.vmdk"
    for value in FIELDS[field]:
        path.write_bytes(BASES[base](fields={field: value}).build().data)
        for operation in (("info",), ("measure", "-O", "qcow2")):
            common = [*operation, "-f", "vmdk", "--output=json", str(path)]
            oracle, answer = qemu_img(*common), ours.run(*common)
            if oracle.timed_out:
                continue
            assert answer.rc == oracle.rc, f"{value:#x} {operation}: {explain(oracle)}\nours: {explain(answer)}"
            if oracle.rc == 0:
                assert comparable(answer.json) == comparable(oracle.json), f"{value:#x} {operation}"
        assert ours.run("check", "-f", "vmdk", str(path)).rc in (0, 1, 2), f"{value:#x}"


REFUSED: dict[str, tuple[Any, str, str]] = {
    "version": (v.Sparse(3000, fields={"version": 4}), "unsupported", "Unsupported VMDK version 4"),
    "table-too-large": (v.Sparse(3000, fields={"table_entries": 513}), "too-large", "L2 table size too big"),
    "no-table": (v.Sparse(3000, fields={"table_entries": 0}), "corrupt", "L1 entry size is invalid"),
    "no-grain": (v.Sparse(3000, fields={"grain_size": 0}), "corrupt", "L1 entry size is invalid"),
    "grain-too-large": (v.Sparse(3000, fields={"grain_size": 0x200001}), "too-large", "Invalid granularity"),
    "directory-too-large": (v.Sparse(3000, fields={"capacity": (1 << 41) + 1}), "too-large", "L1 size too big"),
    "truncated": (v.Sparse(3000, fields={"overhead": 1 << 40}), "out-of-bounds", "File truncated"),
    "capacity": (v.Sparse(3000, fields={"capacity": 1 << 54}), "too-large", "sectors is above the limit"),
    "no-descriptor": (v.Sparse(3000, text=None), "corrupt", "no CID"),
    "footer": (
        v.Sparse(3000, compressed=True, footer=True, damage=lambda image, _: image.extend(bytes(512))),
        "corrupt",
        "Invalid footer",
    ),
    "cowd-alone": (v.Cowd(3000), "corrupt", "no CID"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, ours: Ours, tmp_path: Path) -> None:
    """qemu-img refuses these as well; the reason says where and what."""
    image, code, text = REFUSED[name]
    path = tmp_path / "image.vmdk"
    path.write_bytes(image.build().data)
    answer = ours.run("info", "--output=json", str(path))
    assert answer.rc == qemu_img("info", str(path)).rc == 1, explain(answer)
    assert answer.json["error"]["guest-code"] == code
    assert text in answer.json["error"]["message"]


INNER: dict[str, tuple[str, Any, str]] = {
    "cowd-no-grain": ("VMFSSPARSE", v.Cowd(3000, fields={"grain_size": 0}), "Invalid granularity"),
    "cowd-grain": ("VMFSSPARSE", v.Cowd(3000, fields={"grain_size": 0x200001}), "Invalid granularity"),
    "cowd-directory": ("VMFSSPARSE", v.Cowd(3000, fields={"directory_entries": (32 << 20) + 1}), "L1 size too big"),
    **{
        f"sesparse-{name}": ("SESPARSE", v.SeSparse(3000, fields={name: value}), text)
        for name, value, text in (
            ("magic", 1, "Bad const header magic"),
            ("version", 0x2_0000_0002, "Unsupported version"),
            ("grain_size", 16, "Unsupported grain size"),
            ("table_size", 63, "Unsupported grain table size"),
            ("flags", 1, "Unsupported flags"),
            ("reserved_3", 1, "Unsupported reserved bits"),
            ("volatile_header", 2, "Bad volatile header magic"),
            ("directory_size", (32 << 20) // 64 + 1, "L1 size too big"),
        )
    },
    "sesparse-dirty": ("SESPARSE", v.SeSparse(3000, dirty=True), "Image is dirty"),
    "not-sparse": ("SPARSE", v.Cowd(3000, damage=lambda image, _: image.__setitem__(0, 0)), "Image not in VMDK format"),
}


@pytest.mark.parametrize("name", INNER)
def test_refused_extent(name: str, host_tool: HostTool, tmp_path: Path) -> None:
    kind, image, text = INNER[name]
    (tmp_path / "extent.vmdk").write_bytes(image.build().data)
    path = tmp_path / "image.vmdk"
    create_type = {"VMFSSPARSE": "vmfsSparse", "SESPARSE": "seSparse"}.get(kind, "twoGbMaxExtentSparse")
    path.write_bytes(v.descriptor([f'RW 3000 {kind} "extent.vmdk"'], create_type=create_type))
    error = host_tool.error("info", "vmdk", path, [("extent", tmp_path / "extent.vmdk")])
    assert text in error["message"]
    # qemu-img ends with a division by zero where a grain has no sectors.
    assert qemu_img("map", str(path)).rc not in (0,), name


HEAD = "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n"
TYPE = 'createType="monolithicFlat"\n'
LINE = 'RW 8 FLAT "f.raw" 0\n'
DESCRIPTORS = {
    "plain": HEAD + TYPE + LINE,
    "crlf": (HEAD + TYPE + LINE).replace("\n", "\r\n"),
    "no-cid": "# x\nversion=1\nparentCID=ffffffff\n" + TYPE + LINE,
    "no-parent-cid": "# x\nversion=1\nCID=12\n" + TYPE + LINE,
    "no-number": HEAD.replace("12345678", "XYZ") + TYPE + LINE,
    "prefix": HEAD.replace("12345678", "0xabc") + TYPE + LINE,
    "prefix-alone": HEAD.replace("12345678", "0x") + TYPE + LINE,
    "negative": HEAD.replace("12345678", "-1") + TYPE + LINE,
    "long-number": HEAD.replace("12345678", "f" * 30) + TYPE + LINE,
    "number-on-the-next-line": HEAD.replace("12345678", "\n\n12") + TYPE + LINE,
    "parent-cid-first": "# x\nversion=1\nparentCID=ffffffff\nCID=12\n" + TYPE + LINE,
    "cid-in-a-comment": "# CID=77\nversion=1\nCID=12\nparentCID=ffffffff\n" + TYPE + LINE,
    "cid-behind-the-head": "#" * 10236 + "\n" + HEAD + TYPE + LINE,
    "no-type": HEAD + LINE,
    "type-without-end": HEAD + 'createType="monolithicFlat\n' + LINE,
    "type-127": HEAD + 'createType="' + "x" * 127 + '"\n' + LINE,
    "type-128": HEAD + 'createType="' + "x" * 128 + '"\n' + LINE,
    "type-embedded": HEAD + 'createType="streamOptimized"\n' + LINE,
    "type-custom": HEAD + 'createType="custom"\n' + LINE,
    "parent": HEAD + TYPE + 'parentFileNameHint="base.vmdk"\n' + LINE,
    "parent-empty": HEAD + TYPE + 'parentFileNameHint=""\n' + LINE,
    "parent-open": HEAD + TYPE + LINE + 'parentFileNameHint="base',
    "parent-4095": HEAD + TYPE + LINE + 'parentFileNameHint="' + "p" * 4095 + '"\n',
    "parent-4096": HEAD + TYPE + LINE + 'parentFileNameHint="' + "p" * 4096 + '"\n',
    "parent-remote": HEAD + TYPE + LINE + 'parentFileNameHint="nbd://x/y"\n',
    "parent-json": HEAD + TYPE + LINE + 'parentFileNameHint="json:{}"\n',
    "zero-extent": HEAD + TYPE + LINE + "RW 8 ZERO\n",
    "read-only": HEAD + TYPE + LINE + 'RDONLY 8 FLAT "f.raw" 0\n',
    "no-access": HEAD + TYPE + 'NOACCESS 8 FLAT "f.raw" 0\n' + LINE,
    "unknown": HEAD + TYPE + LINE + 'RW 8 VMFSRDM "f.raw"\n',
    "unknown-with-offset": HEAD + TYPE + LINE + 'RW 8 VMFSRDM "f.raw" 0\n',
    "flat-without-offset": HEAD + TYPE + 'RW 8 FLAT "f.raw"\n',
    "flat-negative": HEAD + TYPE + 'RW 8 FLAT "f.raw" -1\n',
    "vmfs-with-offset": HEAD + 'createType="vmfs"\nRW 8 VMFS "f.raw" 0\n',
    "no-sectors": HEAD + TYPE + 'RW 0 FLAT "f.raw" 0\n' + LINE,
    "negative-sectors": HEAD + TYPE + 'RW -5 FLAT "f.raw" 0\n' + LINE,
    "2^63-1-sectors": HEAD + TYPE + 'RW 9223372036854775807 FLAT "f.raw" 0\n',
    "2^63-bytes": HEAD + TYPE + 'RW 18014398509481984 FLAT "f.raw" 0\n',
    "2^63-512-bytes": HEAD + TYPE + 'RW 18014398509481983 FLAT "f.raw" 0\n',
    "largest": HEAD + TYPE + 'RW 18014398507384832 FLAT "f.raw" 0\n',
    "largest-and-one": HEAD + TYPE + 'RW 18014398507384832 FLAT "f.raw" 0\nRW 1 FLAT "f.raw" 0\n',
    "trailing-words": HEAD + TYPE + 'RW 8 FLAT "f.raw" 0 partitionUUID "x"\n',
    "tabs": HEAD + TYPE + 'RW\t8\tFLAT\t"f.raw"\t0\n',
    "unclosed": HEAD + TYPE + 'RW 8 FLAT "f.raw 0\n' + LINE,
    "nul-behind": HEAD + TYPE + LINE + "\0" + LINE,
    "no-newline": HEAD + TYPE + LINE.rstrip("\n"),
    "one-byte": "x",
}


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_descriptor(name: str, ours: Ours, tmp_path: Path) -> None:
    (tmp_path / "f.raw").write_bytes(b"x" * 4096)
    path = tmp_path / "image.vmdk"
    path.write_bytes(DESCRIPTORS[name].encode())
    for choice in (["-f", "vmdk"], []):
        common = ["info", *choice, "--output=json", str(path)]
        oracle, answer = qemu_img(*common), ours.run(*common)
        assert answer.rc == oracle.rc, f"{choice}: {explain(oracle)}\nours: {explain(answer)}"
        if oracle.rc == 0:
            assert comparable(answer.json) == comparable(oracle.json)


def test_no_extents(ours: Ours, tmp_path: Path) -> None:
    """qemu-img's info dies of an assertion (docs/differences.json, vmdk-no-extents)."""
    path = tmp_path / "image.vmdk"
    path.write_bytes((HEAD + TYPE).encode())
    assert qemu_img("info", str(path)).rc < 0
    answer = ours.run("info", "--output=json", str(path))
    assert answer.rc == 1
    assert "names no extent" in answer.json["error"]["message"]


def test_blank_line_before_an_extent(ours: Ours, tmp_path: Path) -> None:
    """qemu-img sees the extent twice (docs/differences.json, vmdk-descriptor-lines)."""
    (tmp_path / "f.raw").write_bytes(b"x" * 4096)
    path = tmp_path / "image.vmdk"
    path.write_bytes((HEAD + TYPE + "\n" + LINE).encode())
    assert qemu_img("info", "--output=json", str(path)).json["virtual-size"] == 8192
    assert ours.run("info", "--output=json", str(path)).json["virtual-size"] == 4096


Damage = Callable[[bytearray, tuple[Region, ...]], None]


def put(region: str, offset: int, form: str, value: int) -> Damage:
    """Write a number into a structure."""

    def apply(image: bytearray, layout: tuple[Region, ...]) -> None:
        at = next(r.offset for r in layout if r.name == region)
        struct.pack_into(form, image, at + offset, value)

    return apply


def copy_entry(region: str, source: int, target: int) -> Damage:
    def apply(image: bytearray, layout: tuple[Region, ...]) -> None:
        at = next(r.offset for r in layout if r.name == region)
        image[at + 4 * target : at + 4 * target + 4] = image[at + 4 * source : at + 4 * source + 4]

    return apply


def cut(image: bytearray, _: tuple[Region, ...]) -> None:
    del image[-1024:]


TWO = {0: b"a", 3: b"b", 600: b"c"}
#: Damage, the structure that is named, and whether qemu-img's check notices it.
CHECKED: dict[str, tuple[Any, str, bool]] = {
    "grain-behind-the-file": (v.Sparse(90_000, TWO, damage=put("table[0]", 0, "<I", 1 << 30)), "grain table", True),
    "grain-in-the-header": (v.Sparse(90_000, TWO, damage=put("table[0]", 0, "<I", 1)), "grain table", False),
    "grain-over-its-table": (v.Sparse(90_000, TWO, damage=put("table[0]", 0, "<I", 22)), "grain table", False),
    "grain-used-twice": (v.Sparse(90_000, TWO, damage=copy_entry("table[0]", 0, 1)), "grain table", False),
    "grain-unaligned": (v.Sparse(90_000, TWO, damage=put("table[0]", 4, "<I", 257)), "grain table", False),
    "grain-cut": (v.Sparse(90_000, TWO, damage=cut), "grain", False),
    "table-behind-the-file": (v.Sparse(90_000, TWO, damage=put("directory", 0, "<I", 1 << 30)), "grain table", False),
    "table-used-twice": (v.Sparse(90_000, TWO, damage=copy_entry("directory", 0, 1)), "grain table", False),
    "table-in-the-directory": (
        v.Sparse(90_000, TWO, redundant=False, damage=put("directory", 0, "<I", 21)), "grain table", False,
    ),
    "copy-differs": (
        v.Sparse(90_000, TWO, damage=put("redundant-table[0]", 8, "<I", 5)), "redundant grain table", False,
    ),
    "copy-lacks-a-table": (
        v.Sparse(90_000, TWO, damage=put("redundant-directory", 4, "<I", 0)), "redundant grain directory", False,
    ),
    "newlines": (v.Sparse(90_000, TWO, fields={"newlines": 0x0A0A200A}), "header", False),
    "descriptor-place": (v.Sparse(90_000, TWO, fields={"descriptor_size": 1 << 40}), "descriptor", False),
    "marker-of-another-grain": (
        v.Sparse(90_000, TWO, compressed=True, damage=put("grain[3]", 0, "<Q", 0)), "grain marker", False,
    ),
    "marker-too-long": (
        v.Sparse(90_000, TWO, compressed=True, damage=put("grain[3]", 8, "<I", 1 << 30)), "grain marker", False,
    ),
    "marker-over-the-next": (
        v.Sparse(90_000, TWO, compressed=True, damage=put("grain[0]", 8, "<I", 600)), "grain table", False,
    ),
    "footer-differs": (
        v.Sparse(90_000, TWO, compressed=True, footer=True, fields={"capacity": 80_000}), "footer", False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKED)
def test_check(name: str, ours: Ours, tmp_path: Path) -> None:
    image, structure, noticed = CHECKED[name]
    path = tmp_path / "image.vmdk"
    path.write_bytes(image.build().data)
    answer = ours.run("check", "--output=json", str(path))
    assert answer.rc == 2, explain(answer)
    assert structure in {f["structure"] for f in answer.json["pyvmm"]["findings"] if f["kind"] == "corruption"}
    assert qemu_img("check", str(path)).rc == (1 if noticed else 0)


NOTED = {
    "unclean": (v.Sparse(90_000, TWO, unclean=True), "header"),
    "version-0": (v.Sparse(90_000, TWO, version=0), "header"),
    "odd-grain": (v.Sparse(1001, {0: b"a"}, grain_sectors=11), "header"),
    "unused-space": (v.Sparse(90_000, TWO, damage=lambda image, _: image.extend(bytes(65536))), "file"),
    "marker": (
        v.Sparse(90_000, TWO, compressed=True, footer=True, damage=lambda image, layout: put(
            "table[0]", -512 + 12, "<I", 9)(image, layout)), "marker",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOTED)
def test_check_notes(name: str, ours: Ours, tmp_path: Path) -> None:
    """Worth knowing, and nothing that a reader trips over: clean, as for qemu-img."""
    image, structure = NOTED[name]
    path = tmp_path / "image.vmdk"
    path.write_bytes(image.build().data)
    answer = ours.run("check", "--output=json", str(path))
    assert answer.rc == qemu_img("check", str(path)).rc == 0, explain(answer)
    assert structure in {f["structure"] for f in answer.json["pyvmm"]["findings"] if f["kind"] == "note"}
