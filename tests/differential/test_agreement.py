"""The counter of agreements counts, and sees a disagreement."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.differential import agreement
from tests.differential.oracle import make, qemu_io
from tests.images import vhd_writer as v

pytestmark = [pytest.mark.kvm, pytest.mark.qemu_img]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inner = tmp_path / "inner"
    inner.mkdir()
    make("create", "-q", "-f", "qcow2", str(inner / "disk.qcow2"), "10M")
    qemu_io(inner / "disk.qcow2", "qcow2", "write 1M 64k")
    (tmp_path / "disk.raw").write_bytes(b"x" * 70_000)
    return tmp_path


def test_everything_agrees(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert agreement.main([str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:2]] == [
        ["info", "with", "-f", "2", "of", "2", "agree"],
        ["info", "detected", "2", "of", "2", "agree"],
    ]
    assert len(lines) == 2 * len(agreement.COMMANDS) + 1
    assert lines[-1] == "0 disagreements that docs/differences.json does not list"


def test_a_disagreement_is_seen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fixed VHD: detection differs by design, and the check that qemu-img does not have."""
    (folder / "disk.vhd").write_bytes(v.Vhd(68 << 10, v.FIXED, creator=b"win ").build().data)
    assert agreement.main([str(folder)]) == 1
    text = capsys.readouterr().out
    assert "disk.vhd: check, with -f\n    qemu-img: rc 63" in text
    assert "disk.vhd: info, detected\n" in text
    assert "disk.vhd: info, with -f" not in text
    assert "disk.qcow2" not in text


def test_a_disagreement_that_is_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "disk.vhd").write_bytes(v.Vhd(68 << 10, v.FIXED, creator=b"win ").build().data)
    cases = {("disk.vhd", command): "fixed-vhd" for command in agreement.COMMANDS}
    monkeypatch.setattr(agreement, "_differences", lambda: cases)
    result = agreement.compare(folder)
    assert result.unlisted == []
    assert {found.listed for found in result.disagreements} == {"fixed-vhd"}
    assert agreement.compare(folder, {"disk.vhd": "raw"}).agreed["info with -f"] == 3
