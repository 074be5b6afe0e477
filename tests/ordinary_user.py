"""Runs a command as an ordinary user of this machine, wherever the interpreter lies and whoever may open /dev/kvm.

    python -m tests.ordinary_user COMMAND...

Started by root it becomes user and group 1000, without further groups, in a mount namespace of its own.  There, and
nowhere else, the folders that Python and this repository need are reachable, also below a home that is closed to
others (its other content is not), and the KVM device may be opened by everybody.  An ordinary user stays who he is.
The command's file system is the host's in all else, so it can write to folders that user 1000 may write to.
"""

from __future__ import annotations

import ctypes
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from vmm.boundary import KVM_DEVICE

#: Some user that is not root; nobody needs to have the name.
USER = 1000
ROOT = Path(__file__).resolve().parent.parent

_CLONE_NEWNS = 0x20000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000

_libc = ctypes.CDLL(None, use_errno=True)


def ordinary(*words: str) -> list[str]:
    """The command line that runs a command as an ordinary user; start it in the repository."""
    return [sys.executable, "-m", "tests.ordinary_user", *words]


def _check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    done = _libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])
    _check(done, f"mounting {target}")


def _closed_ancestor(folder: Path) -> Path | None:
    """The highest folder on the way that others may not pass."""
    for ancestor in [*reversed(folder.parents), folder]:
        if not ancestor.stat().st_mode & stat.S_IXOTH:
            return ancestor
    return None


def _needed() -> list[Path]:
    """Where the interpreter, its environment and this repository lie, none below another."""
    found = {Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve(), ROOT}
    return sorted(folder for folder in found if not any(other in folder.parents for other in found))


def _open_the_way(stage: Path) -> None:
    """Lay an empty folder over each closed one, with nothing in it but what is needed."""
    closed: dict[Path, list[tuple[Path, Path]]] = {}
    for number, folder in enumerate(_needed()):
        ancestor = _closed_ancestor(folder)
        if ancestor is not None:
            kept = stage / str(number)
            kept.mkdir()
            _mount(str(folder), str(kept), None, _MS_BIND | _MS_REC)
            closed.setdefault(ancestor, []).append((folder, kept))
    for ancestor, folders in closed.items():
        _mount("tmpfs", str(ancestor), "tmpfs", 0, "mode=755")
        for folder, kept in folders:
            folder.mkdir(parents=True, exist_ok=True)
            _mount(str(kept), str(folder), None, _MS_BIND | _MS_REC)


def _open_kvm(stage: Path) -> None:
    """Lay a node that everybody may open over the KVM device, where there is one."""
    try:
        device = os.stat(KVM_DEVICE)
    except OSError:
        return
    if device.st_mode & 0o006 != 0o006:
        node = stage / "kvm"
        os.mknod(node, stat.S_IFCHR, device.st_rdev)
        node.chmod(0o666)
        _mount(str(node), KVM_DEVICE, None, _MS_BIND)


def become_ordinary() -> None:
    """Make this process that of an ordinary user; nothing happens when it is one."""
    if os.geteuid() != 0:
        return
    _check(_libc.unshare(_CLONE_NEWNS), "a mount namespace")
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    # A file system for everything that is laid over others; its name is gone before the command starts.
    stage = Path(tempfile.mkdtemp(prefix="pyvmm-"))
    _mount("tmpfs", str(stage), "tmpfs", 0, "mode=755")
    _open_the_way(stage)
    _open_kvm(stage)
    _check(_libc.umount2(os.fsencode(stage), 2), f"unmounting {stage}")
    stage.rmdir()
    os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)


def main(words: list[str]) -> NoReturn:
    """Become an ordinary user and the command."""
    if not words:
        sys.exit(__doc__)
    become_ordinary()
    os.environ["HOME"] = "/"
    os.execvp(words[0], words)


if __name__ == "__main__":
    main(sys.argv[1:])
