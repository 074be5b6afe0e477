"""Sizes at which sums wrap, in every calculator: an exact answer or a typed refusal, never a failure of the guest.

Among them the sizes with which fuzzing stopped the reference system: 2^64 - 1, the smallest size whose rounding to
4 KiB, 16 KiB or 64 KiB wraps, 2^63 and its neighbours, and sizes just below the limits of VHD.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calltable._generated import ERROR_CODES
from tests.differential.ours import Ours, explain

pytestmark = pytest.mark.kvm

INT64_MAX = (1 << 63) - 1
EDGES = (
    *((1 << 64) - granule + 1 for granule in (512, 4096, 16_384, 65_536)),
    *((1 << bits) + step for bits in (31, 32, 40, 48, 56, 62, 63) for step in (-513, -512, -1, 0, 1, 512)),
    *(0xFFFF_FFFF_FFFF_0000 | low for low in (0xFD80, 0xFD00, 0xFDFF, 0xFDC1, 0xFC02, 0xFFFF)),
    *(0xFF00_0000 * 512 + step for step in (-1, 0, 1, 512)),
    *(65_535 * 16 * 255 * 512 + step for step in (-512, 0, 512)),
)
TARGETS = (
    ("raw", ""),
    ("qcow2", ""),
    ("qcow2", "cluster_size=512"),
    ("qcow2", "cluster_size=512,refcount_bits=64"),
    ("qcow2", "cluster_size=2M,refcount_bits=1"),
    ("qcow2", "preallocation=falloc"),
    ("qcow2", "extended_l2=on,cluster_size=16k"),
    ("vpc", ""),
    ("vpc", "subformat=fixed"),
    ("vpc", "force_size=on"),
    ("vpc", "subformat=fixed,force_size=on"),
    ("vmdk", ""),
    ("vmdk", "subformat=streamOptimized,zeroed_grain=on"),
    ("vmdk", "subformat=twoGbMaxExtentSparse"),
    ("vmdk", "subformat=twoGbMaxExtentFlat"),
    ("vmdk", "subformat=monolithicFlat"),
)


@pytest.mark.parametrize(("target", "options"), TARGETS)
def test_measure(target: str, options: str, ours: Ours) -> None:
    chosen = ["-o", options] if options else []
    for size in EDGES:
        answer = ours.run("measure", "--output=json", "-O", target, *chosen, "--size", str(size))
        assert answer.rc in (0, 1, 64), f"{size}: {explain(answer)}"
        report = json.loads(answer.stdout)
        if answer.rc != 0:
            assert report["error"]["message"], size
            assert report["error"].get("guest-code", "too-large") in ERROR_CODES, size
            continue
        assert size <= INT64_MAX
        assert 0 <= report["required"] <= report["fully-allocated"] < 1 << 64, size
        # A VHD may keep less than asked for only by refusing, a sparse VMDK holds 2 TiB of a larger disk; the others
        # hold every byte.
        if target in ("raw", "qcow2") or (target == "vmdk" and size < 1 << 40):
            assert report["fully-allocated"] >= size, size


@pytest.mark.parametrize(
    ("target", "options"), [t for t in TARGETS if not any(word in t[1] for word in ("falloc", "fixed", "Flat"))]
)
def test_create(target: str, options: str, ours: Ours, tmp_path: Path) -> None:
    """Only sizes that are refused or stay sparse: nothing may be left behind by a refusal."""
    chosen = ["-o", options] if options else []
    for size in EDGES:
        if size < 1 << 62:
            continue
        path = tmp_path / "image"
        words = ["create", "--output=json", "-f", target, *chosen, str(path), str(size)]
        # Within the limit for outputs the file system's own would never be met.
        limit = ["--max-output", str(INT64_MAX)]
        answer = ours.run(*words, *limit)
        assert answer.rc in (0, 1, 64), f"{size}: {explain(answer)}"
        if answer.rc == 1 and "File too large" in answer.stdout:
            assert ours.run(*words).rc == 75
        assert path.exists() == (answer.rc == 0), size
        path.unlink(missing_ok=True)
        assert list(tmp_path.iterdir()) == []
