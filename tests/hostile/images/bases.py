"""The images that get cut and flipped: small, and between them every structure that the formats have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.differential import corruptor
from tests.images import raw_writer, vhd_writer
from tests.images.qcow2_writer import Built, Cluster, Compressed, Data, Qcow2, Region

KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Base:
    name: str
    driver: str
    build: Callable[[], Built]


def _dynamic() -> Built:
    return vhd_writer.Vhd(256 * KIB, block_size=16 * KIB, blocks={0: b"a", 3: b"b"}, creator=b"win ").build()


def _differencing() -> Built:
    locators = (
        vhd_writer.Locator(b"W2ku", "C:\\vm\\parent.vhd".encode("utf-16-le")),
        vhd_writer.Locator(b"W2ru", ".\\parent.vhd".encode("utf-16-le")),
        vhd_writer.Locator(b"MacX", b"file:///parent.vhd"),
    )
    image = vhd_writer.Vhd(256 * KIB, vhd_writer.DIFFERENCING, 16 * KIB, blocks={1: b"c"}, parent_name="parent.vhd")
    image.parent_identifier = bytes(range(1, 17))
    image.locators = locators
    return image.build()


def _fixed() -> Built:
    return vhd_writer.Vhd(64 * KIB, vhd_writer.FIXED, blocks={0: b"z"}).build()


def _gpt() -> Built:
    kind = bytes.fromhex("a2a0d0ebe5b9334487c068b6b72699c7")
    data = raw_writer.gpt(128 * KIB, [raw_writer.Partition(kind, 34, 100), raw_writer.Partition(kind, 140, 60)])
    regions = (("mbr", 0, 512), ("gpt", 512, 512), ("entries", 1024, 16_384))
    return Built(data, tuple(Region(*region) for region in (*regions, ("backup", len(data) - 512, 512))))


def _mbr() -> Built:
    primary = [raw_writer.Partition(0x83, 1, 10, active=True), raw_writer.Partition(0x05, 16, 200)]
    image = bytearray(raw_writer.mbr(128 * KIB, primary))
    logical = raw_writer.mbr(512, [raw_writer.Partition(0x82, 1, 8), raw_writer.Partition(0x05, 32, 100)])
    last = raw_writer.mbr(512, [raw_writer.Partition(0x0C, 1, 8)])
    image[16 * 512 : 17 * 512] = logical
    image[48 * 512 : 49 * 512] = last
    regions = (Region("mbr", 0, 512), Region("ebr-1", 16 * 512, 512), Region("ebr-2", 48 * 512, 512))
    return Built(bytes(image), regions)


def _v2() -> Built:
    clusters: dict[int, Cluster] = {0: Data(), 9: Compressed()}
    return Qcow2(MIB, version=2, cluster_bits=9, clusters=clusters).build()


BASES = (
    Base("qcow2-plain", "qcow2", lambda: corruptor.plain().build()),
    Base("qcow2-snapshots", "qcow2", lambda: corruptor.with_snapshots().build()),
    Base("qcow2-bitmaps", "qcow2", lambda: corruptor.with_bitmaps().build()),
    Base("qcow2-extended", "qcow2", lambda: corruptor.extended().build()),
    Base("qcow2-v2", "qcow2", _v2),
    Base("vhd-dynamic", "vpc", _dynamic),
    Base("vhd-differencing", "vpc", _differencing),
    Base("vhd-fixed", "vpc", _fixed),
    Base("raw-gpt", "raw", _gpt),
    Base("raw-mbr", "raw", _mbr),
)
