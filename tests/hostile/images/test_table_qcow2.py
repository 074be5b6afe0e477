"""Every field of the qcow2 header at 0, 1, all ones, and on both sides of its limit.

Disk image format qcow2 (docs/interop/qcow2.txt of QEMU), "Header".
"""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from tests.differential.ours import Ours
from tests.hostile.images.table import ONES_32, ONES_64, Row, Table, field
from tests.images import qcow2_writer as q

pytestmark = pytest.mark.kvm

MIB = 1 << 20
CLUSTER = 4096
#: The longest request end that qemu's block layer takes: see `max_offset` in guest/formats/qcow2/header.zig.
LAST = (1 << 63) - (1 << 30)
#: qemu's limits in bytes of the L1 table and of the refcount table.
L1_LIMIT, REFCOUNT_LIMIT = 32 << 20, 8 << 20
#: Bytes of disk from which on an L1 table of this cluster size has more entries than qemu's signed 32 bits count.
L1_MOST = ((1 << 31) - 1) << 21
#: A table that is not where it should be is corruption.
CORRUPT = {"check": 2}


@functools.cache
def base() -> bytes:
    """Data, a zero cluster, a compressed one and a snapshot."""
    clusters: dict[int, q.Cluster] = {0: q.Data(), 3: q.Zero(), 9: q.Compressed()}
    return q.Qcow2(MIB, cluster_bits=12, clusters=clusters, snapshots=(q.Snapshot("1", "s"),)).build().data


END = len(base())
INFO_ONLY = {"info": None}
TOO_SMALL = "L1 table is too small"
SIZE = "unsupported cluster size"
MAGIC, VERSION = "not in qcow2 format", "unsupported qcow2 version"
NO_TABLE = "does not contain a reference count table"
L1, REFCOUNTS, SNAPSHOTS = "active L1 table", "refcount table", "snapshot table"

TABLE = Table(
    "qcow2",
    base,
    (
        *field("magic", 0, ">I", *((value, MAGIC) for value in (0, 1, 0x514649FA, 0x514649FC, ONES_32))),
        *field("version", 4, ">I", *((value, f"{VERSION} {value}") for value in (0, 1, 4, ONES_32))),
        *field("version", 4, ">I", (2, None, {"map": "zero cluster entry found in pre-v3 image"})),
        *field("backing offset", 8, ">Q", (0, None), (1, None), (CLUSTER - 1, None), (CLUSTER, None)),
        *field("backing offset", 8, ">Q", *((v, "invalid backing file offset") for v in (CLUSTER + 1, ONES_64))),
        *field("backing length", 16, ">I", *((value, None) for value in (0, 1, 1023, 1024, ONES_32))),
        *field("cluster bits", 20, ">I", *((value, SIZE) for value in (0, 1, 8, 22, 63, 64, ONES_32))),
        *field("cluster bits", 20, ">I", (9, TOO_SMALL), (11, TOO_SMALL)),
        *field("cluster bits", 20, ">I", *((value, "refcount table offset invalid") for value in (13, 21))),
        *field("size", 24, ">Q", *((value, None) for value in (0, 1, 511, 512, MIB - 1, MIB + 1, 2 * MIB))),
        *field("size", 24, ">Q", (2 * MIB + 1, TOO_SMALL), (L1_MOST - 1, TOO_SMALL), (L1_MOST, "image is too big")),
        *field("size", 24, ">Q", *((value, "image is too big") for value in ((1 << 63) - 1, 1 << 63, ONES_64))),
        *field("crypt method", 32, ">I", (0, None), (3, "encryption method 3"), (ONES_32, "encryption method")),
        *field("crypt method", 32, ">I", (1, None), differs="measure-without-key"),
        # qemu-img info itself dies of this one.
        *field("crypt method", 32, ">I", (2, "missing encryption header", INFO_ONLY), differs="info-crypt-header"),
        *field("L1 size", 36, ">I", (0, TOO_SMALL), (1, None), (2, None), (L1_LIMIT // 8, None, CORRUPT)),
        *field("L1 size", 36, ">I", *((v, f"{L1} too large") for v in (L1_LIMIT // 8 + 1, ONES_32))),
        *field("L1 offset", 40, ">Q", (CLUSTER, None), *((v, None, CORRUPT) for v in (0, END, 1 << 62))),
        *field("L1 offset", 40, ">Q", (LAST - CLUSTER, None, CORRUPT), (LAST, "it ends at byte")),
        *field("L1 offset", 40, ">Q", *((v, f"{L1} offset invalid") for v in (1, CLUSTER + 1, 1 << 63, ONES_64))),
        *field("L1 offset", 40, ">Q", *((v, f"{L1} offset invalid") for v in ((1 << 63) - 1, -CLUSTER % (1 << 64)))),
        *field("refcount offset", 48, ">Q", *((v, None, CORRUPT) for v in (0, CLUSTER, END, 1 << 62))),
        *field("refcount offset", 48, ">Q", (LAST - CLUSTER, None, CORRUPT), (LAST, "it ends at byte")),
        *field("refcount offset", 48, ">Q", *((v, f"{REFCOUNTS} offset invalid") for v in (1, CLUSTER + 1, ONES_64))),
        *field("refcount clusters", 56, ">I", (0, NO_TABLE, CORRUPT), (1, None), (2, None, CORRUPT)),
        *field("refcount clusters", 56, ">I", (REFCOUNT_LIMIT // CLUSTER, None, CORRUPT)),
        *field("refcount clusters", 56, ">I", (REFCOUNT_LIMIT // CLUSTER + 1, "too large"), (ONES_32, "too large")),
        *field("snapshots", 60, ">I", (0, None, {"check": 3}), (1, None), (2, None, CORRUPT)),
        *field("snapshots", 60, ">I", (65_536, "too much extra metadata")),
        *field("snapshots", 60, ">I", *((value, f"{SNAPSHOTS} too large") for value in (65_537, ONES_32))),
        *field("snapshots offset", 64, ">Q", *((v, None, CORRUPT) for v in (0, CLUSTER, END, LAST - CLUSTER))),
        *field("snapshots offset", 64, ">Q", *((v, f"{SNAPSHOTS} offset invalid") for v in (1, CLUSTER + 1, ONES_64))),
        *field("incompatible", 72, ">Q", (0, None), (1, None), (2, None), (3, None)),
        *field("incompatible", 72, ">Q", (4, "'data-file' is required", INFO_ONLY), (8, "must not be set")),
        *field("incompatible", 72, ">Q", (16, "unsupported subcluster size"), (32, "unsupported qcow2 feature")),
        *field("incompatible", 72, ">Q", (1 << 63, "unsupported qcow2 feature"), (ONES_64, "must not be set")),
        *field("compatible", 80, ">Q", (0, None), (1, None), (2, None), (ONES_64, None)),
        *field("autoclear", 88, ">Q", (0, None), (1, None), (4, None)),
        *field("autoclear", 88, ">Q", *((v, "data-file-raw requires a data file", INFO_ONLY) for v in (2, ONES_64))),
        *field("refcount order", 96, ">I", (4, None), *((order, None, CORRUPT) for order in (0, 1, 2, 3, 5, 6))),
        *field("refcount order", 96, ">I", (7, "may not exceed 64 bits"), (ONES_32, "may not exceed 64 bits")),
        *field("header length", 100, ">I", *((v, "header too short") for v in (0, 1, 72, 103))),
        *field("header length", 100, ">I", (104, None), (105, None), (112, None), (CLUSTER, None)),
        *field("header length", 100, ">I", (CLUSTER - 1, "header extension too large")),
        *field("header length", 100, ">I", (CLUSTER + 1, "exceeds cluster size"), (ONES_32, "exceeds cluster size")),
    ),
)


@pytest.mark.parametrize("row", TABLE.rows, ids=str)
def test_field(row: Row, ours: Ours, tmp_path: Path) -> None:
    TABLE.judge(row, ours, tmp_path / "image")
