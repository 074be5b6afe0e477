"""A FUSE file system over a folder whose calls fail or dawdle as a file of rules says, without O_TMPFILE.

    python faultfs.py FOLDER MOUNTPOINT RULES

RULES is JSON, read at each call: {CALL: {"errno": 5, "from": 4096, "delay": 0.5, "name": ".part"}}.  CALL is a method
below; ``from`` spares reads and writes that end at or before that byte; ``delay`` is in seconds; ``name`` spares other
names.  A program of its own, run by tests/integration/mounts.py.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mfusepy

#: Where a call ends in the file, from its arguments.
_END: dict[str, Callable[..., int]] = {
    "read": lambda size, offset, _: offset + size,
    "write": lambda data, offset, _: offset + len(data),
}


def faulty(method: Callable[..., Any]) -> Callable[..., Any]:
    """Apply the rule of a call before it is made."""
    call = method.__name__

    @functools.wraps(method)
    def wrapped(self: FaultFileSystem, path: str, *more: Any) -> Any:
        rule = json.loads(self.rules.read_text()).get(call, {})
        if path.endswith(rule.get("name", "")):
            time.sleep(rule.get("delay", 0))
            end = _END[call](*more) if call in _END else 1
            if "errno" in rule and end > rule.get("from", 0):
                raise OSError(rule["errno"], os.strerror(rule["errno"]))
        return method(self, path, *more)

    return wrapped


class FaultFileSystem(mfusepy.Operations):  # type: ignore[misc]
    """Everything that the tests need, passed on to a folder."""

    use_ns = True

    def __init__(self, root: str, rules: str) -> None:
        self.root = root
        self.rules = Path(rules)

    def _at(self, path: str) -> str:
        return self.root + path

    @faulty
    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        found = os.lstat(self._at(path)) if fh is None else os.fstat(fh)
        names = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks")
        times = {f"st_{name}": getattr(found, f"st_{name}_ns") for name in ("atime", "mtime", "ctime")}
        return {name: getattr(found, name) for name in names} | times

    @faulty
    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *os.listdir(self._at(path))]

    @faulty
    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return os.open(self._at(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    @faulty
    def open(self, path: str, flags: int) -> int:
        return os.open(self._at(path), flags & (os.O_ACCMODE | os.O_TRUNC))

    @faulty
    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    @faulty
    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    @faulty
    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        os.truncate(self._at(path) if fh is None else fh, length)

    @faulty
    def fsync(self, path: str, datasync: int, fh: int) -> None:
        os.fsync(fh)

    @faulty
    def fsyncdir(self, path: str, datasync: int, fh: int) -> None:
        pass

    @faulty
    def flush(self, path: str, fh: int) -> None:
        pass

    @faulty
    def release(self, path: str, fh: int) -> None:
        os.close(fh)

    @faulty
    def rename(self, old: str, new: str) -> None:
        os.rename(self._at(old), self._at(new))

    @faulty
    def unlink(self, path: str) -> None:
        os.unlink(self._at(path))

    @faulty
    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self._at(path), mode)

    @faulty
    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self._at(path))
        names = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_namemax")
        return {name: getattr(found, name) for name in names}


if __name__ == "__main__":
    mfusepy.FUSE(
        FaultFileSystem(sys.argv[1], sys.argv[3]), sys.argv[2], foreground=True, attr_timeout=0, entry_timeout=0
    )
