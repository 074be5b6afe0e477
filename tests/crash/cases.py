"""The resizes that are cut off everywhere: one row each.

**How a format joins.**  Add a :class:`Case` for each thing that its planner does differently (growing within the table,
growing the table, shrinking, a block shared, a tail that is not empty ...):

* ``driver``: the name for ``-f``; the format must have a ``resize`` in ``guest/formats/formats.zig``.
* ``build``: writes the image; make it small (some hundred KiB) and put other bytes into every cluster, or the content
  check sees nothing.  :func:`pattern` makes such bytes.
* ``size`` and ``words``: as for the host tool: bytes, then any of ``grow``, ``shrink``, a mode of preallocation.
* ``checked``: exit statuses of our ``check`` that are fine in the middle; 3 (leaks) where space may be lost, 63 for a
  format without checks, 2 only where the comment beside the row says which inconsistency it is and why it is harmless.
* ``qemu``: how qemu-img opens the file (``-f``); None: qemu-img does not look at it at all.
* ``qemu_check``: whether qemu-img has a check for it.
* ``read``: the content of the virtual disk; the default asks the host tool for segments and reads them from the file.
* ``zero_when_new``: whether the new space reads as zero as soon as the image says its new size.  Formats that keep a
  footer in the file's last bytes may show the old one there until the last step.
* ``finished``: exit statuses of our ``check`` at the end; 3 where the format loses space.
* ``beside``: what else the image holds; in each state it is what it was, or what it is at the end.

``test_crash.py`` does the rest: every prefix of the steps, torn writes, writes in another order.  In each state the
image opens, has its old size or its new one, and its content up to the smaller of them is what it was.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.crash.disk import decode
from tests.differential.oracle import make, qemu_io
from tests.images.qcow2_reader import bitmaps
from tests.images.vhd_writer import FIXED, Vhd

Build = Callable[[Path], None]

#: Bytes of a pattern: odd, so that no two clusters are the same.
_PERIOD = 509


def pattern(length: int, seed: int = 1) -> bytes:
    """Bytes of which no two sectors are the same and none is zero."""
    piece = bytes(random.Random(seed).randrange(1, 256) for _ in range(_PERIOD))
    return (piece * (length // _PERIOD + 1))[:length]


def read_segments(tool: Path, driver: str, path: Path) -> bytes:
    """The virtual disk by the segments that our reader finds; they have to lie in the file as they are."""
    done = subprocess.run([tool, "segments", driver, path], capture_output=True, timeout=60, check=False)
    items = decode(done.stdout)
    assert done.returncode == 0, items
    data = path.read_bytes()
    disk = bytearray()
    for _, segment in items:
        assert segment["start"] == len(disk)
        length = segment["length"]
        if segment["kind"] == "data":
            assert not segment["compressed"]
            offset = segment["offset"]
            disk += data[offset : offset + length].ljust(length, b"\0")
        else:
            disk += bytes(length)
    return bytes(disk)


@dataclass(frozen=True)
class Case:
    """One resize; see the head of this file."""

    name: str
    driver: str
    build: Build
    size: int
    words: tuple[str, ...] = ()
    checked: tuple[int, ...] = (0, 3)
    qemu: str | None = None
    qemu_check: bool = False
    read: Callable[[Path, str, Path], bytes] = read_segments
    zero_when_new: bool = True
    finished: tuple[int, ...] = (0, 63)
    beside: Callable[[Path], object] | None = None


def _raw(length: int) -> Build:
    def build(path: Path) -> None:
        path.write_bytes(pattern(length))

    return build


_NO_CHECKS = (63,)
RAW = (
    Case("raw-grow", "raw", _raw(10_000), 20_000, checked=_NO_CHECKS, qemu="raw"),
    Case("raw-grow-full", "raw", _raw(10_000), 100_000, ("full",), checked=_NO_CHECKS, qemu="raw"),
    Case("raw-shrink", "raw", _raw(10_000), 4_096, ("shrink",), checked=_NO_CHECKS, qemu="raw"),
)


def _qcow2(size: int, *written: tuple[int, int], options: str = "", after: Build | None = None) -> Build:
    """An image of ``size`` bytes by qemu-img, patterns written to offsets (offset, length)."""

    def build(path: Path) -> None:
        words = ("-o", options) if options else ()
        make("create", "-q", "-f", "qcow2", *words, str(path), str(size))
        commands = [f"write -P {seed} {offset} {length}" for seed, (offset, length) in enumerate(written, 1)]
        qemu_io(path, "qcow2", *commands)
        if after is not None:
            after(path)

    return build


def _snapshot(path: Path) -> None:
    """A snapshot that shares everything, then one cluster that is written again."""
    make("snapshot", "-c", "one", str(path))
    qemu_io(path, "qcow2", "write -P 200 0 512")


def _stale(size: int) -> Callable[[Path], None]:
    """Shrunk by qemu-img, which leaves the rest of the last cluster as it was."""

    def after(path: Path) -> None:
        make("resize", "-q", "-f", "qcow2", "--shrink", str(path), str(size))

    return after


def _bitmaps(*granularities: int) -> Build:
    """A bitmap for each granularity, of what is written then, and a disabled one."""

    def after(path: Path) -> None:
        for number, granularity in enumerate(granularities):
            make("bitmap", "--add", "-g", str(granularity), str(path), f"bitmap-{number}")
        qemu_io(path, "qcow2", "write -P 201 1k 3k", "write -P 202 70k 2k", "write -P 203 15k 1k")
        make("bitmap", "--add", "--disable", str(path), "disabled")

    return after


K, M = 1 << 10, 1 << 20
_SMALL = "cluster_size=512"
QCOW2 = tuple(
    Case(name, "qcow2", build, size, words, qemu="qcow2", qemu_check=True)
    for name, build, size, words in (
        ("qcow2-grow-in-place", _qcow2(M, (0, 100 * K), (M - 512, 512)), 2 * M, ()),
        ("qcow2-grow-l1", _qcow2(M, (0, 20 * K), (M - 512, 512), options=_SMALL), 4 * M, ()),
        ("qcow2-grow-refcounts", _qcow2(64 * K, (0, 60 * K), options=_SMALL), 40 * M, ()),
        ("qcow2-grow-whole-blocks", _qcow2(16 * M, (0, 60 * K), options=_SMALL), 512 * M, ()),
        ("qcow2-grow-metadata", _qcow2(100 * K, (0, 7 * K), options=_SMALL), 300 * K, ("metadata",)),
        ("qcow2-grow-metadata-refcounts", _qcow2(100 * K, (0, 99 * K), options=_SMALL), 200 * K, ("metadata",)),
        ("qcow2-grow-full", _qcow2(20 * K, (0, 7 * K), options="cluster_size=1k"), 50 * K, ("full",)),
        ("qcow2-grow-1-bit", _qcow2(64 * K, (0, 60 * K), options=_SMALL + ",refcount_bits=1"), 4 * M, ("metadata",)),
        ("qcow2-grow-v2", _qcow2(M, (0, 20 * K), options=_SMALL + ",compat=0.10"), 4 * M, ()),
        ("qcow2-grow-stale", _qcow2(M, (0, M), options="cluster_size=64k", after=_stale(700 * K + 512)), M, ()),
        ("qcow2-grow-snapshot", _qcow2(100 * K, (0, 90 * K), options=_SMALL, after=_snapshot), 4 * M, ()),
        (
            "qcow2-grow-shared-tail",
            _qcow2(64 * K + 512, (0, 64 * K + 512), options="cluster_size=4k", after=_snapshot),
            9 * M,
            ("metadata",),
        ),
        ("qcow2-grow-extended", _qcow2(M, (0, 40 * K), options="cluster_size=16k,extended_l2=on"), 40 * M, ()),
        ("qcow2-shrink", _qcow2(2 * M, (0, 2 * M)), 300 * K, ("shrink",)),
        ("qcow2-shrink-small", _qcow2(300 * K, (0, 300 * K), options=_SMALL), 3 * K, ("shrink",)),
        ("qcow2-shrink-1-bit", _qcow2(300 * K, (0, 300 * K), options=_SMALL + ",refcount_bits=1"), 32 * K, ("shrink",)),
        ("qcow2-shrink-64-bit", _qcow2(M, (0, 99 * K), options=_SMALL + ",refcount_bits=64"), 32 * K, ("shrink",)),
        ("qcow2-shrink-snapshot", _qcow2(100 * K, (0, 90 * K), options=_SMALL, after=_snapshot), 7 * K, ("shrink",)),
        ("qcow2-shrink-extended", _qcow2(M, (0, M), options="cluster_size=16k,extended_l2=on"), 34 * K, ("shrink",)),
    )
)

# With clusters of 64 KiB there is a feature name table, which pushes the bitmaps extension out of the first sector.
QCOW2_BITMAPS = tuple(
    Case(name, "qcow2", build, size, words, qemu="qcow2", qemu_check=True, beside=bitmaps)
    for name, build, size, words in (
        ("qcow2-grow-bitmaps", _qcow2(300 * K, (0, 99 * K), after=_bitmaps(512, 64 * K)), 300 * M, ()),
        (
            "qcow2-grow-bitmaps-small",
            _qcow2(100 * K, (0, 99 * K), options=_SMALL, after=_bitmaps(512, 1024)), 3 * M, (),
        ),
        ("qcow2-shrink-bitmaps", _qcow2(300 * K, (0, 99 * K), after=_bitmaps(512, 64 * K)), 16 * K, ("shrink",)),
        (
            "qcow2-shrink-bitmaps-small",
            _qcow2(3 * M, (0, 99 * K), options=_SMALL, after=_bitmaps(512)), 15 * K, ("shrink",),
        ),
    )
)  # fmt: skip


def _vhd(size: int, **fields: Any) -> Build:
    """A VHD by our own writer."""
    return lambda path: _write(path, Vhd(size, **fields).build().data)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _blocks(*numbers: int) -> dict[int, bytes]:
    return {number: pattern(_PERIOD, number + 1) for number in numbers}


def _fixed(size: int, creator: bytes = b"win ") -> Build:
    return _vhd(size, disk_type=FIXED, creator=creator, block_size=size, blocks={0: pattern(size)})


def _vhd_511(size: int) -> Build:
    """As the first Virtual PC wrote it: the footer lacks its last byte."""
    return _vhd(size, disk_type=FIXED, creator=b"win ", block_size=size, blocks={0: pattern(size)}, footer_length=511)


# Of a dynamic VHD, 2: the footer and its copy differ until the last step, because two sectors are not written at once;
# readers go by the copy.  Of a fixed one, 3: the file may be longer than its disk.
_COPIES_DIFFER = (0, 2, 3)
_BLOCK = 4096
_MANY = 140 * _BLOCK
VHD = tuple(
    # qemu-img does not find a footer of 511 bytes.
    Case(
        name, "vpc", build, size, words, checked,
        qemu=None if name.endswith("511") else "vpc", zero_when_new=zero, finished=finished,
    )
    for name, build, size, words, checked, zero, finished in (
        ("vhd-fixed-grow", _fixed(10_240), 40_960, (), (0, 3), False, (0,)),
        ("vhd-fixed-grow-chs", _fixed(34_816, b"qemu"), 60_000, (), (0, 3), False, (0,)),
        ("vhd-fixed-grow-511", _vhd_511(10_240), 40_960, (), (0, 3), False, (0, 3)),
        ("vhd-fixed-shrink-511", _vhd_511(40_960), 10_240, ("shrink",), (0, 3), True, (0, 3)),
        ("vhd-fixed-shrink", _fixed(40_960), 10_240, ("shrink",), (0, 3), True, (0,)),
        (
            "vhd-dynamic-grow",
            _vhd(10 * _BLOCK - 512, creator=b"win ", block_size=_BLOCK, blocks=_blocks(0, 3, 9)),
            50 * _BLOCK, (), _COPIES_DIFFER, True, (0,),
        ),
        (
            "vhd-dynamic-grow-table",
            _vhd(10 * _BLOCK, creator=b"win ", block_size=_BLOCK, blocks=_blocks(0, 3, 9)),
            300 * _BLOCK, (), _COPIES_DIFFER, True, (0,),
        ),
        (
            "vhd-dynamic-grow-empty",
            _vhd(10 * _BLOCK, creator=b"win ", block_size=_BLOCK),
            300 * _BLOCK, (), _COPIES_DIFFER, True, (0,),
        ),
        (
            "vhd-dynamic-shrink",
            _vhd(_MANY, creator=b"win ", block_size=_BLOCK, blocks=_blocks(0, 1, 130, 139)),
            2 * _BLOCK - 1024, ("shrink",), _COPIES_DIFFER, True, (0,),
        ),
        (
            "vhd-dynamic-shrink-between",
            _vhd(_MANY, creator=b"win ", block_size=_BLOCK, blocks=_blocks(0, 130, 1)),
            2 * _BLOCK, ("shrink",), _COPIES_DIFFER, True, (3,),
        ),
    )
)  # fmt: skip

CASES: tuple[Case, ...] = (*RAW, *QCOW2, *QCOW2_BITMAPS, *VHD)
