"""Every read-only operation on random images: the same exit status, and the same answer where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.differential.generator import random_qcow2
from tests.differential.oracle import comparable, qemu_img
from tests.differential.ours import Ours, explain
from tests.differential.recipes import SEED

pytestmark = [pytest.mark.kvm, pytest.mark.qemu_img]

COUNT = 150
OPERATIONS: tuple[tuple[str, ...], ...] = (
    ("info",),
    ("check",),
    ("measure", "-O", "raw"),
    ("measure", "-O", "qcow2"),
)


@pytest.mark.parametrize("index", range(COUNT))
def test_qcow2(index: int, ours: Ours, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(random_qcow2(f"{SEED}/{index}"))
    for operation in OPERATIONS:
        common = [*operation, "-f", "qcow2", "--output=json", str(path)]
        oracle, answer = qemu_img(*common), ours.run(*common)
        if oracle.timed_out:
            assert answer.rc in (0, 1, 2, 3), f"{operation}: {explain(answer)}"
            continue
        assert answer.rc == oracle.rc, f"{operation}: qemu-img: {explain(oracle)}\nours: {explain(answer)}"
        if oracle.rc != 1:
            assert comparable(answer.json) == comparable(oracle.json), operation
