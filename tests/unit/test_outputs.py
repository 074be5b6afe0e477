"""The files of an image that has several: which names a guest may give, in how many runs, and what a failure leaves."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calltable import MAX_DEVICES
from calltable.messages import Create, CreateFile
from tests.unit.fake import FakeRunner, payload
from vmm.boundary import Event, Job, MessageEvent, Outcome
from vmm.cbor import decode
from vmm.errors import FileError, GuestFailedError
from vmm.operations.create import create
from vmm.operations.output import OutputFile
from vmm.operations.outputs import target_name
from vmm.operations.session import Session

ANSWER = Create(format="vmdk", virtual_size=512, file_length=7, options=())


class Guest(FakeRunner):
    """Names files in its first run, and writes the number of each file into it in the others."""

    def __init__(self, *names: bytes, first_index: int = 1, later: Create = ANSWER) -> None:
        super().__init__()
        self.names = names
        self.first_index = first_index
        self.later = later
        self.windows: list[tuple[int, int]] = []

    def run(self, job: Job, on_event: Callable[[Event], None]) -> Outcome:
        request = decode(job.request)
        assert isinstance(request, dict)
        first = request.get("first-output")
        if first is None:
            files = [
                CreateFile(index=index, name=name, length=0) for index, name in enumerate(self.names, self.first_index)
            ]
            messages = [MessageEvent(payload(message)) for message in (*files, ANSWER)]
        else:
            assert isinstance(first, int)
            self.windows.append((first, len(job.devices)))
            for number, device in enumerate(job.devices, first):
                os.pwrite(device.fd, b"%d" % number, 0)
            messages = [MessageEvent(payload(self.later))]
        self.events = list[Event](messages)
        return super().run(job, on_event)


def make(guest: FakeRunner, path: Path | str) -> None:
    create(Session(guest), str(path), "vmdk", size=512)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_all_files_are_there(tmp_path: Path) -> None:
    guest = Guest(b"a-s001.vmdk", b"a-s002.vmdk")
    make(guest, tmp_path / "a.vmdk")
    assert contents(tmp_path) == {"a.vmdk": "0", "a-s001.vmdk": "1", "a-s002.vmdk": "2"}
    assert guest.windows == [(0, 3)]


def test_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(Guest(b"a-flat"), "a")
    assert contents(tmp_path) == {"a": "0", "a-flat": "1"}


@pytest.mark.parametrize("further", [MAX_DEVICES - 1, MAX_DEVICES, 3 * MAX_DEVICES])
def test_more_files_than_devices(further: int, tmp_path: Path) -> None:
    guest = Guest(*(b"a%d" % number for number in range(1, further + 1)))
    make(guest, tmp_path / "a")
    assert contents(tmp_path) == {"a": "0", **{f"a{number}": f"{number}" for number in range(1, further + 1)}}
    assert len(guest.windows) == -(-(further + 1) // MAX_DEVICES)
    assert sum(count for _, count in guest.windows) == further + 1


def test_a_link_is_followed_to_where_it_leads(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (tmp_path / "link").symlink_to("there/real.vmdk")
    guest = Guest(b"real-flat.vmdk")
    create(Session(guest), str(tmp_path / "link"), "vmdk", size=512, follow_symlinks=True)
    assert contents(there) == {"real.vmdk": "0", "real-flat.vmdk": "1"}
    request = decode(guest.jobs[0].request)
    assert isinstance(request, dict)
    assert request["name"] == b"real.vmdk"


BAD_NAMES = [
    b"",
    b".",
    b"..",
    b"a.vmdk",
    b"a/b",
    b"../a-flat.vmdk",
    b"/etc/passwd",
    b"a\0",
    b"b-flat.vmdk",
    b".a-flat.vmdk",
    b"a" * 256,
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_no_guest_may_give(name: bytes, tmp_path: Path) -> None:
    guest = Guest(b"a-1.vmdk", name)
    with pytest.raises(GuestFailedError, match="the guest named a further file 2"):
        make(guest, tmp_path / "a.vmdk")
    assert list(tmp_path.iterdir()) == []
    assert guest.windows == []


@given(name=st.binary(max_size=12))
def test_any_name_is_a_plain_one_or_refused(name: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("any")
    inner = folder / "inner"
    inner.mkdir()
    try:
        make(Guest(b"a" + name), inner / "a")
    except GuestFailedError:
        assert list(inner.iterdir()) == []
    else:
        assert sorted(os.listdir(os.fsencode(inner))) == sorted([b"a", b"a" + name])
    assert list(folder.iterdir()) == [inner]


def test_a_name_twice(tmp_path: Path) -> None:
    with pytest.raises(GuestFailedError, match="further file 2"):
        make(Guest(b"a1", b"a1"), tmp_path / "a")
    with pytest.raises(GuestFailedError, match="further file 1"):
        make(Guest(b"a1", first_index=0), tmp_path / "a")


def test_a_plan_that_changes(tmp_path: Path) -> None:
    other = Create(format="vmdk", virtual_size=1024, file_length=7, options=())
    with pytest.raises(GuestFailedError, match="another image"):
        make(Guest(b"a1", later=other), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_further_file_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "a2").mkdir()
    with pytest.raises(FileError, match="a2"):
        make(Guest(b"a1", b"a2", b"a3"), tmp_path / "a")
    (tmp_path / "a2").rmdir()
    (tmp_path / "a2").symlink_to("elsewhere")
    with pytest.raises(FileError, match="symbolic link"):
        create(Session(Guest(b"a2")), str(tmp_path / "a"), "vmdk", size=512, follow_symlinks=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a2"]


def test_what_is_in_place_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = OutputFile._place

    def fail(self: OutputFile) -> None:
        if self.name == "a2":
            raise OSError(5, "Input/output error")
        place(self)

    monkeypatch.setattr(OutputFile, "_place", fail)
    with pytest.raises(FileError) as caught:
        make(Guest(*(b"a%d" % number for number in range(1, 10))), tmp_path / "a")
    listed = ", ".join(f"'{tmp_path}/a{number}'" for number in (9, 8, 7, 6, 5))
    assert caught.value.message.endswith(f"Input/output error; already in place: {listed} and 2 more")
    assert caught.value.details["errno"] == "EIO"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a{number}" for number in range(3, 10)]


def test_nothing_is_in_place_when_a_file_cannot_be_made_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synchronize = OutputFile.synchronize

    def fail(self: OutputFile) -> None:
        if self.name == "a":
            raise FileError("no")
        synchronize(self)

    monkeypatch.setattr(OutputFile, "synchronize", fail)
    with pytest.raises(FileError, match=r"^no$"):
        make(Guest(b"a1"), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_target_name(tmp_path: Path) -> None:
    assert target_name("a/b.c") == b"b.c"
    assert target_name("b\udcff") == b"b\xff"
    assert target_name("a/") == b""
    assert target_name("\ud800") == b""
    assert target_name("a\0", follow_symlinks=True) == b""
    (tmp_path / "link").symlink_to("x/y")
    assert target_name(str(tmp_path / "link"), follow_symlinks=True) == b"y"
