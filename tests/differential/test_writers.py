"""Our image writers themselves: qemu-img finds nothing wrong with what they write, and sees what was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.differential.oracle import qemu_img
from tests.images import qcow2_writer as q
from tests.images import vhd_writer

pytestmark = pytest.mark.qemu_img


@pytest.mark.parametrize("cluster_bits", range(9, 22))
@pytest.mark.parametrize("refcount_order", range(7))
def test_qcow2_is_clean(cluster_bits: int, refcount_order: int, tmp_path: Path) -> None:
    cluster = 1 << cluster_bits
    clusters: dict[int, q.Cluster] = {0: q.Data(), 1: q.Zero(), 2: q.Zero(preallocated=True), 5: q.Compressed()}
    image = q.Qcow2(
        70 * cluster + 512,
        cluster_bits=cluster_bits,
        refcount_order=refcount_order,
        clusters={**clusters, 70: q.Data(b"\x01\x02")},
        snapshots=(q.Snapshot("1", "one"),) if refcount_order else (),
        bitmaps=(q.Bitmap("bits", 16, 2, set_clusters=(0,)),),
    )
    path = tmp_path / "image"
    path.write_bytes(image.build().data)
    answer = qemu_img("check", "-f", "qcow2", str(path))
    assert answer.rc == 0, answer.stdout + answer.stderr
    data = qemu_img("info", "--output=json", str(path)).json["format-specific"]["data"]
    assert data["refcount-bits"] == 1 << refcount_order
    assert [bitmap["name"] for bitmap in data["bitmaps"]] == ["bits"]


def test_qcow2_layout_names_every_structure() -> None:
    image = q.Qcow2(1 << 20, clusters={0: q.Data()}, snapshots=(q.Snapshot("1", "s"),), bitmaps=(q.Bitmap("b"),))
    built = image.build()
    names = {region.name for region in built.layout}
    assert {"header-fields", "l1", "l2[0]", "data", "refcount-table", "refcount-block[0]"} <= names
    assert {"snapshots", "snapshot-l1[1]", "bitmap-directory", "bitmap-table[b]"} <= names
    assert all(region.end <= len(built.data) for region in built.layout)


@pytest.mark.parametrize("kind", [vhd_writer.FIXED, vhd_writer.DYNAMIC, vhd_writer.DIFFERENCING])
@pytest.mark.parametrize("size", [512, 1 << 20, (5 << 20) + 512])
def test_vhd_opens(size: int, kind: int, tmp_path: Path) -> None:
    image = vhd_writer.Vhd(size, kind, creator=b"win ", blocks={0: b"x"})
    path = tmp_path / "image"
    path.write_bytes(image.build().data)
    answer = qemu_img("info", "-f", "vpc", "--output=json", str(path))
    assert answer.rc == 0, answer.stderr
    assert answer.json["virtual-size"] == size


@pytest.mark.parametrize(
    ("sectors", "expected"),
    [(68, (1, 4, 17)), (8228, (121, 4, 17)), (524_288, (520, 16, 63)), (1 << 32, (65_535, 16, 255))],
)
def test_vhd_geometry(sectors: int, expected: tuple[int, int, int]) -> None:
    assert vhd_writer.geometry(sectors) == expected
