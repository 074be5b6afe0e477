"""A control group of its own for a worker, where this process may make one (cgroup v2, Documentation/admin-guide).

What a worker may use is then counted by the kernel as memory that is really used, not as address space.  It takes a
version 2 hierarchy whose memory controller reaches a group that this user may add to: a container of one's own, a
service with ``Delegate=yes``, or root.  Everybody else has RLIMIT_AS.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

_PREFIX = "pyvmm-"
_MOUNTS = "/proc/self/mountinfo"
_MEMBERSHIP = "/proc/self/cgroup"

_made = 0


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def _write(path: str, text: str) -> bool:
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        return False
    return True


def _hierarchy() -> tuple[str, str] | None:
    """Where version 2 is mounted, and this process's group there; None without."""
    group = next((line[3:] for line in _read(_MEMBERSHIP).splitlines() if line.startswith("0::/")), None)
    if group is None:
        return None
    for line in _read(_MOUNTS).splitlines():
        fields = line.split(" ")
        if "-" in fields and fields[fields.index("-") + 1] == "cgroup2":
            root = fields[3]
            inside = group if root == "/" else group.removeprefix(root) or "/"
            return fields[4], inside
    return None


class ControlGroup:
    """A group that was made for one worker; empty until the worker joins it.

    :param folder: the group to make it in.
    :raises OSError: it cannot be made there.
    """

    __slots__ = ("path",)

    def __init__(self, folder: str) -> None:
        global _made
        _made += 1
        self.path = os.path.join(folder, f"{_PREFIX}{os.getpid()}-{_made}")
        os.mkdir(self.path)

    @classmethod
    def create(cls) -> Self | None:
        """A group whose memory can be limited, in this process's own or the nearest above; None where there is none."""
        found = _hierarchy()
        if found is None:
            return None
        mount, group = found
        while True:
            folder = os.path.join(mount, group.lstrip("/"))
            if "memory" in _read(os.path.join(folder, "cgroup.subtree_control")).split():
                _sweep(folder)
                try:
                    return cls(folder)
                except OSError:
                    pass
            if group in ("", "/"):
                return None
            group = os.path.dirname(group)

    @property
    def members(self) -> str:
        """The file that a process joins by writing to it."""
        return os.path.join(self.path, "cgroup.procs")

    def limit(self, memory: int, tasks: int) -> str | None:
        """Set the limits; what holds, or None when the memory limit does not.

        :param memory: bytes.
        :param tasks: processes and threads, where the controller for them is there as well.
        """
        if not _write(os.path.join(self.path, "memory.max"), str(memory)):
            return None
        # Not to be had everywhere, and not what the limit stands on.
        _write(os.path.join(self.path, "memory.swap.max"), "0")
        _write(os.path.join(self.path, "memory.oom.group"), "1")
        limited = _write(os.path.join(self.path, "pids.max"), str(tasks))
        return f"control group, memory.max {memory}" + (f", pids.max {tasks}" if limited else "")

    def out_of_memory(self) -> bool:
        """The kernel has killed in this group because of the limit."""
        lines = _read(os.path.join(self.path, "memory.events")).splitlines()
        return any(line.startswith("oom_kill ") and line != "oom_kill 0" for line in lines)

    def remove(self) -> None:
        """Remove it, when its processes have ended.  Idempotent."""
        try:
            os.rmdir(self.path)
        except OSError:
            pass


def _sweep(folder: str) -> None:
    """Remove what processes left that were killed before they could."""
    try:
        names = [name for name in os.listdir(folder) if name.startswith(_PREFIX)]
    except OSError:
        return
    for name in names:
        owner = name[len(_PREFIX) :].partition("-")[0]
        if owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
            try:
                os.rmdir(os.path.join(folder, name))
            except OSError:
                pass
