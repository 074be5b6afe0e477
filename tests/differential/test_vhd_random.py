"""VHDs with random numbers in every field, against qemu-img: what opens, what is refused, sizes, where data is."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from tests.differential.oracle import comparable, qemu_img
from tests.differential.ours import Ours, explain
from tests.images.vhd_writer import NO_OFFSET, UNUSED, checksum

pytestmark = [pytest.mark.kvm, pytest.mark.qemu_img]

CREATORS = [b"vpc ", b"qemu", b"win ", b"qem2", b"d2v ", b"d2v\0", b"tap\0", b"CTXS", b"wa\0\0", b"pvhd", bytes(4)]
LIMIT = 0xFF00_0000 * 512
CASES_EACH = 20


def _sealed(data: bytearray, at: int, wrong: bool = False) -> bytes:
    struct.pack_into(">I", data, at, checksum(bytes(data), at) ^ wrong)
    return bytes(data)


def _footer(dice: random.Random, kind: int, sectors: int, header_at: int) -> bytes:
    tracks = min(max(1, sectors // 68), 65535)
    by_size = (tracks, 4, 17)
    anything = (dice.randrange(65536), dice.randrange(256), dice.randrange(256))
    geometry = dice.choice([by_size, by_size, by_size, (65535, 16, 255), (0, 0, 0), anything])
    size = sectors * 512 + dice.choice([0, 0, 0, 1, 511])
    if dice.random() < 0.05:
        size = dice.choice([LIMIT, LIMIT + 512, 1 << 63, (1 << 64) - 1])
    fields = (b"conectix", 2, 0x10000, header_at, 1000, dice.choice(CREATORS), 0x50003, b"Wi2k", size, size, *geometry)
    data = bytearray(struct.pack(">8sIIQI4sI4sQQHBBI", *fields, kind).ljust(512, b"\0"))
    return _sealed(data, 64, dice.random() < 0.03)


def _fixed(dice: random.Random, sectors: int) -> bytes:
    image = dice.randbytes(min(512, sectors * 512)).ljust(sectors * 512, b"\0")
    image += _footer(dice, 2, sectors, NO_OFFSET)
    # Cut below what qemu-img takes for a footer at the end of the last sector, or not at all.
    return image[: len(image) - dice.choice([0, 0, 0, 1, 512])]


def _dynamic(dice: random.Random, sectors: int) -> bytes:
    block = dice.choice([512, 4096, 4096, 65536, 2 << 20, 1536, 0, 256])
    usable = max(block, 512)
    entries = max(0, -(-sectors * 512 // usable) + dice.choice([0, 0, 0, 1, -1, 5, 2000]))
    claimed = dice.choice([entries] * 20 + [UNUSED, 0x1FFF_FFFF, 0x2000_0000])
    table_at = dice.choice([1536] * 8 + [2048, 1537, 100, (1 << 63) - 1, (1 << 64) - 8])
    header_at = dice.choice([512] * 12 + [1024, 600, 1 << 63, 100_000])
    footer = _footer(dice, dice.choice([3, 3, 3, 3, 1, 77]), sectors, header_at)
    placed_at = table_at if table_at < 1 << 20 else 1536
    first = -(-max(placed_at + 4 * entries, 2048) // 512)
    stride = (usable // 4096 + 511) // 512 + usable // 512
    table = [UNUSED] * entries
    end = first
    for index in dice.sample(range(entries), min(entries, dice.choice([0, 1, 2, 5]))):
        table[index], end = end, end + stride
    if entries and dice.random() < 0.1:
        table[dice.randrange(entries)] = dice.choice([0, end, first, UNUSED - 1])
    image = bytearray(max(end * 512, placed_at + 4 * entries, 2048))
    image[:512] = footer
    if header_at < 1 << 20:
        header = struct.pack(">8sQQIII", b"cxsparse", NO_OFFSET, table_at, 0x10000, claimed, block)
        image.extend(bytes(max(0, header_at + 1024 - len(image))))
        image[header_at : header_at + 1024] = _sealed(bytearray(header.ljust(1024, b"\0")), 36)
    struct.pack_into(f">{entries}I", image, placed_at, *table)
    image += footer if dice.random() < 0.9 else b""
    return bytes(image[: len(image) - dice.choice([0] * 8 + [1, 511, 512, 513, 1024, 5000])])


@pytest.mark.parametrize("seed", range(8))
def test_random(seed: int, ours: Ours, tmp_path: Path) -> None:
    dice = random.Random(seed)
    opened = 0
    for number in range(CASES_EACH):
        sectors = dice.choice([0, 1, 67, 68, 100, 2048, 8192, dice.randrange(1, 40_000)])
        image = (_fixed if dice.random() < 0.3 else _dynamic)(dice, sectors)
        path = tmp_path / f"{number}.vhd"
        path.write_bytes(image)
        for operation in (["info"], ["measure", "-O", "raw"], ["measure", "-O", "qcow2", "-o", "cluster_size=512"]):
            arguments = [*operation, "-f", "vpc", "--output=json", str(path)]
            oracle, answer = qemu_img(*arguments), ours.run(*arguments)
            assert answer.rc == oracle.rc, f"{number}: qemu-img: {explain(oracle)}\nours: {explain(answer)}"
            if oracle.rc == 0:
                opened += 1
                assert comparable(answer.json) == comparable(oracle.json), f"{number}"
        # Whatever qemu-img refuses is no sound image for our check either.
        checked = ours.run("check", "-f", "vpc", str(path))
        assert checked.rc in ((0, 2, 3) if oracle.rc == 0 else (1, 2)), f"{number}: {explain(checked)}"
    assert opened > CASES_EACH // 4
