"""VMDK: what is created, measured and grown, beside qemu-img, with the guest's code compiled for the host."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.differential.oracle import comparable, make, qemu_img, qemu_io
from tests.differential.ours import REFUSALS, Ours, explain
from tests.differential.recipes import SEED
from tests.differential.tool import ask, options_argument, options_words
from vmm.machine.runner import MachineRunner
from vmm.operations.create import create
from vmm.operations.session import Session

pytestmark = pytest.mark.qemu_img

SUBFORMATS = ("monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "streamOptimized")
GRAIN = 65_536
GIB = 1 << 30
#: Bytes of a compressed grain at most.
COMPRESSED = 129 * 512


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def identifier(path: Path, which: str = "cid") -> int:
    value = qemu_img("info", "--output=json", str(path)).json["format-specific"]["data"][which]
    assert isinstance(value, int)
    return value


def described(path: Path) -> dict[str, Any]:
    """`info` without names of files, which carry the folder."""
    answer = qemu_img("info", "--output=json", str(path))
    assert answer.rc == 0, answer.stderr
    return comparable(answer.json, "filename", "full-backing-filename")


def twins(tmp_path: Path) -> tuple[Path, Path]:
    folders = tmp_path / "theirs", tmp_path / "ours"
    for folder in folders:
        folder.mkdir()
    return folders


def cases() -> list[tuple[str, int, dict[str, str]]]:
    rng = random.Random(SEED + 300)
    rows: list[tuple[str, int, dict[str, str]]] = []
    for subformat in SUBFORMATS:
        flat = subformat.endswith("Flat")
        for size in (1, 512, 513, GRAIN, GRAIN + 1, 32 << 20, (32 << 20) + 1, 2 * GIB, 2 * GIB + 1, 5 * GIB, 40 * GIB):
            options = {"subformat": subformat}
            if rng.random() < 0.5:
                options["adapter_type"] = rng.choice(("ide", "buslogic", "lsilogic", "legacyESX"))
            if rng.random() < 0.3:
                options["toolsversion"] = rng.choice(("", "1", "2147483647"))
            if rng.random() < 0.3:
                options |= rng.choice(({"compat6": "on"}, {"hwversion": "11"}, {"hwversion": "undefined"}))
            if not flat and rng.random() < 0.5:
                options["zeroed_grain"] = rng.choice(("on", "off"))
            if rng.random() < 0.3:
                options["preallocation"] = rng.choice(("off", "falloc"))
            rows.append((f"{subformat}-{size}", size, options))
    rows += [
        ("8T", 8 << 40, {}),
        ("largest", (256 << 40) - (32 << 20), {}),
        ("many", 300 * GIB, {"subformat": SUBFORMATS[3]}),
    ]
    return rows


@pytest.mark.parametrize(("size", "options"), [row[1:] for row in cases()], ids=[row[0] for row in cases()])
def test_files_are_the_same_to_the_byte(size: int, options: dict[str, str], tool: Path, tmp_path: Path) -> None:
    theirs, ours = twins(tmp_path)
    oracle = qemu_img("create", "-f", "vmdk", *options_argument(options), str(theirs / "a.b.vmdk"), str(size))
    assert oracle.rc == 0, oracle.stderr
    cid = identifier(theirs / "a.b.vmdk")
    answer = ask(
        tool, "create", "vmdk", str(ours / "a.b.vmdk"), f"size={size}", f"random={cid}", *options_words(options)
    )
    line = " ".join(f"{option['name']}={option['value']}" for option in answer["options"])
    assert oracle.stdout == f"Formatting '{theirs}/a.b.vmdk', fmt=vmdk {line}\n"
    assert described(ours / "a.b.vmdk") == described(theirs / "a.b.vmdk")
    names = sorted(os.listdir(theirs))
    assert sorted(os.listdir(ours)) == names
    for name in names:
        assert (ours / name).stat().st_size == (theirs / name).stat().st_size
        if (ours / name).stat().st_size < 1 << 24:
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    if size <= 8 * GIB:
        assert qemu_img("check", "-f", "vmdk", str(ours / "a.b.vmdk")).rc == 0
        make("compare", "-f", "vmdk", "-F", "vmdk", str(ours / "a.b.vmdk"), str(theirs / "a.b.vmdk"))


@pytest.mark.parametrize("subformat", ["monolithicSparse", "twoGbMaxExtentSparse", "streamOptimized"])
def test_overlays_are_the_same_to_the_byte(subformat: str, tool: Path, tmp_path: Path) -> None:
    theirs, ours = twins(tmp_path)
    make("create", "-q", "-f", "vmdk", str(tmp_path / "base.vmdk"), "3M")
    qemu_io(tmp_path / "base.vmdk", "vmdk", "write -P 7 1M 64k")
    backing = ["-b", "../base.vmdk", "-F", "vmdk", "-o", f"subformat={subformat}"]
    oracle = qemu_img("create", "-f", "vmdk", *backing, str(theirs / "top.vmdk"), "4M")
    assert oracle.rc == 0, oracle.stderr
    words = ["backing_file=../base.vmdk", "backing_format=vmdk", f"subformat={subformat}"]
    parent = identifier(tmp_path / "base.vmdk")
    cid = identifier(theirs / "top.vmdk")
    ask(
        tool,
        "create",
        "vmdk",
        str(ours / "top.vmdk"),
        f"size={4 << 20}",
        f"random={cid}",
        f"parent-cid={parent}",
        *words,
    )
    assert files(ours) == files(theirs)
    make("compare", str(tmp_path / "base.vmdk"), str(ours / "top.vmdk"))
    # With another identifier the parent is not read.
    ask(tool, "create", "vmdk", str(ours / "top.vmdk"), f"size={4 << 20}", f"parent-cid={parent ^ 1}", *words)
    assert qemu_img("compare", str(tmp_path / "base.vmdk"), str(ours / "top.vmdk")).rc > 1
    refused = ask(tool, "create", "vmdk", str(ours / "other.vmdk"), "size=512", *words)
    assert refused["code"] == "needs_reference"


REFUSED: tuple[tuple[int, dict[str, str], Sequence[str]], ...] = (
    (1, {"adapter_type": "scsi"}, ()),
    (1, {"subformat": "flat"}, ()),
    (1, {"preallocation": "metadata"}, ()),
    (1, {"preallocation": "most"}, ()),
    (1, {"compat6": "on", "hwversion": "4"}, ()),
    (1, {"subformat": "monolithicFlat", "zeroed_grain": "on"}, ()),
    (1, {"subformat": "twoGbMaxExtentFlat"}, ("-u", "-b", "p", "-F", "vmdk")),
    (1, {}, ("-u", "-b", "p", "-F", "raw")),
)


@pytest.mark.parametrize(("size", "options", "arguments"), REFUSED)
def test_the_words_of_refusals(
    size: int, options: dict[str, str], arguments: Sequence[str], tool: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.vmdk"
    oracle = qemu_img("create", "-f", "vmdk", *options_argument(options), *arguments, str(path), str(size))
    assert oracle.rc == 1
    words = options_words(options)
    if arguments:
        words += [f"backing_file={arguments[2]}", f"backing_format={arguments[4]}"]
    answer = ask(tool, "create", "vmdk", str(path), f"size={size}", *words)
    assert f"qemu-img: {path}: {answer['error'].removeprefix('vmdk: ')}\n" == oracle.stderr


def sparse_disk(path: Path, size: int, rng: random.Random) -> None:
    """A raw disk with extents of random bytes, none of which is zero in a whole block."""
    with path.open("wb") as file:
        file.truncate(size)
        for _ in range(rng.randrange(6)):
            offset = rng.randrange(size) // 4096 * 4096
            length = min(size - offset, rng.choice((512, 4096, 40_000, 65_536, 200_000)))
            file.seek(offset)
            file.write(rng.randbytes(length))


@pytest.mark.parametrize("seed", range(12))
def test_measure_is_what_convert_makes(seed: int, tool: Path, tmp_path: Path) -> None:
    rng = random.Random(SEED + 400 + seed)
    size = rng.choice((512, 100_352, 4 << 20, (2 * GIB) + 512 * rng.randrange(999), 7 * GIB))
    raw = tmp_path / "raw"
    sparse_disk(raw, size, rng)
    for subformat in SUBFORMATS:
        folder = tmp_path / subformat
        folder.mkdir()
        image = folder / "disk.vmdk"
        make("convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={subformat}", str(raw), str(image))
        real = sum(path.stat().st_size for path in folder.iterdir())
        answer = ask(tool, "measure", "vmdk", f"file={raw}", "format=raw", f"subformat={subformat}")
        assert answer["virtual_size"] == qemu_img("info", "--output=json", str(image)).json["virtual-size"]
        assert real <= answer["required"] <= answer["fully_allocated"], subformat
        descriptor = image.read_bytes()[:4096] if image.stat().st_size < 1 << 16 else b""
        if subformat == "streamOptimized":
            grains = (answer["required"] - ask(tool, "measure", "vmdk", f"size={size}")["required"]) // COMPRESSED
            # Random bytes do not compress; grains that are not full of them do.
            assert real >= answer["required"] - grains * (COMPRESSED - 512), subformat
        else:
            # qemu-img writes identifiers without leading zeroes.
            digits = len(descriptor.partition(b"\nCID=")[2].partition(b"\n")[0])
            short = 8 - digits if digits and len(descriptor) % 512 else 0
            assert answer["required"] == real + short, subformat


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_fully_allocated_is_a_full_image(subformat: str, tool: Path, tmp_path: Path) -> None:
    raw, folder = tmp_path / "raw", tmp_path / "full"
    folder.mkdir()
    raw.write_bytes(random.Random(SEED).randbytes(5 * GRAIN + 512))
    make("convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={subformat}", str(raw), str(folder / "disk.vmdk"))
    real = sum(path.stat().st_size for path in folder.iterdir())
    answer = ask(tool, "measure", "vmdk", f"size={5 * GRAIN + 512}", f"subformat={subformat}")
    if subformat == "streamOptimized":
        # The last grain has one sector of data.
        assert real <= answer["fully_allocated"] <= real + COMPRESSED
    else:
        assert real == answer["fully_allocated"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.integers(0, 2**64 - 1)
    | st.integers(0, 63).flatmap(lambda bit: st.sampled_from((2**bit - 1, 2**bit, 2**bit + 1))),
    subformat=st.sampled_from(SUBFORMATS),
    zeroed=st.booleans(),
    adapter=st.sampled_from(("ide", "lsilogic")),
)
def test_any_size_is_measured_or_refused(size: int, subformat: str, zeroed: bool, adapter: str, tool: Path) -> None:
    """Categories A1 and A3: no number ever wraps, whatever is asked for."""
    options = {"subformat": subformat, "zeroed_grain": "on" if zeroed else "off", "adapter_type": adapter}
    answer = ask(tool, "measure", "vmdk", f"size={size}", *options_words(options))
    if "error" in answer:
        flat_and_zeroed = zeroed and subformat.endswith("Flat")
        assert answer["code"] == ("invalid_option" if flat_and_zeroed and size < 2**63 else "too_large")
        assert flat_and_zeroed or size > 40 << 40, answer
        return
    assert answer["virtual_size"] == -(-size // 512) * 512
    assert answer["required"] <= answer["fully_allocated"]
    if subformat.endswith("Flat"):
        assert answer["virtual_size"] < answer["required"] < answer["virtual_size"] + (1 << 20)
    else:
        tables = -(-size // (512 * GRAIN))
        assert answer["required"] >= tables * 2 * 2048


class TestGrow:
    """Images of qemu-img, grown step by step."""

    def build(self, folder: Path, size: int, options: str = "") -> tuple[Path, Path]:
        """An image with random data at both ends and in the middle, and the same as a raw disk."""
        image, raw = folder / "image.vmdk", folder / "raw"
        make("create", "-q", "-f", "vmdk", *(["-o", options] if options else []), str(image), str(size))
        make("create", "-q", "-f", "raw", str(raw), str(size))
        for pattern, offset, length in ((1, 0, 512), (2, size // 2 // 512 * 512, 4096), (3, size - 512, 512)):
            for path, driver in ((image, "vmdk"), (raw, "raw")):
                qemu_io(path, driver, f"write -P {pattern} {offset} {min(length, size - offset)}")
        return image, raw

    @pytest.mark.parametrize(
        ("size", "new"),
        [
            (66_048, 131_072),
            (66_048, 32 << 20),
            (32 << 20, (32 << 20) + 512),
            (5 << 20, 4 * GIB),
            (5 << 20, 4 * GIB + 512),
            (5 * GIB, 9 * GIB),
        ],
    )
    @pytest.mark.parametrize("options", ["", "zeroed_grain=on,adapter_type=lsilogic"])
    def test_every_prefix(self, size: int, new: int, options: str, tool: Path, tmp_path: Path) -> None:
        image, raw = self.build(tmp_path, size, options)
        before = image.read_bytes()
        total = ask(tool, "resize", "vmdk", str(image), f"size={new}")["steps"]
        for stop in range(total + 1):
            image.write_bytes(before)
            ask(tool, "resize", "vmdk", str(image), f"size={new}", f"steps={stop}")
            found = qemu_img("info", "--output=json", str(image)).json
            assert found["virtual-size"] in (size, new)
            assert qemu_img("check", str(image)).rc == 0
            os.truncate(raw, found["virtual-size"])
            make("compare", "-f", "vmdk", "-F", "raw", str(image), str(raw))
            os.truncate(raw, size)
        assert found["virtual-size"] == new
        # What is written then is where it belongs.
        qemu_io(image, "vmdk", f"write -P 9 {new - 512} 512", "write -P 8 512 512")
        os.truncate(raw, new)
        qemu_io(raw, "raw", f"write -P 9 {new - 512} 512", "write -P 8 512 512")
        make("compare", "-f", "vmdk", "-F", "raw", str(image), str(raw))
        assert qemu_img("check", str(image)).rc == 0

    @pytest.mark.parametrize("subformat", SUBFORMATS[1:])
    def test_other_subformats_are_refused(self, subformat: str, tool: Path, tmp_path: Path) -> None:
        make("create", "-q", "-f", "vmdk", "-o", f"subformat={subformat}", str(tmp_path / "a.vmdk"), "1M")
        for path in tmp_path.iterdir():
            before = path.read_bytes()
            assert ask(tool, "resize", "vmdk", str(path), "size=2097152")["code"] == "unsupported"
            assert path.read_bytes() == before

    def test_an_overlay_is_refused(self, tool: Path, tmp_path: Path) -> None:
        make("create", "-q", "-f", "vmdk", str(tmp_path / "base.vmdk"), "4M")
        make(
            "create",
            "-q",
            "-f",
            "vmdk",
            "-b",
            "base.vmdk",
            "-F",
            "vmdk",
            str(tmp_path / "top.vmdk"),
            "1M",
            cwd=tmp_path,
        )
        assert ask(tool, "resize", "vmdk", str(tmp_path / "top.vmdk"), "size=2097152")["code"] == "needs_reference"


def without_identifier(answer: dict[str, Any]) -> dict[str, Any]:
    """`info` without the CID, which is random, and without names of files, which carry the folder."""
    answer["format-specific"]["data"].pop("cid")
    return comparable(answer, "filename")


@pytest.mark.kvm
class TestCommand:
    """The same through the command and the machine."""

    @pytest.mark.parametrize("subformat", SUBFORMATS)
    @pytest.mark.parametrize("size", ["1", "5G"])
    def test_create(self, subformat: str, size: str, ours: Ours, tmp_path: Path) -> None:
        theirs, mine = twins(tmp_path)
        words = ["create", "-f", "vmdk", "-o", f"subformat={subformat},adapter_type=lsilogic"]
        oracle = qemu_img(*words, str(theirs / "a.vmdk"), size)
        answer = ours.run(*words, str(mine / "a.vmdk"), size)
        assert answer.rc == 0, explain(answer)
        assert answer.stdout == oracle.stdout.replace(str(theirs), str(mine))
        lengths = [sorted((path.name, path.stat().st_size) for path in folder.iterdir()) for folder in (theirs, mine)]
        if subformat in SUBFORMATS[1:4]:
            # The text of the descriptor has an identifier without leading zeroes.
            lengths = [[row for row in folder if row[0] != "a.vmdk"] for folder in lengths]
        assert lengths[0] == lengths[1]
        described = [qemu_img("info", "--output=json", str(folder / "a.vmdk")).json for folder in (theirs, mine)]
        assert without_identifier(described[0]) == without_identifier(described[1])
        assert qemu_img("check", str(mine / "a.vmdk")).rc == 0
        make("compare", str(mine / "a.vmdk"), str(theirs / "a.vmdk"))

    def test_more_files_than_a_machine_has_devices(self, ours: Ours, tmp_path: Path) -> None:
        image = tmp_path / "a.vmdk"
        answer = ours.run("create", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", str(image), "101G")
        assert answer.rc == 0, explain(answer)
        assert sorted(os.listdir(tmp_path)) == [*(f"a-s{number:03}.vmdk" for number in range(1, 52)), "a.vmdk"]
        assert qemu_img("check", str(image)).rc == 0
        qemu_io(image, "vmdk", "write -P 1 0 64k", f"write -P 2 {100 * GIB} 64k", f"write -P 3 {33 * GIB} 512")

    @pytest.mark.parametrize("mode", ["off", "falloc", "full"])
    def test_preallocation_of_flat_extents(self, mode: str, ours: Ours, tmp_path: Path) -> None:
        image = tmp_path / "a.vmdk"
        options = f"subformat=monolithicFlat,preallocation={mode}"
        answer = ours.run("create", "-f", "vmdk", "-o", options, str(image), "1M")
        assert answer.rc == 0, explain(answer)
        flat = (tmp_path / "a-flat.vmdk").stat()
        assert flat.st_size == 1 << 20
        assert flat.st_blocks * 512 >= (0 if mode == "off" else 1 << 20)
        assert (tmp_path / "a-flat.vmdk").read_bytes() == bytes(1 << 20)

    @pytest.mark.parametrize(
        "options",
        ["subformat=twoGbMaxExtentFlat,zeroed_grain=on", "adapter_type=no", "cluster_size=64k", 'hwversion=4"\n'],
    )
    def test_a_refusal_leaves_nothing(self, options: str, ours: Ours, tmp_path: Path) -> None:
        answer = ours.run("create", "-f", "vmdk", "-o", options, str(tmp_path / "a.vmdk"), "5G")
        assert answer.rc in REFUSALS
        assert list(tmp_path.iterdir()) == []

    def test_a_file_that_cannot_be_replaced_leaves_nothing_else(self, ours: Ours, tmp_path: Path) -> None:
        (tmp_path / "a-f002.vmdk").mkdir()
        answer = ours.run("create", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentFlat", str(tmp_path / "a.vmdk"), "5G")
        assert answer.rc == 1
        assert f"{tmp_path}/a-f002.vmdk" in answer.stderr
        assert os.listdir(tmp_path) == ["a-f002.vmdk"]

    def test_the_budget_of_writes_ends_it(self, ours: Ours, tmp_path: Path) -> None:
        words = ["create", "-f", "vmdk", "-o", "subformat=monolithicFlat,preallocation=full", "--max-write", "1M"]
        answer = ours.run(*words, str(tmp_path / "a.vmdk"), "2M")
        assert answer.rc == 75
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("subformat", SUBFORMATS)
    def test_measure(self, subformat: str, ours: Ours, tool: Path, tmp_path: Path) -> None:
        raw = tmp_path / "raw"
        sparse_disk(raw, 9 << 20, random.Random(SEED))
        answer = ours.run("measure", "--output=json", "-O", "vmdk", "-o", f"subformat={subformat}", str(raw))
        assert answer.rc == 0, explain(answer)
        expected = ask(tool, "measure", "vmdk", f"file={raw}", "format=raw", f"subformat={subformat}")
        assert answer.json["required"] == expected["required"]
        assert answer.json["fully-allocated"] == expected["fully_allocated"]

    def test_the_same_request_gives_the_same_bytes(self, ours: Ours, tmp_path: Path) -> None:
        contents = []
        for folder in twins(tmp_path):
            with MachineRunner() as runner:
                create(
                    Session(runner),
                    str(folder / "a.vmdk"),
                    "vmdk",
                    size="3G",
                    entropy=bytes(range(32)),
                    options={"subformat": "twoGbMaxExtentSparse"},
                )
            contents.append(files(folder))
        assert contents[0] == contents[1]
        assert b"\nCID=3020100\n" in contents[0]["a.vmdk"]
