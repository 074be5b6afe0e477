"""Header fields at 0, 1, all ones and one off, for the operation that writes: resize.

A refused image keeps every byte; one that is changed is no worse than it was, and shows what it showed.
"""

from __future__ import annotations

import functools
import json
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

import vmm
from calltable._generated import ERROR_CODES
from tests.differential import corruptor
from tests.differential.oracle import qemu_img
from tests.differential.ours import Ours, explain
from tests.hostile.images.table import Row, Table, field
from tests.hostile.images.test_table_vhd import BAT, HEADER, dynamic, fixed, seal_dynamic, seal_fixed
from tests.images import vhdx_writer as x
from tests.images.vmdk_writer import HEADER_FIELDS, SECTOR, Sparse, descriptor

pytestmark = pytest.mark.kvm

KIB = 1 << 10
#: What is asked of each image: the second only of formats that can become smaller.
GROW, SHRINK = ("+1M",), ("--shrink", "-16k")

Fields = Mapping[str, tuple[int, str]]

QCOW2_FIELDS: Fields = {
    "magic": (0, ">I"),
    "version": (4, ">I"),
    "backing file offset": (8, ">Q"),
    "backing file size": (16, ">I"),
    "cluster bits": (20, ">I"),
    "size": (24, ">Q"),
    "crypt method": (32, ">I"),
    "L1 size": (36, ">I"),
    "L1 offset": (40, ">Q"),
    "refcount table offset": (48, ">Q"),
    "refcount table clusters": (56, ">I"),
    "snapshots": (60, ">I"),
    "snapshots offset": (64, ">Q"),
    "incompatible features": (72, ">Q"),
    "compatible features": (80, ">Q"),
    "autoclear features": (88, ">Q"),
    "refcount order": (96, ">I"),
    "header length": (100, ">I"),
}
#: Version 2 ends there.
QCOW2_V2_FIELDS: Fields = {name: place for name, place in QCOW2_FIELDS.items() if place[0] < 72}

FOOTER_FIELDS: Fields = {
    "features": (8, ">I"),
    "version": (12, ">I"),
    "data offset": (16, ">Q"),
    "creator": (28, ">I"),
    "original size": (40, ">Q"),
    "current size": (48, ">Q"),
    "cylinders": (56, ">H"),
    "heads": (58, ">B"),
    "sectors a track": (59, ">B"),
    "type": (60, ">I"),
    "saved state": (84, ">B"),
}
DYNAMIC_FIELDS: Fields = {
    **FOOTER_FIELDS,
    "header cookie": (HEADER, ">Q"),
    "table offset": (HEADER + 16, ">Q"),
    "header version": (HEADER + 24, ">I"),
    "table entries": (HEADER + 28, ">I"),
    "block size": (HEADER + 32, ">I"),
    "first entry": (BAT, ">I"),
    "last entry": (BAT + 4 * 15, ">I"),
}
FIXED_FIELDS: Fields = {name: (offset - 512, form) for name, (offset, form) in FOOTER_FIELDS.items()}

LUKS_FIELDS: Fields = {
    "magic": (0, ">I"),
    "version": (6, ">H"),
    "payload offset": (104, ">I"),
    "key bytes": (108, ">I"),
    "iterations": (164, ">I"),
    **{
        f"slot {slot} {name}": (208 + 48 * slot + offset, ">I")
        for slot in (0, 7)
        for name, offset in {"active": 0, "iterations": 4, "material": 40, "stripes": 44}.items()
    },
}

#: Offsets in a header and in a region table (VHDX Format Specification, 2.2.2 and 2.2.3).
HEADER_AT, REGIONS_AT = x.HEADERS[1], x.REGION_TABLES[0]
METADATA_AT = 2 << 20
VHDX_FIELDS: Fields = {
    "signature": (HEADER_AT, "<I"),
    "sequence": (HEADER_AT + 8, "<Q"),
    "log GUID": (HEADER_AT + 48, "<Q"),
    "log version": (HEADER_AT + 64, "<H"),
    "version": (HEADER_AT + 66, "<H"),
    "log length": (HEADER_AT + 68, "<I"),
    "log offset": (HEADER_AT + 72, "<Q"),
    "regions": (REGIONS_AT + 8, "<I"),
    "BAT offset": (REGIONS_AT + 32, "<Q"),
    "BAT length": (REGIONS_AT + 40, "<I"),
    "BAT required": (REGIONS_AT + 44, "<I"),
    "metadata offset": (REGIONS_AT + 64, "<Q"),
    "metadata length": (REGIONS_AT + 72, "<I"),
    "items": (METADATA_AT + 10, "<H"),
    **{
        f"item {number} {name}": (METADATA_AT + 32 + 32 * number + offset, "<I")
        for number in (0, 1)
        for name, offset in {"offset": 16, "length": 20, "flags": 24}.items()
    },
    "block size": (METADATA_AT + x.ITEMS, "<I"),
    "block flags": (METADATA_AT + x.ITEMS + 4, "<I"),
    "virtual disk size": (METADATA_AT + x.ITEMS + 8, "<Q"),
    "logical sector size": (METADATA_AT + x.ITEMS + 32, "<I"),
    "physical sector size": (METADATA_AT + x.ITEMS + 36, "<I"),
    "first entry": (3 << 20, "<Q"),
    "entry behind the last": ((3 << 20) + 24, "<Q"),
}


@functools.cache
def vmdk() -> bytes:
    text = descriptor(['RW 508 SPARSE "image"'], extra=['ddb.geometry.cylinders = "0"'])
    return Sparse(508, {0: b"a", 40: b"b", 63: b"c"}, 8, 4, text=text).build().data


@functools.cache
def vhdx() -> bytes:
    image = x.Vhdx((2 << 20) + 512, blocks={0: x.Block(), 2: x.Block()}).build()
    assert image.length is not None
    return image.get(0, image.length)


@functools.cache
def qcow2() -> bytes:
    return corruptor.plain().build().data


@functools.cache
def qcow2_snapshots() -> bytes:
    return corruptor.with_snapshots().build().data


@functools.cache
def qcow2_extended() -> bytes:
    return corruptor.extended().build().data


@functools.cache
def luks() -> bytes:
    """Made in the machine."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        vmm.create(path, "luks", 256 * KIB, luks_passphrase=b"p", iterations=1000)
        return path.read_bytes()


def seal_vhdx(data: bytearray) -> None:
    """The other header and the other region table say the same; checksums where something has changed."""
    base = vhdx()
    at, other = x.HEADERS[1], x.HEADERS[0]
    if data[at : at + x.HEADER] != base[at : at + x.HEADER]:
        sequence = bytes(data[other + 8 : other + 16])
        data[at : at + x.HEADER] = x.sealed(bytes(data[at : at + x.HEADER]))
        older = bytearray(data[at : at + x.HEADER])
        older[8:16] = sequence
        data[other : other + x.HEADER] = x.sealed(bytes(older))
    first, second = x.REGION_TABLES
    if data[first : first + x.REGION_TABLE] != base[first : first + x.REGION_TABLE]:
        table = x.sealed(bytes(data[first : first + x.REGION_TABLE]))
        data[first : first + x.REGION_TABLE] = table
        data[second : second + x.REGION_TABLE] = table


def tables_of_qcow2(data: bytes) -> Fields:
    """The first entries of L1 table, L2 table, refcount table and its first block."""
    (l1,) = struct.unpack_from(">Q", data, 40)
    (l2,) = struct.unpack_from(">Q", data, l1)
    (refcounts,) = struct.unpack_from(">Q", data, 48)
    (block,) = struct.unpack_from(">Q", data, refcounts)
    offset_mask = (1 << 56) - 512
    return {
        "L1 entry": (l1, ">Q"),
        "L2 entry": (l2 & offset_mask, ">Q"),
        "refcount table entry": (refcounts, ">Q"),
        "refcount of the header": (block, ">H"),
    }


def tables_of_vmdk(data: bytes) -> Fields:
    """The first and the last entry of the directories and of the first table."""
    places: dict[str, tuple[int, str]] = {}
    for name in ("directory", "redundant_directory"):
        (directory,) = struct.unpack_from("<Q", data, HEADER_FIELDS[name][0])
        (table,) = struct.unpack_from("<I", data, directory * SECTOR)
        places[f"{name} entry"] = (directory * SECTOR, "<I")
        places[f"{name} last entry"] = (directory * SECTOR + 4 * 15, "<I")
        places[f"{name} grain"] = (table * SECTOR, "<I")
    return places


def rows(base: Callable[[], bytes], fields: Fields) -> Iterator[Row]:
    """Each field at 0, 1, all ones, its highest bit, and one off its own value on both sides."""
    data = base()
    for name, (offset, form) in fields.items():
        at = offset if offset >= 0 else len(data) + offset
        size = struct.calcsize(form)
        ones = (1 << 8 * size) - 1
        (present,) = struct.unpack_from(form, data, at)
        values = {0, 1, ones, ones // 2 + 1, (present - 1) & ones, (present + 1) & ones} - {present}
        yield from field(name, offset, form, *((value, None) for value in sorted(values)))


def table(driver: str, base: Callable[[], bytes], fields: Fields, seal: Callable[[bytearray], None] | None) -> Table:
    return Table(driver, base, tuple(rows(base, fields)), seal)


TABLES: dict[str, Table] = {
    "qcow2": table("qcow2", qcow2, {**QCOW2_FIELDS, **tables_of_qcow2(qcow2())}, None),
    "qcow2-snapshots": table("qcow2", qcow2_snapshots, QCOW2_V2_FIELDS, None),
    "qcow2-extended": table("qcow2", qcow2_extended, tables_of_qcow2(qcow2_extended()), None),
    "vhd-dynamic": table("vpc", dynamic, DYNAMIC_FIELDS, seal_dynamic),
    "vhd-fixed": table("vpc", fixed, FIXED_FIELDS, seal_fixed),
    "vmdk": table("vmdk", vmdk, {**HEADER_FIELDS, **tables_of_vmdk(vmdk())}, None),
    "vhdx": table("vhdx", vhdx, VHDX_FIELDS, seal_vhdx),
}
#: Formats that can become smaller.
SHRINKING = ("qcow2", "vpc", "luks")
ALL = [(name, row) for name, one in TABLES.items() for row in one.rows]


def resize(ours: Ours, driver: str, image: bytes, words: tuple[str, ...], path: Path) -> bool:
    """Whether a damaged image was resized; what has to hold then, and what when not."""
    path.write_bytes(image)
    answer = ours.run("resize", "-f", driver, "--output=json", *words[:-1], str(path), words[-1])
    assert answer.rc in (0, 1), explain(answer)
    shown = json.loads(answer.stdout)
    if answer.rc == 1:
        error = shown["error"]
        assert error["code"] == "refused", error
        assert error["guest-code"] in ERROR_CODES, error
        assert path.read_bytes() == image, error
        return False
    before = path.with_name("before")
    before.write_bytes(image)
    checks = [ours.run("check", "-f", driver, "--output=json", str(one)) for one in (before, path)]
    assert checks[1].rc == 0 or checks[0].rc != 0, explain(checks[1])
    # Blocks that lie in a footer or a descriptor change with it: only qemu-img calls such images clean.
    if checks[0].rc in (0, 3) and shutil.which("qemu-img") is not None and driver != "luks":
        theirs_agree(driver, before, path, growing="--shrink" not in words)
    return True


def theirs_agree(driver: str, before: Path, after: Path, growing: bool) -> None:
    """What was clean for qemu-img is clean, what it could read is the same, with zeroes behind it."""
    was = qemu_img("check", "-f", driver, str(before))
    if was.rc not in (0, 3, 63):
        return
    now = qemu_img("check", "-f", driver, str(after))
    assert now.rc == was.rc, explain(now)
    same = qemu_img("compare", "-f", driver, "-F", driver, str(before), str(before))
    if growing and same.rc == 0:
        compared = qemu_img("compare", "-f", driver, "-F", driver, str(before), str(after))
        assert compared.rc == 0, explain(compared)


@pytest.mark.parametrize(("name", "row"), ALL, ids=[f"{name}-{row}" for name, row in ALL])
def test_field(name: str, row: Row, ours: Ours, tmp_path: Path) -> None:
    one = TABLES[name]
    image = one.image(row)
    for words in (GROW, SHRINK) if one.driver in SHRINKING else (GROW,):
        resize(ours, one.driver, image, words, tmp_path / "image")


def test_luks(ours: Ours, tmp_path: Path) -> None:
    """Its base is made in the machine, too late for a name of each row."""
    one = table("luks", luks, LUKS_FIELDS, None)
    for row in one.rows:
        for words in (GROW, SHRINK):
            resize(ours, one.driver, one.image(row), words, tmp_path / "image")


def test_the_bases_can_be_resized(ours: Ours, tmp_path: Path) -> None:
    """So the rows are about their fields."""
    bases = [(one.driver, one.base()) for one in TABLES.values()]
    for driver, image in [*bases, ("luks", luks())]:
        for words in (GROW, SHRINK) if driver in SHRINKING else (GROW,):
            assert resize(ours, driver, image, words, tmp_path / "image"), driver
