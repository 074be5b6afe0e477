"""The compiled binding of system calls, typed, and its absence as a typed error."""

from __future__ import annotations

import os

from vmm.errors import KvmUnavailableError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

try:
    from vmm.host._binding import ffi as _ffi
    from vmm.host._binding import lib as _lib
except ImportError as error:
    raise KvmUnavailableError(
        f"the binding of system calls is not built ({error}): install the package with `pip install .`, or run "
        "`make guest`"
    ) from None

ffi: Any = _ffi
lib: Any = _lib

#: Modes of fallocate(2).
FALLOC_KEEP_SIZE = 1
FALLOC_PUNCH_HOLE = 2
FALLOC_ZERO_RANGE = 16

#: How openat2(2) resolves a path: RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH (<linux/openat2.h>).
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08


def _check(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2): change the space of the bytes [offset, offset + length) of a file.

    :param mode: FALLOC_* bits.
    :raises OSError: the system refused; EOPNOTSUPP where the file system has no such thing.
    """
    _check(lib.pyvmm_fallocate(fd, mode, offset, length))


def openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    """openat2(2): open a path relative to a directory, with bounds on where it may lead.

    :param directory: open on the directory.
    :param path: without NUL.
    :param flags: as for open(2); nothing is created.
    :param resolve: RESOLVE_* bits.
    :raises OSError: the system refused; ENOSYS where the kernel (before 5.6) has no such call.
    """
    return _check(lib.pyvmm_openat2(directory, os.fsencode(path), flags, resolve))


def replace(fd: int, directory: int, temporary: str, name: str) -> None:
    """Put an open file without a name (``O_TMPFILE``) in the place of an existing one, in one step for everybody else.

    A process that is killed meanwhile leaves the old file or the new one, and no third name.  Needs /proc.

    :param directory: open on the directory of both names.
    :param temporary: a name that nothing has; it exists for an instant.
    :raises OSError: the system refused; nothing has changed.
    """
    _check(lib.pyvmm_replace(fd, directory, os.fsencode(temporary), os.fsencode(name)))


class Guard:
    """Removes a file when this process ends, however it ends, before :meth:`dismiss` was called.

    A small process of its own session that waits for this one.  Make it before the file: there is then no instant
    in which nobody would clean up.  It sees this process end when the last copy of a descriptor is closed; a child
    that was forked meanwhile without exec holds one too.

    :param directory: open on the directory; not needed any more when this returns.
    :param name: of the file, in that directory.
    :raises OSError: no process can be made.
    """

    __slots__ = ("_connection", "process")

    def __init__(self, directory: int, name: str) -> None:
        connection = ffi.new("int *", -1)
        #: The process.
        self.process = _check(lib.pyvmm_guard(directory, os.fsencode(name), connection))
        self._connection = int(connection[0])

    def dismiss(self) -> None:
        """The file is in place or gone; the process has ended when this returns.  Idempotent."""
        connection, self._connection = self._connection, -1
        if connection >= 0:
            lib.pyvmm_dismiss(self.process, connection)
