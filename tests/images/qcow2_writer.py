"""A qcow2 writer for tests: every layout that the specification allows, and any damage on top.

Source of every field: "Disk image format qcow2" (docs/interop/qcow2.txt of QEMU), sections "Header", "Header
extensions", "Host cluster management", "Cluster mapping", "Snapshots" and "Bitmaps".  Numbers are big-endian, offsets
and lengths are bytes.

The writer keeps every guest cluster in one dictionary, lays the file out front to back, and counts references while
it does; so an undamaged image is consistent by construction.  ``Built.layout`` names where each structure landed, for
tests that cut or damage one.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1

INCOMPATIBLE_DIRTY = 1 << 0
INCOMPATIBLE_CORRUPT = 1 << 1
INCOMPATIBLE_DATA_FILE = 1 << 2
INCOMPATIBLE_COMPRESSION = 1 << 3
INCOMPATIBLE_EXTENDED_L2 = 1 << 4
COMPATIBLE_LAZY_REFCOUNTS = 1 << 0
AUTOCLEAR_BITMAPS = 1 << 0
AUTOCLEAR_RAW_DATA_FILE = 1 << 1

EXTENSION_BACKING_FORMAT = 0xE2792ACA
EXTENSION_FEATURE_NAMES = 0x6803F857
EXTENSION_BITMAPS = 0x23852875
EXTENSION_ENCRYPTION = 0x0537BE77
EXTENSION_DATA_FILE = 0x44415441


@dataclass(frozen=True)
class Region:
    """A structure in the file: byte offset and length."""

    name: str
    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True)
class Built:
    """A written image and where its structures are."""

    data: bytes
    layout: tuple[Region, ...]

    def region(self, name: str) -> Region:
        return next(r for r in self.layout if r.name == name)


@dataclass(frozen=True)
class Data:
    """An allocated cluster; ``subclusters`` is the bitmap word of its extended L2 entry ("Extended L2 Entries")."""

    fill: bytes = b"\xaa"
    subclusters: int = 0xFFFF_FFFF


@dataclass(frozen=True)
class Zero:
    """A cluster that reads as zero, with or without a host cluster behind it (version 3)."""

    preallocated: bool = False


@dataclass(frozen=True)
class Compressed:
    """A deflate-compressed cluster (raw deflate, window of 4 KiB)."""

    fill: bytes = b"\xcc"


@dataclass(frozen=True)
class Entry:
    """An L2 entry exactly as given: no cluster, no reference counted."""

    value: int
    bitmap: int = 0


Cluster = Data | Zero | Compressed | Entry


@dataclass(frozen=True)
class Snapshot:
    """An internal snapshot: its own L1 table, which maps the same L2 tables as the active one."""

    identifier: str
    name: str
    disk_size: int | None = None
    vm_state_size: int = 0
    extra_data: bytes | None = None
    date_sec: int = 1_600_000_000
    date_nsec: int = 5_000_000
    vm_clock_nsec: int = 7_000_000_000


@dataclass(frozen=True)
class Bitmap:
    """A bitmap of the bitmaps extension; ``set_clusters`` are indexes of its table that get a cluster of ones."""

    name: str
    granularity_bits: int = 16
    flags: int = 0
    kind: int = 1
    set_clusters: tuple[int, ...] = ()


@dataclass
class Qcow2:
    """What to write.  ``build()`` lays it out; ``damage`` sees the bytes and the layout last."""

    virtual_size: int
    version: int = 3
    cluster_bits: int = 16
    refcount_order: int = 4
    extended_l2: bool = False
    clusters: dict[int, Cluster] = field(default_factory=dict)
    backing_file: str | None = None
    backing_format: str | None = None
    data_file: str | None = None
    raw_data_file: bool = False
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    compression_type: int = 0
    crypt_method: int = 0
    header_length: int | None = None
    feature_names: tuple[tuple[int, int, str], ...] = ()
    extensions: tuple[tuple[int, bytes], ...] = ()
    snapshots: tuple[Snapshot, ...] = ()
    bitmaps: tuple[Bitmap, ...] = ()
    l1_entries: int | None = None
    trailing: bytes = b""
    damage: Callable[[bytearray, tuple[Region, ...]], None] | None = None

    @property
    def cluster_size(self) -> int:
        return 1 << self.cluster_bits

    @property
    def entry_size(self) -> int:
        return 16 if self.extended_l2 else 8

    @property
    def l2_entries(self) -> int:
        return self.cluster_size // self.entry_size

    def build(self) -> Built:
        return _Layout(self).write()


def damage_u64(offset: int, value: int) -> Callable[[bytearray, tuple[Region, ...]], None]:
    """A damage hook that overwrites eight bytes at a byte offset of the file."""

    def apply(image: bytearray, _layout: tuple[Region, ...]) -> None:
        struct.pack_into(">Q", image, offset, value)

    return apply


class _Layout:
    def __init__(self, image: Qcow2) -> None:
        self.image = image
        self.size = image.cluster_size
        self.bytes = bytearray()
        self.references: dict[int, int] = {}
        self.regions: list[Region] = []

    # -- space ------------------------------------------------------------------------------------------------

    def take(self, name: str, length: int) -> int:
        """Append whole clusters for a structure of ``length`` bytes and reference each once."""
        offset = len(self.bytes)
        count = max(1, -(-length // self.size))
        self.bytes.extend(bytes(count * self.size))
        for index in range(offset // self.size, offset // self.size + count):
            self.references[index] = self.references.get(index, 0) + 1
        self.regions.append(Region(name, offset, length))
        return offset

    def put(self, offset: int, data: bytes) -> None:
        self.bytes[offset : offset + len(data)] = data

    # -- parts ------------------------------------------------------------------------------------------------

    def write(self) -> Built:
        image = self.image
        self.take("header", self.size)
        needed = -(-image.virtual_size // (self.size * image.l2_entries))
        if image.clusters:
            needed = max(needed, max(image.clusters) // image.l2_entries + 1)
        l1_entries = needed if image.l1_entries is None else image.l1_entries
        l1 = self.take("l1", 8 * l1_entries) if l1_entries else 0
        tables = self.l2_tables(l1_entries)
        shared = COPIED if not image.snapshots else 0
        for index, offset in tables.items():
            self.put(l1 + 8 * index, struct.pack(">Q", offset | shared))
        snapshots = self.snapshot_table(tables, l1_entries)
        bitmaps = self.bitmap_directory()
        table, clusters = self.refcounts()
        header = self.header(l1, l1_entries, table, clusters, snapshots, bitmaps)
        self.put(0, header)
        self.bytes.extend(image.trailing)
        if image.damage is not None:
            image.damage(self.bytes, tuple(self.regions))
        return Built(bytes(self.bytes), tuple(self.regions))

    def l2_tables(self, l1_entries: int) -> dict[int, int]:
        """Section "Cluster mapping": L2 tables in use and the clusters they map; answers L1 index -> L2 offset."""
        image = self.image
        tables: dict[int, int] = {}
        for guest in sorted(image.clusters):
            index = guest // image.l2_entries
            if index >= l1_entries:
                raise ValueError(f"cluster {guest} lies behind the L1 table")
            if index not in tables:
                tables[index] = self.take(f"l2[{index}]", self.size)
                if image.snapshots:
                    self.references[tables[index] // self.size] += len(image.snapshots)
            value, bitmap = self.entry(image.clusters[guest])
            at = tables[index] + image.entry_size * (guest % image.l2_entries)
            self.put(at, struct.pack(">QQ", value, bitmap)[: image.entry_size])
        return tables

    def entry(self, cluster: Cluster) -> tuple[int, int]:
        """Sections "Standard Cluster Descriptor", "Compressed Clusters Descriptor", "Extended L2 Entries"."""
        image = self.image
        copied = COPIED if not image.snapshots else 0
        if isinstance(cluster, Entry):
            return cluster.value, cluster.bitmap
        if isinstance(cluster, Compressed):
            return self.compressed_entry(cluster), 0
        if isinstance(cluster, Zero):
            bitmap = 0xFFFF_FFFF << 32 if image.extended_l2 else 0
            flag = 0 if image.extended_l2 else ZERO
            if not cluster.preallocated:
                return flag, bitmap
            offset = self.take("data", self.size)
            self.share(offset)
            return offset | flag | copied, bitmap
        offset = self.take("data", self.size)
        self.put(offset, (cluster.fill * self.size)[: self.size])
        self.share(offset)
        return offset | copied, cluster.subclusters

    def share(self, offset: int) -> None:
        """Snapshots map the same L2 tables, so every cluster has one reference more for each."""
        self.references[offset // self.size] += len(self.image.snapshots)

    def compressed_entry(self, cluster: Compressed) -> int:
        packer = zlib.compressobj(9, zlib.DEFLATED, -12)
        data = packer.compress((cluster.fill * self.size)[: self.size]) + packer.flush()
        offset = self.take("compressed", len(data))
        self.put(offset, data)
        self.share(offset)
        shift = 62 - (self.image.cluster_bits - 8)
        sectors = (offset % 512 + len(data) - 1) // 512
        return COMPRESSED | sectors << shift | offset

    def snapshot_table(self, tables: dict[int, int], l1_entries: int) -> int:
        """Section "Snapshots"."""
        image = self.image
        if not image.snapshots:
            return 0
        table = bytearray()
        for snapshot in image.snapshots:
            l1 = self.take(f"snapshot-l1[{snapshot.identifier}]", max(8, 8 * l1_entries))
            for index, offset in tables.items():
                self.put(l1 + 8 * index, struct.pack(">Q", offset))
            extra = snapshot.extra_data
            if extra is None:
                size = image.virtual_size if snapshot.disk_size is None else snapshot.disk_size
                extra = struct.pack(">QQ", snapshot.vm_state_size, size)
            identifier, name = snapshot.identifier.encode(), snapshot.name.encode()
            entry = struct.pack(
                ">QIHHIIQII",
                l1,
                l1_entries,
                len(identifier),
                len(name),
                snapshot.date_sec,
                snapshot.date_nsec,
                snapshot.vm_clock_nsec,
                min(snapshot.vm_state_size, 0xFFFF_FFFF),
                len(extra),
            )
            table += entry + extra + identifier + name
            table += bytes(-len(table) % 8)
        offset = self.take("snapshots", len(table))
        self.put(offset, bytes(table))
        return offset

    def bitmap_directory(self) -> bytes:
        """Section "Bitmaps": tables, directory; answers the body of the header extension."""
        image = self.image
        if not image.bitmaps:
            return b""
        directory = bytearray()
        for bitmap in image.bitmaps:
            bits = -(-image.virtual_size // (1 << bitmap.granularity_bits))
            entries = -(-bits // (8 * self.size))
            table = self.take(f"bitmap-table[{bitmap.name}]", 8 * entries)
            for index in bitmap.set_clusters:
                data = self.take(f"bitmap[{bitmap.name}]", self.size)
                self.put(data, b"\xff" * self.size)
                self.put(table + 8 * index, struct.pack(">Q", data))
            name = bitmap.name.encode()
            directory += struct.pack(
                ">QIIBBHI", table, entries, bitmap.flags, bitmap.kind, bitmap.granularity_bits, len(name), 0
            )
            directory += name
            directory += bytes(-len(directory) % 8)
        offset = self.take("bitmap-directory", len(directory))
        self.put(offset, bytes(directory))
        return struct.pack(">IIQQ", len(image.bitmaps), 0, len(directory), offset)

    def refcounts(self) -> tuple[int, int]:
        """Section "Host cluster management"; the structures count themselves, so their size is a fixed point."""
        per_block = (self.size * 8) >> self.image.refcount_order
        used = len(self.bytes) // self.size
        blocks = table_clusters = 1
        while True:
            total = used + blocks + table_clusters
            needed = -(-total // per_block)
            if (needed, -(-needed * 8 // self.size)) == (blocks, table_clusters):
                break
            blocks, table_clusters = needed, -(-needed * 8 // self.size)
        table = self.take("refcount-table", table_clusters * self.size)
        offsets = [self.take(f"refcount-block[{i}]", self.size) for i in range(blocks)]
        for index, offset in enumerate(offsets):
            self.put(table + 8 * index, struct.pack(">Q", offset))
        for cluster, count in self.references.items():
            self.set_refcount(offsets[cluster // per_block], cluster % per_block, count)
        return table, table_clusters

    def set_refcount(self, block: int, index: int, count: int) -> None:
        order = self.image.refcount_order
        bits = 1 << order
        count = min(count, (1 << bits) - 1)
        if bits >= 8:
            self.put(block + index * bits // 8, count.to_bytes(bits // 8, "big"))
        else:
            at = index * bits
            self.bytes[block + at // 8] |= count << at % 8

    def header(self, l1: int, l1_entries: int, table: int, clusters: int, snapshots: int, bitmaps: bytes) -> bytes:
        """Sections "Header" and "Header extensions"; the backing file's name comes behind the extensions."""
        image = self.image
        incompatible = image.incompatible
        incompatible |= INCOMPATIBLE_DATA_FILE if image.data_file is not None else 0
        incompatible |= INCOMPATIBLE_EXTENDED_L2 if image.extended_l2 else 0
        incompatible |= INCOMPATIBLE_COMPRESSION if image.compression_type else 0
        autoclear = image.autoclear | (AUTOCLEAR_BITMAPS if image.bitmaps else 0)
        autoclear |= AUTOCLEAR_RAW_DATA_FILE if image.raw_data_file else 0
        length = image.header_length or (72 if image.version == 2 else 112 if image.compression_type else 104)
        extensions = b"".join(self.extensions(bitmaps))
        backing = (image.backing_file or "").encode()
        at = length + len(extensions)
        if at + len(backing) > self.size:
            raise ValueError("header, extensions and backing name do not fit the first cluster")
        header = struct.pack(
            ">4sIQIIQIIQQIIQ",
            b"QFI\xfb",
            image.version,
            at if backing else 0,
            len(backing),
            image.cluster_bits,
            image.virtual_size,
            image.crypt_method,
            l1_entries,
            l1,
            table,
            clusters,
            len(image.snapshots),
            snapshots,
        )
        if image.version >= 3:
            features = (incompatible, image.compatible, autoclear)
            header += struct.pack(">QQQIIB", *features, image.refcount_order, length, image.compression_type)
            header = header.ljust(length, b"\0")[:length]
        self.regions.append(Region("header-fields", 0, length))
        self.regions.append(Region("header-extensions", length, len(extensions)))
        self.regions.append(Region("backing-name", at, len(backing)))
        return header + extensions + backing

    def extensions(self, bitmaps: bytes) -> Iterator[bytes]:
        image = self.image
        if image.backing_format is not None:
            yield _extension(EXTENSION_BACKING_FORMAT, image.backing_format.encode())
        if image.data_file:
            yield _extension(EXTENSION_DATA_FILE, image.data_file.encode())
        if image.feature_names:
            rows = (struct.pack(">BB46s", kind, bit, name.encode()) for kind, bit, name in image.feature_names)
            yield _extension(EXTENSION_FEATURE_NAMES, b"".join(rows))
        if bitmaps:
            yield _extension(EXTENSION_BITMAPS, bitmaps)
        for number, body in image.extensions:
            yield _extension(number, body)
        yield _extension(0, b"")


def _extension(number: int, body: bytes) -> bytes:
    return struct.pack(">II", number, len(body)) + body + bytes(-len(body) % 8)
