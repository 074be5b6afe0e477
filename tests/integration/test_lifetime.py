"""What machines hold, and that they let go of it: descriptors, timers, in this process and in its children."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator

import pytest

import calltable
from tests.machines import hostile_operation, job
from vmm.boundary import DeviceSpec, FailureKind, Limits
from vmm.errors import OperationLoadError
from vmm.machine.machine import Machine
from vmm.machine.runner import POOL_SIZE, MachineRunner
from vmm.record import replace

pytestmark = pytest.mark.kvm


def ignore(_: object) -> None:
    pass


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def runner() -> Iterator[MachineRunner]:
    with MachineRunner() as made:
        yield made


def test_nothing_stays_open() -> None:
    work = job("innocent")
    with MachineRunner(warm=False) as once:
        once.run(work, ignore)
        before = descriptors()
        for _ in range(5):
            once.run(work, ignore)
        with pytest.raises(OperationLoadError):
            once.run(replace(work, elf=b"no"), ignore)
    with MachineRunner() as warm:
        warm.run(work, ignore)
    assert descriptors() == before


def test_a_machine_that_nobody_closed_is_given_up() -> None:
    before = descriptors()
    machine = Machine(hostile_operation(), 0, 0)
    assert descriptors() == before + 2
    del machine
    assert descriptors() == before


def test_no_tick_after_the_end() -> None:
    """A run that lost its timer, as Ctrl-C at the wrong moment makes it: the tick would write to what is unmapped."""
    machine = Machine(hostile_operation(), 0, 0)
    machine.vcpu.arm(50_000_000, 10_000_000)
    machine.close()
    time.sleep(0.1)
    machine.vcpu.disarm()


def test_the_pool_is_bounded(runner: MachineRunner) -> None:
    before = descriptors()
    for size in range(POOL_SIZE + 3):
        work = replace(job("innocent"), limits=Limits(max_memory=size * calltable.LARGE_PAGE_SIZE))
        assert runner.run(work, ignore).status == 0
    assert descriptors() - before == 2 * POOL_SIZE


# Python 3.12 warns of fork in a process with threads; pytest-xdist has one.
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_child_process_gets_its_own_machines(runner: MachineRunner) -> None:
    assert runner.run(job("innocent"), ignore).status == 0
    child = os.fork()
    if child == 0:
        status = 1
        try:
            before = descriptors()
            status = runner.run(job("innocent"), ignore).status or 0
            # In the place of the parent's, which are not kept here.
            status = status or descriptors() - before
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert runner.run(job("innocent"), ignore).status == 0


def test_a_file_that_cannot_be_looked_at_fails_the_run(runner: MachineRunner) -> None:
    """Before the guest begins; the next run is as any other."""
    with open(os.devnull, "rb") as null:
        good = job("innocent", (DeviceSpec(null.fileno(), 0),))
        assert runner.run(good, ignore).status == 0
        outcome = runner.run(job("innocent", (DeviceSpec(-1, 512),)), ignore)
        assert runner.run(good, ignore).status == 0
    assert outcome.failure is not None
    assert (outcome.failure.kind, outcome.failure.device) == (FailureKind.IO, 0)
    assert (outcome.failure.errno, outcome.status) == (errno.EBADF, None)
