"""File systems that answer to one user only, whoever holds an open file of theirs."""

from __future__ import annotations

import os

_MOUNTS = "/proc/self/mountinfo"


def is_fuse(fd: int) -> bool:
    """Whether a file lies on a FUSE file system (fuse(4), proc(5): mountinfo).

    Unless it was mounted with ``allow_other``, such a file system lets nobody but the user who mounted it change the
    length of a file, though it was opened long before.
    """
    device = os.fstat(fd).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return False
    for line in lines:
        fields = line.split(" ")
        if fields[2] == wanted and "-" in fields:
            return fields[fields.index("-") + 1].startswith("fuse")
    return False
