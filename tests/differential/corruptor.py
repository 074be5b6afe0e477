"""Damaged qcow2 images: one of each class that `check` knows, and random damage with a fixed seed.

A damage is a function on the bytes and the layout that the writer gives (tests/images/qcow2_writer.py), so nothing
here has to parse an image.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.differential.recipes import MIB, SEED, Recipe, by_writer
from tests.images import qcow2_writer as q

Layout = tuple[q.Region, ...]
Damage = Callable[[bytearray, Layout], None]


def _region(layout: Layout, name: str, nth: int = 0) -> q.Region:
    return [region for region in layout if region.name == name][nth]


def _get(image: bytearray, offset: int) -> int:
    (value,) = struct.unpack_from(">Q", image, offset)
    return int(value)


def _edit(name: str, slot: int, change: Callable[[int, Layout], int]) -> Damage:
    """Change the 64-bit entry number ``slot`` of a structure."""

    def apply(image: bytearray, layout: Layout) -> None:
        at = _region(layout, name).offset + 8 * slot
        struct.pack_into(">Q", image, at, change(_get(image, at), layout) & 0xFFFF_FFFF_FFFF_FFFF)

    return apply


def _refcount(cluster: Callable[[Layout], int], count: int) -> Damage:
    """Set the 16-bit refcount of a host cluster (first refcount block)."""

    def apply(image: bytearray, layout: Layout) -> None:
        at = _region(layout, "refcount-block[0]").offset + 2 * cluster(layout)
        struct.pack_into(">H", image, at, count)

    return apply


def _header(offset: int, form: str, value: int) -> Damage:
    def apply(image: bytearray, _layout: Layout) -> None:
        struct.pack_into(form, image, offset, value)

    return apply


def _cut(name: str, share: float) -> Damage:
    """End the file inside a structure."""

    def apply(image: bytearray, layout: Layout) -> None:
        region = _region(layout, name)
        del image[region.offset + int(region.length * share) :]

    return apply


CLUSTER = 4096


def _cluster_of(name: str, nth: int = 0) -> Callable[[Layout], int]:
    return lambda layout: _region(layout, name, nth).offset // CLUSTER


def plain() -> q.Qcow2:
    """Two L2 tables, data, zero clusters, compressed clusters; 4 KiB clusters."""
    clusters: dict[int, q.Cluster] = {0: q.Data(), 1: q.Data(b"\x01"), 2: q.Zero(), 3: q.Zero(preallocated=True)}
    clusters |= {4: q.Compressed(), 5: q.Compressed(b"\x05"), 511: q.Data(), 512: q.Data(), 600: q.Data()}
    return q.Qcow2(4 * MIB, cluster_bits=12, clusters=clusters)


def with_snapshots() -> q.Qcow2:
    return replace(plain(), snapshots=(q.Snapshot("1", "first"), q.Snapshot("2", "second", vm_state_size=100)))


def with_bitmaps() -> q.Qcow2:
    return replace(plain(), bitmaps=(q.Bitmap("one", 9, 2, set_clusters=(0,)), q.Bitmap("two", 16)))


def extended() -> q.Qcow2:
    clusters: dict[int, q.Cluster] = {
        0: q.Data(),
        1: q.Data(subclusters=0xFF),
        2: q.Zero(),
        3: q.Zero(preallocated=True),
    }
    return q.Qcow2(4 * MIB, cluster_bits=14, extended_l2=True, clusters=clusters | {4: q.Compressed()})


#: name -> (image, damage).  Offsets in "l2[0]" count 64-bit words.
KNOWN: dict[str, tuple[Callable[[], q.Qcow2], Damage]] = {
    "leak": (plain, _refcount(_cluster_of("refcount-block[0]"), 5)),
    "leak-data-2": (plain, _refcount(_cluster_of("data"), 2)),
    "leak-compressed": (plain, _refcount(_cluster_of("compressed"), 3)),
    "leak-far": (plain, _refcount(lambda _: 2000, 1)),
    "refcount-zero-data": (plain, _refcount(_cluster_of("data"), 0)),
    "refcount-zero-header": (plain, _refcount(lambda _: 0, 0)),
    "refcount-zero-l1": (plain, _refcount(_cluster_of("l1"), 0)),
    "refcount-zero-l2": (plain, _refcount(_cluster_of("l2[0]"), 0)),
    "refcount-zero-table": (plain, _refcount(_cluster_of("refcount-table"), 0)),
    "refcount-zero-block": (plain, _refcount(_cluster_of("refcount-block[0]"), 0)),
    "refcount-zero-compressed": (plain, _refcount(_cluster_of("compressed"), 0)),
    "copied-missing-l1": (plain, _edit("l1", 0, lambda v, _: v & ~q.COPIED)),
    "copied-missing-l2": (plain, _edit("l2[0]", 0, lambda v, _: v & ~q.COPIED)),
    "copied-missing-zero": (plain, _edit("l2[0]", 3, lambda v, _: v & ~q.COPIED)),
    "copied-shared": (with_snapshots, _edit("l2[0]", 0, lambda v, _: v | q.COPIED)),
    "copied-shared-l1": (with_snapshots, _edit("l1", 0, lambda v, _: v | q.COPIED)),
    "copied-compressed": (plain, _edit("l2[0]", 4, lambda v, _: v | q.COPIED)),
    "copied-unallocated": (plain, _edit("l2[0]", 9, lambda _v, _: q.COPIED)),
    "overlap-data": (plain, _edit("l2[0]", 1, lambda _v, at: _region(at, "data").offset | q.COPIED)),
    "overlap-header": (plain, _edit("l2[0]", 1, lambda _v, _: q.COPIED)),
    "overlap-l1": (plain, _edit("l2[0]", 1, lambda _v, at: _region(at, "l1").offset | q.COPIED)),
    "overlap-l2": (plain, _edit("l2[0]", 1, lambda _v, at: _region(at, "l2[0]").offset | q.COPIED)),
    "overlap-refcount-block": (
        plain,
        _edit("l2[0]", 1, lambda _v, at: _region(at, "refcount-block[0]").offset | q.COPIED),
    ),
    "l2-shared": (plain, _edit("l1", 1, lambda _v, at: _region(at, "l2[0]").offset | q.COPIED)),
    "l2-is-l1": (plain, _edit("l1", 1, lambda _v, at: _region(at, "l1").offset | q.COPIED)),
    "l2-is-header": (plain, _edit("l1", 1, lambda _v, _: q.COPIED)),
    "l2-is-refcount-block": (plain, _edit("l1", 1, lambda _v, at: _region(at, "refcount-block[0]").offset | q.COPIED)),
    "l2-outside": (plain, _edit("l1", 1, lambda _v, _: 1 << 30 | q.COPIED)),
    "l2-far-outside": (plain, _edit("l1", 1, lambda _v, _: 0x00FF_FFFF_FFFF_F000 | q.COPIED)),
    "l2-unaligned": (plain, _edit("l1", 0, lambda v, _: v + 512)),
    "l2-missing": (plain, _edit("l1", 0, lambda _v, _: 0)),
    "l1-reserved-low": (plain, _edit("l1", 0, lambda v, _: v | 1)),
    "l1-reserved-high": (plain, _edit("l1", 0, lambda v, _: v | 1 << 60)),
    "l2-reserved-low": (plain, _edit("l2[0]", 0, lambda v, _: v | 2)),
    "l2-reserved-high": (plain, _edit("l2[0]", 0, lambda v, _: v | 1 << 58)),
    "l2-reserved-compressed": (plain, _edit("l2[0]", 4, lambda v, _: v | 1)),
    "data-unaligned": (plain, _edit("l2[0]", 0, lambda v, _: v + 512)),
    "data-unaligned-zero": (plain, _edit("l2[0]", 3, lambda v, _: v + 1024)),
    "data-outside": (plain, _edit("l2[0]", 0, lambda _v, _: 1 << 32 | q.COPIED)),
    "data-far-outside": (plain, _edit("l2[0]", 0, lambda _v, _: 0x00FF_FFFF_FFFF_F000 | q.COPIED)),
    "compressed-outside": (plain, _edit("l2[0]", 4, lambda v, _: v | 1 << 40)),
    "compressed-long": (plain, _edit("l2[0]", 4, lambda v, _: v | 7 << 58)),
    "refcount-block-outside": (plain, _edit("refcount-table", 0, lambda _v, _: 1 << 32)),
    "refcount-block-unaligned": (plain, _edit("refcount-table", 0, lambda v, _: v + 512)),
    "refcount-block-missing": (plain, _edit("refcount-table", 0, lambda _v, _: 0)),
    "refcount-block-reserved": (plain, _edit("refcount-table", 0, lambda v, _: v | 1)),
    "refcount-block-second": (plain, _edit("refcount-table", 1, lambda _v, at: _region(at, "data").offset)),
    "refcount-block-twice": (plain, _edit("refcount-table", 1, lambda _v, at: _region(at, "refcount-block[0]").offset)),
    "refcount-block-self": (plain, _edit("refcount-table", 1, lambda _v, at: _region(at, "refcount-table").offset)),
    "refcount-block-far": (plain, _edit("refcount-table", 2, lambda _v, _: 1 << 30)),
    "version-1": (plain, _header(4, ">I", 1)),
    "version-4": (plain, _header(4, ">I", 4)),
    "cluster-bits-8": (plain, _header(20, ">I", 8)),
    "cluster-bits-22": (plain, _header(20, ">I", 22)),
    "cluster-bits-smaller": (plain, _header(20, ">I", 9)),
    "cluster-bits-larger": (plain, _header(20, ">I", 16)),
    "size-huge": (plain, _header(24, ">Q", 1 << 63)),
    "size-large": (plain, _header(24, ">Q", 1 << 40)),
    "size-zero": (plain, _header(24, ">Q", 0)),
    "size-odd": (plain, _header(24, ">Q", 4 * MIB - 100)),
    "crypt-aes": (plain, _header(32, ">I", 1)),
    "crypt-unknown": (plain, _header(32, ">I", 9)),
    "l1-size-0": (plain, _header(36, ">I", 0)),
    "l1-size-1": (plain, _header(36, ">I", 1)),
    "l1-size-larger": (plain, _header(36, ">I", 1000)),
    "l1-size-huge": (plain, _header(36, ">I", 0xFFFF_FFFF)),
    "l1-size-limit": (plain, _header(36, ">I", (32 << 20) // 8)),
    "l1-offset-unaligned": (plain, _header(40, ">Q", 4096 + 512)),
    "l1-offset-outside": (plain, _header(40, ">Q", 1 << 40)),
    "l1-offset-wraps": (plain, _header(40, ">Q", 0xFFFF_FFFF_FFFF_F000)),
    "l1-offset-header": (plain, _header(40, ">Q", 0)),
    "refcount-table-unaligned": (plain, _header(48, ">Q", 4096 + 8)),
    "refcount-table-outside": (plain, _header(48, ">Q", 1 << 40)),
    "refcount-table-header": (plain, _header(48, ">Q", 0)),
    "refcount-table-empty": (plain, _header(56, ">I", 0)),
    "refcount-table-large": (plain, _header(56, ">I", 4096)),
    "refcount-table-2": (plain, _header(56, ">I", 2)),
    "snapshots-many": (plain, _header(60, ">I", 70_000)),
    "snapshots-nowhere": (plain, _header(60, ">I", 1)),
    "incompatible-unknown": (plain, _header(72, ">Q", 1 << 40)),
    "incompatible-dirty": (plain, _header(72, ">Q", 1)),
    "incompatible-corrupt": (plain, _header(72, ">Q", 2)),
    "incompatible-data-file": (plain, _header(72, ">Q", 4)),
    "incompatible-extended": (plain, _header(72, ">Q", 16)),
    "compatible-unknown": (plain, _header(80, ">Q", 1 << 63)),
    "autoclear-bitmaps": (plain, _header(88, ">Q", 1)),
    "refcount-order-7": (plain, _header(96, ">I", 7)),
    "refcount-order-3": (plain, _header(96, ">I", 3)),
    "refcount-order-6": (plain, _header(96, ">I", 6)),
    "header-length-0": (plain, _header(100, ">I", 0)),
    "header-length-odd": (plain, _header(100, ">I", 105)),
    "header-length-huge": (plain, _header(100, ">I", 1 << 31)),
    "header-length-cluster": (plain, _header(100, ">I", 4096)),
    "backing-long": (plain, _header(16, ">I", 1024)),
    "extension-long": (plain, _header(108, ">I", 1 << 20)),
    "extension-backing-long": (plain, _header(104, ">Q", q.EXTENSION_BACKING_FORMAT << 32 | 100)),
    "snapshot-l1-outside": (with_snapshots, _edit("snapshots", 0, lambda _v, _: 1 << 40)),
    "snapshot-l1-unaligned": (with_snapshots, _edit("snapshots", 0, lambda v, _: v + 512)),
    "snapshot-l1-size": (with_snapshots, _edit("snapshots", 1, lambda v, _: v | 0x7FFF << 48)),
    "snapshot-names": (with_snapshots, _edit("snapshots", 1, lambda v, _: v | 0xFFFF_FFFF)),
    "snapshot-extra": (with_snapshots, _edit("snapshots", 4, lambda v, _: v | 0xFFFF)),
    "snapshot-l2-outside": (with_snapshots, _edit("snapshot-l1[1]", 0, lambda _v, _: 1 << 40)),
    "snapshot-l2-copied": (with_snapshots, _edit("snapshot-l1[1]", 0, lambda v, _: v | q.COPIED)),
    "snapshot-refcount-1": (with_snapshots, _refcount(_cluster_of("data"), 1)),
    "snapshot-refcount-9": (with_snapshots, _refcount(_cluster_of("data"), 9)),
    "bitmap-directory-outside": (with_bitmaps, _edit("header-extensions", 3, lambda _v, _: 1 << 40)),
    "bitmap-directory-size": (with_bitmaps, _edit("header-extensions", 2, lambda v, _: v + 8)),
    "bitmap-count": (with_bitmaps, _edit("header-extensions", 1, lambda v, _: v + (1 << 32))),
    "bitmap-table-outside": (with_bitmaps, _edit("bitmap-directory", 0, lambda _v, _: 1 << 40)),
    "bitmap-table-size": (with_bitmaps, _edit("bitmap-directory", 1, lambda v, _: v + (1 << 32))),
    "bitmap-flags": (with_bitmaps, _edit("bitmap-directory", 1, lambda v, _: v | 1 << 20)),
    "bitmap-kind": (with_bitmaps, _edit("bitmap-directory", 2, lambda v, _: v + (1 << 56))),
    "bitmap-granularity": (with_bitmaps, _edit("bitmap-directory", 2, lambda v, _: v | 0xFF << 48)),
    "bitmap-entry-reserved": (with_bitmaps, _edit("bitmap-table[one]", 0, lambda v, _: v | 2)),
    "bitmap-entry-outside": (with_bitmaps, _edit("bitmap-table[one]", 0, lambda _v, _: 1 << 40)),
    "bitmap-entry-unaligned": (with_bitmaps, _edit("bitmap-table[one]", 0, lambda v, _: v + 512)),
    "bitmap-entry-ones": (with_bitmaps, _edit("bitmap-table[two]", 0, lambda _v, _: 1)),
    "bitmap-autoclear-off": (with_bitmaps, _header(88, ">Q", 0)),
    "extended-both": (extended, _edit("l2[0]", 1, lambda v, _: v | 0xFF << 32)),
    "extended-zero-unallocated": (extended, _edit("l2[0]", 4, lambda _v, _: 0)),
    "extended-allocated-nowhere": (extended, _edit("l2[0]", 21, lambda _v, _: 0xFF)),
    "extended-compressed-bitmap": (extended, _edit("l2[0]", 9, lambda _v, _: 0xF)),
    "extended-zero-flag": (extended, _edit("l2[0]", 0, lambda v, _: v | 1)),
    "cut-header": (plain, _cut("header", 0.02)),
    "cut-l1": (plain, _cut("l1", 0.5)),
    "cut-l2": (plain, _cut("l2[0]", 0.5)),
    "cut-data": (plain, _cut("data", 0.5)),
    "cut-refcount-table": (plain, _cut("refcount-table", 0.5)),
    "cut-refcount-block": (plain, _cut("refcount-block[0]", 0.5)),
    "cut-snapshots": (with_snapshots, _cut("snapshots", 0.5)),
    "cut-bitmaps": (with_bitmaps, _cut("bitmap-directory", 0.5)),
}

#: Structures that random damage hits; whole structures, so entries in use and unused ones.
_TARGETS = ("header-fields", "header-extensions", "l1", "l2[0]", "refcount-table", "refcount-block[0]")


def _flip(seed: int, used_only: bool) -> Damage:
    """One to four flipped bits in one structure; ``used_only`` looks for words that are not zero."""

    def apply(image: bytearray, layout: Layout) -> None:
        rng = random.Random(seed)
        extra = [r.name for r in layout if r.name.startswith(("snapshot", "bitmap"))]
        region = _region(layout, rng.choice([*_TARGETS, *extra]))
        words = range(region.offset, region.end - 7, 8)
        used = [at for at in words if any(image[at : at + 8])] if used_only else []
        for _ in range(rng.randint(1, 4)):
            at = rng.choice(used or words or [region.offset])
            bit = rng.randrange(64)
            image[at + bit // 8] ^= 1 << bit % 8

    return apply


def known_recipes() -> Iterator[Recipe]:
    for name, (base, damage) in KNOWN.items():
        yield by_writer(f"known-{name}", "qcow2", replace(base(), damage=damage))


def random_recipes(count: int) -> Iterator[Recipe]:
    """``count`` images with random damage, over all base images."""
    bases = {"plain": plain, "snapshots": with_snapshots, "bitmaps": with_bitmaps, "extended": extended}
    for index in range(count):
        label = list(bases)[index % len(bases)]
        damage = _flip(zlib.crc32(f"{SEED}/{label}/{index}".encode()), used_only=index % 3 != 0)
        yield by_writer(f"random-{label}-{index}", "qcow2", replace(bases[label](), damage=damage))
