"""What `create` leaves on the disk: space, bytes that depend on the request alone, the external data file."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pytest

import vmm
from tests.differential.oracle import qemu_img

pytestmark = pytest.mark.kvm

MIB = 1 << 20


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("driver", ["raw", "qcow2"])
@pytest.mark.parametrize("mode", ["falloc", "full"])
def test_reserved_space_is_there(driver: str, mode: str, vmm_machine: vmm.Machine, tmp_path: Path) -> None:
    path = tmp_path / "image"
    report = vmm_machine.create(path, driver, 8 * MIB, preallocation=mode)
    assert report.file_length == path.stat().st_size
    assert allocated(path) >= 8 * MIB


@pytest.mark.parametrize(
    ("driver", "size", "options"),
    [
        ("raw", 1 << 40, {}),
        ("qcow2", 1 << 50, {}),
        ("qcow2", 1 << 36, {"preallocation": "metadata"}),
        ("vpc", 1 << 30, {"subformat": "fixed"}),
    ],
)
def test_what_holds_nothing_takes_no_space(
    driver: str, size: int, options: dict[str, Any], vmm_machine: vmm.Machine, tmp_path: Path
) -> None:
    path = tmp_path / "image"
    report = vmm_machine.create(path, driver, size, **options)
    assert report.file_length == path.stat().st_size
    # Preallocated tables of 64 GiB in clusters of 64 KiB: 8 MiB of L2 entries, 2 MiB of refcounts.
    assert allocated(path) < 12 * MIB


@pytest.mark.parametrize("driver", ["raw", "qcow2", "vpc"])
def test_the_same_request_gives_the_same_bytes(driver: str, vmm_machine: vmm.Machine, tmp_path: Path) -> None:
    images = []
    for name in ("first", "second"):
        vmm_machine.create(tmp_path / name, driver, 3 * MIB, unix_time=1_700_000_000, uuid=bytes(range(16)))
        images.append((tmp_path / name).read_bytes())
    assert images[0] == images[1]


def test_time_and_identity_come_from_the_request(vmm_machine: vmm.Machine, tmp_path: Path) -> None:
    path = tmp_path / "image.vhd"
    vmm_machine.create(path, "vpc", MIB, unix_time=1_795_381_934, uuid=bytes(range(16)))
    footer = path.read_bytes()[-512:]
    assert struct.unpack_from(">I", footer, 24) == (1_795_381_934 - 946_684_800,)
    assert footer[68:84] == bytes(range(16))
    vmm_machine.create(path, "vpc", MIB, force=True)
    assert path.read_bytes()[-512:][68:84] not in (bytes(16), bytes(range(16)))


@pytest.mark.qemu_img
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compat": "0.10"},
        {"cluster_size": 512},
        {"cluster_size": 4096, "lazy_refcounts": True},
        {"cluster_size": 2 * MIB, "extended_l2": True, "compression_type": "zstd"},
        {"refcount_bits": 1},
        {"refcount_bits": 64},
        {"preallocation": "metadata"},
        {"backing_file": "a base", "backing_fmt": "raw"},
        {"backing_file": "b", "backing_fmt": "raw", "compat": "0.10", "cluster_size": 1024},
    ],
)
def test_bytes_are_those_of_qemu_img(options: dict[str, Any], vmm_machine: vmm.Machine, tmp_path: Path) -> None:
    """Where one refcount block counts the image and nothing random is in it."""
    spelled = ",".join(
        f"{name}={('on' if value else 'off') if isinstance(value, bool) else value}" for name, value in options.items()
    )
    oracle = qemu_img(
        "create", "-u", "-f", "qcow2", *(["-o", spelled] if options else []), str(tmp_path / "theirs"), "5M"
    )
    assert oracle.rc == 0, oracle.stderr
    vmm_machine.create(tmp_path / "ours", "qcow2", "5M", backing_unsafe=True, **options)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize(("raw", "length"), [(False, 33_280), (True, 65_536)])
def test_an_external_data_file_is_made_with_the_image(
    raw: bool, length: int, vmm_machine: vmm.Machine, tmp_path: Path
) -> None:
    """Its length is the disk's, in whole clusters when the tables map all of it."""
    data = tmp_path / "disk.raw"
    vmm_machine.create(tmp_path / "image", "qcow2", 33_000, data_file=os.fspath(data), data_file_raw=raw)
    assert data.stat().st_size == length


def test_a_refusal_leaves_nothing(vmm_machine: vmm.Machine, tmp_path: Path) -> None:
    refused: tuple[dict[str, Any], ...] = (
        {"cluster_size": 3000},
        {"extended_l2": True, "cluster_size": 4096},
        {"backing_file": "b"},
    )
    for options in refused:
        with pytest.raises(vmm.VmmError):
            vmm_machine.create(tmp_path / "image", "qcow2", MIB, **options)
    with pytest.raises(vmm.VmmError, match="Must be between 0 and 9223372036854775807"):
        vmm_machine.create(tmp_path / "image", "raw", 1 << 63)
    with pytest.raises(vmm.VmmError, match="too large for file format 'vpc'"):
        vmm_machine.create(tmp_path / "image", "vpc", "2041G")
    assert list(tmp_path.iterdir()) == []
