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

``test_crash.py`` does the rest: every prefix of the steps, torn writes, writes in another order.  In each state the
image opens, has its old size or its new one, and its content up to the smaller of them is what it was.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.crash.disk import decode

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
    build: Callable[[Path], None]
    size: int
    words: tuple[str, ...] = ()
    checked: tuple[int, ...] = (0, 3)
    qemu: str | None = None
    qemu_check: bool = False
    read: Callable[[Path, str, Path], bytes] = read_segments
    zero_when_new: bool = True


def _raw(length: int) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        path.write_bytes(pattern(length))

    return build


_NO_CHECKS = (63,)
RAW = (
    Case("raw-grow", "raw", _raw(10_000), 20_000, checked=_NO_CHECKS, qemu="raw"),
    Case("raw-grow-full", "raw", _raw(10_000), 100_000, ("full",), checked=_NO_CHECKS, qemu="raw"),
    Case("raw-shrink", "raw", _raw(10_000), 4_096, ("shrink",), checked=_NO_CHECKS, qemu="raw"),
)

CASES: tuple[Case, ...] = RAW
