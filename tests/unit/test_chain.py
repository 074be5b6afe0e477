"""Which files a chain opens, and that a refusal says nothing of the others: real files, and a guest that is played."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from calltable import MAX_DEVICES
from calltable.messages import InfoReference, References, ReferencesRequest
from vmm.boundary import DeviceSpec
from vmm.errors import FileError, GuestFailedError, ReferenceRefusedError, RefusedError, UsageError
from vmm.host import system
from vmm.operations import chain as chain_module
from vmm.operations.chain import MAX_ALTERNATIVES, MAX_DEPTH, MAX_FORMAT, MAX_NAME, Chain
from vmm.operations.files import InputFile
from vmm.operations.follow import Alone, open_chain
from vmm.operations.names import components, has_protocol


class Guest:
    """Plays ``references``: an image is a text file with a line ``KIND INDEX NAME`` for each name that it holds.

    :param kind: what every reference is said to be.
    :param format: the format that every reference is said to have.
    """

    def __init__(self, kind: str | None = None, format: str | None = None) -> None:  # noqa: A002
        self.runs = 0
        self._kind = kind
        self._format = format

    def answer(
        self,
        operation: str,
        request: ReferencesRequest,
        devices: Sequence[DeviceSpec],
        on_message: Callable[[object], None],
        *,
        main: str,
        lists: Sequence[str],
        names: Sequence[str],
    ) -> References:
        assert (operation, main, tuple(lists)) == ("references", References.NAME, (InfoReference.NAME,))
        assert len(devices) == len(names) == 1
        self.runs += 1
        for line in os.pread(devices[0].fd, 1 << 20, 0).decode("utf-8", "replace").splitlines():
            kind, index, name = line.split(" ", 2)
            named = kind if self._kind is None else self._kind
            on_message(InfoReference(kind=named, index=int(index) or None, name=name, format=self._format))
        return References(format=request.format or "text")


def backing(name: str) -> str:
    return f"backing-file 0 {name}\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def follow(path: str | Path, *allow: str | Path, guest: Any = None, links: bool = False) -> list[str]:
    """Names of the files that were followed, as reported."""
    with InputFile(str(path), follow_symlinks=links) as image:
        session: Any = guest or Guest()
        with open_chain(session, image, follow=True, allow_dirs=list(map(str, allow)), follow_symlinks=links) as files:
            assert files.devices()[0].fd == image.fd
            for device, file in zip(files.devices()[1:], files.followed(), strict=True):
                assert not os.get_inheritable(device.fd)
                assert os.pread(device.fd, 1 << 20, 0) == Path(file.filename).read_bytes()
                assert device.length == Path(file.filename).stat().st_size
                assert file.length == device.length
                assert device.allocated == file.actual_size == Path(file.filename).stat().st_blocks * 512
            fds = [device.fd for device in files.devices()[1:]]
            names = [file.filename for file in files.followed()]
        for fd in fds:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)
        return names


def refusal(path: str | Path, *allow: str | Path, links: bool = False, guest: Any = None) -> ReferenceRefusedError:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ReferenceRefusedError) as caught:
        follow(path, *allow, links=links, guest=guest)
    assert len(os.listdir("/proc/self/fd")) == before
    return caught.value


# --- what is followed -------------------------------------------------------------------------------------------------


def test_relative_to_the_file_that_names_it(here: Path) -> None:
    (here / "sub/deep").mkdir(parents=True)
    (here / "top").write_text(backing("sub/a"))
    (here / "sub/a").write_text(backing("deep/b"))
    (here / "sub/deep/b").write_text(backing("../../c"))
    (here / "c").write_text("")
    assert follow("top") == ["sub/a", "sub/deep/b", "sub/deep/../../c"]
    assert follow(here / "top") == [f"{here}/{name}" for name in ("sub/a", "sub/deep/b", "sub/deep/../../c")]


def test_several_files_of_one_image(here: Path) -> None:
    (here / "top").write_text("extent 0 a\nextent 1 b\nextent 2 a\n")
    (here / "a").write_text("")
    (here / "b").write_text("")
    guest = Guest()
    assert follow("top", guest=guest) == ["a", "b", "a"]
    assert guest.runs == 4


def test_alternatives_are_tried_in_order(here: Path) -> None:
    (here / "top").write_text("".join(f"parent 0 {name}\n" for name in ("/no/such", "nbd://x/y", "missing", "b", "a")))
    (here / "a").write_text("")
    (here / "b").write_text("")
    assert follow("top") == ["b"]


def test_absolute_names_below_an_allowed_directory(here: Path) -> None:
    other = here.parent / "other"
    (other / "sub").mkdir(parents=True)
    (other / "sub/base").write_text("")
    (here / "base").write_text("")
    (here / "top").write_text(backing(f"{other}/sub/base"))
    assert follow("top", other) == [f"{other}/sub/base"]
    assert follow("top", "../other/sub") == [f"{other}/sub/base"]
    assert follow("top", here.parent) == [f"{other}/sub/base"]
    refusal("top")
    (here / "top").write_text(backing(f"{here}//./base"))
    assert follow("top") == [f"{here}//./base"]
    (here / "top").write_text(backing(f"{here.parent}/imagesque"))
    (here.parent / "imagesque").write_text("")
    refusal("top")


def test_relative_names_may_lead_to_an_allowed_directory(here: Path) -> None:
    other = here.parent / "other"
    other.mkdir()
    (other / "base").write_text(backing("../images/last"))
    (here / "last").write_text("")
    (here / "top").write_text(backing("../other/base"))
    refusal("top")
    assert follow("top", other) == ["../other/base", "../other/../images/last"]
    assert follow("top", here.parent) == ["../other/base", "../other/../images/last"]


def test_the_directory_may_be_reached_over_a_link_of_the_users(here: Path) -> None:
    (here.parent / "link").symlink_to("images")
    (here / "top").write_text(backing("base"))
    (here / "base").write_text("")
    assert follow(here.parent / "link/top") == [f"{here.parent}/link/base"]
    (here / "top").write_text(backing(f"{here.parent}/link/base"))
    assert follow(here.parent / "link/top") == [f"{here.parent}/link/base"]
    # `..` is the parent of where the link leads, as for the kernel.
    (here.parent / "beside").write_text("")
    (here / "top").write_text(backing("../beside"))
    assert follow(here.parent / "link/top", here.parent) == [f"{here.parent}/link/../beside"]


def test_symbolic_links_only_on_request(here: Path) -> None:
    (here / "real").write_text("")
    (here / "link").symlink_to("real")
    (here / "sub").mkdir()
    (here / "sub/base").write_text("")
    (here / "way").symlink_to("sub")
    outside = here.parent / "outside"
    outside.write_text("")
    (here / "out").symlink_to("../outside")
    (here / "absolute").symlink_to(here / "real")
    for name in ("link", "way/base"):
        (here / "top").write_text(backing(name))
        refusal("top")
        assert follow("top", links=True) == [name]
    for name in ("out", "absolute"):
        (here / "top").write_text(backing(name))
        refusal("top")
        refusal("top", links=True)


# --- what is not ------------------------------------------------------------------------------------------------------

PROTOCOLS = (
    *("json:{}", 'json:{"driver": "raw"}', "nbd:localhost:1", "nbd://host/x", "nbd:unix:/tmp/x", "http://host/x"),
    *("file:base", "file:///base", "ssh://host/base", "fat:rw:/tmp", "vvfat:x", "host_device:/dev/null", "C:base"),
    *("blkdebug::base", ":", ":base"),
)
NAMES = (
    *("missing", "sub/missing", "../outside", "/etc/passwd", "/", ".", "..", "sub", "sub/", "fifo", "socket", "link"),
    *("dangling", "self-link", "base/", "base/.", "base/x", "/proc/self/fd/0", "/dev/null", "/dev/zero", "secret"),
    *("x" * 255, "x" * 256, "x/" * 2047 + "x", "x" * MAX_NAME, "x" * (MAX_NAME + 1), "\u00e9" * 2048, "a\\b", " "),
    *("sub/../../outside", "./../outside", "sub/../../images/../outside", "//etc/passwd", "\ufffd", "-"),
)


@pytest.fixture
def traps(here: Path) -> Iterator[Path]:
    """A directory in which nothing but ``base`` is to be followed."""
    (here / "base").write_text("")
    (here / "sub").mkdir()
    (here.parent / "outside").write_text("")
    os.mkfifo(here / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        (here / "link").symlink_to("base")
        (here / "dangling").symlink_to("nothing")
        (here / "self-link").symlink_to("self-link")
        (here / "secret").mkdir()
        yield here


@pytest.mark.parametrize("name", [*PROTOCOLS, *NAMES])
def test_one_refusal_for_everything(traps: Path, name: str) -> None:
    (traps / "top").write_text(backing(name))
    error = refusal("top")
    assert error.details == {"file": "top", "reference": name, "kind": "backing-file", "reason": "not-opened"}
    assert error.exit_status == 1
    assert error.code == "refused"
    # The text is a function of the name alone.
    from vmm.operations.text import printable

    assert error.message == (
        f"'top' names the backing file '{printable(name)}', which is not followed: only regular files below the "
        "image's own directory or one that --allow-dir names are"
    )


def _states(place: Path) -> dict[str, Callable[[], object]]:
    return {
        "missing": lambda: None,
        "a directory": place.mkdir,
        "a FIFO": lambda: os.mkfifo(place),
        "a link": lambda: place.symlink_to("base"),
        "a link to itself": lambda: place.symlink_to(place.name),
        "a link outside": lambda: place.symlink_to("/etc/passwd"),
        "a magic link": lambda: place.symlink_to("/proc/self/fd/0"),
        "a device": lambda: place.symlink_to("/dev/null"),
    }


@pytest.mark.parametrize("where", ["secret", "../secret"])
def test_the_same_words_whatever_is_there(here: Path, where: str) -> None:
    (here / "top").write_text(backing(where))
    (here / "base").write_text("")
    place = here / where
    seen = set()
    states = _states(place)
    if where.startswith(".."):
        states["a file"] = place.touch
    for state, make in states.items():
        make()
        error = refusal("top")
        seen.add((error.message, repr(sorted(error.as_dict().items())), error.exit_status))
        if os.path.lexists(place):
            place.rmdir() if state == "a directory" else place.unlink()
    assert len(seen) == 1


def test_the_same_words_whatever_the_system_says(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "top").write_text(backing("secret"))
    expected = refusal("top")
    (here / "secret").write_text("")
    real = system.openat2
    numbers = (
        "EACCES",
        "EPERM",
        "ELOOP",
        "EXDEV",
        "ENOENT",
        "ENOTDIR",
        "ENAMETOOLONG",
        "EIO",
        "EAGAIN",
        "ENXIO",
        "ESTALE",
    )
    for name in numbers:
        for when in (os.O_PATH, 0):

            def fail(directory: int, path: str, flags: int, resolve: int, name: str = name, when: int = when) -> int:
                if path != "." and flags & os.O_PATH == when:
                    number = getattr(errno, name)
                    raise OSError(number, os.strerror(number))
                return real(directory, path, flags, resolve)

            monkeypatch.setattr(system, "openat2", fail)
            assert refusal("top").as_dict() == expected.as_dict()


def test_devices_are_not_touched(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no regular file is looked at (O_PATH) and not opened."""
    os.mkfifo(here / "fifo")
    (here / "top").write_text(backing("fifo"))
    opened: list[int] = []
    real = system.openat2

    def spy(directory: int, path: str, flags: int, resolve: int) -> int:
        assert resolve == system.RESOLVE_BENEATH | system.RESOLVE_NO_MAGICLINKS | system.RESOLVE_NO_SYMLINKS
        if path != ".":
            opened.append(flags)
        return real(directory, path, flags, resolve)

    monkeypatch.setattr(system, "openat2", spy)
    refusal("top")
    assert opened == [os.O_PATH | os.O_CLOEXEC]


def test_a_swap_between_look_and_open(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "top").write_text(backing("base"))
    base = here / "base"
    real = system.openat2

    for trap in (
        lambda: base.symlink_to("/etc/passwd"),
        lambda: os.mkfifo(base),
        base.mkdir,
        lambda: None,
    ):
        base.write_text("")

        def swap(directory: int, path: str, flags: int, resolve: int, trap: Callable[[], object] = trap) -> int:
            if path == "base" and not flags & os.O_PATH:
                base.unlink()
                trap()
            return real(directory, path, flags, resolve)

        monkeypatch.setattr(system, "openat2", swap)
        assert refusal("top").details["reason"] == "not-opened"
        monkeypatch.setattr(system, "openat2", real)
        if os.path.lexists(base):
            base.rmdir() if base.is_dir() else base.unlink()


# --- loops, depth, number ---------------------------------------------------------------------------------------------


def test_loops(here: Path) -> None:
    (here / "top").write_text(backing("top"))
    assert refusal("top").details["reason"] == "loop"
    (here / "top").write_text(backing("a"))
    (here / "a").write_text(backing("b"))
    (here / "b").write_text(backing("a"))
    error = refusal("top")
    assert error.details == {"file": "b", "reference": "a", "kind": "backing-file", "reason": "loop"}
    (here / "b").write_text(backing("./top"))
    assert refusal("top").details["reason"] == "loop"
    # Another name of the same file.
    (here / "b").unlink()
    os.link(here / "a", here / "b")
    (here / "a").write_text(backing("b"))
    assert refusal("top").details["reason"] == "loop"


def test_a_file_twice_is_no_loop(here: Path) -> None:
    (here / "top").write_text("backing-file 0 base\ndata-file 0 base\n")
    (here / "base").write_text("")
    assert follow("top") == ["base", "base"]


def test_depth(here: Path) -> None:
    for number in range(MAX_DEPTH):
        (here / f"i{number}").write_text(backing(f"i{number + 1}"))
    (here / f"i{MAX_DEPTH}").write_text("")
    guest = Guest()
    assert len(follow("i0", guest=guest)) == MAX_DEPTH
    assert guest.runs == MAX_DEPTH + 1
    (here / f"i{MAX_DEPTH}").write_text(backing("last"))
    # Whether it exists or not.
    for _ in range(2):
        error = refusal("i0")
        assert error.details["reason"] == "too-deep"
        assert error.details["file"] == f"i{MAX_DEPTH}"
        (here / "last").write_text("")


def test_number_of_files(here: Path) -> None:
    (here / "base").write_text("")
    lines = [f"extent {number} base\n" for number in range(MAX_DEVICES)]
    (here / "top").write_text("".join(lines[:-1]))
    assert len(follow("top")) == MAX_DEVICES - 1
    (here / "top").write_text("".join(lines))
    assert refusal("top").details["reason"] == "too-many"
    # Also over several levels.
    (here / "top").write_text("extent 0 half\nextent 1 other\n")
    (here / "half").write_text("".join(lines[:64]))
    (here / "other").write_text("".join(lines[:64]))
    assert refusal("top").details["reason"] == "too-many"


# --- a guest that lies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["backing", "", "\x1b"])
def test_a_guest_that_makes_no_sense(here: Path, kind: str) -> None:
    (here / "top").write_text(backing("base"))
    (here / "base").write_text("")
    with pytest.raises(GuestFailedError, match="unknown kind") as caught:
        follow("top", guest=Guest(kind))
    assert caught.value.message.isprintable()


def test_a_guest_that_goes_on_naming(here: Path) -> None:
    """Every file is said to name others, whatever it holds: neither depth nor number is the guest's to decide."""

    class Endless(Guest):
        def __init__(self, each: int) -> None:
            super().__init__()
            self.each = each

        def answer(self, operation: str, request: Any, devices: Any, on_message: Any, **_: Any) -> References:
            self.runs += 1
            for index in range(self.each):
                on_message(InfoReference(kind="extent", index=index, name=f"f{self.runs}-{index}", format=None))
            return References(format="text")

    (here / "top").write_text("")
    for run in range(1, MAX_DEVICES):
        for index in range(2):
            (here / f"f{run}-{index}").write_text("")
    guest = Endless(1)
    assert refusal("top", guest=guest).details["reason"] == "too-deep"
    assert guest.runs == MAX_DEPTH + 1
    guest = Endless(2)
    assert refusal("top", guest=guest).details["reason"] == "too-many"
    assert guest.runs <= MAX_DEVICES


def test_a_guest_with_too_many_alternatives(here: Path) -> None:
    (here / "top").write_text("parent 0 x\n" * (MAX_ALTERNATIVES + 1))
    with pytest.raises(GuestFailedError, match="alternatives"):
        follow("top")


def test_a_guest_that_fills_the_request(here: Path) -> None:
    """Formats go into the request of the operation, one for each file."""
    (here / "top").write_text("extent 0 a\n")
    (here / "a").write_text("")
    assert follow("top", guest=Guest(format="f" * MAX_FORMAT)) == ["a"]
    with pytest.raises(GuestFailedError, match="format of 65 characters"):
        follow("top", guest=Guest(format="f" * (MAX_FORMAT + 1)))


# --- where it is no error ---------------------------------------------------------------------------------------------


def test_what_is_not_followed_may_be_told_instead(here: Path) -> None:
    (here / "top").write_text("backing-file 0 a\ndata-file 0 gone\n")
    (here / "a").write_text(backing("top") + "parent 0 b\n")
    (here / "b").write_text("")
    session: Any = Guest()
    with InputFile("top") as image, open_chain(session, image, follow=True, strict=False) as files:
        assert files.names() == ("top", "a", "b")
        assert [error.details["reason"] for error in files.refusals] == ["not-opened", "loop"]
        assert (files.behind(0), files.behind(1), files.behind(2)) == (1, 2, None)
    # Without its extents a disk is none.
    (here / "top").write_text("extent 0 gone\n")
    with InputFile("top") as image, pytest.raises(ReferenceRefusedError):
        open_chain(session, image, follow=True, strict=False)


def test_a_first_image_that_is_refused_is_the_operations_to_judge(here: Path) -> None:
    class Refusing(Guest):
        def answer(self, operation: str, request: Any, devices: Any, on_message: Any, **_: Any) -> References:
            self.runs += 1
            if os.pread(devices[0].fd, 3, 0) == b"bad":
                raise RefusedError("no image", file="x")
            on_message(InfoReference(kind="backing-file", index=None, name="base", format=None))
            return References(format="text")

    session: Any = Refusing()
    (here / "top").write_text("bad")
    with InputFile("top") as image, open_chain(session, image, follow=True) as files:
        assert (files.names(), files.files()) == (("top",), ())
    (here / "top").write_text("good")
    (here / "base").write_text("bad")
    with InputFile("top") as image, pytest.raises(RefusedError, match="no image"):
        open_chain(session, image, follow=True)
    with InputFile("top") as image, open_chain(session, image, follow=True, strict=False) as files:
        assert files.names() == ("top", "base")
        assert [error.message for error in files.refusals] == ["no image"]


# --- what the host lacks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.E2BIG, errno.EINVAL])
def test_without_openat2_nothing_is_followed(here: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    (here / "top").write_text(backing("base"))
    (here / "base").write_text("")

    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(system, "openat2", fail)
    with pytest.raises(FileError, match="openat2") as caught:
        follow("top")
    assert caught.value.details["errno"] == errno.errorcode[number]


def test_no_more_descriptors_is_not_the_images_fault(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "top").write_text(backing("base"))
    real = system.openat2

    def fail(directory: int, path: str, flags: int, resolve: int) -> int:
        if path == ".":
            return real(directory, path, flags, resolve)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(system, "openat2", fail)
    with pytest.raises(FileError, match="Too many open files"):
        follow("top")


@pytest.mark.parametrize("path", ["missing", "top", "a\0b", ""])
def test_allowed_directories_have_to_be_there(here: Path, path: str) -> None:
    (here / "top").write_text("")
    with pytest.raises(FileError, match="Could not open directory"):
        follow("top", path)


def test_directories_without_a_chain(here: Path) -> None:
    (here / "top").write_text("")
    session: Any = Guest()
    with InputFile("top") as image:
        with pytest.raises(UsageError, match="--chain"):
            open_chain(session, image, follow=False, allow_dirs=["."])
        with open_chain(session, image, follow=False) as files:
            assert isinstance(files, Alone)
            assert (files.files(), files.names(), files.followed(), files.behind(0)) == (None, ("top",), (), None)
            assert files.devices() == (image.device(),)


# --- names as text ----------------------------------------------------------------------------------------------------


@given(st.text(max_size=40))
@example("a:b")
@example("./a:b")
@example("a/b:c")
def test_protocols_are_qemus(name: str) -> None:
    """path_has_protocol() of qemu: the first of colon and slash is a colon."""
    first = next((character for character in name if character in ":/"), None)
    assert has_protocol(name) == (first == ":")


PARTS = st.lists(st.sampled_from(["..", ".", "a", "b", "", "base"]), min_size=1, max_size=8)


@given(PARTS)
def test_no_relative_name_leaves_its_directory(parts: list[str]) -> None:
    """Whatever is opened lies below an allowed directory, by the kernel's word; the candidates only have to be few."""
    image = InputFile("/proc/self/exe", follow_symlinks=True)
    with image, Chain(image) as files:
        owner = files._files[0]
        owner.root.spellings = (["x", "y"], ["x", "y"])
        candidates = list(files._candidates(owner, "/".join(parts)))
    assert len(candidates) <= len(files._roots) + 1
    for _, path in candidates:
        assert len(components(path)) <= len(parts) + 2


def test_the_limits_are_those_of_the_design() -> None:
    assert (MAX_DEPTH, MAX_DEVICES, chain_module.MAX_NAME) == (16, 128, 4095)
