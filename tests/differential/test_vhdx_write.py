"""VHDX as a destination, against qemu-img: the same files but for what is random, and measured sizes that are real."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.differential.oracle import comparable, make, qemu_img, qemu_io
from tests.differential.recipes import SEED
from tests.differential.tool import ask

pytestmark = pytest.mark.qemu_img

MIB = 1 << 20

#: What is random or names its writer: creator, checksum, sequence number and GUIDs of both headers, the disk's identity
#: (which lies at the same place in every metadata region).
RANDOM = ((8, 64), *((at + first, at + last) for at in (0x10000, 0x20000) for first, last in ((4, 16), (16, 48))))
DISK_IDENTITY = (0x10010, 0x10020)

SIZES = ("0", "1", "512", "513", "1M", "3M", "3500000", "1G", "1073741825", "5G", "101G", "33T", "64T")
OPTIONS = (
    "",
    "subformat=dynamic",
    "subformat=fixed",
    "subformat=fixed,block_state_zero=off",
    "block_state_zero=off",
    "block_size=1M",
    "block_size=1",
    "block_size=0",
    "block_size=512M",
    "block_size=256M,log_size=3M",
    "log_size=1",
    "log_size=1500k",
)


def spelled(options: str) -> list[str]:
    return ["-o", options] if options else []


def words(options: str) -> list[str]:
    units = {"k": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    out = []
    for option in filter(None, options.split(",")):
        name, value = option.split("=")
        if value[:-1].isdigit() and value[-1] in units:
            value = str(int(value[:-1]) * units[value[-1]])
        out.append(f"{name}={value}")
    return out


def number(size: str) -> int:
    return int(size[:-1]) * {"M": 1 << 20, "G": 1 << 30, "T": 1 << 40}[size[-1]] if not size.isdigit() else int(size)


def pieces(path: Path) -> list[bytearray]:
    """Header section and tables up to the payload, without what is random."""
    with path.open("rb") as file:
        head = bytearray(file.read(MIB))
        for first, last in RANDOM:
            head[first:last] = bytes(last - first)
        # The region table says where the others are: its first entry is the BAT, its second the metadata.
        places = [
            (int.from_bytes(head[at + 16 : at + 24], "little"), int.from_bytes(head[at + 24 : at + 28], "little"))
            for at in (0x30010, 0x30030)
        ]
        found = [head]
        for offset, length in places:
            file.seek(offset)
            found.append(bytearray(file.read(length)))
        found[2][slice(*DISK_IDENTITY)] = bytes(16)
        return found


@pytest.mark.parametrize("size", SIZES)
def test_files_are_those_of_qemu_img(size: str, tool: Path, tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for options in OPTIONS if number(size) < 1 << 40 else OPTIONS[:2]:
        what = f"{size} {options}"
        oracle = qemu_img("create", "-f", "vhdx", *spelled(options), str(theirs), size)
        if size == "0" and ("512M" in options or "256M" in options):
            # It counts 2^32 blocks then, and cannot write so large a table.
            assert oracle.rc == 1, what
            continue
        assert oracle.rc == 0, f"{what}: {oracle.stderr}"
        answer = ask(tool, "create", "vhdx", str(mine), f"size={number(size)}", *words(options))
        assert "error" not in answer, f"{what}: {answer}"
        line = " ".join(f"{option['name']}={option['value']}" for option in answer["options"])
        assert oracle.stdout == f"Formatting '{theirs}', fmt=vhdx {line}\n"
        assert mine.stat().st_size == theirs.stat().st_size == answer["file_length"], what
        assert pieces(mine) == pieces(theirs), what
        described = [qemu_img("info", "-f", "vhdx", "--output=json", str(path)) for path in (mine, theirs)]
        assert described[0].rc == 0, f"{what}: {described[0].stderr}"
        assert comparable(described[0].json, "filename") == comparable(described[1].json, "filename"), what
        assert qemu_img("check", "-f", "vhdx", str(mine)).rc == 0, what
        if number(size) <= 1 << 30:
            make("compare", "-f", "vhdx", "-F", "vhdx", str(mine), str(theirs))
        mine.unlink()
        theirs.unlink()


REFUSED = [
    ("65T", "", "Image size too large; max of 64TB"),
    ("70368744177665", "", "Image size too large; max of 64TB"),
    ("9223372036854775807", "", "Image size too large; max of 64TB"),
    ("1M", "block_size=3M", "Block size must be a power of two"),
    ("1M", "log_size=0", "Log size must be a multiple of 1 MB"),
    ("1M", "log_size=4G", "Log size must be smaller than 4 GB"),
    ("1M", "log_size=5G", "Log size must be smaller than 4 GB"),
    ("1M", "subformat=differencing", "Parameter 'subformat' does not accept value 'differencing'"),
]


@pytest.mark.parametrize(("size", "options", "text"), REFUSED)
def test_refused_as_by_qemu_img(size: str, options: str, text: str, tool: Path, tmp_path: Path) -> None:
    oracle = qemu_img("create", "-f", "vhdx", *spelled(options), str(tmp_path / "theirs"), size)
    assert oracle.rc == 1
    assert text in oracle.stderr
    path = tmp_path / "mine"
    assert ask(tool, "create", "vhdx", str(path), f"size={number(size)}", *words(options))["error"] == f"vhdx: {text}"
    assert ask(tool, "measure", "vhdx", f"size={number(size)}", *words(options))["error"] == f"vhdx: {text}"
    assert not path.exists()


def source(path: Path, size: int, rng: random.Random) -> None:
    """A raw image with data here and there; none of it zeroes."""
    # Not by qemu-img, which stores zeroes in the first block.
    path.write_bytes(b"")
    os.truncate(path, size)
    commands = []
    for _ in range(rng.randrange(6)):
        length = rng.choice((1, 4096, 65_536, 1_000_000, 3 * MIB))
        offset = rng.randrange(max(1, size - length))
        commands.append(f"write -q -P {rng.randrange(1, 256)} {offset} {min(length, size - offset)}")
    qemu_io(path, "raw", *commands)


@pytest.mark.parametrize("seed", range(6))
def test_measured_is_converted(seed: int, tool: Path, tmp_path: Path) -> None:
    """`required` is the file that qemu-img convert makes, `fully-allocated` that of a disk written everywhere."""
    rng = random.Random(SEED + 300 + seed)
    image, made = tmp_path / "image", tmp_path / "made"
    for _ in range(6):
        size = int(2 ** rng.uniform(9, 27)) & ~511
        source(image, size, rng)
        subformat = rng.choice(("", "subformat=dynamic", "subformat=fixed", "subformat=fixed,block_state_zero=off"))
        block = rng.choice(("", "block_size=1M", "block_size=2M", "block_size=4M", "block_size=32M"))
        log = rng.choice(("", "log_size=2M"))
        options = ",".join(filter(None, (subformat, block, log)))
        make("convert", "-f", "raw", "-O", "vhdx", *spelled(options), str(image), str(made))
        answer = ask(tool, "measure", "vhdx", f"file={image}", "format=raw", *words(options))
        assert answer.get("required") == made.stat().st_size, f"{size} {options}"
        full = answer["fully_allocated"]
        assert ask(tool, "measure", "vhdx", f"size={size}", *words(options))["fully_allocated"] == full
        qemu_io(made, "vhdx", f"write -q -P 7 0 {size}")
        assert full == made.stat().st_size, f"{size} {options}"


@pytest.mark.parametrize("seed", range(3))
def test_measured_vhd_is_converted(seed: int, tool: Path, tmp_path: Path) -> None:
    """The same for VHD."""
    rng = random.Random(SEED + 350 + seed)
    image, made = tmp_path / "image", tmp_path / "made"
    for _ in range(6):
        size = int(2 ** rng.uniform(9, 26)) & ~511
        source(image, size, rng)
        options = rng.choice(("", "subformat=dynamic", "subformat=fixed", "force_size=on"))
        make("convert", "-f", "raw", "-O", "vpc", *spelled(options), str(image), str(made))
        answer = ask(tool, "measure", "vpc", f"file={image}", "format=raw", *words(options))
        assert answer.get("required") == made.stat().st_size, f"{size} {options}"
        qemu_io(made, "vpc", f"write -q -P 7 0 {answer['virtual_size']}")
        assert answer["fully_allocated"] == made.stat().st_size, f"{size} {options}"


def test_stored_zeroes_are_the_bound(tool: Path, tmp_path: Path) -> None:
    """What a conversion leaves out: blocks whose stored data is nothing but zeroes."""
    image, made = tmp_path / "image", tmp_path / "made"
    make("create", "-q", "-f", "raw", str(image), "32M")
    qemu_io(image, "raw", "write -q -P 0 0 8M", "write -q -P 1 16M 4k")
    make("convert", "-f", "raw", "-O", "vhdx", str(image), str(made))
    required = ask(tool, "measure", "vhdx", f"file={image}", "format=raw")["required"]
    assert required == made.stat().st_size + 8 * MIB


@pytest.mark.parametrize("driver", ["vhdx", "vpc"])
def test_every_size_has_an_answer(driver: str, tool: Path) -> None:
    """0 to 2^64-1: an answer that is at least the disk, or a typed refusal; never a wrapped number."""
    rng = random.Random(SEED + 400)
    edges = {0, 1, 2**64 - 1}
    for limit in (2**63, 64 << 40, 2040 << 30, 32 << 40, 100 << 30, 1 << 30, 2**32, 127 << 30):
        edges.update(range(limit - 513, limit + 514, 171))
    sizes = sorted(edges) + [int(2 ** rng.uniform(0, 64)) for _ in range(100)]
    options = {
        "vhdx": ("", "subformat=fixed", "block_size=1M", "block_size=256M,log_size=4095M"),
        "vpc": ("", "subformat=fixed", "force_size=on"),
    }[driver]
    limit = {"vhdx": 64 << 40, "vpc": 2040 << 30}[driver]
    for size in sizes:
        chosen = rng.choice(options)
        answer = ask(tool, "measure", driver, f"size={size}", *words(chosen))
        if size > limit:
            assert answer["code"] in ("too_large", "invalid_option"), f"{size} {chosen}: {answer}"
            continue
        assert "error" not in answer, f"{size} {chosen}: {answer}"
        assert size <= answer["virtual_size"] <= max(size + 136_899_994_112 // 100, 34_816)
        assert answer["virtual_size"] <= answer["fully_allocated"] < 2 * answer["virtual_size"] + (5 << 30)
        assert answer["required"] <= answer["fully_allocated"]
