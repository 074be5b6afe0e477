"""Where a passphrase comes from, and that it goes nowhere else."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from calltable.messages import Create, Info
from tests.unit.fake import FakeRunner
from vmm.cbor import decode
from vmm.errors import FileError, UsageError
from vmm.operations.create import create
from vmm.operations.info import info
from vmm.operations.passphrase import MAX_PASSPHRASE, read_passphrase
from vmm.operations.session import Session

ANSWER = Info(format="luks", virtual_size=0, file_length=4096, dirty_flag=False, encrypted=True)


@pytest.mark.parametrize("content", [b"x", b"secret\n", b"\n", b"\x00\xff" * 100, b"k" * MAX_PASSPHRASE])
def test_all_bytes_of_the_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "passphrase"
    path.write_bytes(content)
    assert read_passphrase(str(path)) == content


def test_from_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(b"se\ncret",))
    writer.start()
    assert read_passphrase(str(path)) == b"se\ncret"
    writer.join()


@pytest.mark.parametrize(
    ("content", "text"), [(b"", "is empty"), (b"k" * (MAX_PASSPHRASE + 1), f"more than {MAX_PASSPHRASE} bytes")]
)
def test_no_passphrase(content: bytes, text: str, tmp_path: Path) -> None:
    path = tmp_path / "passphrase"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=text):
        read_passphrase(str(path))
    image = tmp_path / "image"
    image.write_bytes(b"LUKS")
    with pytest.raises(UsageError, match=text):
        info(Session(FakeRunner(ANSWER)), str(image), luks_passphrase=content)


@pytest.mark.parametrize("name", ["missing", ".", "a\0b"])
def test_no_file(name: str, tmp_path: Path) -> None:
    with pytest.raises((FileError, UsageError)):
        read_passphrase(f"{tmp_path}/{name}")


def test_it_reaches_the_guest(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"LUKS")
    runner = FakeRunner(ANSWER)
    info(Session(runner), str(image), luks_passphrase=b"se\ncret")
    assert decode(runner.jobs[0].request) == {"passphrase": b"se\ncret"}


def test_creation_has_entropy_and_its_passphrase(tmp_path: Path) -> None:
    made = Create(format="luks", virtual_size=512, file_length=512, options=())
    requests = []
    for entropy in (None, None, bytes(range(32))):
        runner = FakeRunner(made)
        create(
            Session(runner), str(tmp_path / "new"), "luks", size=512, luks_passphrase=b"p", entropy=entropy, force=True
        )
        request = decode(runner.jobs[0].request)
        assert isinstance(request, dict)
        assert request["passphrase"] == b"p"
        requests.append(request["entropy"])
    assert len(set(requests)) == 3
    assert requests[2] == bytes(range(32))
    with pytest.raises(UsageError, match="raw takes no passphrase"):
        create(Session(FakeRunner(made)), str(tmp_path / "other"), "raw", size=512, luks_passphrase=b"p")
    assert not (tmp_path / "other").exists()
