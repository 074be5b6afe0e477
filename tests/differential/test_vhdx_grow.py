"""A VHDX that grows, cut off after each step: qemu-img opens it, finds nothing wrong and reads the old content."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.differential.oracle import make, qemu_img, qemu_io
from tests.differential.tool import ask

pytestmark = pytest.mark.qemu_img

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True)
class Case:
    name: str
    options: str
    old: int
    new: int


CASES = [
    Case("dynamic", "block_size=1M", 3 * MIB + 4096, 10 * MIB),
    Case("within a block", "block_size=8M", 3 * MIB, 5 * MIB + 512),
    Case("states off", "block_size=1M,block_state_zero=off", 5 * MIB, 9 * GIB),
    Case("table moves", "block_size=1M", 3 * MIB + 512, 200 * GIB),
    Case("fixed", "subformat=fixed,block_size=1M,block_state_zero=off", 3 * MIB + 512, 9 * MIB),
    Case("fixed of zero blocks", "subformat=fixed,block_size=1M", 3 * MIB, 9 * MIB),
    Case("fixed, table moves", "subformat=fixed,block_size=1M,block_state_zero=off", 5 * MIB, 130 * GIB),
]


def virtual_size(path: Path) -> int:
    answer = qemu_img("info", "-f", "vhdx", "--output=json", str(path))
    assert answer.rc == 0, answer.stderr
    size = answer.json["virtual-size"]
    assert isinstance(size, int)
    return size


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_prefix(case: Case, tool: Path, tmp_path: Path) -> None:
    image, state, content = tmp_path / "image", tmp_path / "state", tmp_path / "content"
    make("create", "-q", "-f", "vhdx", "-o", case.options, str(image), str(case.old))
    qemu_io(image, "vhdx", "write -q -P 1 0 100k", f"write -q -P 2 {case.old - 2048} 2048", "write -q -P 3 1M 1M")
    # The old content as a raw disk; one of another size is compared as far as both reach, zeroes beyond.
    make("convert", "-f", "vhdx", "-O", "raw", str(image), str(content))
    count, sizes = 1, set()
    number = 0
    while number <= count:
        shutil.copyfile(image, state)
        answer = ask(tool, "resize", "vhdx", str(state), f"size={case.new}", f"steps={number}")
        count = answer["steps"]
        sizes.add(virtual_size(state))
        check = qemu_img("check", "-f", "vhdx", str(state))
        assert check.rc == 0, f"{number}: {check.stdout}{check.stderr}"
        if case.new < GIB:
            make("compare", "-f", "vhdx", "-F", "raw", str(state), str(content))
        else:
            # It would read all of the zeroes.
            end = case.old - 2048
            qemu_io(state, "vhdx", "read -q -P 1 0 100k", "read -q -P 3 1M 1M", f"read -q -P 2 {end} 2048")
        number += 1
    assert sizes == {case.old, case.new}
    # It is written to as any other: the new end, and a place in the middle of what is new.
    middle = (case.old + case.new) // 2 & ~511
    qemu_io(state, "vhdx", f"write -q -P 4 {case.new - 512} 512", f"write -q -P 5 {middle} 512k")
    qemu_io(state, "vhdx", f"read -q -P 4 {case.new - 512} 512", f"read -q -P 2 {case.old - 2048} 2048")
    qemu_io(state, "vhdx", f"read -q -P 5 {middle} 512k", f"read -q -P 0 {case.old} 512")
    assert qemu_img("check", "-f", "vhdx", str(state)).rc == 0


def test_a_fixed_disk_has_all_of_its_blocks(tool: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    make("create", "-q", "-f", "vhdx", "-o", "subformat=fixed,block_size=1M,block_state_zero=off", str(image), "3M")
    assert ask(tool, "resize", "vhdx", str(image), f"size={9 * MIB}")["new_size"] == 9 * MIB
    length = image.stat().st_size
    assert length == 8 * MIB + 9 * MIB
    qemu_io(image, "vhdx", f"write -q -P 1 0 {9 * MIB}")
    assert image.stat().st_size == length


def test_what_we_create_grows(tool: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    for size in (0, 1, 5 * MIB):
        ask(tool, "create", "vhdx", str(image), f"size={size}", "block_size=1048576")
        assert ask(tool, "resize", "vhdx", str(image), f"size={40 * MIB}")["new_size"] == 40 * MIB
        assert virtual_size(image) == 40 * MIB
        qemu_io(image, "vhdx", f"write -q -P 1 0 {40 * MIB}")
        assert qemu_img("check", "-f", "vhdx", str(image)).rc == 0
    refused = ask(tool, "resize", "vhdx", str(image), f"size={MIB}")
    assert refused["code"] == "invalid_option"
