"""`map` gives qemu-img's extents to the letter: of every image of the matrix, of random contents, of any range."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

import vmm
from tests.differential.generator import random_qcow2
from tests.differential.oracle import Answer, make, qemu_img, qemu_io
from tests.differential.ours import REFUSALS, Ours, explain
from tests.differential.recipes import KIB, MIB, SEED, Images, Recipe, all_recipes, patterns, probed_as

pytestmark = [pytest.mark.kvm, pytest.mark.qemu_img]

#: Formats whose maps are compared on random contents: driver name -> creation options.  A format that qemu-img maps
#: as a whole (VHDX, LUKS) belongs here as well, if ours answers the same.
FORMATS: dict[str, tuple[str, ...]] = {
    "raw": ("",),
    "vpc": ("", "force_size=on", "subformat=fixed", "subformat=fixed,force_size=on"),
    "qcow2": (
        "",
        "cluster_size=512",
        "cluster_size=4k,compat=0.10",
        "cluster_size=2M",
        "extended_l2=on,cluster_size=16k",
        "extended_l2=on",
        "preallocation=metadata",
        "preallocation=metadata,cluster_size=4k",
        "preallocation=falloc",
        "preallocation=full",
        "lazy_refcounts=on,refcount_bits=64,cluster_size=512",
    ),
}
#: Formats without zero clusters: qemu-io's write -z is a write of zeroes there.
WITHOUT_ZEROES = ("raw", "vpc")
#: Formats of which single clusters can be compressed, those that are not allocated yet.
COMPRESSING = ("qcow2",)


def settled(path: Path) -> str:
    """The path of a file whose data are on their disk: before that, what a file takes changes by itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return str(path)


def same(ours: Ours, *arguments: str, probed: tuple[str, ...] = ()) -> Answer:
    """Both answers in both outputs; what qemu-img printed."""
    for output in ("json", "human"):
        common = [f"--output={output}", *arguments]
        oracle, answer = qemu_img("map", *probed, *common), ours.run("map", *common)
        assert answer.rc == oracle.rc, f"{common}: qemu-img: {explain(oracle)}\nours: {explain(answer)}"
        if oracle.rc == 0:
            assert answer.stdout == oracle.stdout, common
        elif output == "human":
            assert answer.stdout == oracle.stdout, common
            assert oracle.stderr.removeprefix("qemu-img: ") in answer.stderr
        if output == "json":
            printed = oracle
    return printed


@pytest.mark.parametrize("recipe", all_recipes(), ids=lambda recipe: recipe.name)
def test_image(recipe: Recipe, ours: Ours, images: Images) -> None:
    same(ours, "-f", recipe.driver, settled(images.path(recipe)))


@pytest.mark.parametrize("recipe", all_recipes()[::9], ids=lambda recipe: recipe.name)
def test_detected(recipe: Recipe, ours: Ours, images: Images) -> None:
    """Without `-f`, detection decides as qemu-img's does, but for fixed VHDs: docs/differences.json, fixed-vhd."""
    path = settled(images.path(recipe))
    if os.path.getsize(path) > 0:
        same(ours, path, probed=probed_as(recipe, path))


def _contents(dice: random.Random, driver: str, options: str, size: int) -> list[str]:
    zeroes = driver not in WITHOUT_ZEROES and "compat=0.10" not in options
    commands = [command for _ in range(3) for command in patterns(dice, size, zero_writes=zeroes)]
    if driver in COMPRESSING and "preallocation" not in options and dice.random() < 0.5:
        cluster = 2 * MIB if "2M" in options else 64 * KIB
        commands.insert(0, f"write -c -P 9 {dice.randrange(size // cluster) * cluster} {cluster}")
    return commands


def _range(dice: random.Random, size: int) -> list[str]:
    """Any start and length, often at the edges of what there is."""
    start = dice.choice((0, 1, 511, 512, size - 1, size, size + 1, dice.randrange(size), dice.randrange(size) & ~511))
    length = dice.choice((0, 1, 512, size, size - start, dice.randrange(size), (1 << 62) - 1))
    words = []
    if dice.random() < 0.8:
        words.append(f"--start-offset={max(start, 0)}")
    if dice.random() < 0.8:
        words.append(f"--max-length={max(length, 0)}")
    return words


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("driver", "options"), [(driver, options) for driver, choices in FORMATS.items() for options in choices]
)
def test_random_content(driver: str, options: str, seed: int, ours: Ours, tmp_path: Path) -> None:
    dice = random.Random(f"{SEED}/{driver}/{options}/{seed}")
    path = tmp_path / "image"
    size = dice.randrange(4 * MIB, 24 * MIB) & ~511
    make("create", "-q", "-f", driver, *(["-o", options] if options else []), str(path), str(size))
    # What VHD rounds the size to by its geometry may be less.
    size = int(qemu_img("info", "-f", driver, "--output=json", str(path)).json["virtual-size"])
    qemu_io(path, driver, *_contents(dice, driver, options, size))
    name = settled(path)
    whole = same(ours, "-f", driver, name)
    assert whole.rc == 0
    for _ in range(6):
        same(ours, "-f", driver, *_range(dice, size), name)


@pytest.mark.parametrize("index", range(120))
def test_random_image(index: int, ours: Ours, tmp_path: Path) -> None:
    """Damaged images: what qemu-img printed before it met the damage is what ours printed, and both say so."""
    path = tmp_path / "image"
    path.write_bytes(random_qcow2(f"{SEED}/map/{index}"))
    common = ["-f", "qcow2", "--output=json", settled(path)]
    oracle, answer = qemu_img("map", *common), ours.run("map", *common)
    if oracle.timed_out:
        assert answer.rc in (0, 1), explain(answer)
        return
    assert answer.rc == oracle.rc, f"qemu-img: {explain(oracle)}\nours: {explain(answer)}"
    if oracle.rc == 0:
        assert answer.stdout == oracle.stdout
        return
    shown = json.loads(answer.stdout)
    error = shown[-1] if isinstance(shown, list) else shown
    assert error["error"]["code"] == "refused"
    if isinstance(shown, list):
        assert answer.stdout.startswith(oracle.stdout.removesuffix(",\n"))


@pytest.mark.parametrize(
    "words",
    [
        *(["-s", text] for text in ("", "x", "-1", "1x", "8E", "9223372036854775808", "1.5", "0x", " 5", "+5", "1.5k")),
        *(["-l", text] for text in ("", "x", "-1", "8E", "18446744073709551616", "0x10", "7E")),
        ["--output=xml"],
        ["-f", "nonsense"],
        ["--no-such-option"],
    ],
    ids=" ".join,
)
def test_words(words: list[str], ours: Ours, tmp_path: Path) -> None:
    path = tmp_path / "image"
    make("create", "-q", "-f", "qcow2", str(path), "1M")
    oracle, answer = qemu_img("map", *words, str(path)), ours.run("map", *words, str(path))
    if oracle.rc == 0:
        assert (answer.rc, answer.stdout) == (0, oracle.stdout)
        return
    assert answer.rc in REFUSALS
    said = " ".join(oracle.stderr.replace("qemu-img: ", " ").split("Try ")[0].split())
    if words[0] in ("-s", "-l", "--output=xml"):
        assert said in " ".join(answer.stderr.split()), (said, answer.stderr)


def test_a_length_that_wraps(ours: Ours, tmp_path: Path) -> None:
    """qemu-img's sum of start and length wraps, and it prints an extent of no bytes: differences.json, map-wrap."""
    path = tmp_path / "image"
    make("create", "-q", "-f", "qcow2", str(path), "1M")
    words = ["--output=json", "--start-offset=512", f"--max-length={(1 << 63) - 1}", str(path)]
    (wrapped,) = json.loads(qemu_img("map", *words).stdout)
    (whole,) = json.loads(ours.run("map", *words).stdout)
    assert wrapped["length"] == 0
    assert (whole["start"], whole["length"]) == (512, MIB - 512)


def test_a_release_that_says_what_is_compressed(ours: Ours, tmp_path: Path) -> None:
    """From 8.2 on; before, a compressed cluster and its neighbour without an offset are one extent."""
    from tests.images import qcow2_writer as q

    image = q.Qcow2(4 * 65_536, clusters={0: q.Compressed(), 1: q.Compressed(), 2: q.Data()})
    path = tmp_path / "image"
    path.write_bytes(image.build().data)
    same(ours, settled(path))
    newer = json.loads(ours.run("map", "--output=json", "--qemu-version=8.2", str(path)).stdout)
    assert [list(extent) for extent in newer[:2]] == [
        ["start", "length", "depth", "present", "zero", "data", "compressed"],
        ["start", "length", "depth", "present", "zero", "data", "compressed", "offset"],
    ]
    assert [extent["compressed"] for extent in newer] == [True, False, False]
    older = json.loads(ours.run("map", "--output=json", "--qemu-version=8.1", str(path)).stdout)
    assert [{key: extent[key] for key in extent if key != "compressed"} for extent in newer] == older


def test_a_backing_file_is_not_followed(ours: Ours, tmp_path: Path) -> None:
    """What the image itself has is printed; where the other file would answer, the array ends with the reason."""
    make("create", "-q", "-f", "raw", str(tmp_path / "base"), "1M")
    path = tmp_path / "image"
    make("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", str(path))
    qemu_io(path, "qcow2", "write 0 64k")
    answer = ours.run("map", "--output=json", settled(path))
    assert answer.rc == 1
    extent, error = json.loads(answer.stdout)
    assert (extent["start"], extent["length"]) == (0, 65_536)
    assert error["error"]["guest-code"] == "needs-reference"
    assert "--chain" in error["error"]["message"]


def test_exact_where_qemu_knows_nothing(tmp_path: Path) -> None:
    """qemu-img calls all of a VHDX data; who asks for it learns which blocks there are."""
    path = tmp_path / "disk.vhdx"
    make("create", "-q", "-f", "vhdx", "-o", "block_size=1M", str(path), "8M")
    qemu_io(path, "vhdx", "write -P 7 3M 512")
    whole = vmm.map_image(path)
    assert [(extent.start, extent.length, extent.data) for extent in whole.extents] == [(0, 8 << 20, True)]
    exact = vmm.map_image(path, exact=True)
    assert [extent.start >> 20 for extent in exact.extents if extent.data] == [3]
    assert sum(extent.length for extent in exact.extents) == 8 << 20


@pytest.mark.parametrize("options", ["", "extended_l2=on"])
def test_a_data_file_is_not_followed(options: str, ours: Ours, tmp_path: Path) -> None:
    """Nothing in it is asked for as long as only holes are met; the first cluster there is refused."""
    path = tmp_path / "image.qcow2"
    make("create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data.raw'}{options and ','}{options}", str(path), "1M")
    same(ours, "-f", "qcow2", str(path))
    qemu_io(path, "qcow2", "write 512k 64k")
    for words in (("-s", "64k", "-l", "64k"), ("-s", "640k")):
        same(ours, "-f", "qcow2", *words, str(path))
    answer = ours.run("map", "-f", "qcow2", "--output=json", str(path))
    assert answer.rc == 1, explain(answer)
    assert json.loads(answer.stdout)[-1]["error"]["guest-code"] == "needs-reference", explain(answer)
