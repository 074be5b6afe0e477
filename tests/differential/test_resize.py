"""Resized files against qemu-img's: the same info, clean, the same content; and the same refusals."""

from __future__ import annotations

import random
import shutil
import struct
from pathlib import Path

import pytest

from tests.differential.oracle import comparable, make, qemu_img, qemu_io
from tests.differential.ours import Ours, explain
from tests.differential.recipes import SEED
from tests.images.qcow2_reader import bitmaps, extensions

pytestmark = [pytest.mark.kvm, pytest.mark.qemu_img]

K, M = 1 << 10, 1 << 20
ROUNDS = 24
OPTIONS: tuple[str, ...] = (
    "", "cluster_size=512", "cluster_size=4k,refcount_bits=1", "cluster_size=1k,refcount_bits=64", "compat=0.10",
    "cluster_size=2M", "cluster_size=16k,extended_l2=on", "lazy_refcounts=on", "cluster_size=64k,compression_type=zstd",
    "preallocation=metadata,cluster_size=4k",
)  # fmt: skip


def resized(path: Path, driver: str, *words: str, ours: Ours) -> tuple[Path, Path]:
    """A copy that we resized and one that qemu-img resized."""
    mine, theirs = path.with_name("mine"), path.with_name("theirs")
    shutil.copyfile(path, mine)
    shutil.copyfile(path, theirs)
    answer = ours.run("resize", "-f", driver, *words[:-1], str(mine), words[-1])
    oracle = qemu_img("resize", "-f", driver, *words[:-1], str(theirs), words[-1])
    assert answer.rc == oracle.rc, f"{words}: {oracle.stderr}{explain(answer)}"
    assert answer.stdout == oracle.stdout
    return mine, theirs


def same(mine: Path, theirs: Path, driver: str) -> None:
    """The same info and content; nothing wrong with ours."""
    for path in (mine, theirs):
        answer = qemu_img("check", "-f", driver, str(path))
        assert answer.rc == (63 if driver == "raw" else 0), f"{path.name}: {answer.stdout}{answer.stderr}"
    infos = [qemu_img("info", "-f", driver, "--output=json", str(path)).json for path in (mine, theirs)]
    for info in infos:
        info.pop("filename")
    assert comparable(infos[0]) == comparable(infos[1])
    compared = qemu_img("compare", "-f", driver, "-F", driver, str(mine), str(theirs))
    assert compared.rc == 0, compared.stdout


@pytest.mark.parametrize("options", OPTIONS, ids=lambda text: text or "default")
def test_qcow2(options: str, tmp_path: Path, ours: Ours) -> None:
    rng = random.Random(f"{SEED}{options}")
    cluster = 2 * M if "2M" in options else 64 * K
    for _ in range(3):
        path = tmp_path / "image"
        size = rng.randrange(1, 96) * cluster
        make("create", "-q", "-f", "qcow2", *(("-o", options) if options else ()), str(path), str(size))
        writes = [(rng.randrange(size // K) * K, rng.randrange(1, 200) * K) for _ in range(4)]
        qemu_io(
            path, "qcow2", *(f"write -P {n} {at} {min(length, size - at)}" for n, (at, length) in enumerate(writes, 1))
        )
        # Whole clusters: what qemu-img leaves in a part of one is listed as resize-new-space.
        for words in (
            (str(size + rng.randrange(1, 900) * cluster),),
            (f"+{rng.randrange(1, 20)}G",),
            ("--shrink", str(rng.randrange(1, size // cluster + 1) * cluster)),
            (str(size),),
            ("--preallocation=metadata", str(size + rng.randrange(1, 20) * cluster)),
            ("--preallocation=full", str(size + rng.randrange(1, 20) * cluster)),
        ):
            same(*resized(path, "qcow2", *words, ours=ours), "qcow2")


@pytest.mark.parametrize("options", ["", "cluster_size=512", "cluster_size=4k", "cluster_size=16k,extended_l2=on"])
def test_bitmaps(options: str, tmp_path: Path, ours: Ours) -> None:
    """The same bits of the same bitmaps, and no extension lost."""
    path = tmp_path / "image"
    make("create", "-q", "-f", "qcow2", *(("-o", options) if options else ()), str(path), "6M")
    for granularity in (512, 4 * K, 64 * K):
        make("bitmap", "--add", "-g", str(granularity), str(path), f"of {granularity}")
    qemu_io(path, "qcow2", "write -P 1 1k 300k", "write -P 2 5M 1M")
    make("bitmap", "--add", "--disable", str(path), "disabled")
    for words in (("900M",), ("7M",), ("--shrink", "256k"), ("--shrink", "5500k"), ("--preallocation=metadata", "9M")):
        mine, theirs = resized(path, "qcow2", *words, ours=ours)
        same(mine, theirs, "qcow2")
        found = [
            [(one.name, one.flags, one.granularity_bits, one.dirty()) for one in bitmaps(file)]
            for file in (mine, theirs)
        ]
        assert found[0] == found[1]
        assert len(found[0]) == 4
        kinds = [sorted(kind for kind, _ in extensions(file.read_bytes())) for file in (mine, theirs)]
        assert kinds[0] == kinds[1]
    # Ours after ours: what was cut off does not come back.
    assert ours.run("resize", "--shrink", str(path), "200k").rc == ours.run("resize", str(path), "8M").rc == 0
    assert all(max(one.dirty()) << one.granularity_bits < 200 * K for one in bitmaps(path) if one.name != "disabled")
    assert qemu_img("check", str(path)).rc == 0


@pytest.mark.parametrize("words", [("2G",), ("--shrink", "20k"), ("--shrink", "600M")])
def test_a_bitmap_of_ones(words: tuple[str, ...], tmp_path: Path, ours: Ours) -> None:
    """Clusters of ones that are not stored: behind the end they stand for nothing."""
    path = tmp_path / "image"
    make("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", str(path), "1000M")
    make("bitmap", "--add", "-g", "4k", str(path), "one")
    data = bytearray(path.read_bytes())
    directory = int.from_bytes(extensions(bytes(data))[-1][1][16:], "big")
    table, entries = struct.unpack_from(">QI", data, directory)
    struct.pack_into(f">{entries}Q", data, table, *[1] * entries)
    path.write_bytes(data)
    mine, theirs = resized(path, "qcow2", *words, ours=ours)
    same(mine, theirs, "qcow2")
    (one,), (other,) = bitmaps(mine), bitmaps(theirs)
    assert one.dirty() == other.dirty()
    assert len(one.bits) == len(other.bits)


def test_bitmaps_in_use(tmp_path: Path, ours: Ours) -> None:
    path = tmp_path / "image"
    make("create", "-q", "-f", "qcow2", str(path), "1M")
    make("bitmap", "--add", str(path), "one")
    data = bytearray(path.read_bytes())
    directory = int.from_bytes(extensions(bytes(data))[-1][1][16:], "big")
    data[directory + 15] |= 1
    path.write_bytes(data)
    for words in (("2M",), ("1M",), ("--shrink", "512k")):
        answer = ours.run("resize", *words[:-1], str(path), words[-1])
        oracle = qemu_img("resize", *words[:-1], str(path), words[-1])
        assert answer.rc == oracle.rc == 1
        assert "Bitmap 'one' is inconsistent and cannot be used" in oracle.stderr
        assert "Bitmap 'one' is inconsistent and cannot be used" in answer.stderr
    assert path.read_bytes() == data


def test_bitmaps_that_would_be_too_large(tmp_path: Path, ours: Ours) -> None:
    """qemu-img changes the size and loses the bitmap."""
    path = tmp_path / "image"
    make("create", "-q", "-f", "qcow2", str(path), "1M")
    make("bitmap", "--add", "-g", "512", str(path), "one")
    before = path.read_bytes()
    answer = ours.run("resize", str(path), "3T")
    assert answer.rc == 1
    assert "the table of a bitmap would have 12288 entries, the limit is 8192" in answer.stderr
    assert path.read_bytes() == before


def test_again_and_again(tmp_path: Path, ours: Ours) -> None:
    """Ours after ours: nothing is lost on the way."""
    rng = random.Random(SEED)
    path, theirs = tmp_path / "mine", tmp_path / "theirs"
    make("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", str(path), str(M))
    shutil.copyfile(path, theirs)
    for round_ in range(ROUNDS):
        size = rng.randrange(1, 4000) * 512
        assert ours.run("resize", "--shrink", str(path), str(size)).rc == 0
        assert qemu_img("resize", "-q", "-f", "qcow2", "--shrink", str(theirs), str(size)).rc == 0
        at = rng.randrange(size // 512) * 512
        for image in (path, theirs):
            qemu_io(image, "qcow2", f"write -P {round_ + 1} {at} {min(9216, size - at)}")
        same(path, theirs, "qcow2")


def test_snapshots_stay(tmp_path: Path, ours: Ours) -> None:
    path = tmp_path / "image"
    make("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", str(path), str(M))
    qemu_io(path, "qcow2", f"write -P 1 0 {M}")
    make("snapshot", "-c", "one", str(path))
    qemu_io(path, "qcow2", f"write -P 2 {4 * K} {200 * K}")
    for words in (("4M",), ("--shrink", "100k"), ("--preallocation=full", "2M")):
        mine, theirs = resized(path, "qcow2", *words, ours=ours)
        same(mine, theirs, "qcow2")
        for image in (mine, theirs):
            make("snapshot", "-a", "one", str(image))
        same(mine, theirs, "qcow2")


def test_compressed(tmp_path: Path, ours: Ours) -> None:
    raw, path = tmp_path / "raw", tmp_path / "image"
    content = bytes(random.Random(SEED).randrange(4) for _ in range(320 * K))
    for options in ("cluster_size=64k", "cluster_size=64k,compression_type=zstd", "cluster_size=4k"):
        # The end of the disk in the middle of a compressed cluster, but for zstd, where that is refused.
        raw.write_bytes(content if "zstd" in options else content[: 300 * K + 512])
        make("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, str(raw), str(path))
        for words in (("2M",), ("--shrink", "128k")):
            same(*resized(path, "qcow2", *words, ours=ours), "qcow2")
        if "zstd" in options:
            continue
        # Shrinking into a compressed cluster, growing again: the rest of it is not to come back.
        assert ours.run("resize", "--shrink", str(path), "97k").rc == 0
        assert ours.run("resize", str(path), "200k").rc == 0
        make("convert", "-f", "qcow2", "-O", "raw", str(path), str(tmp_path / "back"))
        back = (tmp_path / "back").read_bytes()
        assert back == raw.read_bytes()[: 97 * K].ljust(200 * K, b"\0")
        assert qemu_img("check", str(path)).rc == 0


def test_a_part_of_a_cluster_compressed_with_zstd(tmp_path: Path, ours: Ours) -> None:
    raw, path = tmp_path / "raw", tmp_path / "image"
    raw.write_bytes(b"\xa5" * (66 * K))
    make("convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", str(raw), str(path))
    before = path.read_bytes()
    answer = ours.run("resize", str(path), "1M")
    assert answer.rc == 1
    assert "the last cluster of the disk is compressed with zstd" in answer.stderr
    assert path.read_bytes() == before


def test_overlay(tmp_path: Path, ours: Ours) -> None:
    base, path = tmp_path / "base", tmp_path / "image"
    make("create", "-q", "-f", "raw", str(base), "4M")
    qemu_io(base, "raw", "write -P 7 0 4M")
    for options in ("cluster_size=4k", "cluster_size=16k,extended_l2=on"):
        make("create", "-q", "-f", "qcow2", "-o", options, "-b", str(base), "-F", "raw", str(path), "1M")
        qemu_io(path, "qcow2", "write -P 8 0 5000")
        for words in (("3M",), ("6M",), ("--shrink", "16k")):
            same(*resized(path, "qcow2", *words, ours=ours), "qcow2")


def test_raw(tmp_path: Path, ours: Ours) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"\xa5" * 100_001)
    for words in (
        ("1M",),
        ("+1",),
        ("+0",),
        ("--shrink", "512"),
        ("--shrink", "-1k"),
        ("--preallocation=full", "1M"),
        ("--preallocation=falloc", "300k"),
        ("100001",),
    ):
        mine, theirs = resized(path, "raw", *words, ours=ours)
        assert mine.read_bytes() == theirs.read_bytes(), words


@pytest.mark.parametrize(
    "words",
    [
        ("1000001",), ("3P",), ("9223372036854775807",), ("0",), ("-1M",), ("512k",), ("-512k",), ("1",),
        ("--preallocation=full", "--shrink", "512k"), ("--preallocation=zork", "2M"),
    ],
)  # fmt: skip
def test_refusals(words: tuple[str, ...], tmp_path: Path, ours: Ours) -> None:
    path = tmp_path / "image"
    make("create", "-q", "-f", "qcow2", str(path), "1M")
    answer = ours.run("resize", *words[:-1], str(path), words[-1])
    oracle = qemu_img("resize", *words[:-1], str(path), words[-1])
    assert answer.rc == oracle.rc == 1
    said = oracle.stderr.splitlines()[0].removeprefix("qemu-img: ")
    assert said in answer.stderr or "offset" in said, (said, answer.stderr)
    assert qemu_img("check", str(path)).rc == 0


@pytest.mark.parametrize(
    ("options", "damage", "text"),
    [
        ("compat=0.10", "snapshot", "Can't resize a v2 image which has snapshots"),
        ("", "corrupt", "Image is corrupt; cannot be opened read/write"),
    ],
)
def test_states(options: str, damage: str, text: str, tmp_path: Path, ours: Ours) -> None:
    path = tmp_path / "image"
    make("create", "-q", "-f", "qcow2", *(("-o", options) if options else ()), str(path), "1M")
    if damage == "snapshot":
        make("snapshot", "-c", "one", str(path))
    else:
        data = bytearray(path.read_bytes())
        data[79] = 2
        path.write_bytes(data)
    answer, oracle = ours.run("resize", str(path), "2M"), qemu_img("resize", str(path), "2M")
    assert answer.rc == oracle.rc == 1
    assert text in answer.stderr
    assert text in oracle.stderr
