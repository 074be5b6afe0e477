"""The sample that ``make run`` measures: a VHD whose first sector holds a partition table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vmm
from tests.integration.command import run

SCRIPT = Path(__file__).resolve().parent.parent.parent / "tools" / "sample_vhd.py"


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "sample.vhd"
    subprocess.run([sys.executable, str(SCRIPT), str(path)], check=True)
    return path


@pytest.mark.kvm
def test_measured_as_by_make_run(sample: Path) -> None:
    done = run("run", "measure", str(sample))
    assert (done.status, done.err) == (0, "")
    assert done.out == "required size: 4212736\nfully allocated size: 4212736\n"


def test_what_it_is(sample: Path, vmm_machine: vmm.Machine) -> None:
    report = vmm_machine.info(sample)
    assert (report.format, report.virtual_size) == ("vpc", 121 * 4 * 17 * 512)
    assert report.image.vhd is not None
    assert report.image.vhd.type == "fixed"
    assert [table.scheme for table in report.partition_tables] == ["mbr"]
    assert [(partition.type, partition.outside) for partition in report.partitions] == [("83", False), ("0c", False)]
    assert vmm_machine.check(sample).clean


@pytest.mark.kvm
@pytest.mark.qemu_img
def test_qemu_img_agrees(sample: Path) -> None:
    words = ["measure", "-f", "vpc", "-O", "qcow2", str(sample)]
    theirs = subprocess.run(["qemu-img", *words], capture_output=True, text=True, check=True)
    assert run("run", *words).out == theirs.stdout
