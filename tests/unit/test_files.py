"""Input and output files: one clear error for what is no image, and outputs that are whole or not there."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path

import pytest

from vmm.errors import FileError
from vmm.operations.files import InputFile
from vmm.operations.output import OutputFile


def test_regular_file(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"x" * 1000)
    with InputFile(str(path)) as file:
        device = file.device()
        assert (device.length, device.read_only, device.resizable) == (1000, True, False)
        assert os.pread(device.fd, 2000, 0) == b"x" * 1000
        assert not os.get_inheritable(device.fd)
        assert file.disk_size == path.stat().st_blocks * 512
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(device.fd)
    assert file.fd == -1


def refusal(path: Path | str, **options: bool) -> str:
    with pytest.raises(FileError) as caught:
        InputFile(str(path), **options)
    assert "\n" not in caught.value.message
    assert caught.value.exit_status == 1
    return caught.value.message


def test_what_is_no_image(tmp_path: Path) -> None:
    assert "No such file or directory" in refusal(tmp_path / "missing")
    assert "it is a directory" in refusal(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    assert "it is a FIFO" in refusal(tmp_path / "fifo")
    assert "it is a character device" in refusal("/dev/null")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        assert "it is a socket" in refusal(tmp_path / "socket")
    assert "Not a directory" in refusal("/dev/null/x")
    assert "File name too long" in refusal(tmp_path / ("x" * 300))
    assert "null byte" in refusal("a\0b")
    assert "No such file" in refusal("")


def test_symbolic_links(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"x" * 512)
    (tmp_path / "link").symlink_to("image")
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "loop").symlink_to("loop")
    assert "it is a symbolic link" in refusal(tmp_path / "link")
    with InputFile(str(tmp_path / "link"), follow_symlinks=True) as file:
        assert file.length == 512
    assert "No such file" in refusal(tmp_path / "dangling", follow_symlinks=True)
    assert "Too many levels" in refusal(tmp_path / "loop", follow_symlinks=True)
    (tmp_path / "device").symlink_to("/dev/null")
    assert "it is a character device" in refusal(tmp_path / "device", follow_symlinks=True)


def test_link_that_appears_between_look_and_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "image").write_bytes(b"x")
    (tmp_path / "link").symlink_to("image")
    before = (tmp_path / "image").stat()
    monkeypatch.setattr(os, "stat", lambda *_, **__: before)
    assert "Too many levels of symbolic links" in refusal(tmp_path / "link")


def test_kind_that_changes_between_look_and_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "image").write_bytes(b"x")
    before = (tmp_path / "image").stat()
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.setattr(os, "stat", lambda *_, **__: before)
    assert "it is a FIFO" in refusal(tmp_path / "fifo")
    assert "it is a directory" in refusal(tmp_path)


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"x")

    def forbidden(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    # Root may open everything: the system's answer is played.
    monkeypatch.setattr(os, "open", forbidden)
    assert "Permission denied" in refusal(path)


def test_control_characters_in_names(tmp_path: Path) -> None:
    assert "\\x1b[31m" in refusal(tmp_path / "\x1b[31m")
    assert "\\u202e" in refusal(tmp_path / "\u202egpj.exe")


def test_empty_only_on_request(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    with InputFile(str(path)) as file:
        file.refuse_empty("raw")
        with pytest.raises(FileError, match="is empty, not an image"):
            file.refuse_empty(None)


def listing(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


@pytest.fixture(params=["nameless", "named"])
def nameless(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With O_TMPFILE, and as on a file system that does not have it."""
    if request.param == "named":
        real = os.open

        def without(path: str, flags: int, *more: int, **options: int) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            return real(path, flags, *more, **options)

        monkeypatch.setattr(os, "open", without)


@pytest.mark.usefixtures("nameless")
class TestOutput:
    def test_new_file(self, tmp_path: Path) -> None:
        target = tmp_path / "out"
        with OutputFile(str(target)) as output:
            device = output.device()
            assert (device.read_only, device.resizable, device.length) == (False, True, 0)
            os.write(device.fd, b"whole")
            assert not target.exists()
            output.commit()
        assert target.read_bytes() == b"whole"
        assert listing(tmp_path) == {"out"}

    def test_mode_follows_the_umask(self, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            with OutputFile(str(tmp_path / "out")) as output:
                output.commit()
        finally:
            os.umask(before)
        assert (tmp_path / "out").stat().st_mode & 0o7777 == 0o640

    def test_replaces_and_keeps_the_mode(self, tmp_path: Path) -> None:
        target = tmp_path / "out"
        target.write_bytes(b"old and longer")
        target.chmod(0o600)
        with OutputFile(str(target)) as output:
            os.write(output.fd, b"new")
            assert target.read_bytes() == b"old and longer"
            output.commit()
        assert target.read_bytes() == b"new"
        assert target.stat().st_mode & 0o777 == 0o600
        assert listing(tmp_path) == {"out"}

    def test_does_not_keep_set_user_id(self, tmp_path: Path) -> None:
        target = tmp_path / "out"
        target.touch()
        target.chmod(0o6755)
        with OutputFile(str(target)) as output:
            output.commit()
        assert target.stat().st_mode & 0o7777 == 0o755

    def test_nothing_left_without_commit(self, tmp_path: Path) -> None:
        target = tmp_path / "out"
        with contextlib.suppress(KeyboardInterrupt), OutputFile(str(target)) as output:
            os.write(output.fd, b"half")
            raise KeyboardInterrupt
        assert listing(tmp_path) == set()
        target.write_bytes(b"old")
        with OutputFile(str(target)) as output:
            os.write(output.fd, b"half")
        assert target.read_bytes() == b"old"
        assert listing(tmp_path) == {"out"}

    def test_nothing_left_when_it_cannot_be_put_in_place(self, tmp_path: Path) -> None:
        target = tmp_path / "out"
        target.write_bytes(b"old")
        with OutputFile(str(target)) as output:
            target.unlink()
            target.mkdir()
            with pytest.raises(FileError, match=r"Could not create .*: Is a directory") as caught:
                output.commit()
        assert caught.value.details["errno"] == "EISDIR"
        assert listing(tmp_path) == {"out"}
        assert target.is_dir()

    def test_target_appears_meanwhile(self, tmp_path: Path) -> None:
        with OutputFile(str(tmp_path / "out")) as output:
            os.write(output.fd, b"ours")
            (tmp_path / "out").write_bytes(b"theirs")
            output.commit()
        assert (tmp_path / "out").read_bytes() == b"ours"
        assert listing(tmp_path) == {"out"}


def test_output_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmm.operations.output._DESCRIPTORS", str(tmp_path / "proc"))
    with OutputFile(str(tmp_path / "out")) as output:
        output.commit()
    assert listing(tmp_path) == {"out"}


def test_output_closes_what_it_cannot_remove(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmm.operations.output._DESCRIPTORS", str(tmp_path / "proc"))
    output = OutputFile(str(tmp_path / "out"))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    fd = output.fd
    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(FileError, match=r"Could not remove .*pyvmm.*part': Read-only"):
        output.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def output_refusal(path: Path | str, **options: bool) -> str:
    with pytest.raises(FileError) as caught:
        OutputFile(str(path), **options)
    return caught.value.message


def test_output_targets_that_are_refused(tmp_path: Path) -> None:
    assert "Is a directory" in output_refusal(tmp_path)
    assert "Is a directory" in output_refusal(f"{tmp_path}/")
    assert "No such file" in output_refusal(tmp_path / "missing" / "out")
    assert "not replaced" in output_refusal("/dev/null")
    os.mkfifo(tmp_path / "fifo")
    assert "not replaced" in output_refusal(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("target")
    assert "symbolic link" in output_refusal(tmp_path / "link")
    assert listing(tmp_path) == {"fifo", "link"}


def test_output_follows_a_link_on_request(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    with OutputFile(str(tmp_path / "link"), follow_symlinks=True) as output:
        os.write(output.fd, b"x")
        output.commit()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"x"


def test_a_file_of_a_read_only_file_system_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class ReadOnly:
        f_flag = os.ST_RDONLY

    (tmp_path / "old").write_bytes(b"old")
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    with pytest.raises(FileError, match="Permission denied"):
        OutputFile(str(tmp_path / "old"))
    monkeypatch.setattr(os, "statvfs", lambda _: ReadOnly)
    with pytest.raises(FileError, match="Read-only file system") as caught:
        OutputFile(str(tmp_path / "old"))
    assert caught.value.details["errno"] == "EROFS"
