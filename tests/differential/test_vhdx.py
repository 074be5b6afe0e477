"""VHDXs against qemu-img: what opens, what is refused, sizes, what check counts, what a log's replay makes."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.differential.oracle import Answer, comparable, make, qemu_img, qemu_io
from tests.differential.ours import Ours, explain
from tests.images import vhdx_writer as v
from tests.images.vhdx_writer import MIB, Block, Data, Entry, Vhdx, Zeros

pytestmark = [pytest.mark.kvm, pytest.mark.qemu_img]

OPERATIONS = (["info"], ["measure", "-O", "raw"], ["measure", "-O", "qcow2"], ["check"])


def both(ours: Ours, path: Path, operation: list[str]) -> tuple[Answer, Answer]:
    arguments = [*operation, "-f", "vhdx", "--output=json", str(path)]
    return qemu_img(*arguments), ours.run(*arguments)


def agree(ours: Ours, path: Path, hint: object = "") -> int:
    """Every operation answers as qemu-img's does; how many it answered."""
    answered = 0
    for operation in OPERATIONS:
        oracle, answer = both(ours, path, operation)
        assert answer.rc == oracle.rc, f"{hint} {operation} qemu-img: {explain(oracle)}\nours: {explain(answer)}"
        if oracle.rc in (0, 2):
            answered += 1
            assert comparable(answer.json) == comparable(oracle.json), f"{hint} {operation}"
    return answered


@pytest.mark.parametrize("size", [0, 512, MIB, 3 * MIB + 512, 5 << 30])
@pytest.mark.parametrize("block", [1, 256])
@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
def test_by_qemu(size: int, block: int, subformat: str, ours: Ours, tmp_path: Path) -> None:
    path = tmp_path / "made.vhdx"
    if size == 0 and block == 256:
        pytest.skip("qemu-img fails to make it")
    if subformat == "fixed":
        size = min(size, 3 * MIB + 512)
    options = f"subformat={subformat},block_size={block}M,block_state_zero={'off' if size % MIB else 'on'}"
    make("create", "-q", "-f", "vhdx", "-o", options, str(path), str(size))
    if size:
        qemu_io(path, "vhdx", f"write -P 7 {size - 512} 512")
    assert agree(ours, path) == len(OPERATIONS)


@pytest.mark.parametrize("block", [1, 2, 64])
def test_by_own_writer(block: int, ours: Ours, tmp_path: Path) -> None:
    blocks = {0: Block(), 1: Block(v.UNDEFINED), 3: Block(v.ZERO), 2: Block(fill=b"2"), 4: Block(v.UNMAPPED)}
    image = Vhdx(6 * block * MIB - 512, block * MIB, blocks | {5: Block(v.UNMAPPED_OLD)})
    assert agree(ours, image.write(tmp_path / "own.vhdx")) == len(OPERATIONS)


def test_real_targets(ours: Ours, tmp_path: Path) -> None:
    """qemu-img counts all of a VHDX as data; for targets that it does not measure, absent blocks cost nothing."""
    path = Vhdx(64 * MIB, 2 * MIB, {3: Block()}).write(tmp_path / "one.vhdx")
    raw = ours.run("measure", "-O", "raw", "--output=json", str(path)).json
    assert raw["required"] == 64 * MIB
    vhd = ours.run("measure", "-O", "vpc", "--output=json", str(path)).json
    assert vhd["required"] < 3 * MIB < vhd["fully-allocated"]


#: Fields of 8, 4 or 2 bytes that a random image gets wrong: where, and what may stand there.
ODD = [0, 1, 3, 7, 512, 4095, 4096, MIB - 1, MIB, MIB + 1, 2 * MIB, 3 * MIB, 4 * MIB, 5 * MIB, 256 * MIB, 512 * MIB]
HUGE = [1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - MIB, (1 << 63) - 1, 1 << 63, (1 << 64) - MIB, (1 << 64) - 1]


def fields(image: Vhdx) -> list[tuple[int, int]]:
    """Offset and size of every number in the headers and tables."""
    places = []
    for header in v.HEADERS:
        places += [(header + at, size) for at, size in ((0, 4), (8, 8), (64, 2), (66, 2), (68, 4), (72, 8))]
    for at in v.REGION_TABLES[:1]:
        places += [(at + one, 4) for one in (0, 8, 40, 44, 72, 76)] + [(at + 16 + 32 * i + 16, 8) for i in (0, 1)]
        places += [(at + 16 + 32 * i, 8) for i in (0, 1)]
    table = image.metadata_offset
    places += [(table, 8), (table + 10, 2)]
    places += [(table + 32 + 32 * i + at, size) for i in range(5) for at, size in ((0, 8), (16, 4), (24, 4))]
    places += [(table + v.ITEMS + at, size) for at, size in ((0, 4), (4, 4), (8, 8), (32, 4))]
    places += [(image.entry_offset(i), 8) for i in range(6)]
    return places


def is_listed(oracle: Answer, answer: Answer, file: v.File, image: Vhdx) -> bool:
    """Whether docs/differences.json says that these two answers differ."""
    if answer.rc == 2 and oracle.rc == 0:
        return True  # vhdx-check
    damaged = answer.rc in (0, 2) and oracle.rc == 1
    first_table = v.REGION_TABLES[0]
    if damaged and file.get(first_table, 4) != b"regi":
        return True  # vhdx-region-table
    if damaged and file.get_int(first_table + 8, 4) > 2047:
        return True  # vhdx-region-table
    if damaged and file.get_int(image.metadata_offset + v.ITEMS + 4, 4) & 2:
        return True  # vhdx-differencing
    if damaged and file.get_int(image.metadata_offset + v.ITEMS + 8, 8) < 512:
        return True  # vhdx-empty
    if damaged and file.get_int(image.metadata_offset + v.ITEMS + 32, 4) == 4096:
        return True  # vhdx-sectors
    if answer.rc == 1 and oracle.rc in (0, 2):
        message = answer.json["error"]["message"]
        return "BAT at byte" in message or "outside of the room for items" in message  # vhdx-bounds
    return False


@pytest.mark.parametrize("seed", range(4))
def test_random_fields(seed: int, ours: Ours, tmp_path: Path) -> None:
    dice = random.Random(seed)
    answered = 0
    for number in range(15):
        states = [v.PRESENT] * 4 + list(range(8))
        blocks = {i: Block(dice.choice(states)) for i in dice.sample(range(6), dice.randrange(6))}
        image = Vhdx(dice.choice([0, 512, 5 * MIB + 512, 6 * MIB]), MIB, blocks)
        file = image.build()
        changed = []
        for at, size in dice.sample(fields(image), dice.choice([0, 1, 1, 1, 2])):
            old = file.get_int(at, size)
            value = dice.choice([*ODD, *HUGE, old + 1, max(old, 1) - 1, old ^ 1 << dice.randrange(8 * size)])
            file.put_int(at, size, value & (1 << 8 * size) - 1)
            changed.append((hex(at), size, hex(value)))
        file.seal()
        length = file.length - dice.choice([0] * 8 + [1, 512, MIB, 2 * MIB, file.length - 8, file.length - (65 << 10)])
        path = file.write(tmp_path / f"{number}.vhdx", length)
        for operation in OPERATIONS:
            oracle, answer = both(ours, path, operation)
            if answer.rc != oracle.rc:
                hint = f"{number} {changed} {length} {operation}"
                assert is_listed(oracle, answer, file, image), f"{hint} {explain(oracle)}\nours: {explain(answer)}"
            elif oracle.rc in (0, 2):
                answered += 1
                hint = f"{number} {changed} {operation}"
                if oracle.rc == 0:
                    assert comparable(answer.json) == comparable(oracle.json), hint
                else:
                    # Each error that it counts is one for us; overlaps of blocks come on top.
                    assert answer.json["corruptions"] >= oracle.json["corruptions"], hint
    assert answered > 5


def bat_page(image: Vhdx, file: v.File, entries: dict[int, int]) -> Data:
    """The first page of the BAT with some entries changed, as a log writes it."""
    page = bytearray(file.get(image.bat_offset, v.SECTOR))
    for block, value in entries.items():
        at = image.entry_offset(block) - image.bat_offset
        page[at : at + 8] = value.to_bytes(8, "little")
    return Data(image.bat_offset, bytes(page))


def logged(kind: str) -> Vhdx:
    """Disks of six blocks, two of them in the file, the BAT entry of the second only in the log."""
    image = Vhdx(6 * MIB, MIB, {0: Block(fill=b"0"), 1: Block(fill=b"1")})
    file = image.build()
    second = file.get_int(image.entry_offset(1), 8)
    image.blocks[1].state = v.ABSENT
    bare = Vhdx(6 * MIB, MIB, {0: Block(fill=b"0"), 1: Block(v.ABSENT)}).build()
    good = bat_page(image, bare, {1: second})
    bad = bat_page(image, bare, {1: second, 2: second})
    many = [Zeros(image.bat_offset + v.SECTOR * i, v.SECTOR) for i in range(1, 200)]
    image.log = {
        "one": [Entry(7, [good])],
        "later-wins": [Entry(7, [bad]), Entry(8, [good])],
        "zeros-then-data": [Entry(7, [Zeros(image.bat_offset, 8192), good])],
        "tail-skips": [Entry(7, [bad]), Entry(8, [good], tail=2)],
        "many-descriptors": [Entry(7, [*many, good])],
        "wraps": [Entry(7, [bad]), Entry(8, [good])],
    }[kind]
    image.log_start = 255 if kind == "wraps" else 0
    if kind == "wraps":
        for entry in image.log:
            entry.tail = 255
    return image


@pytest.mark.parametrize("kind", ["one", "later-wins", "zeros-then-data", "tail-skips", "many-descriptors", "wraps"])
def test_replay(kind: str, ours: Ours, tmp_path: Path) -> None:
    """Our answers on the dirty image are those on the image that qemu-img replayed; the file is not touched."""
    image = logged(kind)
    file = image.build()
    file.length += MIB
    dirty = file.write(tmp_path / "dirty.vhdx")
    before = dirty.read_bytes()
    for operation in OPERATIONS:
        oracle, _ = both(ours, dirty, operation)
        assert oracle.rc == 1, explain(oracle)
    dirty_info = ours.run("info", "--output=json", str(dirty))
    assert dirty_info.rc == 0, explain(dirty_info)
    assert dirty_info.json["dirty-flag"] is True
    assert dirty_info.json["pyvmm"]["vhdx"]["log-state"] == "dirty"
    assert dirty_info.json["pyvmm"]["vhdx"]["present-blocks"] == 2
    checked = ours.run("check", "--output=json", str(dirty))
    assert checked.rc == 0, explain(checked)
    assert checked.json["pyvmm"]["dirty"] is True
    assert dirty.read_bytes() == before

    replayed = tmp_path / "replayed.vhdx"
    shutil.copy(dirty, replayed)
    if kind == "many-descriptors":
        return  # qemu-img 7.2 reads all sectors with descriptors to the same place: docs/differences.json, vhdx-log
    answer = qemu_img("check", "-r", "all", "-f", "vhdx", str(replayed))
    assert answer.rc == 0, explain(answer)
    clean_info = ours.run("info", "--output=json", str(replayed))
    assert clean_info.json["pyvmm"]["vhdx"]["present-blocks"] == 2
    assert clean_info.json["dirty-flag"] is False
    for target in ("raw", "qcow2", "vpc"):
        arguments = ["measure", "-O", target, "--output=json"]
        assert ours.run(*arguments, str(dirty)).json == ours.run(*arguments, str(replayed)).json
