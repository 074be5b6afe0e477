"""Images cut at every structure's boundary, and images with random bytes flipped by a fixed seed."""

from __future__ import annotations

import functools
import random
import zlib
from pathlib import Path

import pytest

from tests.differential.ours import Ours
from tests.hostile.images.bases import BASES, Base
from tests.hostile.images.verdict import survives
from tests.images.qcow2_writer import Built

pytestmark = pytest.mark.kvm

FLIPS = 160


@functools.cache
def _built(name: str) -> Built:
    return next(base for base in BASES if base.name == name).build()


def cuts(base: Base) -> list[int]:
    """Lengths around the beginning, the middle and the end of every structure."""
    built = _built(base.name)
    lengths = {0, 1, 4, 511, 512, 513, len(built.data) - 1, len(built.data) + 1}
    for region in built.layout:
        lengths |= {region.offset, region.offset + 1, region.offset + region.length // 2, region.end - 1, region.end}
    return sorted(length for length in lengths if 0 <= length <= len(built.data) + 1)


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_whole(base: Base, ours: Ours, tmp_path: Path) -> None:
    """The bases themselves are sound, or cutting them would prove nothing."""
    path = tmp_path / "image"
    path.write_bytes(_built(base.name).data)
    for operation in ("info", "check"):
        answer = ours.run(operation, "-f", base.driver, "--output=json", str(path))
        assert answer.rc == (63 if (operation, base.driver) == ("check", "raw") else 0), answer


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_cut(base: Base, ours: Ours, tmp_path: Path) -> None:
    data = _built(base.name).data
    for length in cuts(base):
        path = tmp_path / f"cut-{length}"
        path.write_bytes(data[:length].ljust(length, b"\0"))
        survives(ours, path, base.driver)


def _flipped(base: Base, index: int) -> bytes:
    """One to eight changed bytes, most of them inside a structure; values that stand at limits are frequent."""
    built = _built(base.name)
    image = bytearray(built.data)
    rng = random.Random(zlib.crc32(f"{base.name}/{index}".encode()))
    regions = [region for region in built.layout if region.length]
    for _ in range(rng.randint(1, 8)):
        region = rng.choice(regions)
        at = region.offset + rng.randrange(min(region.length, len(image) - region.offset))
        image[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, image[at] ^ 1 << rng.randrange(8), rng.randrange(256)))
    return bytes(image)


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
@pytest.mark.parametrize("batch", range(4))
def test_flipped(base: Base, batch: int, ours: Ours, tmp_path: Path) -> None:
    for index in range(batch * FLIPS // 4, (batch + 1) * FLIPS // 4):
        path = tmp_path / f"flip-{index}"
        path.write_bytes(_flipped(base, index))
        survives(ours, path, base.driver)
        path.unlink()
