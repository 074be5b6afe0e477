"""With --chain the extents are qemu-img's, depth and file of each included."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.differential.oracle import make, qemu_io
from tests.differential.oracle import qemu_img as qemu
from tests.differential.ours import Ours, explain
from tests.differential.recipes import SEED
from tests.differential.test_chain import CHAINS, build
from tests.differential.test_map import settled

pytestmark = [pytest.mark.kvm, pytest.mark.qemu_img]


def same(ours: Ours, *words: str) -> None:
    for output in ("json", "human"):
        common = [f"--output={output}", *words]
        theirs, answer = qemu("map", *common), ours.run("map", "--chain", *common)
        assert answer.rc == theirs.rc, f"qemu-img: {explain(theirs)}\nours: {explain(answer)}"
        assert answer.stdout == theirs.stdout


@pytest.mark.parametrize("seed", range(CHAINS))
def test_chain(seed: int, ours: Ours, tmp_path: Path) -> None:
    links = build(tmp_path, seed)
    top = tmp_path / links[0].name
    for path in tmp_path.rglob("*"):
        if path.is_file():
            settled(path)
    same(ours, "-f", links[0].driver, str(top))
    dice = random.Random(SEED + seed)
    for _ in range(3):
        start, length = dice.randrange(6 << 20), dice.randrange(6 << 20)
        same(ours, "-f", links[0].driver, "-s", str(start), "-l", str(length), str(top))


def test_a_backing_file_that_ends_before(ours: Ours, tmp_path: Path) -> None:
    """What lies behind its end is absent in the image itself, not in the file behind it."""
    make("create", "-q", "-f", "raw", str(tmp_path / "base"), "1M")
    make("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", str(tmp_path / "top"), "4M")
    qemu_io(tmp_path / "base", "raw", "write 0 64k")
    settled(tmp_path / "base")
    same(ours, settled(tmp_path / "top"))
