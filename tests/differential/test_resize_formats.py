"""`pyvmm run resize` of VMDK, VHDX and LUKS by the real command in its jail, looked at with qemu-img and qemu-io."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.differential.oracle import comparable, make, qemu_img, qemu_io
from tests.differential.ours import explain, run_process

pytestmark = [pytest.mark.kvm, pytest.mark.qemu_img]

K, M, G = 1 << 10, 1 << 20, 1 << 30
PASSPHRASE = "of the tests"


@dataclass(frozen=True)
class Growth:
    """An image by ``maker`` (ours or qemu-img), grown."""

    name: str
    driver: str
    old: int
    new: int
    options: str = ""
    maker: str = "qemu-img"


GROWTHS = (
    Growth("vmdk-in-a-table", "vmdk", M, 20 * M),
    Growth("vmdk-tables", "vmdk", M + 512, G),
    Growth("vmdk-directory", "vmdk", M + 512, 5 * G + 512),
    Growth("vmdk-zeroed", "vmdk", 5 * M, 9 * G, "zeroed_grain=on"),
    Growth("vmdk-ours", "vmdk", 3 * M, 5 * G, maker="ours"),
    Growth("vhdx-in-a-block", "vhdx", 3 * M, 5 * M + 512, "block_size=8M"),
    Growth("vhdx-in-the-table", "vhdx", 3 * M, G, "block_size=1M"),
    Growth("vhdx-table-moves", "vhdx", 3 * M, 129 * G, "block_size=1M"),
    Growth("vhdx-states-off", "vhdx", 3 * M, G, "block_size=1M,block_state_zero=off"),
    Growth("vhdx-fixed", "vhdx", 3 * M, 12 * M, "subformat=fixed,block_size=1M"),
    Growth("vhdx-ours", "vhdx", 3 * M, 129 * G, "block_size=1M", maker="ours"),
    Growth("vhdx-ours-fixed", "vhdx", 3 * M, 12 * M, "subformat=fixed,block_size=1M", maker="ours"),
)


def build(growth: Growth, path: Path) -> None:
    """With patterns at both ends and in the middle of the old disk."""
    words = ("create", "-q", "-f", growth.driver, *(("-o", growth.options) if growth.options else ()))
    if growth.maker == "ours":
        made = run_process("run", *words, str(path), str(growth.old))
        assert made.rc == 0, explain(made)
    else:
        make(*words, str(path), str(growth.old))
    qemu_io(path, growth.driver, *(f"write -P {seed} {at} {length}" for seed, at, length in old_content(growth)))


def old_content(growth: Growth) -> list[tuple[int, int, int]]:
    """Patterns: byte, offset, length."""
    return [(1, 0, 100 * K), (2, growth.old // 1024 * 512, 4 * K), (3, growth.old - 512, 512)]


@pytest.mark.parametrize("growth", GROWTHS, ids=lambda one: one.name)
def test_growth(growth: Growth, tmp_path: Path) -> None:
    path = tmp_path / "image"
    build(growth, path)
    before = path.read_bytes()
    answer = run_process("run", "resize", str(path), str(growth.new))
    assert (answer.rc, answer.stdout, answer.stderr) == (0, "Image resized.\n", ""), explain(answer)

    assert qemu_img("info", "-f", growth.driver, "--output=json", str(path)).json["virtual-size"] == growth.new
    checked = qemu_img("check", "-f", growth.driver, str(path))
    assert checked.rc == 0, explain(checked)
    ours = run_process("run", "check", "-f", growth.driver, str(path))
    assert ours.rc == 0, explain(ours)
    infos = [
        qemu_img("info", "--output=json", str(path)).json,
        run_process("run", "info", "--output=json", str(path)).json,
    ]
    assert comparable(infos[0]) == comparable(infos[1])

    # Old content, zeroes from there to the end: all of it when that is little.
    kept = [f"read -P {seed} {at} {length}" for seed, at, length in old_content(growth)]
    room = growth.new - growth.old
    zeroes = [(growth.old, min(room, 70 * M)), (growth.new - min(room, M), min(room, M))]
    qemu_io(path, growth.driver, *kept, *(f"read -P 0 {at} {length}" for at, length in zeroes))

    # It is written to as any other disk: the first and last bytes of what is new, a place between.
    middle = (growth.old + growth.new) // 2 // 512 * 512
    new = [(4, growth.old, 512), (5, growth.new - 512, 512), (6, middle, 4 * K)]
    qemu_io(path, growth.driver, *(f"write -P {seed} {at} {length}" for seed, at, length in new))
    qemu_io(path, growth.driver, *kept, *(f"read -P {seed} {at} {length}" for seed, at, length in new))
    assert qemu_img("check", "-f", growth.driver, str(path)).rc == 0
    assert run_process("run", "check", "-f", growth.driver, str(path)).rc == 0
    assert path.stat().st_size < len(before) + 40 * M


def test_relative_and_the_same_size(tmp_path: Path) -> None:
    for driver in ("vmdk", "vhdx"):
        path = tmp_path / driver
        make("create", "-q", "-f", driver, str(path), "3M")
        before = path.read_bytes()
        for size in ("3M", "+0"):
            assert run_process("run", "resize", "-f", driver, str(path), size).rc == 0
            assert qemu_img("info", "--output=json", str(path)).json["virtual-size"] == 3 * M
        if driver == "vhdx":
            assert path.read_bytes() == before
        for size, expected in (("+1M", 4 * M), ("+512", 4 * M + 512), ("+1", 4 * M + 1024)):
            assert run_process("run", "resize", "-q", str(path), size).rc == 0
            assert qemu_img("info", "--output=json", str(path)).json["virtual-size"] == expected
            assert qemu_img("check", str(path)).rc == 0


SHRINK_FLAG = "Use the --shrink option to perform a shrink operation."
NO_SHRINK_VMDK = "vmdk: Shrinking images is currently not supported"
ONLY = "only monolithicSparse images can be resized"
#: Driver, options of qemu-img's create, words of resize, what is said.
REFUSED: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    ("vmdk", "", ("1M",), SHRINK_FLAG),
    ("vmdk", "", ("--shrink", "1M"), NO_SHRINK_VMDK),
    ("vmdk", "", ("--shrink", "-512"), NO_SHRINK_VMDK),
    ("vmdk", "", ("--shrink", "-3M"), "New image size must be positive"),
    ("vmdk", "", ("--preallocation=full", "8M"), "Unsupported preallocation mode: full"),
    ("vmdk", "", ("8E",), "2^63-1"),
    ("vmdk", "subformat=monolithicFlat", ("8M",), ONLY),
    ("vmdk", "subformat=twoGbMaxExtentSparse", ("8M",), ONLY),
    ("vmdk", "subformat=twoGbMaxExtentFlat", ("8M",), ONLY),
    ("vmdk", "subformat=streamOptimized", ("8M",), ONLY),
    ("vhdx", "", ("1M",), SHRINK_FLAG),
    ("vhdx", "", ("--shrink", "1M"), "cannot be made smaller"),
    ("vhdx", "subformat=fixed,block_size=1M", ("--shrink", "1M"), "cannot be made smaller"),
    ("vhdx", "", ("--preallocation=metadata", "8M"), "Unsupported preallocation mode: metadata"),
    ("vhdx", "", ("65T",), "Image size too large; max of 64TB"),
)


def refused(path: Path, driver: str, words: Sequence[str], text: str) -> None:
    """It says so, and no file of the folder changes."""
    before = {one: one.read_bytes() for one in path.parent.iterdir()}
    answer = run_process("run", "resize", "-f", driver, *words[:-1], str(path), words[-1])
    assert answer.rc == 1, explain(answer)
    assert text in answer.stderr, explain(answer)
    assert {one: one.read_bytes() for one in path.parent.iterdir()} == before


@pytest.mark.parametrize(("driver", "options", "words", "text"), REFUSED)
def test_refusals(driver: str, options: str, words: tuple[str, ...], text: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    make("create", "-q", "-f", driver, *(("-o", options) if options else ()), str(path), "3M")
    refused(path, driver, words, text)


def test_disks_with_a_parent(tmp_path: Path) -> None:
    make("create", "-q", "-f", "vmdk", str(tmp_path / "base"), "3M")
    make("create", "-q", "-f", "vmdk", "-b", "base", "-F", "vmdk", str(tmp_path / "top"), cwd=tmp_path)
    refused(tmp_path / "top", "vmdk", ("8M",), "image with a parent")
    made = run_process("run", "create", "-q", "-f", "vhdx", str(tmp_path / "b.vhdx"), "3M")
    assert made.rc == 0, explain(made)
    words = ("-f", "vhdx", "-b", "b.vhdx", "-F", "vhdx")
    made = run_process("run", "create", "-q", *words, str(tmp_path / "c.vhdx"), cwd=tmp_path)
    assert made.rc == 0, explain(made)
    refused(tmp_path / "c.vhdx", "vhdx", ("8M",), "differencing disk")


def with_key(path: Path) -> tuple[str, ...]:
    """The words with which qemu-io and qemu-img open a container."""
    return (
        "--object",
        f"secret,id=s,data={PASSPHRASE}",
        "--image-opts",
        f"driver=luks,key-secret=s,file.filename={path}",
    )


def test_luks(tmp_path: Path) -> None:
    """Bigger and smaller, without the key: who has it finds what was there."""
    path, raw, secret = tmp_path / "image", tmp_path / "raw", tmp_path / "secret"
    secret.write_text(PASSPHRASE)
    made = run_process(
        "run", "create", "-q", "-f", "luks", "--luks-passphrase-file", str(secret), "-o", "iterations=1000",
        str(path), "1M",
    )  # fmt: skip
    assert made.rc == 0, explain(made)
    content = bytes(range(1, 256)) * (M // 255 + 1)
    raw.write_bytes(content[:M])
    *key, _, _ = with_key(path)
    target = with_key(path)[-1]
    make("convert", *key, "-n", "-f", "raw", "--target-image-opts", str(raw), target)
    head = path.stat().st_size - M
    for words, size in (
        (("3M",), 3 * M),
        (("+1",), 3 * M + 512),
        (("--shrink", "700001"), 700_416),
        (("--shrink", "-1k"), 699_392),
        (("699392",), 699_392),
        (("2M",), 2 * M),
    ):
        answer = run_process("run", "resize", *words[:-1], str(path), words[-1])
        assert answer.rc == 0, explain(answer)
        assert path.stat().st_size == head + size
        assert qemu_img("info", "-f", "luks", "--output=json", str(path)).json["virtual-size"] == size
        make("convert", *with_key(path), "-O", "raw", str(raw))
        kept = min(size, 699_392)
        assert raw.read_bytes()[:kept] == content[:kept]
        assert run_process("run", "check", str(path)).rc in (0, 63)
    # Zeroes of ciphertext until they are written.
    raw.write_bytes(bytes(M) + content[:M])
    make("convert", *key, "-n", "-f", "raw", "--target-image-opts", str(raw), target)
    shutil.copyfile(raw, tmp_path / "wanted")
    make("convert", *with_key(path), "-O", "raw", str(raw))
    assert raw.read_bytes() == (tmp_path / "wanted").read_bytes()
    for words, text in (
        (("1M",), SHRINK_FLAG),
        (("--shrink", "0"), "New image size must be positive"),
        (("--preallocation=full", "8M"), "Unsupported preallocation mode: full"),
        (("8E",), "2^63-1"),
    ):
        refused(path, "luks", words, text)
