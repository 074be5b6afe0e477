"""The command line of this process, its runner, terminal and folder exchanged for ones that can be watched."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from fuzzing.oracle import check_text, open_descriptors
from vmm.boundary import Event, Job, Outcome
from vmm.cli.main import main

#: Every status that the README names but 130, which takes a signal.
STATUSES = frozenset((0, 1, 2, 3, 63, 64, 69, 70, 75))

_FILES = {"image": b"x" * 512, "other": b"y" * 1000, "empty": b"", "op.elf": b"\x7fELF"}


class Runner:
    """Answers every job as a function says."""

    def __init__(self, answer: Callable[[Job, Callable[[Event], None]], Outcome]) -> None:
        self._answer = answer

    def run(self, job: Job, on_event: Callable[[Event], None]) -> Outcome:
        """See :class:`vmm.boundary.Runner`."""
        return self._answer(job, on_event)

    def close(self) -> None:
        """Nothing to give up."""


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """In memory where there is such a place: inputs write files, many a second, and wait for them to be durable."""
    memory = "/dev/shm" if "TMPDIR" not in os.environ and os.path.isdir("/dev/shm") else None
    return tempfile.TemporaryDirectory(prefix="pyvmm-fuzzing-", dir=memory)


class Folder:
    """A working directory in memory with a few files, put back after each input."""

    def __init__(self) -> None:
        self._temporary = temporary_folder()
        self.path = self._temporary.name
        self._put_back()

    def _put_back(self) -> None:
        for name in os.listdir(self.path):
            whole = os.path.join(self.path, name)
            if os.path.isdir(whole) and not os.path.islink(whole):
                shutil.rmtree(whole)
            else:
                os.unlink(whole)
        for name, content in _FILES.items():
            with open(os.path.join(self.path, name), "wb") as file:
                file.write(content)
        os.mkdir(os.path.join(self.path, "folder"))
        os.symlink("image", os.path.join(self.path, "link"))
        self._stamp = os.stat(self.path).st_mtime_ns

    def __enter__(self) -> Folder:
        self._home = os.getcwd()
        os.chdir(self.path)
        return self

    def __exit__(self, *_: object) -> None:
        os.chdir(self._home)
        if os.stat(self.path).st_mtime_ns != self._stamp:
            self._put_back()


_folder: Folder | None = None


def _working_folder() -> Folder:
    global _folder
    if _folder is None:
        _folder = Folder()
    return _folder


class Said:
    """What a command wrote and how it ended."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err

    def json(self) -> list[Any]:
        """The objects on stdout: one on each line, or one on many lines."""
        if not self.out.strip():
            return []
        try:
            return [_strict(self.out)]
        except ValueError:
            return [_strict(line) for line in self.out.splitlines()]


def _strict(text: str) -> Any:
    """JSON without what Python's reader lets pass besides."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def command(words: Sequence[str], runner: Runner) -> Said:
    """Run a command; what holds for every command is checked here."""
    saved = sys.stdout, sys.stderr, os.environ.get("PYVMM_TRACEBACK")
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    before = open_descriptors()
    os.environ["PYVMM_TRACEBACK"] = "1"
    try:
        sys.stdout, sys.stderr = streams
        with _working_folder():
            status = main(list(words), runner)
            left = [name for name in os.listdir(".") if name.endswith(".part")]
    finally:
        sys.stdout, sys.stderr = saved[:2]
        if saved[2] is None:
            del os.environ["PYVMM_TRACEBACK"]
        else:
            os.environ["PYVMM_TRACEBACK"] = saved[2]
    out, err = (stream.buffer.getvalue().decode("utf-8") for stream in streams)
    assert status in STATUSES, f"exit status {status}"
    assert open_descriptors() == before, "a descriptor was left open"
    assert not left, f"{left} left behind"
    check_text(out)
    check_text(err)
    assert "Traceback" not in err
    return Said(status, out, err)
