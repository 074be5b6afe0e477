"""Files that are changed in place: opened once, locked against everybody else who would change them, made durable.

What keeps an image readable when the run ends half-way is the order of the guest's writes, not this module.  It keeps
two writers apart, with the locks that qemu takes: open file description locks on single bytes, two for each permission
(block/file-posix.c of QEMU: ``RAW_LOCK_PERM_BASE``, ``RAW_LOCK_SHARED_BASE``; the bits are ``BLK_PERM_*`` of
include/block/block-common.h).
"""

from __future__ import annotations

import errno
import os
import stat
import struct

from vmm.boundary import DeviceSpec
from vmm.errors import FileError
from vmm.operations.files import InputFile, file_error
from vmm.operations.sizes import MAX_SIZE
from vmm.operations.text import printable

#: Byte 100 + n is locked by whoever uses permission n, byte 200 + n by whoever does not share it.
_USED_BASE = 100
_UNSHARED_BASE = 200
_CONSISTENT_READ, _WRITE, _RESIZE = 0, 1, 3
_USED = (_CONSISTENT_READ, _WRITE, _RESIZE)
#: What qemu's format drivers do not share of the file below them.
_UNSHARED = (_WRITE, _RESIZE)
_NAMES = {_CONSISTENT_READ: "consistent read", _WRITE: "write", _RESIZE: "resize"}
#: struct flock of fcntl(2): type, whence, start, length, process.
_FLOCK = "hhqqi0q"
#: What file systems without locks answer.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class InPlaceFile(InputFile):
    """An image file that is open for reading and writing.  A context manager; leaving it gives up the locks.

    :param path: what the user named; shown in messages as it is.
    :param follow_symlinks: follow a link in the last component of the path.
    :param share: take no locks (``-U``): whoever else writes, the image may be damaged.
    :raises FileError: missing, no permission, in use, or neither a regular file nor a block device.
    """

    __slots__ = ("_regular",)

    access = os.O_RDWR

    def __init__(self, path: str, *, follow_symlinks: bool = False, share: bool = False) -> None:
        super().__init__(path, follow_symlinks=follow_symlinks)
        try:
            self._regular = stat.S_ISREG(os.fstat(self.fd).st_mode)
            if not share:
                self._lock()
                # The file may have been changed by whoever held the lock until now.
                self._measure()
        except OSError as error:
            self.close()
            raise file_error(path, "lock", error) from None
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        """Say what this process does and does not allow, then look whether anybody disagrees.

        In this order, so that of two who come at the same moment at least one sees the other.
        """
        import fcntl

        try:
            for base, permissions in ((_USED_BASE, _USED), (_UNSHARED_BASE, _UNSHARED)):
                for number in permissions:
                    mine = struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, base + number, 1, 0)
                    fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, mine)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return
            raise
        for base, permissions in ((_UNSHARED_BASE, _USED), (_USED_BASE, _UNSHARED)):
            for number in permissions:
                asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, base + number, 1, 0)
                answer = struct.unpack(_FLOCK, fcntl.fcntl(self.fd, fcntl.F_OFD_GETLK, asked))
                if answer[0] != fcntl.F_UNLCK:
                    shared = "shared " if base == _USED_BASE else ""
                    raise FileError(
                        f"Could not open '{printable(self.path)}': Failed to get {shared}\"{_NAMES[number]}\" lock. "
                        f"Is another process using the image [{printable(self.path)}]? (-U takes no locks)",
                        file=self.path,
                        errno="EAGAIN",
                    )

    def device(self) -> DeviceSpec:
        """The device that a machine sees; the descriptor stays this object's.  A block device keeps its length."""
        return DeviceSpec(
            fd=self.fd,
            length=self.length,
            read_only=False,
            resizable=self._regular,
            max_length=MAX_SIZE if self._regular else None,
            allocated=self.disk_size,
        )

    def allocate(self, start: int) -> None:
        """Reserve disk space for every byte from ``start`` to the end of the file; what was written stays.

        :raises FileError: there is not so much space.
        """
        try:
            length = os.fstat(self.fd).st_size
            if self._regular and length > start:
                os.posix_fallocate(self.fd, start, length - start)
        except OSError as error:
            raise file_error(self.path, "allocate space for", error) from None

    def synchronise(self) -> None:
        """Make content and length durable.

        :raises FileError: the file system refused.
        """
        try:
            os.fsync(self.fd)
        except OSError as error:
            raise file_error(self.path, "make durable", error) from None
