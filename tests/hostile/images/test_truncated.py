"""Images cut at the beginning, in the middle and at the end of every structure: each operation answers as qemu-img."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.differential.ours import Ours
from tests.hostile.images.bases import BASES, Base
from tests.hostile.images.table import OPERATIONS, agree
from tests.hostile.images.test_damage import cuts

pytestmark = [pytest.mark.kvm, pytest.mark.qemu_img]

#: docs/differences.json, vhd-differencing: what qemu-img makes of these is another disk.
ELSEWHERE = ("vhd-differencing",)


@pytest.mark.parametrize("base", [b for b in BASES if b.name not in ELSEWHERE], ids=lambda base: base.name)
def test_cut(base: Base, ours: Ours, tmp_path: Path) -> None:
    data = base.build().data
    path = tmp_path / "image"
    for length in cuts(base):
        path.write_bytes(data[:length].ljust(length, b"\0"))
        for operation in OPERATIONS:
            if (operation, base.driver) != ("check", "vpc"):
                agree(ours, base.driver, operation, path)
