"""Sizes on the command line: what qemu-img 7.2 reads, and what it refuses."""

from __future__ import annotations

import subprocess

import pytest

from vmm.errors import UsageError
from vmm.operations.sizes import MAX_SIZE, parse_number, parse_size

GOOD = {
    "0": 0,
    "1000": 1000,
    "1B": 1,
    "1k": 1024,
    "5K": 5120,
    "10M": 10 << 20,
    "1.5G": 3 << 29,
    "1t": 1 << 40,
    "2P": 2 << 50,
    "7E": 7 << 60,
    "0.1k": 102,
    "0.7k": 717,
    "5.k": 5120,
    "1.99999k": 2048,
    "00010": 10,
    "010": 10,
    "+5": 5,
    " 10M": 10 << 20,
    "0x10": 16,
    "0X10": 16,
    "0x10000k": 1 << 26,
    "0x1g": 1 << 30,
    "9223372036854775807": MAX_SIZE,
}
BAD = [
    "",
    " ",
    "-1",
    "k",
    ".5k",
    "1.5",
    "1.5b",
    "10MB",
    "1e3",
    "1X",
    "5 M",
    "0xk",
    "0x",
    "0x1.8k",
    "1_0",
    "٣",
    "1\n",
    "9223372036854775808",
    "8E",
    "16E",
    "9" * 10_000,
]


@pytest.mark.parametrize(("text", "size"), GOOD.items())
def test_good(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", BAD)
def test_bad(text: str) -> None:
    with pytest.raises(UsageError, match="Invalid image size specified"):
        parse_size(text)


def test_numbers() -> None:
    assert parse_size(MAX_SIZE) == MAX_SIZE
    for number in (-1, MAX_SIZE + 1, 10**5000):
        with pytest.raises(UsageError, match="Invalid image size specified"):
            parse_size(number)


def test_beyond_a_disk_is_still_a_number() -> None:
    assert parse_number("8E") == 8 << 60


@pytest.mark.qemu_img
@pytest.mark.parametrize("text", [*GOOD, *BAD])
def test_as_qemu_img(text: str) -> None:
    done = subprocess.run(["qemu-img", "measure", "--size", text], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        size = parse_size(text)
        # measure rounds up to sectors.
        assert f"required size: {(size + 511) // 512 * 512}\n" in done.stdout
    else:
        with pytest.raises(UsageError):
            parse_size(text)
