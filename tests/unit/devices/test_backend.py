"""Files as ranges of bytes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import calltable as ct
from vmm.boundary import DeviceSpec
from vmm.devices import backend as module
from vmm.devices.backend import FileBackend, cut
from vmm.devices.errors import BackendError, LimitExceeded

DATA = ct.EXTENT_DATA


@pytest.fixture
def open_file(tmp_path: Path) -> Iterator[Callable[..., FileBackend]]:
    """Makes backends over new files."""
    fds: list[int] = []

    def made(content: bytes = b"", length: int | None = None, **spec: object) -> FileBackend:
        fd = os.open(tmp_path / f"f{len(fds)}", os.O_RDWR | os.O_CREAT)
        fds.append(fd)
        os.pwrite(fd, content, 0)
        if length is not None:
            os.ftruncate(fd, length)
        options: dict[str, object] = {"read_only": False, **spec}
        return FileBackend(DeviceSpec(fd, os.fstat(fd).st_size, **options))  # type: ignore[arg-type]

    yield made
    for fd in fds:
        os.close(fd)


Open = Callable[..., FileBackend]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0, 9, b"abcdefghi"), (2, 5, b"cde"), (3, 3, b""), (4, 9, b"efghi"), (8, 100, b"i"), (0, 1, b"a")],
)
def test_cut(start: int, end: int, expected: bytes) -> None:
    views = [memoryview(part) for part in (b"ab", b"", b"cdef", b"ghi")]
    assert b"".join(cut(views, start, end)) == expected


def test_transfers_larger_than_a_chunk_look_at_the_deadline(open_file: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 1000)
    content = os.urandom(3500)
    file = open_file(content)
    looks = []
    file.check = lambda: looks.append(1)
    views = [memoryview(bytearray(700)), memoryview(bytearray(3300))]
    file.read(0, views, 4000)
    assert b"".join(views) == content + bytes(500)
    assert len(looks) == 3
    file.write(0, [memoryview(b"w" * 4000)], 4000)
    assert os.pread(file.fd, 5000, 0) == b"w" * 3500
    assert len(looks) == 6

    def end() -> None:
        raise KeyboardInterrupt

    file.check = end
    with pytest.raises(KeyboardInterrupt):
        file.read(0, views, 4000)


def test_short_transfers_are_continued(open_file: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    content = os.urandom(1000)
    file = open_file(content)
    real_read, real_write = os.preadv, os.pwritev
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: real_read(fd, cut(views, 0, 7), at))
    monkeypatch.setattr(os, "pwritev", lambda fd, views, at: real_write(fd, cut(views, 0, 7), at))
    buffer = bytearray(1000)
    file.read(0, [memoryview(buffer)[:300], memoryview(buffer)[300:]], 1000)
    assert buffer == content
    file.write(0, [memoryview(content[::-1])], 1000)
    assert os.pread(file.fd, 1000, 0) == content[::-1]


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, ct.ERROR_NO_SPACE), (errno.EDQUOT, ct.ERROR_NO_SPACE), (errno.EIO, ct.ERROR_IO)],
)
def test_system_errors_are_told_apart(open_file: Open, monkeypatch: pytest.MonkeyPatch, number: int, code: int) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, "no")

    file = open_file(b"x" * 512, resizable=True)
    calls: tuple[tuple[str, Callable[[], None]], ...] = (
        ("pwritev", lambda: file.write(0, [memoryview(b"y" * 512)], 512)),
        ("fdatasync", file.flush),
        ("ftruncate", lambda: file.set_length(9)),
    )
    for name, call in calls:
        monkeypatch.setattr(os, name, fail)
        with pytest.raises(BackendError) as caught:
            call()
        assert (caught.value.code, caught.value.errno) == (code, number)
    assert file.length == 512


def test_a_system_that_takes_nothing_is_an_error(open_file: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    file = open_file(b"x" * 512)
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    with pytest.raises(BackendError, match="wrote nothing"):
        file.write(0, [memoryview(b"y" * 512)], 512)


def test_set_length(open_file: Open) -> None:
    file = open_file(b"x" * 100, resizable=True, max_length=1000)
    file.set_length(1000)
    file.settle()
    assert (file.length, os.fstat(file.fd).st_size) == (1000, 1000)
    file.set_length(3)
    assert os.pread(file.fd, 10, 0) == b"xxx"
    for length in (1001, 1 << 63, 2**64 - 1):
        with pytest.raises(BackendError) as caught:
            file.set_length(length)
        assert caught.value.code == ct.ERROR_NO_SPACE
    with pytest.raises(BackendError) as caught:
        open_file(b"x", resizable=False).set_length(5)
    assert caught.value.code == ct.ERROR_UNSUPPORTED
    with pytest.raises(BackendError) as caught:
        open_file(b"x", resizable=True, read_only=True).set_length(5)
    assert caught.value.code == ct.ERROR_READ_ONLY


def test_growing_is_limited(open_file: Open) -> None:
    """Only growing, and to the byte."""
    file = open_file(bytes(100), resizable=True, max_length=200)
    file.max_output = 50
    file.set_length(80)
    with pytest.raises(LimitExceeded) as caught:
        file.set_length(81)
    assert (caught.value.limit, caught.value.value) == ("max-output", 50)
    file.set_length(10)
    with pytest.raises(LimitExceeded):
        file.set_length(51)
    file.set_length(50)
    file.settle()
    assert os.fstat(file.fd).st_size == file.length == 50


def test_an_image_grows_with_the_write_past_its_end(open_file: Open) -> None:
    """In one system call: nobody sees it longer and without those bytes.  What was empty grows at once."""
    file = open_file(b"x" * 100, resizable=True)
    file.set_length(1024)
    assert (file.length, os.fstat(file.fd).st_size) == (1024, 100)
    file.write(512, [memoryview(b"y" * 512)], 512)
    assert os.pread(file.fd, 2000, 0) == b"x" * 100 + bytes(412) + b"y" * 512
    file.set_length(2048)
    file.write(1024, [memoryview(b"z" * 512)], 512)
    assert os.fstat(file.fd).st_size == 2048
    for call in (
        lambda: file.read(0, [memoryview(bytearray(512))], 512),
        lambda: file.zero(0, 512, True, lambda _: None),
        lambda: file.discard(0, 512),
        lambda: file.block_status(0, 512, 1),
        file.flush,
    ):
        file.set_length(file.length + 512)
        assert os.fstat(file.fd).st_size == file.length - 512
        call()
        assert os.fstat(file.fd).st_size == file.length
    empty = open_file(b"", resizable=True)
    empty.set_length(512)
    assert os.fstat(empty.fd).st_size == 512


def test_a_length_that_is_owed_and_refused(open_file: Open) -> None:
    file = open_file(b"x" * 100, resizable=True)
    file.set_length(1 << 62)
    with pytest.raises(BackendError, match=f"making the file {1 << 62} bytes long"):
        file.flush()


def test_a_file_that_cannot_be_looked_at(open_file: Open) -> None:
    file = open_file(b"x")
    file.fd = -1
    with pytest.raises(BackendError, match="looking at the file failed: Bad file descriptor") as caught:
        file.allocated()
    assert caught.value.errno == errno.EBADF


def test_flags(open_file: Open) -> None:
    assert open_file(b"x", read_only=True, resizable=True).flags() & ~ct.DEVICE_HAS_BLOCK_STATUS == ct.DEVICE_READ_ONLY
    assert open_file(b"x", resizable=True).flags() & ct.DEVICE_RESIZABLE
    assert open_file().flags() & ct.DEVICE_HAS_BLOCK_STATUS


def test_allocated(open_file: Open) -> None:
    file = open_file(b"x" * 5000)
    assert file.allocated() == os.fstat(file.fd).st_blocks * 512
    # Stands for a stale handle of a network file system.
    file.fd = -1
    with pytest.raises(BackendError, match="looking at the file failed"):
        file.allocated()


def _sparse(open_file: Open) -> FileBackend:
    """Data in [64K, 128K) and [256K, 257K) of 1 MiB and a byte."""
    file = open_file(length=(1 << 20) + 1)
    os.pwrite(file.fd, b"d" * 65536, 65536)
    os.pwrite(file.fd, b"d" * 1024, 262144)
    return file


def test_block_status_partitions_the_range(open_file: Open) -> None:
    file = _sparse(open_file)
    extents = file.block_status(0, file.length, 100)
    position = 0
    for offset, length, _ in extents:
        assert offset == position
        assert length > 0
        position += length
    assert position == file.length
    flags = [flags for _, _, flags in extents]
    assert all(one != other for one, other in pairwise(flags))
    assert extents[0] == (0, 65536, 0)
    assert extents[1] == (65536, 65536, DATA)
    assert file.block_status(0, file.length, 2) == extents[:2]
    assert file.block_status(70000, 10, 5) == [(70000, 10, DATA)]
    assert file.block_status(1 << 20, 1, 5) == [(1 << 20, 1, 0)]


def test_block_status_of_a_file_that_shrank_is_a_hole(open_file: Open) -> None:
    file = open_file(b"d" * 8192)
    os.ftruncate(file.fd, 4096)
    assert file.block_status(0, 8192, 9) == [(0, 4096, DATA), (4096, 4096, 0)]


def test_block_status_where_the_system_has_none(open_file: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    file = _sparse(open_file)

    def fail(*_: object) -> int:
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(os, "lseek", fail)
    assert not file.flags() & ct.DEVICE_HAS_BLOCK_STATUS
    assert file.block_status(5, 1000, 9) == [(5, 1000, DATA)]
    assert file.block_status(5, 0, 9) == []


def test_zeroes_without_fallocate_leave_holes_alone_and_are_charged(
    open_file: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = _sparse(open_file)
    before = os.fstat(file.fd).st_blocks
    monkeypatch.setattr(FileBackend, "_allocate", lambda *_: False)
    charged: list[int] = []
    file.zero(0, file.length, True, charged.append)
    assert os.pread(file.fd, 1 << 21, 0) == bytes((1 << 20) + 1)
    assert sum(charged) < 100_000
    assert os.fstat(file.fd).st_blocks <= before


def test_zeroes_with_fallocate_make_holes(open_file: Open) -> None:
    file = open_file(b"d" * (1 << 20))
    if not file._allocate(3, 0, 4096):
        pytest.skip("the file system under the temporary folder cannot punch holes, or the binding is not built")
    charged: list[int] = []
    file.zero(0, 1 << 20, True, charged.append)
    assert charged == []
    assert os.fstat(file.fd).st_blocks == 0
    assert os.pread(file.fd, 1 << 20, 0) == bytes(1 << 20)


def test_zeroes_do_not_make_the_file_longer(open_file: Open) -> None:
    file = open_file(b"d" * 1000)
    for unmap in (False, True):
        file.zero(512, 512, unmap, lambda _: None)
        assert os.pread(file.fd, 2000, 0) == b"d" * 512 + bytes(488)
    file.zero(5000, 10, True, lambda _: None)
    assert os.fstat(file.fd).st_size == 1000
