"""Output files: they appear whole or not at all.

The bytes go to a file without a name (``O_TMPFILE``) in the target's directory, or where the file system has no such
thing to one with a temporary name, which a guard removes should this process end too early.  :meth:`OutputFile.commit`
makes the file durable, puts it in place in one step, and makes the directory durable.  Whatever happens before that,
SIGKILL included, leaves what was there before and nothing else.
"""

from __future__ import annotations

import errno
import os
import stat

from vmm.boundary import DeviceSpec
from vmm.errors import FileError
from vmm.operations.files import close, file_error
from vmm.operations.sizes import MAX_SIZE
from vmm.operations.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Self

    from vmm.host.system import Guard

#: Mode of a new file before the umask, as every program that creates one asks for.
_MODE = 0o666
#: Where an open file has a path (proc(5)); linkat(2) gives a file without a name one through it.
_DESCRIPTORS = "/proc/self/fd"


class OutputFile:
    """A file to be written, as a context manager: leaving it without :meth:`commit` leaves nothing behind.

    An existing regular file is replaced (its permissions are kept), or kept without ``replace``; anything else that
    exists is refused.

    :param follow_symlinks: when the target is a symbolic link, replace what it points to.
    :param replace: whether an existing file may be replaced.
    :raises FileError: the directory cannot be written, or the target exists and is kept, or is a directory, a device, a
        link.
    """

    __slots__ = (
        *("_directory", "_directory_fd", "_guard", "_may_replace", "_name", "_replaced", "_temporary"),
        *("fd", "path"),
    )

    def __init__(self, path: str, *, follow_symlinks: bool = False, replace: bool = True) -> None:
        self.path = path
        self.fd = -1
        self._may_replace = replace
        self._directory = ""
        self._directory_fd = -1
        #: The name of a file that has to have one before it is in place, and who removes it when this process cannot.
        self._temporary: str | None = None
        self._guard: Guard | None = None
        self._replaced: os.stat_result | None = None
        try:
            self._open(os.path.realpath(path) if follow_symlinks else path)
        except OSError as error:
            self.close()
            raise file_error(path, "create", error) from None
        except ValueError as error:
            self.close()
            raise FileError(f"Could not create '{printable(path)}': {error}", file=path) from None
        except BaseException:
            self.close()
            raise

    def _open(self, target: str) -> None:
        self._directory, self._name = os.path.split(target)
        if self._name in ("", ".", ".."):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        self._directory_fd = os.open(self._directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._replaced = os.stat(self._name, dir_fd=self._directory_fd, follow_symlinks=False)
        except FileNotFoundError:
            pass
        else:
            self._check_replaced(self._replaced.st_mode)
        self.fd = self._open_nameless()
        if self._replaced is not None:
            # Without set-user-ID and the like: the new file may belong to somebody else than the old one did.
            os.fchmod(self.fd, self._replaced.st_mode & (stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO))

    def _check_replaced(self, mode: int) -> None:
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "a device, FIFO or socket"
            raise FileError(
                f"Could not create '{printable(self.path)}': it exists and is {kind}, which is not replaced",
                file=self.path,
            )
        if not self._may_replace:
            raise self._kept()
        if not os.access(self._name, os.W_OK, dir_fd=self._directory_fd):
            # A file that may not be written is not to be replaced either, though the directory would allow it.
            read_only = os.statvfs(self._directory_fd).f_flag & os.ST_RDONLY
            reason = errno.EROFS if read_only else errno.EACCES
            raise OSError(reason, os.strerror(reason))

    def _kept(self) -> FileError:
        return FileError(
            f"Could not create '{printable(self.path)}': it exists and is kept (--force replaces it)",
            file=self.path,
            errno=errno.errorcode[errno.EEXIST],
        )

    def _open_nameless(self) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            # Only where it can get a name: without /proc, as in some chroots, nothing can give it one.
            if os.path.isdir(_DESCRIPTORS):
                return os.open(".", flags | os.O_TMPFILE, _MODE, dir_fd=self._directory_fd)
        except OSError as error:
            # Kernels and file systems without O_TMPFILE answer in one of these ways.
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
                raise
        from vmm.host.system import Guard

        name = self._temporary_name()
        self._guard = Guard(self._directory_fd, name)
        self._temporary = name
        return os.open(self._temporary, flags | os.O_CREAT | os.O_EXCL, _MODE, dir_fd=self._directory_fd)

    @staticmethod
    def _temporary_name() -> str:
        return f".pyvmm-{os.urandom(8).hex()}.part"

    @property
    def directory(self) -> str:
        """Path of the directory that the file appears in; empty for the current one."""
        return self._directory

    @property
    def name(self) -> str:
        """Its name there."""
        return self._name

    def device(self) -> DeviceSpec:
        """The device that a machine sees: empty, and it may grow."""
        return DeviceSpec(fd=self.fd, length=0, allocated=0, read_only=False, resizable=True, max_length=MAX_SIZE)

    def allocate(self) -> None:
        """Reserve disk space for every byte of the file as long as it is now, holes included; what was written stays.

        :raises FileError: there is not so much space.
        """
        try:
            if length := os.fstat(self.fd).st_size:
                os.posix_fallocate(self.fd, 0, length)
        except OSError as error:
            raise file_error(self.path, "allocate space for", error) from None

    def synchronize(self) -> None:
        """Make the content durable, which :meth:`commit` does as well.

        :raises FileError: the file system refused.
        """
        try:
            os.fsync(self.fd)
        except OSError as error:
            raise file_error(self.path, "create", error) from None

    def commit(self) -> None:
        """Make the content durable and put the file in place.

        :raises FileError: the file system refused: nothing is left behind, or, when the error is about the directory,
            the file is in place but may not be after a crash of the host.
        """
        self.synchronize()
        try:
            self._place()
        except OSError as error:
            raise file_error(self.path, "create", error) from None
        try:
            os.fsync(self._directory_fd)
        except OSError as error:
            # EINVAL: a file system whose directories cannot be synchronised.
            if error.errno != errno.EINVAL:
                raise file_error(self.path, "make durable the directory of", error) from None

    def _place(self) -> None:
        if self._temporary is not None:
            if not self._may_replace and os.path.lexists(os.path.join(self._directory, self._name)):
                raise self._kept()
            os.rename(self._temporary, self._name, src_dir_fd=self._directory_fd, dst_dir_fd=self._directory_fd)
            self._temporary = None
            return
        if self._replaced is None:
            try:
                source = f"{_DESCRIPTORS}/{self.fd}"
                os.link(source, self._name, dst_dir_fd=self._directory_fd, follow_symlinks=True)
            except FileExistsError:
                # Somebody made it meanwhile: replace it, as the open would have.
                if not self._may_replace:
                    raise self._kept() from None
            else:
                return
        from vmm.host.system import replace

        replace(self.fd, self._directory_fd, self._temporary_name(), self._name)

    def close(self) -> None:
        """Close everything and remove a temporary name.  Idempotent.

        :raises FileError: the name cannot be removed; everything is closed all the same.
        """
        temporary, self._temporary = self._temporary, None
        guard, self._guard = self._guard, None
        fd, self.fd = self.fd, -1
        directory_fd, self._directory_fd = self._directory_fd, -1
        # In this order: network file systems keep a removed file that is open under yet another name.
        if fd >= 0:
            close(fd)
        try:
            if temporary is not None:
                os.unlink(temporary, dir_fd=directory_fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise file_error(os.path.join(self._directory, temporary or ""), "remove", error) from None
        finally:
            if directory_fd >= 0:
                close(directory_fd)
            if guard is not None:
                guard.dismiss()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def close_all(outputs: Iterable[OutputFile]) -> None:
    """Close every one, whatever happens to another.

    :raises FileError: see :meth:`OutputFile.close`.
    """
    rest = iter(outputs)
    for output in rest:
        try:
            output.close()
        except BaseException:
            close_all(rest)
            raise
