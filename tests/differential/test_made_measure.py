"""What measure says, against the length of what qemu-img convert makes of the same source.

A sample runs with the suite; ``PYVMM_MADE=N`` measures N sources of each format (tests/differential/made.py).
"""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from tests.differential.made import (
    KINDS,
    PASSPHRASE,
    VMDK,
    K,
    M,
    Request,
    image_options,
    io,
    random_options,
    rng_of,
    rounds,
    sparse,
    split,
    writes,
)
from tests.differential.oracle import comparable, make, qemu_img
from tests.differential.ours import Ours, explain

pytestmark = [pytest.mark.kvm, pytest.mark.qemu_img]

#: Header and key slots of LUKS1 with a key of 512 bits.
LUKS_HEADER = 2_068_480
TARGETS = ("raw", "qcow2", *(f"vmdk-{name}" for name in VMDK), "vpc-dynamic", "vpc-fixed", "vhdx-dynamic", "vhdx-fixed")


@pytest.fixture(name="secret", scope="module")
def fixture_secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secret") / "passphrase"
    path.write_bytes(PASSPHRASE)
    return path


def measured(ours: Ours, *words: str) -> dict[str, int]:
    answer = ours.run("measure", "--output=json", *words)
    assert answer.rc == 0, f"{words}: {explain(answer)}"
    return {name: int(value) for name, value in comparable(answer.json).items()}


def lengths(folder: Path) -> int:
    """All files of a folder together, which is emptied."""
    total = 0
    for path in folder.iterdir():
        total += path.stat().st_size
        path.unlink()
    return total


def digits(required: int) -> range:
    """What a VMDK may have: identifiers of fewer than eight digits make a descriptor shorter."""
    return range(required - 7, required + 1)


def tiny(words: list[str]) -> bool:
    """Whether a qcow2 target has clusters below 4 KiB."""
    return any(f"cluster_size={size}" in ",".join(words).split(",") for size in (512, 1024, 2048))


def chosen(rng: random.Random, target: str) -> list[str]:
    """-O and -o of a target."""
    driver, _ = split(target)
    options = random_options(rng, target)
    if driver == "vmdk":
        # Their lengths are in the descriptor, which is counted for one name.
        options.pop("toolsversion", None)
    if driver == "raw":
        options = {}
    if options.get("compat") == "v2":
        # Neither measures by this spelling.
        options["compat"] = "0.10"
    # qemu-img ignores `off`.
    if options.get("preallocation", "off") != "off":
        del options["preallocation"]
    return ["-O", driver, *Request(driver, 0, options).option_words]


def source(rng: random.Random, kind: str, grain: int, ours: Ours, secret: Path, folder: Path) -> tuple[Path, str]:
    """A new image with some patterns, in whole grains; its path and its format."""
    driver, _ = split(kind)
    path = folder / "source"
    if driver == "raw":
        sparse(path, rng.randrange(1, 40) * M + rng.choice((0, 512)))
        size = path.stat().st_size
    else:
        options = {"iterations": "1000"} if kind == "luks" else random_options(rng, kind)
        options.pop("preallocation", None)
        key = ["--luks-passphrase-file", str(secret)] if driver == "luks" else []
        size = rng.randrange(1, 12) * 2 * M
        words = Request(driver, size, options).words
        answer = ours.run("create", *words, *key, str(path), str(size))
        assert answer.rc == 0, explain(answer)
        size = qemu_img("info", "-f", driver, "--output=json", str(path)).json["virtual-size"]
    if "streamOptimized" in kind:
        # A grain is written once.
        commands = [f"write -P {rng.randrange(1, 256)} {at} 64k" for at in range(0, size - 64 * K, 5 * 64 * K)]
    else:
        commands = writes(rng, size, 4, grain, max(1, 4 * M // grain))
    io(path, driver, secret, commands)
    return path, driver


@pytest.mark.parametrize("index", range(rounds()))
@pytest.mark.parametrize("kind", [*KINDS, "luks"])
def test_of_files(kind: str, index: int, ours: Ours, secret: Path, tmp_path: Path) -> None:
    rng = rng_of("measure", kind, index)
    ragged = index % 2 == 1
    path, driver = source(rng, kind, 512 if ragged else 2 * M, ours, secret, tmp_path)
    output = tmp_path / "output"
    output.mkdir()
    # The extents of a split disk are files of their own.
    chain = ["--chain"] if driver == "vmdk" else []
    for target in TARGETS:
        words = chosen(rng, target)
        got = measured(ours, *chain, "-f", driver, *words, str(path))
        *opened, file = image_options(path, driver, secret)
        if words[1] in ("raw", "qcow2"):
            expected = qemu_img("measure", "--output=json", *words, *opened, file)
            assert expected.rc == 0, expected.stderr
            assert got == comparable(expected.json), words
        done = qemu_img("convert", *words, *opened, file, str(output / "disk.vmdk"))
        assert done.rc == 0, f"{words}: {done.stderr}"
        made = lengths(output)
        told = f"{kind} for {words}: {got}, made {made}"
        assert got["required"] <= got["fully-allocated"], told
        # With tiny clusters the refcount table outgrows its place while qemu writes; what it leaves behind is free
        # space that neither of the two counts.
        assert made <= got["required"] or tiny(words), told
        if words[1] == "raw":
            assert made == got["required"], told
        # Where whole clusters hold patterns, a conversion finds no zeroes to leave out.
        exact = words[1] in ("vpc", "vhdx") or "Sparse" in target or "Flat" in target
        if exact and not ragged and driver in ("raw", "qcow2"):
            assert made in digits(got["required"]), told
    check_luks(ours, driver, path, secret)


def check_luks(ours: Ours, driver: str, path: Path, secret: Path) -> None:
    """The header and the disk, whatever it holds."""
    size = qemu_img("info", "-f", driver, "--output=json", str(path)).json["virtual-size"]
    chain = ["--chain"] if driver == "vmdk" else []
    got = measured(ours, *chain, "-f", driver, "-O", "luks", str(path))
    assert got == {"required": LUKS_HEADER + size, "fully-allocated": LUKS_HEADER + size}


@pytest.mark.parametrize("index", range(rounds()))
@pytest.mark.parametrize("target", TARGETS)
def test_of_sizes(target: str, index: int, ours: Ours, tmp_path: Path) -> None:
    """Nothing is in it: create makes what is measured."""
    rng = rng_of("measure-size", target, index)
    for number in range(3):
        words = chosen(rng, target)
        size = rng.choice((0, 1, 512, rng.randrange(1, 64 * M), rng.randrange(1, 4096) * M))
        if split(target)[0] in ("vpc", "vhdx", "vmdk"):
            # qemu-img cannot make or read all empty ones, and we make no empty VMDK.
            size = max(size, 512)
        if target == "vhdx-fixed":
            size = min(size, 64 * M)
        got = measured(ours, *words, "--size", str(size))
        folder = tmp_path / str(number)
        folder.mkdir()
        request = ["-f", *words[1:]]
        theirs = qemu_img("create", "-q", *request, str(folder / "disk.vmdk"), str(size))
        assert theirs.rc == 0, theirs.stderr
        made = lengths(folder)
        if split(target)[0] in ("raw", "qcow2"):
            expected = qemu_img("measure", "--output=json", *words, "--size", str(size))
            assert got == comparable(expected.json)
            # The last cluster of metadata, and tables that come with the first data, are counted and not written.
            assert made <= got["required"]
        elif split(target)[0] == "vmdk":
            assert made in digits(got["required"]), f"{words} {size}"
        else:
            assert made == got["required"], f"{words} {size}"
        mine = ours.run("create", "-q", *request, str(folder / "disk.vmdk"), str(size))
        assert mine.rc == 0, explain(mine)
        own = lengths(folder)
        if split(target)[0] == "vmdk":
            assert own in digits(got["required"]), f"{words} {size}"
        elif split(target)[0] != "qcow2":
            assert own == got["required"], f"{words} {size}"
        else:
            assert own <= got["required"], f"{words} {size}"


@pytest.mark.parametrize("index", range(rounds()))
def test_of_chains(index: int, ours: Ours, secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the files below hold counts, as it does in qemu-img."""
    monkeypatch.chdir(tmp_path)
    rng = rng_of("measure-chain", index)
    size = rng.randrange(2, 12) * M
    base = rng.choice(("raw", "qcow2", "vpc", "vhdx", "vmdk"))
    make("create", "-q", "-f", base, "base", str(size), cwd=tmp_path)
    io(tmp_path / "base", base, secret, writes(rng, size, 3))
    below = base
    for name, over in (("middle", "base"), ("top", "middle")):
        cluster = str(1 << rng.randrange(9, 22))
        answer = ours.run("create", "-f", "qcow2", "-o", f"cluster_size={cluster}", "-b", over, "-F", below, name)
        assert answer.rc == 0, explain(answer)
        io(tmp_path / name, "qcow2", secret, writes(rng, size, 2))
        below = "qcow2"
    for target in TARGETS:
        words = chosen(rng, target)
        got = measured(ours, "--chain", "-f", "qcow2", *words, "top")
        if words[1] in ("raw", "qcow2"):
            expected = qemu_img("measure", "--output=json", *words, "-f", "qcow2", "top", cwd=tmp_path)
            assert got == comparable(expected.json), words
        folder = tmp_path / "output"
        folder.mkdir(exist_ok=True)
        make("convert", *words, "-f", "qcow2", "top", str(folder / "disk.vmdk"), cwd=tmp_path)
        assert lengths(folder) <= got["required"] or tiny(words), words


def test_of_luks_made_by_qemu(ours: Ours, secret: Path, tmp_path: Path) -> None:
    """Once: qemu-img takes seconds for a key."""
    path = tmp_path / "source"
    sparse(path, 3 * M + 512)
    key = ["--object", f"secret,id=s,file={secret}"]
    options = "key-secret=s,iter-time=10"
    command = ["qemu-img", "convert", *key, "-f", "raw", "-O", "luks", "-o", options, str(path), str(tmp_path / "made")]
    for _ in range(40):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if "Unable to get accurate CPU usage" not in done.stderr:
            break
    else:
        pytest.skip("qemu-img cannot measure the time of this machine")
    assert done.returncode == 0, done.stderr
    expected = (tmp_path / "made").stat().st_size
    assert measured(ours, "-f", "raw", "-O", "luks", str(path))["required"] == expected
    assert measured(ours, "-O", "luks", "--size", str(3 * M + 512))["required"] == expected
