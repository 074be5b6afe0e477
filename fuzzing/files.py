"""Files behind the devices, and the system calls of ``vmm.devices.backend`` under watch.

Files are memfds, sparse and small.  Each call that the back end makes is checked against what the device may do, may be
made to fail or to do less than asked, and is counted.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fuzzing.codec import Source
from vmm.boundary import DeviceSpec
from vmm.devices import backend as backend_module
from vmm.kvm import binding

#: Bytes a chunk in :mod:`vmm.devices.backend`, so that small inputs reach what large transfers do.
CHUNK = 8 << 10
#: Bytes that may be moved, and system calls made, between two looks at the deadline.
MOVED_MAX = 4 * CHUNK
CALLS_MAX = 4096

READ_ONLY, FIXED, RESIZABLE, BOUNDED, READ_ONLY_RESIZABLE, SHORTER, LONGER, PIPE = range(8)
KINDS = 8

_DATA_MAX = 8 << 10
_HEAD = bytes(range(1, 256)) * 40
_ERRORS = (0, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EINVAL, errno.ENXIO, errno.EPERM, errno.ENODEV)
_CALLS = ("preadv", "pwritev", "lseek", "ftruncate", "fdatasync", "fallocate", "fstat")


class File:
    """One file and what its device may do with it.

    :param kind: one of the constants above.
    :param length: what the device is told; 0 to 2^63-1.
    """

    def __init__(self, kind: int, length: int) -> None:
        self.kind = kind
        self.told = length = length if length < 1 << 63 else length & 0xFFFF
        self._writer = -1
        #: What lies behind the length that the device was told, and has to stay.
        self._tail = b""
        if kind == PIPE:
            self.fd, self._writer = os.pipe()
            os.write(self._writer, _HEAD[:100])
        else:
            self.fd = os.memfd_create("fuzzing")
            self._fill(kind, length)
        self.read_only = kind in (READ_ONLY, READ_ONLY_RESIZABLE, PIPE)
        self.resizable = kind in (RESIZABLE, BOUNDED)
        self.max_length = length + 0x2345 if kind == BOUNDED else None
        #: Somebody else has changed the file.
        self.disturbed = False
        self._size = self.size()
        self._before = self._sample()

    def _fill(self, kind: int, length: int) -> None:
        real = length // 2 if kind == SHORTER else length
        os.ftruncate(self.fd, real)
        os.pwrite(self.fd, _HEAD[: min(real, _DATA_MAX)], 0)
        if real > 1 << 16:
            # Data behind a hole.
            os.pwrite(self.fd, _HEAD[:5000], real - 5000)
        if kind == LONGER:
            # Not past what a file system can hold.
            self._tail = _HEAD[: min(777, (1 << 63) - 1 - length)]
            os.pwrite(self.fd, self._tail, length)

    def size(self) -> int:
        """Bytes of the file now."""
        return os.fstat(self.fd).st_size

    def _sample(self) -> bytes:
        return b"" if self.kind == PIPE else os.pread(self.fd, _DATA_MAX, 0)

    def spec(self, length: int | None = None) -> DeviceSpec:
        """The device of a job."""
        resizable = self.kind in (RESIZABLE, BOUNDED, READ_ONLY_RESIZABLE)
        told = self.told if length is None else length
        return DeviceSpec(self.fd, told, self.read_only, resizable, self.max_length)

    def disturb(self, action: int, amount: int) -> None:
        """What others may do to a file that is open here."""
        if self.kind == PIPE:
            return
        self.disturbed = True
        try:
            if action == 0:
                os.ftruncate(self.fd, self.size() // 2)
            elif action == 1:
                os.ftruncate(self.fd, 0)
            elif action == 2:
                os.ftruncate(self.fd, min(amount, (1 << 63) - 1))
            else:
                os.pwrite(self.fd, b"elsewhere", amount % (1 << 30))
        except OSError:
            pass

    def check(self) -> None:
        """The file is what its device may have made of it."""
        if self.disturbed:
            return
        size = self.size()
        if not self.resizable:
            # One that lost its end may get it back: the device still has it.
            may_be = (self._size, self.told) if self.kind == SHORTER else (self._size,)
            assert may_be[0] <= size <= may_be[-1], f"a file of fixed length went from {self._size} to {size} bytes"
        if self.max_length is not None:
            assert size <= self.max_length
        if self.read_only:
            assert self._sample() == self._before, "a read-only file was written"
        if self._tail:
            assert os.pread(self.fd, len(self._tail), self.told) == self._tail, (
                "bytes behind the end of the device were written"
            )

    def close(self) -> None:
        """Give it up."""
        os.close(self.fd)
        if self._writer >= 0:
            os.close(self._writer)


class System:
    """The calls of the back end; stands for the module ``os`` there, and for the binding's ``lib``."""

    def __init__(self) -> None:
        self.files: dict[int, File] = {}
        self.read_bytes = self.write_bytes = 0
        self._moved = self._calls = 0
        self._fault: tuple[str, int, int, int] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def begin(self) -> None:
        """A run begins."""
        self.read_bytes = self.write_bytes = 0
        self.breathe()

    def breathe(self) -> None:
        """The deadline was looked at, or an access is over."""
        self._moved = self._calls = 0

    def plan_fault(self, source: Source) -> None:
        """One of the next calls will fail, or move fewer bytes."""
        call, after, error, count = source.byte(), source.byte(), source.byte(), source.u16()
        self._fault = (_CALLS[call % len(_CALLS)], after % 16, _ERRORS[error % len(_ERRORS)], count)

    def _enter(self, call: str, fd: int) -> int | None:
        """Count a call; answers to how many bytes it is to be cut, if at all."""
        self._calls += 1
        assert self._calls <= CALLS_MAX, f"{self._calls} system calls without a look at the deadline"
        assert fd in self.files, f"{call} of a descriptor that is no device's"
        if self._fault is None or self._fault[0] != call:
            return None
        name, after, error, count = self._fault
        if after > 0:
            self._fault = (name, after - 1, error, count)
            return None
        self._fault = None
        if error:
            raise OSError(error, os.strerror(error))
        return count

    def _move(self, moved: int) -> int:
        self._moved += moved
        assert self._moved <= MOVED_MAX, f"{self._moved} bytes moved without a look at the deadline"
        return moved

    def preadv(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        """Into guest memory."""
        cut = self._enter("preadv", fd)
        if cut is not None:
            views = backend_module.cut(views, 0, cut)
        moved = self._move(os.preadv(fd, views, offset)) if views else 0
        self.read_bytes += moved
        return moved

    def pwritev(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        """From guest memory."""
        cut = self._enter("pwritev", fd)
        assert not self.files[fd].read_only, "a write to a read-only device"
        if cut is not None:
            views = backend_module.cut(views, 0, cut)
        moved = self._move(os.pwritev(fd, views, offset)) if views else 0
        self.write_bytes += moved
        return moved

    def lseek(self, fd: int, position: int, how: int) -> int:
        """For data and holes."""
        self._enter("lseek", fd)
        return os.lseek(fd, position, how)

    def ftruncate(self, fd: int, length: int) -> None:
        """A new length."""
        self._enter("ftruncate", fd)
        file = self.files[fd]
        assert file.resizable, "another length for a device of fixed length"
        assert file.max_length is None or length <= file.max_length
        os.ftruncate(fd, length)

    def fdatasync(self, fd: int) -> None:
        """Of a memfd: nothing."""
        self._enter("fdatasync", fd)
        assert not self.files[fd].read_only, "a flush of a read-only device"

    def fstat(self, fd: int) -> os.stat_result:
        """For the bytes on disk."""
        self._enter("fstat", fd)
        return os.fstat(fd)

    def pyvmm_fallocate(self, fd: int, mode: int, offset: int, length: int) -> int:
        """Of the binding: 0, or minus an errno."""
        try:
            self._enter("fallocate", fd)
        except OSError as error:
            return -(error.errno or errno.EIO)
        file = self.files[fd]
        assert not file.read_only, "a hole in a read-only device"
        assert mode & 1, "fallocate that may change the length"
        assert offset >= 0
        assert length > 0
        return int(_binding_lib.pyvmm_fallocate(fd, mode, offset, length))

    @contextmanager
    def watched(self) -> Iterator[System]:
        """The back end makes its calls here."""
        module: Any = backend_module
        saved = module.os, module.CHUNK
        module.os, module.CHUNK = self, CHUNK
        binding.lib = self
        try:
            yield self
        finally:
            module.os, module.CHUNK = saved
            binding.lib = _binding_lib


_binding_lib: Any = binding.lib
