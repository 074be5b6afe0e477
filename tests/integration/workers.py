"""What tests of workers share: a run that stands still, and what the kernel says of processes from outside."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.machines import hostile_operation, job
from vmm.boundary import DeviceSpec, Outcome
from vmm.record import replace
from vmm.sandbox.broker import JailedRunner
from vmm.sandbox.layers import JailReport

_PATIENCE = 60.0


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for something that has to happen; failing takes a minute, succeeding no longer than it takes."""
    end = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


def stat(pid: int) -> list[str]:
    """The fields of proc(5) stat from the third on: state, parent, process group, session, ..."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


def lives(pid: int) -> bool:
    """It runs: neither gone nor waiting to be waited for."""
    try:
        return stat(pid)[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def exists(pid: int) -> bool:
    """It runs, or nobody has waited for it."""
    return os.path.exists(f"/proc/{pid}")


def children(parent: int) -> list[int]:
    """The processes that have a parent, zombies too."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if int(stat(int(name))[1]) == parent:
                    found.append(int(name))
            except (FileNotFoundError, ProcessLookupError):
                pass
    return found


def computes(pid: int) -> bool:
    """It has a vCPU and has spent some time."""
    fields = stat(pid)
    return int(fields[11]) + int(fields[12]) > 5 + _at_start.setdefault(pid, int(fields[11]) + int(fields[12]))


_at_start: dict[int, int] = {}


def descriptors() -> int:
    """How many this process has."""
    return len(os.listdir("/proc/self/fd"))


class Spinning:
    """A run in a thread of its own that does not end by itself.

    :param runner: whose workers; its own one where there is none.
    """

    def __init__(self, devices: tuple[DeviceSpec, ...] = (), *, timeout: float = 60.0) -> None:
        self.reports: list[JailReport] = []
        self.runner = JailedRunner(on_report=self.reports.append)
        self.outcome: Outcome | BaseException | None = None
        self._job = job("spin", devices, timeout=timeout)
        self._thread = threading.Thread(target=self._run)
        hostile_operation()
        self._thread.start()
        wait_until(lambda: self.reports or self.outcome)
        assert self.outcome is None, self.outcome
        wait_until(lambda: computes(self.pid))

    def _run(self) -> None:
        try:
            self.outcome = self.runner.run(self._job, lambda _: None)
        except BaseException as error:
            self.outcome = error

    @property
    def pid(self) -> int:
        """The worker's process."""
        return self.reports[-1].pid

    def end(self) -> Outcome:
        """Wait for the end; answers how it ended."""
        self._thread.join(_PATIENCE)
        assert isinstance(self.outcome, Outcome), self.outcome
        return self.outcome

    def innocent(self) -> Outcome:
        """Another run of the same runner."""
        return self.runner.run(replace(job("innocent"), devices=self._job.devices), lambda _: None)

    def __enter__(self) -> Spinning:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            os.kill(self.pid, signal.SIGKILL)
            self._thread.join(_PATIENCE)
        self.runner.close()
