"""The real command in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: ``python -m vmm``: the command as it is, wherever the package is installed.
COMMAND = (sys.executable, "-m", "vmm")


@dataclass(frozen=True)
class Done:
    """How the command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def one_line(self) -> str:
        """The only line of stderr; nothing on stdout."""
        assert self.out == "", self
        assert self.err.count("\n") == 1, self
        assert self.err.startswith("pyvmm: "), self
        return self.err


def listing(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


def wait_until(what: Callable[[], bool], message: str = "it did not happen") -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end, message
        time.sleep(0.01)


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for parent in found:
        try:
            tasks = os.listdir(f"/proc/{parent}/task")
            texts = [Path(f"/proc/{parent}/task/{task}/children").read_text() for task in tasks]
        except OSError:
            continue
        found += [int(child) for text in texts for child in text.split()]
    return found


def has_vcpu(pid: int) -> bool:
    try:
        return any("kvm-vcpu" in os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return False


def wait_for_guest(pid: int) -> None:
    """Until the process, or one that it started, has a vCPU and has used some time in it."""
    wait_until(lambda: any(map(has_vcpu, family(pid))), "no vCPU appeared")
    time.sleep(0.3)


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "PYVMM_TRACEBACK"}


def run(*words: str, cwd: Path | None = None, user: int | None = None) -> Done:
    """Run ``pyvmm`` with these words."""
    done = subprocess.run(
        [*COMMAND, *words], cwd=cwd, capture_output=True, timeout=120, check=False, env=environment(), user=user
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())
