"""Random qcow2 images from a seed: any legal combination of features, then up to three words overwritten.

Unlike the corruptor's bases these have no fixed shape, so that structures meet that nobody thought of putting together.
"""

from __future__ import annotations

import random
import struct

from tests.images import qcow2_writer as q

_ALL_ONES = (1 << 64) - 1


def _cluster(rng: random.Random, version: int, cluster_bits: int) -> q.Cluster:
    """One guest cluster of any kind; one in six is an entry of random bits."""
    kind = rng.randrange(6)
    if kind == 0:
        maps = (_ALL_ONES >> 32, 0xFF, 1, 0, 0xFF << 32 | 0xFF00, rng.getrandbits(64))
        return q.Data(subclusters=rng.choice(maps))
    if kind == 1:
        return q.Data()
    if kind == 2:
        return q.Compressed(bytes([rng.randrange(256)]))
    if kind in (3, 4):
        return q.Zero(preallocated=kind == 4) if version == 3 else q.Data()
    place = rng.randrange(40) << cluster_bits
    entries = (0, 1, q.COPIED, rng.getrandbits(64), place | q.COPIED, place, q.COMPRESSED | rng.getrandbits(62))
    return q.Entry(rng.choice(entries), rng.choice((0, 0xF, rng.getrandbits(64))))


def _snapshots(rng: random.Random, size: int) -> tuple[q.Snapshot, ...]:
    return tuple(
        q.Snapshot(
            str(index + 1),
            f"s{index}",
            disk_size=rng.choice((None, None, 512, size * 2)),
            vm_state_size=rng.choice((0, 0, 100, 1 << 33)),
            extra_data=rng.choice((None, None, b"", bytes(8), bytes(24), b"\x01" * 40)),
        )
        for index in range(rng.choice((0, 0, 0, 1, 2, 5)))
    )


def _bitmaps(rng: random.Random) -> tuple[q.Bitmap, ...]:
    return tuple(
        q.Bitmap(f"b{i}", rng.choice((9, 16, 20, 31)), rng.choice((0, 1, 2, 3)), 1, (0,) if rng.random() < 0.5 else ())
        for i in range(rng.choice((0, 0, 1, 3)))
    )


def _overwrite(rng: random.Random, data: bytearray, layout: tuple[q.Region, ...], cluster_bits: int) -> None:
    """Change one 64-bit word of a structure, often to something that is almost right."""
    region = rng.choice([r for r in layout if r.length >= 8 and r.name != "data"])
    at = region.offset + 8 * rng.randrange(min(region.length // 8, rng.choice((4, 16, 1 << 16))))
    if at + 8 > len(data):
        return
    (word,) = struct.unpack_from(">Q", data, at)
    words = (
        word ^ 1 << rng.randrange(64),
        rng.choice(layout).offset | rng.choice((0, q.COPIED)),
        rng.getrandbits(64),
        rng.choice((0, 1, q.COPIED, _ALL_ONES, len(data), len(data) >> cluster_bits << cluster_bits, 1 << 40)),
        word + rng.choice((1, -1, 512, 1 << cluster_bits)),
    )
    struct.pack_into(">Q", data, at, rng.choice(words) & _ALL_ONES)


def random_qcow2(seed: str) -> bytes:
    """The image of a seed."""
    rng = random.Random(seed)
    version = rng.choice((2, 3, 3, 3))
    cluster_bits = rng.choice((9, 9, 10, 12, 14, 16))
    count = rng.choice((1, 7, 64, 65, 300))
    size = max((count << cluster_bits) + rng.choice((0, 0, 512, -512, 1, 100)), 0)
    last = -(-size >> cluster_bits) + 2
    image = q.Qcow2(
        size,
        version=version,
        cluster_bits=cluster_bits,
        refcount_order=4 if version == 2 else rng.randrange(7),
        extended_l2=version == 3 and cluster_bits >= 14 and rng.random() < 0.4,
        clusters={rng.randrange(last): _cluster(rng, version, cluster_bits) for _ in range(rng.randrange(12))},
        snapshots=_snapshots(rng, size),
        compatible=rng.choice((0, 1)),
    )
    if version == 3:
        image.bitmaps = _bitmaps(rng)
        image.header_length = rng.choice((None, None, 104, 112, 120))
        image.incompatible = rng.choice((0, 0, 0, 0, 1, 2, 3))
        if rng.random() < 0.1:
            image.feature_names = ((0, 0, "dirty"), (2, 5, "x"))
    if rng.random() < 0.2:
        image.trailing = b"\x22" * rng.choice((1, 511, 512, 70_000))
    if rng.random() < 0.1:
        image.extensions = ((rng.getrandbits(32), b"z" * rng.randrange(20)),)
    try:
        built = image.build()
    except ValueError:  # header, extensions and names do not fit a cluster of 512 bytes
        return q.Qcow2(size, cluster_bits=cluster_bits).build().data
    data = bytearray(built.data)
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        _overwrite(rng, data, built.layout, cluster_bits)
    if rng.random() < 0.08:
        del data[rng.randrange(len(data)) :]
    return bytes(data)
