"""Holes of other readers of these formats, each by its number: the image that opens it, and what is said of it here.

Facts: the advisories; what an image of the class has to hold follows from them.
"""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.differential.ours import Ours, explain
from tests.hostile.images.table import OPERATIONS, Expected, agree, judge
from tests.hostile.images.test_table_vhd import seal_dynamic
from tests.images import qcow2_writer as q
from tests.images import vhd_writer as v

pytestmark = pytest.mark.kvm

KIB, MIB = 1 << 10, 1 << 20
HEADER = 512


def patched(data: bytes, *changes: tuple[int, str, int]) -> bytes:
    """With some fields changed: offset, form, value."""
    image = bytearray(data)
    for offset, form, value in changes:
        struct.pack_into(form, image, offset, value)
    return bytes(image)


def qcow2(*changes: tuple[int, str, int], snapshots: int = 1) -> bytes:
    names = tuple(q.Snapshot(str(index), "s") for index in range(snapshots))
    return patched(q.Qcow2(MIB, cluster_bits=12, clusters={0: q.Data()}, snapshots=names).build().data, *changes)


def snapshot(field: int, form: str, value: int) -> bytes:
    """An image whose only snapshot has another number in a field of its table entry ("Snapshots")."""
    built = q.Qcow2(MIB, cluster_bits=12, clusters={0: q.Data()}, snapshots=(q.Snapshot("1", "s"),)).build()
    return patched(built.data, (built.region("snapshots").offset + field, form, value))


def vhd(*changes: tuple[int, str, int]) -> bytes:
    image = bytearray(v.Vhd(256 * KIB, block_size=16 * KIB, blocks={0: b"a"}, creator=b"win ").build().data)
    for offset, form, value in changes:
        struct.pack_into(form, image, offset, value)
    seal_dynamic(image)
    return bytes(image)


BROKEN: dict[str, Expected] = {"check": 2}
ONES = (1 << 32) - 1
#: CVE, driver, image, what is said of it, what some operations say instead.
CLASSES: list[tuple[str, str, bytes, Expected, dict[str, Expected]]] = [
    # Sizes that multiply to more than their type holds: tables of entries times their length.
    ("CVE-2014-0143-l1", "qcow2", qcow2((36, ">I", 1 << 29)), "L1 table too large", {}),
    ("CVE-2014-0143-l1-wraps", "qcow2", qcow2((36, ">I", ONES), (24, ">Q", 1 << 62)), "too large", {}),
    ("CVE-2014-0143-refcount-table", "qcow2", qcow2((56, ">I", 1 << 20)), "refcount table too large", {}),
    ("CVE-2014-0143-place-wraps", "qcow2", qcow2((40, ">Q", (1 << 64) - 4096)), "L1 table offset invalid", {}),
    # Fields that nobody compared with anything.
    ("CVE-2014-0144-cluster-bits", "qcow2", qcow2((20, ">I", 63)), "unsupported cluster size", {}),
    ("CVE-2014-0144-backing-name", "qcow2", qcow2((8, ">Q", 1 << 40), (16, ">I", ONES)), "backing file offset", {}),
    ("CVE-2014-0144-backing-length", "qcow2", qcow2((8, ">Q", 112), (16, ">I", 1024)), "name too long", {}),
    ("CVE-2014-0144-header-length", "qcow2", qcow2((100, ">I", ONES)), "exceeds cluster size", {}),
    ("CVE-2014-0144-extension", "qcow2", qcow2((104, ">I", 0x12345678), (108, ">I", ONES - 3)), "too large", {}),
    ("CVE-2014-0144-vhd-block-size", "vpc", vhd((HEADER + 32, ">I", 0)), "Invalid block size", BROKEN),
    ("CVE-2014-0144-vhd-entries", "vpc", vhd((HEADER + 28, ">I", ONES)), "Entries too large", BROKEN),
    ("CVE-2014-0144-vhd-table", "vpc", vhd((HEADER + 16, ">Q", (1 << 64) - 64)), "BAT at byte", BROKEN),
    # A snapshot's own L1 table, longer than the buffer of the active one.
    ("CVE-2014-0145-snapshot-l1", "qcow2", snapshot(8, ">I", ONES), None, BROKEN),
    ("CVE-2014-0145-snapshot-l1-offset", "qcow2", snapshot(0, ">Q", (1 << 64) - 1), None, BROKEN),
    ("CVE-2014-0145-snapshot-extra", "qcow2", snapshot(36, ">I", ONES), "too much extra metadata", {}),
    # A count of snapshots with no table behind it.
    ("CVE-2014-0146", "qcow2", qcow2((60, ">I", ONES)), "snapshot table too large", {}),
    ("CVE-2014-0146-nowhere", "qcow2", qcow2((64, ">Q", 1 << 62)), None, BROKEN),
    # Signed where it is not: a refcount table at the end of what 64 bits hold.
    ("CVE-2014-0147", "qcow2", qcow2((48, ">Q", (1 << 63) - 4096)), "refcount table", {}),
    ("CVE-2014-0147-refcount-bits", "qcow2", qcow2((96, ">I", ONES)), "may not exceed 64 bits", {}),
]


@pytest.mark.parametrize(("name", "driver", "image", "expected", "seen"), CLASSES, ids=[case[0] for case in CLASSES])
def test_class(
    name: str, driver: str, image: bytes, expected: Expected, seen: dict[str, Expected], ours: Ours, tmp_path: Path
) -> None:
    path = tmp_path / "image"
    path.write_bytes(image)
    for operation in OPERATIONS:
        judge(ours, driver, operation, path, seen.get(operation, expected))
        if (driver, operation) != ("vpc", "check"):
            agree(ours, driver, operation, path)


@pytest.mark.parametrize("field", ["l1", "refcount-table", "l2", "refcount-block"])
def test_a_table_that_points_at_itself(field: str, ours: Ours, tmp_path: Path) -> None:
    """The class of CVE-2014-0148, an endless loop: a structure that contains itself."""
    built = q.Qcow2(MIB, cluster_bits=12, clusters={0: q.Data()}).build()
    place = built.region({"l2": "l2[0]", "refcount-block": "refcount-block[0]"}.get(field, field)).offset
    path = tmp_path / "image"
    path.write_bytes(
        patched(built.data, *((place + 8 * index, ">Q", place) for index in range(1 if field == "l1" else 2)))
    )
    for operation in OPERATIONS:
        answer = ours.run(*OPERATIONS[operation], "-f", "qcow2", "--output=json", "--timeout", "20", str(path))
        assert answer.rc in (0, 1, 2, 3), explain(answer)
        agree(ours, "qcow2", operation, path)


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Path]:
    """A FIFO with somebody who waits at its other end: whoever opens it is seen."""
    path = tmp_path / "secret"
    os.mkfifo(path)
    opened = threading.Event()

    def wait() -> None:
        with path.open("wb"):
            opened.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    yield path
    assert not opened.is_set(), "the file that the image names was opened"
    # Let the thread go.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    thread.join(10)
    os.close(descriptor)


#: Names of another file, by the field that holds them: {} is where that file lies.
NAMES = {
    "CVE-2015-5163-backing-file": ("backing", "{}"),
    "CVE-2015-1850-backing-file": ("backing", "file:{}"),
    "CVE-2015-1851-backing-json": ("backing", 'json:{{"driver": "file", "filename": "{}"}}'),
    "CVE-2011-3147-backing-relative": ("backing", "secret"),
    "CVE-2014-0134-backing-format": ("backing-raw", "{}"),
    "GO-2023-1803-backing-file": ("backing-raw", "secret"),
    "CVE-2024-32498-data-file": ("data", "{}"),
    "CVE-2024-40767-data-file-raw": ("data-raw", "{}"),
    "CVE-2024-4467-data-json": ("data", 'json:{{"driver": "file", "filename": "{}"}}'),
}


@pytest.mark.parametrize("name", NAMES)
def test_another_file_is_never_opened(name: str, trap: Path, ours: Ours, tmp_path: Path) -> None:
    """It is named by `info` and nothing tells whether it is there."""
    field, pattern = NAMES[name]
    text = pattern.format(trap)
    # In a data file that cluster lies where it lies on the disk: at byte 0.
    image = q.Qcow2(MIB, clusters={0: q.Data() if field.startswith("backing") else q.Entry(q.COPIED)})
    if field.startswith("backing"):
        image.backing_file = text
        image.backing_format = "raw" if field.endswith("raw") else None
    else:
        image.data_file, image.raw_data_file = text, field.endswith("raw")
    path = tmp_path / "image"
    path.write_bytes(image.build().data)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    alone = elsewhere / "image"
    image_gone = image.build().data.replace(str(trap).encode(), str(trap).encode()[:-1] + b"0")
    alone.write_bytes(image_gone)
    for operation, words in OPERATIONS.items():
        found = ours.run(*words, "-f", "qcow2", "--output=json", str(path))
        missing = ours.run(*words, "-f", "qcow2", "--output=json", str(alone))
        assert found.rc == missing.rc, f"{operation}: {explain(found)}"
        if operation == "info":
            assert found.json["pyvmm"]["references"][0]["name"] == text
            continue
        told = [json.loads(answer.stdout) for answer in (found, missing)]
        first, second = (answer[-1] if isinstance(answer, list) else answer for answer in told)
        assert first.get("error", {}).get("guest-code") == second.get("error", {}).get("guest-code")
        if operation == "map":
            assert first["error"]["guest-code"] == "needs-reference"


def test_a_raw_disk_that_begins_like_qcow2(trap: Path, ours: Ours, tmp_path: Path) -> None:
    """CVE-2026-24708 and CVE-2026-27211: its owner wrote the header; with -f raw its bytes are bytes."""
    path = tmp_path / "image"
    path.write_bytes(q.Qcow2(MIB, backing_file=str(trap)).build().data)
    length = path.stat().st_size
    for operation in ("info", "measure", "map"):
        judge(ours, "raw", operation, path, None)
        agree(ours, "raw", operation, path)
    info = ours.run("info", "-f", "raw", "--output=json", str(path)).json
    assert info["virtual-size"] == length
    assert "also-looks-like" in [note["code"] for note in info["pyvmm"]["notes"]]


def test_what_a_small_file_may_cost(ours: Ours, tmp_path: Path) -> None:
    """CVE-2015-5162: a file of some hundred bytes that claims a disk of petabytes takes what its bytes take."""
    images = {
        "qcow2": q.Qcow2(1 << 40, cluster_bits=21, l1_entries=2).build().data,
        "vpc": vhd((48, ">Q", 0xFF00_0000 * 512)),
    }
    for driver, data in images.items():
        path = tmp_path / driver
        path.write_bytes(data)
        for words in OPERATIONS.values():
            limits = ["--max-read", "16M", "--max-memory", "16M", "--max-report", "1M"]
            answer = ours.run(*words, "-f", driver, "--output=json", *limits, str(path))
            assert answer.rc in (0, 1, 2, 3), explain(answer)
