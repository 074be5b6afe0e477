"""Differencing VHD and VHDX disks over two and three levels, made by `create -b` and filled by our own writers.

qemu-img reads neither: what is right follows from the sectors that were written.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import vmm
from tests.images import child_writer
from tests.images.vhd_writer import DIFFERENCING, Locator, Vhd
from tests.images.vhdx_writer import Vhdx, parent_pairs
from tests.integration.recording import Command
from vmm.errors import EXIT_FAILED

pytestmark = pytest.mark.kvm

SIZE = 16 << 20
WRITERS = {"vpc": child_writer.write_vhd, "vhdx": child_writer.write_vhdx}
#: Level, first sector, sectors: some over those of another level, some over the border of two blocks.
WRITES = ((1, 8, 8), (1, 4090, 12), (2, 12, 8), (2, 8192, 1), (0, 0, 4), (0, 16000, 100), (1, 16050, 2))
EXT4 = bytes(56) + b"\x53\xef" + bytes(454)


def sectors(number: int, count: int) -> bytes:
    """Sectors that nobody takes for zeroes."""
    return bytes([number + 1]) * (512 * count)


@pytest.fixture(params=["vpc", "vhdx"])
def chain(request: pytest.FixtureRequest, pyvmm: Command) -> tuple[str, list[str], dict[int, tuple[int, int]]]:
    """Three files, the base first, and for each sector that was written its content and the level that has it."""
    driver: str = request.param
    names = [f"{level}.{driver}" for level in range(3)]
    create = ("run", "create", "-q", "-f", driver)
    assert pyvmm(*create, names[0], str(SIZE)).status == 0
    disk = json.loads(pyvmm("run", "info", "--output=json", names[0]).out)["virtual-size"]
    found: dict[int, tuple[int, int]] = {}
    # A child writes down its parent's identity: the base has its content before.
    base = [write for write in WRITES if write[0] == 0]
    if driver == "vpc":
        for _, first, count in base:
            child_writer.write_vhd(Path(names[0]), first, sectors(0, count))
    else:
        blocks: list[str] = []
        for _, first, count in base:
            blocks += ["-c", f"write -P 1 {first * 512} {count * 512}"]
        import subprocess

        subprocess.run(["qemu-io", "-f", "vhdx", *blocks, names[0]], check=True, capture_output=True)
    for level in (1, 2):
        answer = pyvmm(*create, "-b", names[level - 1], "-F", driver, names[level])
        assert answer.status == 0, answer
    for level in range(3):
        for _, first, count in (write for write in WRITES if write[0] == level):
            if level:
                WRITERS[driver](Path(names[level]), first, sectors(level, count))
            found |= dict.fromkeys(range(first, first + count), (level, level + 1))
    assert disk >= 16200 * 512
    return driver, names, found


@pytest.mark.qemu_img
def test_the_level_that_has_each_sector(
    chain: tuple[str, list[str], dict[int, tuple[int, int]]], pyvmm: Command
) -> None:
    driver, names, found = chain
    for words in (["-f", driver], []):
        answer = pyvmm("run", "map", "--chain", *words, "--output=json", names[2])
        assert answer.status == 0, answer
        seen: dict[int, tuple[int, int]] = {}
        end = 0
        for extent in json.loads(answer.out):
            assert extent["start"] == end
            end = extent["start"] + extent["length"]
            if not extent["data"]:
                continue
            level = 2 - extent["depth"]
            # QEMU sees data without a place in all of a VHDX that is no child.
            if "offset" not in extent:
                assert (driver, level) == ("vhdx", 0)
                continue
            content = Path(names[level]).read_bytes()
            for sector in range(extent["length"] // 512):
                at = extent["offset"] + sector * 512
                one = content[at : at + 512]
                # The base has whole blocks, of which the rest is zero.
                if level or any(one):
                    assert one == bytes([one[0]]) * 512
                    seen[extent["start"] // 512 + sector] = (level, one[0])
        levels = (1, 2) if driver == "vhdx" else (0, 1, 2)
        assert seen == {sector: has for sector, has in found.items() if has[0] in levels}
    human = pyvmm("run", "map", "--chain", names[2])
    assert human.status == (1 if driver == "vhdx" else 0)
    assert driver == "vhdx" or all(name in human.out for name in names)


@pytest.mark.qemu_img
def test_other_operations(chain: tuple[str, list[str], dict[int, tuple[int, int]]], pyvmm: Command) -> None:
    driver, names, found = chain
    for name in names:
        answer = pyvmm("run", "check", "--chain", "--output=json", name)
        assert answer.status == 0, answer
    listed = json.loads(pyvmm("run", "info", "--backing-chain", "--output=json", names[2]).out)
    assert [(os.path.normpath(one["filename"]), one["format"]) for one in listed] == [
        (name, driver) for name in names[::-1]
    ]
    clusters = {sector // 128 for sector in found}
    empty = json.loads(
        pyvmm("run", "measure", "-O", "qcow2", "--output=json", "--size", str(listed[0]["virtual-size"])).out
    )
    alone = json.loads(pyvmm("run", "measure", "-O", "qcow2", "--chain", "--output=json", names[0]).out)
    whole = json.loads(pyvmm("run", "measure", "-O", "qcow2", "--chain", "--output=json", names[2]).out)
    # The base is allocated in blocks; beside them is what the children have elsewhere.
    assert whole["required"] - empty["required"] >= len(clusters) << 16
    assert whole["required"] >= alone["required"]
    with vmm.Machine() as machine:
        assert machine.check(names[2], chain=True).clean
        assert machine.measure(names[2], target="qcow2", chain=True).required == whole["required"]
        followed = machine.info(names[2], chain=True).followed
        assert [os.path.normpath(one.filename) for one in followed] == names[1::-1]


@pytest.mark.qemu_img
@pytest.mark.parametrize("level", [1, 2])
def test_another_file_in_the_parents_place(
    chain: tuple[str, list[str], dict[int, tuple[int, int]]], pyvmm: Command, level: int
) -> None:
    """Of the same size and format; at the first image or below, each operation that uses its content says so."""
    driver, names, _ = chain
    os.unlink(names[level - 1])
    words = ["-b", names[0], "-F", driver] if level == 2 else [names[0], str(SIZE)]
    assert pyvmm("run", "create", "-q", "-f", driver, *words, *names[1:2] * (level == 2)).status == 0
    for words in (["map"], ["measure", "-O", "qcow2"]):
        answer = pyvmm("run", *words, "--chain", names[2])
        assert (answer.status, answer.err.count("\n")) == (EXIT_FAILED, 1), (words, answer)
    answer = pyvmm("run", "check", "--chain", "--output=json", names[2])
    if level == 2:
        assert answer.status == 2, answer
        findings = json.loads(answer.out)["pyvmm"]["findings"]
        assert len([one for one in findings if one["kind"] == "corruption"]) == 1
    else:
        assert answer.status == EXIT_FAILED, answer


def test_replay_of_parents(pyvmm: Command) -> None:
    for driver in ("vpc", "vhdx"):
        assert pyvmm("run", "create", "-q", "-f", driver, "base", "4M").status == 0
        assert pyvmm("run", "create", "-q", "-f", driver, "-b", "base", "-F", driver, "child").status == 0
        for words in (
            ["info", "--chain"],
            ["map", "--output=json", "--chain"],
            ["check", "--chain"],
            ["measure", "--chain"],
        ):
            plain = pyvmm("run", *words, "child")
            assert plain.status == 0, plain
            assert pyvmm("run", *words, "--record", "run.pyvmm", "child") == plain
            answer = pyvmm("replay", "run.pyvmm")
            assert (answer.status, answer.err) == (0, "")
            os.unlink("run.pyvmm")
        os.unlink("base")
        os.unlink("child")


# --- names that lead elsewhere ----------------------------------------------------------------------------------------

NAMES = {
    "itself": (".\\child", "loop"),
    "unc": ("\\\\server\\share\\base", None),
    "climbing": ("..\\..\\..\\..\\etc\\passwd", None),
    "absolute": ("/etc/passwd", None),
    "device": ("/dev/null", None),
    "descriptor": ("/proc/self/fd/0", None),
    "newline": ("a\nb\x1b[31m", None),
    "drive": ("C:base-that-is-not-there", None),
    "deep": ("d\\" * 500 + "x", None),
    "long": ("n" * 1000, None),
    "wide": ("\u4e00" * 1000, None),
}


def vhd_child(name: str) -> bytes:
    locators = tuple(Locator(platform, name.encode("utf-16-le")) for platform in (b"W2ru", b"W2ku"))
    return Vhd(4 << 20, disk_type=DIFFERENCING, parent_identifier=bytes([1]) * 16, locators=locators).build().data


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("driver", ["vpc", "vhdx"])
def test_a_parent_that_is_not_followed(pyvmm: Command, driver: str, name: str) -> None:
    text, says = NAMES[name]
    if driver == "vpc":
        Path("child").write_bytes(vhd_child(text))
    else:
        Vhdx(4 << 20, parent=parent_pairs(path=text)).write(Path("child"))
    for words in (["measure"], ["map"], ["check"], ["info", "--backing-chain"]):
        answer = pyvmm("run", *words, "--chain", "child")
        assert (answer.status, answer.out) == (EXIT_FAILED, ""), (words, answer)
        assert answer.err.count("\n") == 1
        assert "\x1b" not in answer.err
        assert (says or "not followed") in answer.err
    assert pyvmm("run", "info", "--chain", "child").status == 0
    assert pyvmm("run", "info", "child").status == 0


@pytest.mark.parametrize("length", [3071, 3072, 3073, 4094, 4095, 4096, 5000, 32000])
@pytest.mark.parametrize("character", ["n", "\u00e9", "\u4e00"])
def test_vhdx_names_at_the_limits_of_messages(pyvmm: Command, length: int, character: str) -> None:
    """A name that is too long is not followed, and least of all by its beginning: here that one is a file."""
    name = "sub\\" + ".\\" * ((length - 8) // 2) + character
    Vhdx(4 << 20, parent=parent_pairs(path=name)).write(Path("child"))
    os.makedirs("sub")
    (Path("sub") / character).write_bytes(b"")
    answer = pyvmm("run", "measure", "--chain", "child")
    assert answer.status == EXIT_FAILED
    # Each way to refuse is one of a name that was looked at whole: a path of 4095 bytes leads to the empty file.
    followed = len(name.encode()) <= 4095
    assert ("not followed" in answer.err) is not followed, answer.err[-300:]
    assert pyvmm("run", "info", "child").status == 0


def test_vhdx_names_are_not_followed_by_their_beginning(pyvmm: Command) -> None:
    inside = "/".join(["d" * 200] * 15)
    os.makedirs(inside)
    name = inside + "/" + "e" * (3072 - len(inside) - 1)
    assert len(name) == 3072
    Vhdx(4 << 20).write(Path(name))
    Vhdx(4 << 20, parent={"parent_linkage": parent_pairs()["parent_linkage"], "relative_path": name + "f"}).write(
        Path("child")
    )
    answer = pyvmm("run", "measure", "--chain", "child")
    assert answer.status == EXIT_FAILED
    assert "not followed" in answer.err


def test_vhd_locators_of_bytes(pyvmm: Command) -> None:
    """2048 bytes that are no UTF-8: each becomes three."""
    locators = (Locator(b"Wi2r", b"\xff" * 2048), Locator(b"MacX", b"file://" + b"\xfe" * 2000))
    Path("child").write_bytes(Vhd(4 << 20, disk_type=DIFFERENCING, locators=locators).build().data)
    assert pyvmm("run", "info", "child").status == 0
    answer = pyvmm("run", "measure", "--chain", "child")
    assert answer.status == EXIT_FAILED
    assert "not followed" in answer.err


def test_vhdx_keys_are_cut_between_characters(pyvmm: Command) -> None:
    pairs = parent_pairs() | {"k" + "\u00e9" * 200: "v"}
    Vhdx(4 << 20, parent=pairs).write(Path("child"))
    answer = pyvmm("run", "info", "--output=json", "child")
    assert answer.status == 0, answer
    keys = [entry["key"] for entry in json.loads(answer.out)["pyvmm"]["parent-entries"]]
    assert "k" + "\u00e9" * 127 in keys
