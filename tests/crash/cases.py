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
* ``secret``: passphrase for qemu-img, of a container that is made in the machine.  What qemu-img reads is compared with
  what it read before, since it has the key.
* ``read``: the content of the virtual disk; the default asks the host tool for segments and reads them from the file.
* ``limit``: bytes of the disk that are looked at, in both readers; for what only grows in another way above some GiB.
* ``zero_when_new``: whether the new space reads as zero as soon as the image says its new size.  Formats that keep a
  footer in the file's last bytes may show the old one there until the last step.
* ``finished``: exit statuses of our ``check`` at the end; 3 where the format loses space.
* ``beside``: what else the image holds; in each state it is what it was, or what it is at the end.

``test_crash.py`` does the rest: every prefix of the steps, torn writes, writes in another order.  In each state the
image opens, has its old size or its new one, and its content up to the smaller of them is what it was.
"""

from __future__ import annotations

import functools
import random
import struct
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vmm
from tests.crash.disk import SECTOR, decode
from tests.differential.oracle import make, qemu_io
from tests.images.qcow2_reader import bitmaps
from tests.images.vhd_writer import FIXED, Vhd
from tests.images.vhdx_writer import Block, Vhdx
from tests.images.vmdk_writer import HEADER_FIELDS, ZERO, Sparse, descriptor

Build = Callable[[Path], None]
#: Of the host tool, a driver, a file, and the bytes that are wanted at most.
Read = Callable[[Path, str, Path, int], bytes]

#: Bytes of a pattern: odd, so that no two clusters are the same.
_PERIOD = 509
#: More than any disk of the table.
NO_LIMIT = 1 << 62


def pattern(length: int, seed: int = 1) -> bytes:
    """Bytes of which no two sectors are the same and none is zero."""
    piece = bytes(random.Random(seed).randrange(1, 256) for _ in range(_PERIOD))
    return (piece * (length // _PERIOD + 1))[:length]


def read_segments(tool: Path, driver: str, path: Path, limit: int = NO_LIMIT) -> bytes:
    """The start of the virtual disk by the segments that our reader finds; they have to lie in the file as they are."""
    done = subprocess.run([tool, "segments", driver, path], capture_output=True, timeout=60, check=False)
    items = decode(done.stdout)
    assert done.returncode == 0, items
    data = path.read_bytes()
    disk = bytearray()
    for _, segment in items:
        if len(disk) == limit:
            break
        assert segment["start"] == len(disk)
        length = min(segment["length"], limit - len(disk))
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
    read: Read = read_segments
    zero_when_new: bool = True
    finished: tuple[int, ...] = (0, 63)
    secret: str | None = None
    limit: int = NO_LIMIT
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


def _vmdk(sectors: int, *grains: int, tail: int = 0, **fields: Any) -> Build:
    """A sparse extent of grains of 4 KiB and tables of four, a sector each: 16 KiB by a table, 2 MiB by a directory's.

    :param tail: bytes behind the end of the disk in its last grain, where something is left over.
    """

    def build(path: Path) -> None:
        text = descriptor([f'RW {sectors} SPARSE "image"'], extra=[f'ddb.geometry.cylinders = "{sectors // 1008}"'])
        content = {number: pattern(8 * SECTOR, number + 1) for number in grains}
        if tail:
            last = sectors // 8
            content[last] = pattern(8 * SECTOR, last + 1)
        path.write_bytes(Sparse(sectors, content, 8, 4, text=text, **fields).build().data)

    return build


def _vmdk_stale(sectors: int, *grains: int) -> Build:
    """Entries behind the end of the disk that lead to its first grain: nothing says that they have to be empty."""

    def build(path: Path) -> None:
        _vmdk(sectors, *grains)(path)
        image = bytearray(path.read_bytes())
        first = -(-sectors // 8)
        for field in ("redundant_directory", "directory"):
            (directory,) = struct.unpack_from("<Q", image, HEADER_FIELDS[field][0])
            (table,) = struct.unpack_from("<I", image, directory * SECTOR + first // 4 * 4)
            for number in range(first % 4, 4):
                struct.pack_into("<I", image, table * SECTOR + 4 * number, _grain(image, table))
        path.write_bytes(image)

    return build


def _vmdk_zeroed(sectors: int) -> Build:
    """Its last grain is one of zeroes that nothing is stored of."""

    def build(path: Path) -> None:
        text = descriptor([f'RW {sectors} SPARSE "image"'])
        grains = {0: pattern(8 * SECTOR), sectors // 8: ZERO}
        path.write_bytes(Sparse(sectors, grains, 8, 4, version=2, text=text).build().data)

    return build


def _vhdx(size: int, **fields: Any) -> Build:
    """A dynamic disk by our own writer, whose last block has something behind the end of the disk."""

    def build(path: Path) -> None:
        image = Vhdx(size, blocks={0: Block(), size // M: Block()}, **fields)
        image.write(path)
        with path.open("r+b") as file:
            file.seek(-M, 2)
            file.write(pattern(M))

    return build


def _grain(image: bytearray, table: int) -> int:
    """The first grain of a table."""
    (entry,) = struct.unpack_from("<I", image, table * SECTOR)
    assert isinstance(entry, int)
    return entry


def _by_qemu(driver: str, size: int, *written: tuple[int, int], options: str = "") -> Build:
    """As :func:`_qcow2`, of any driver."""

    def build(path: Path) -> None:
        make("create", "-q", "-f", driver, *(("-o", options) if options else ()), str(path), str(size))
        commands = [f"write -P {seed} {offset} {length}" for seed, (offset, length) in enumerate(written, 1)]
        qemu_io(path, driver, *commands)

    return build


# 2: until the last step the descriptor says the old size of a disk whose header, which counts, has the new one.
_SIZES_DIFFER = (0, 2, 3)
# Sectors: 32 KiB; the last one of a directory full; one more.
_FULL = 128 * 32
VMDK = tuple(
    Case(name, "vmdk", build, size, checked=_SIZES_DIFFER, qemu="vmdk", qemu_check=True)
    for name, build, size in (
        ("vmdk-grow-grain", _vmdk(60, 0, 7, tail=1), 31 * K),
        ("vmdk-grow-table", _vmdk(84, 0, 5, 10, tail=1), 48 * K),
        ("vmdk-grow-stale", _vmdk_stale(76, 0, 8, 9), 48 * K),
        ("vmdk-grow-tables", _vmdk(64, 0, 3, 7), 100 * K + 512),
        ("vmdk-grow-tables-tail", _vmdk(60, 0, 3, 7, tail=1), M),
        ("vmdk-grow-directory", _vmdk(_FULL, 0, 100, 511), 2 * M + 20 * K),
        ("vmdk-grow-directory-tail", _vmdk(_FULL - 3, 0, 100, 511, tail=1), 5 * M),
        ("vmdk-grow-single", _vmdk(_FULL - 3, 0, 100, 511, tail=1, redundant=False), 5 * M),
        ("vmdk-grow-empty", _vmdk(64), 3 * M),
        ("vmdk-grow-zeroed", _vmdk_zeroed(60), 40 * K),
        ("vmdk-grow-qemu", _by_qemu("vmdk", M + 512, (0, 100 * K), (M, 512)), 40 * M),
    )
)


_SMALL_BLOCKS = "block_size=1M"
_FIXED_BLOCKS = "subformat=fixed,block_size=1M,block_state_zero=off"
# 2, when the table moves: a copy of the region table that is half written has a wrong checksum; the other one counts.
VHDX = tuple(
    # qemu-img knows sectors of 512 bytes only.
    Case(
        name, "vhdx", build, size, checked=(0, 2, 3) if limit < NO_LIMIT else (0, 3),
        qemu=None if "sectors" in name else "vhdx", qemu_check=True, finished=(0,), limit=limit,
    )
    for name, build, size, limit in (
        (
            "vhdx-dynamic-grow",
            _by_qemu("vhdx", 3 * M + 4096, (0, 100 * K), (3 * M, 4096), options=_SMALL_BLOCKS),
            6 * M, NO_LIMIT,
        ),
        (
            "vhdx-dynamic-grow-block",
            _by_qemu("vhdx", 3 * M, (0, 100 * K), (2 * M, M), options="block_size=8M"),
            5 * M + 512, NO_LIMIT,
        ),
        # A table of 1 MiB is that of 128 GiB less what 32 entries of bitmaps take.
        (
            "vhdx-dynamic-grow-table",
            _by_qemu("vhdx", 2 * M + 512, (0, 100 * K), (2 * M, 512), options=_SMALL_BLOCKS),
            128 * K * M, 4 * M,
        ),
        (
            "vhdx-fixed-grow",
            _by_qemu("vhdx", 2 * M + 512, (0, 100 * K), (2 * M, 512), options=_FIXED_BLOCKS),
            4 * M, NO_LIMIT,
        ),
        ("vhdx-large-sectors", _vhdx(2 * M + 4096, sector=4096), 5 * M, NO_LIMIT),
    )
)  # fmt: skip


SECRET = "of the tests"


@functools.cache
def _container(size: int) -> bytes:
    """By our own create: qemu-img measures the machine for each, and gives up on one that is busy."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        vmm.create(path, "luks", size, luks_passphrase=SECRET.encode(), iterations=1000)
        return path.read_bytes()


def _luks(size: int) -> Build:
    """A container with other bytes in each sector: of the ciphertext, which is content as any other."""

    def build(path: Path) -> None:
        image = _container(size)
        path.write_bytes(image[: _payload(image)] + pattern(size))

    return build


def _payload(image: bytes) -> int:
    """Where a LUKS1 container's payload begins, in bytes (LUKS1 On-Disk Format 1.2.3, 2.1: ``payload-offset``)."""
    (sectors,) = struct.unpack_from(">I", image, 104)
    assert isinstance(sectors, int)
    return sectors * SECTOR


def read_payload(_tool: Path, _driver: str, path: Path, _limit: int) -> bytes:
    """The ciphertext: all that we know without a key."""
    image = path.read_bytes()
    payload = image[_payload(image) :]
    return payload + bytes(-len(payload) % SECTOR)


LUKS = tuple(
    Case(
        name, "luks", _luks(200 * K), size, words,
        qemu="luks", secret=SECRET, read=read_payload, finished=(0,),
    )
    for name, size, words in (
        ("luks-grow", M, ()),
        ("luks-grow-part", 300 * K + 100, ()),
        ("luks-shrink", 64 * K, ("shrink",)),
        ("luks-shrink-part", 64 * K + 1, ("shrink",)),
    )
)  # fmt: skip

CASES: tuple[Case, ...] = (*RAW, *QCOW2, *QCOW2_BITMAPS, *VHD, *VMDK, *VHDX, *LUKS)
