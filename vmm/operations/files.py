"""Input files: opened once, looked at once, never reopened by name."""

from __future__ import annotations

import errno
import os
import stat

from vmm.boundary import DeviceSpec
from vmm.errors import FileError
from vmm.operations.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

#: What the bits of a mode say that is no image, for the error text.
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISSOCK, "a socket"),
)


def os_reason(error: OSError) -> str:
    """What the system says, without the name that Python adds."""
    return error.strerror or (os.strerror(error.errno) if error.errno else str(error))


def file_error(path: str, action: str, error: OSError) -> FileError:
    """``Could not ACTION 'PATH': reason``, with the errno's name among the details."""
    name = errno.errorcode.get(error.errno or 0)
    return FileError(f"Could not {action} '{printable(path)}': {os_reason(error)}", file=path, errno=name)


def close(fd: int) -> None:
    """Close a descriptor.  A failure that shows only now is about nothing that anybody still wants: what was read has
    been read, what was to be durable has been made so."""
    try:
        os.close(fd)
    except OSError:
        pass


def _refuse_kind(path: str, mode: int) -> None:
    """Only regular files and block devices have a length and answer reads at an offset."""
    for test, kind in _KINDS:
        if test(mode):
            raise FileError(f"Could not open '{printable(path)}': it is {kind}, not a file or block device", file=path)
    if stat.S_ISLNK(mode):
        raise FileError(
            f"Could not open '{printable(path)}': it is a symbolic link, and those are followed only on request "
            "(--follow-symlinks)",
            file=path,
        )


class InputFile:
    """An image file that is open for reading.

    The descriptor is opened close-on-exec, without blocking on a FIFO, without becoming a terminal's session, and
    without following a symbolic link in the last component unless that is asked for.  A context manager.

    :param path: what the user named; shown in messages as it is.
    :param follow_symlinks: follow a link in the last component of the path.
    :raises FileError: missing, no permission, or neither a regular file nor a block device.
    """

    __slots__ = ("changed", "disk_size", "fd", "length", "path")

    #: How open(2) is asked for it.
    access = os.O_RDONLY

    def __init__(self, path: str, *, follow_symlinks: bool = False) -> None:
        self.path = path
        self.fd = -1
        flags = self.access | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        if not follow_symlinks:
            flags |= os.O_NOFOLLOW
        try:
            # Before opening: a device with side effects on open is not touched.  After opening: what counts.
            _refuse_kind(path, os.stat(path, follow_symlinks=follow_symlinks).st_mode)
            self.fd = os.open(path, flags)
            try:
                self._measure()
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise file_error(path, "open", error) from None
        except ValueError as error:
            raise FileError(f"Could not open '{printable(path)}': {error}", file=path) from None

    def _measure(self) -> None:
        found = os.fstat(self.fd)
        _refuse_kind(self.path, found.st_mode)
        #: Bytes that the file takes on the host's disk.
        self.disk_size = found.st_blocks * 512
        #: When its content was last changed, in seconds since 1970.
        self.changed = max(0, int(found.st_mtime))
        #: Exact length in bytes.
        self.length = found.st_size if stat.S_ISREG(found.st_mode) else os.lseek(self.fd, 0, os.SEEK_END)

    def refuse_empty(self, format_name: str | None) -> None:
        """An empty file is an image only for somebody who says so (``-f``).

        :raises FileError: it is empty and no format was given.
        """
        if self.length == 0 and format_name is None:
            raise FileError(
                f"Could not open '{printable(self.path)}': the file is empty, not an image (-f raw makes it a disk of "
                "0 bytes)",
                file=self.path,
            )

    def device(self) -> DeviceSpec:
        """The device that a machine sees; the descriptor stays this object's."""
        return DeviceSpec(fd=self.fd, length=self.length, allocated=self.disk_size)

    def close(self) -> None:
        """Close the descriptor.  Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
