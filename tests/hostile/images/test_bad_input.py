"""Things that are no image: one clear line or one JSON error, the right exit status, nothing left behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.differential.oracle import Answer
from tests.differential.ours import Ours, explain

pytestmark = pytest.mark.kvm


def _directory(path: Path) -> None:
    path.mkdir()


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _nothing(_path: Path) -> None:
    """No file at all."""


NO_IMAGES: dict[str, Callable[[Path], None]] = {
    "directory": _directory,
    "fifo": _fifo,
    "character-device": _device,
    "dangling-link": _dangling,
    "link-loop": _loop,
    "missing": _nothing,
}


def _is_one_clear_error(ours: Ours, *arguments: str, status: int = 1) -> Answer:
    human = ours.run(*arguments)
    assert human.rc == status, explain(human)
    assert human.stdout == ""
    assert human.stderr.startswith("pyvmm: "), explain(human)
    assert human.stderr.count("\n") == 1, explain(human)
    machine = ours.run(arguments[0], "--output=json", *arguments[1:])
    assert machine.rc == status, explain(machine)
    error = json.loads(machine.stdout)["error"]
    assert error["message"]
    assert error["code"]
    return machine


@pytest.mark.parametrize("operation", ["info", "check", "measure"])
@pytest.mark.parametrize("kind", NO_IMAGES)
def test_no_image(kind: str, operation: str, ours: Ours, tmp_path: Path) -> None:
    path = tmp_path / "image"
    NO_IMAGES[kind](path)
    _is_one_clear_error(ours, operation, str(path))
    assert [entry for entry in tmp_path.iterdir() if entry != path] == []


@pytest.mark.parametrize("operation", ["info", "measure"])
def test_empty_file(operation: str, ours: Ours, tmp_path: Path) -> None:
    """Nothing can be detected in nothing; but a raw disk of no bytes is a disk when that is what is meant."""
    path = tmp_path / "image"
    path.touch()
    _is_one_clear_error(ours, operation, str(path))
    answer = ours.run(operation, "-f", "raw", "--output=json", str(path))
    assert answer.rc == 0, explain(answer)


@pytest.fixture
def _not_root() -> Iterator[None]:
    """Root may read everything, so be nobody for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_no_permission(ours: Ours, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = tmp_path / "image"
    path.touch(mode=0)
    request.getfixturevalue("_not_root")
    answer = _is_one_clear_error(ours, "info", str(path))
    assert "Permission denied" in answer.json["error"]["message"]


def test_largest_file(ours: Ours, tmp_path: Path) -> None:
    """As long as the file system lets a file be."""
    path = tmp_path / "image"
    path.touch()
    for bits in range(62, 40, -1):
        try:
            os.truncate(path, (1 << bits) - 1)
        except OSError:
            continue
        break
    length = path.stat().st_size
    for operation in ("info", "measure"):
        answer = ours.run(operation, "-f", "raw", "--output=json", str(path))
        assert answer.rc == 0, explain(answer)
        key = "virtual-size" if operation == "info" else "required"
        assert answer.json[key] == -(-length // 512) * 512


@pytest.mark.parametrize(
    "arguments", [("create", "-f", "qcow2", "DIRECTORY", "1M"), ("create", "DIRECTORY/none/x", "1M")]
)
def test_no_place_to_write(arguments: tuple[str, ...], ours: Ours, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    _is_one_clear_error(ours, *(part.replace("DIRECTORY", str(place)) for part in arguments))
    assert list(tmp_path.rglob("*")) == [place]


@pytest.mark.parametrize(
    "arguments",
    [
        ("measure", "--size", "1M", "-O", "vmdk", "extra"),
        ("measure",),
        ("info",),
        ("check", "--no-such-option", "x"),
        ("no-such-operation", "x"),
        ("create", "only-a-name"),
        ("info", "--timeout", "never", "x"),
    ],
)
def test_usage(arguments: tuple[str, ...], ours: Ours) -> None:
    answer = ours.run(*arguments)
    assert answer.rc in (1, 64), explain(answer)
    assert answer.stderr.strip()
    assert "Traceback" not in answer.stderr
