"""The machine on real KVM: boot, reset, deadlines, signals, budgets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import calltable
from tests.elf_writer import operation
from tests.machines import MEMORY, fresh_state, hostile_operation, job, mini_runtime, state_of
from vmm.boundary import DeviceSpec, FailureKind, Job, Limits, MessageEvent, Outcome
from vmm.errors import OperationLoadError, UsageError
from vmm.kvm import State
from vmm.kvm.binding import ffi, lib
from vmm.machine.machine import Machine
from vmm.machine.runner import MachineRunner
from vmm.record import replace

pytestmark = pytest.mark.kvm

ROOT = Path(__file__).resolve().parent.parent.parent


def ignore(_: object) -> None:
    pass


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[DeviceSpec, ...]]:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(1 << 20))
    fd = os.open(path, os.O_RDONLY)
    yield (DeviceSpec(fd, 1 << 20),)
    os.close(fd)


@pytest.fixture
def runner() -> Iterator[MachineRunner]:
    with MachineRunner() as made:
        yield made


def timed_out(outcome: Outcome) -> bool:
    return outcome.failure is not None and outcome.failure.limit == "timeout"


def test_smallest_operation() -> None:
    """mov eax, 42; ret"""
    elf = operation(b"\xb8\x2a\x00\x00\x00\xc3")
    with Machine(elf, 0, 0, runtime=mini_runtime()) as machine:
        outcome = machine.run(Job(elf, b"\xf6"), ignore)
    assert (outcome.status, outcome.failure) == (42, None)
    assert outcome.usage.exits == 2
    assert outcome.usage.elapsed_ns > 0


def test_one_run_without_snapshot() -> None:
    work = job("innocent")
    machine = Machine(work.elf, 0, MEMORY, warm=False)
    assert machine.run(work, ignore).status == 0
    assert not machine.reusable
    with pytest.raises(RuntimeError):
        machine.run(work, ignore)
    machine.close()
    machine.close()


def test_reset_state_is_fresh_state(disk: tuple[DeviceSpec, ...]) -> None:
    work = job("soil", disk)
    fresh = fresh_state(work)
    with Machine(work.elf, 1, MEMORY) as machine:
        for name in ("soil", "innocent", "soil", "divide", "soil_segments", "stack_overflow"):
            machine.run(job(name, disk), ignore)
            assert machine.reusable
            assert state_of(machine).differences(fresh) == []


def test_the_processor_is_set_up_as_promised() -> None:
    """Bits of Intel SDM volume 3, section 2.5: some hosts do not enforce all of them, none may lack them."""
    work = job("innocent")
    with Machine(work.elf, 0, MEMORY) as machine:
        machine.boot(work)
        sregs = machine.vcpu.special_registers()
        registers = machine.vcpu.registers()
    assert sregs.cs.selector & 3 == sregs.ss.selector & 3 == 3
    assert (sregs.cs.l, sregs.cs.dpl) == (1, 3)
    assert sregs.cr0 >> 16 & 1, "CR0.WP: ring 0 does not write read-only pages"
    assert sregs.cr4 >> 2 & 1, "CR4.TSD: no clock"
    assert not sregs.cr4 & (1 << 8 | 1 << 16 | 1 << 18), "PCE, FSGSBASE, OSXSAVE"
    assert sregs.efer >> 11 & 1, "EFER.NXE"
    assert not sregs.efer & 1, "EFER.SCE: no syscall"
    assert registers["rflags"] >> 12 & 3 == 0, "no I/O privilege"
    assert not registers["rflags"] >> 9 & 1, "no interrupts"


def test_two_machines_boot_alike(disk: tuple[DeviceSpec, ...]) -> None:
    work = job("innocent", disk)
    assert fresh_state(work).differences(fresh_state(work)) == []


def test_the_comparison_sees_differences(disk: tuple[DeviceSpec, ...]) -> None:
    """So that the two tests above can fail."""
    work = job("innocent", disk)
    fresh = fresh_state(work)
    with Machine(work.elf, 1, MEMORY) as machine:
        machine.boot(work)
        machine.memory.put(calltable.ARENA_BASE, b"x")
        machine.memory.put(calltable.COLD_BASE + MEMORY - 1, b"x")
        registers = machine.vcpu.registers()
        machine.vcpu.set_registers(registers | {"r15": 7})
        sregs = machine.vcpu.special_registers()
        sregs.fs.base = 4096
        machine.vcpu.set_special_registers(sregs)
        assert state_of(machine).differences(fresh) == [
            "registers",
            "segments",
            f"memory at {calltable.ARENA_BASE:#x}",
            f"memory at {calltable.COLD_BASE + MEMORY - calltable.PAGE_SIZE:#x}",
        ]


@pytest.mark.parametrize(
    ("offset", "parts"),
    [
        (0, ("fpu",)),
        (24, ("fpu",)),
        (160, ("fpu",)),
        (511, ("fpu",)),
        (512, ()),
        (519, ()),
        (520, ("fpu",)),
        (576, ("fpu",)),
    ],
)
def test_what_the_comparison_sees_of_the_fpu(offset: int, parts: tuple[str, ...]) -> None:
    """Every byte of its state, but not which components the processor holds in use: that changes by itself."""
    work = job("innocent")
    with Machine(work.elf, 0, MEMORY) as machine:
        machine.boot(work)
        one, other = machine.vcpu.save(), State()
    size = ffi.sizeof("struct pyvmm_state")
    ffi.buffer(other.raw, size)[:] = ffi.buffer(one.raw, size)[:]
    assert one.differences(other) == ()
    # struct kvm_xsave, 4096 bytes, comes last.
    at = size - 4096 + offset
    ffi.buffer(other.raw, size)[at] = bytes([ffi.buffer(one.raw, size)[at][0] ^ 2])
    assert one.differences(other) == parts


def test_a_shorter_request_hides_the_longer_one_before(disk: tuple[DeviceSpec, ...]) -> None:
    short, long = job("innocent", disk), job("soil_segments", disk)
    with Machine(short.elf, 1, MEMORY) as machine:
        machine.run(long, ignore)
        machine.run(short, ignore)
        request = machine.memory.get(calltable.REQUEST_BASE, calltable.REQUEST_SIZE)
    assert request == short.request + bytes(calltable.REQUEST_SIZE - len(short.request))


def test_a_request_that_does_not_fit() -> None:
    work = replace(job("innocent"), request=bytes(calltable.REQUEST_SIZE + 1))
    with Machine(work.elf, 0, MEMORY) as machine, pytest.raises(UsageError, match="request"):
        machine.run(work, ignore)


@pytest.mark.parametrize(("devices", "memory"), [(calltable.MAX_DEVICES + 1, 0), (0, calltable.MAX_MEMORY + 1)])
def test_machines_that_do_not_exist(devices: int, memory: int) -> None:
    with pytest.raises(UsageError):
        Machine(hostile_operation(), devices, memory)


def test_a_newer_operation_is_refused() -> None:
    with pytest.raises(OperationLoadError, match=f"has {calltable.TABLE_MAJOR}.{calltable.TABLE_MINOR}"):
        Machine(operation(minor=calltable.TABLE_MINOR + 1), 0, 0)


# --- deadlines ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["spin", "spin_on_exits"])
def test_deadline_in_the_main_thread(runner: MachineRunner, name: str) -> None:
    outcome = runner.run(job(name, timeout=0.12), ignore)
    assert timed_out(outcome)
    assert outcome.usage.elapsed_ns >= 120_000_000
    assert outcome.failure is not None
    assert outcome.failure.backtrace[0].function == name
    assert runner.run(job("innocent"), ignore).status == 0


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan")])
def test_no_time_at_all(runner: MachineRunner, timeout: float) -> None:
    with pytest.raises(UsageError, match="timeout"):
        runner.run(job("innocent", timeout=timeout), ignore)


def test_all_the_time_in_the_world(runner: MachineRunner) -> None:
    assert runner.run(job("innocent", timeout=float("inf")), ignore).status == 0


def test_kvm_that_fails_is_a_failure_of_the_run() -> None:
    work = job("innocent")
    with Machine(work.elf, 0, MEMORY) as machine:
        os.close(machine.vcpu.fd)
        failure = machine.run(work, ignore).failure
        machine.vcpu.fd = -1
        assert failure is not None
        assert failure.kind == FailureKind.KVM
        assert not machine.reusable


def test_a_deadline_of_almost_nothing(runner: MachineRunner) -> None:
    assert timed_out(runner.run(job("spin", timeout=1e-9), ignore))


def test_deadlines_in_other_threads() -> None:
    """Several at once, while the main thread waits; each machine in a thread of its own."""
    outcomes: list[Outcome] = []

    def run(timeout: float) -> None:
        with MachineRunner() as mine:
            outcomes.append(mine.run(job("spin", timeout=timeout), ignore))
            outcomes.append(mine.run(job("innocent"), ignore))

    threads = [threading.Thread(target=run, args=(timeout,)) for timeout in (0.05, 0.15, 0.25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert sum(timed_out(outcome) for outcome in outcomes) == 3
    assert sum(outcome.status == 0 for outcome in outcomes) == 3


def test_a_machine_moves_between_threads(runner: MachineRunner) -> None:
    outcomes = [runner.run(job("innocent"), ignore)]
    thread = threading.Thread(target=lambda: outcomes.append(runner.run(job("spin", timeout=0.05), ignore)))
    thread.start()
    thread.join(30)
    outcomes.append(runner.run(job("spin", timeout=0.05), ignore))
    assert outcomes[0].status == 0
    assert timed_out(outcomes[1])
    assert timed_out(outcomes[2])


def test_other_threads_run_while_the_guest_does(runner: MachineRunner) -> None:
    """KVM_RUN holds no lock of the interpreter."""
    counted = 0
    stop = threading.Event()

    def count() -> None:
        nonlocal counted
        while not stop.is_set():
            counted += 1
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    before = counted
    runner.run(job("spin", timeout=0.3), ignore)
    during = counted - before
    stop.set()
    thread.join()
    assert during > 10


def test_deadline_with_signals_blocked(runner: MachineRunner) -> None:
    """Threads of some programs are started with every signal blocked."""
    old = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        assert timed_out(runner.run(job("spin", timeout=0.05), ignore))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def test_stray_ticks_are_harmless(runner: MachineRunner) -> None:
    number = lib.pyvmm_timer_signal()
    assert signal.SIGRTMIN <= number <= signal.SIGRTMAX
    os.kill(os.getpid(), number)
    signal.pthread_kill(threading.get_ident(), number)
    timer = threading.Timer(0.05, lambda: os.kill(os.getpid(), number))
    timer.start()
    assert timed_out(runner.run(job("spin", timeout=0.15), ignore))
    timer.join()
    assert runner.run(job("innocent"), ignore).status == 0


def test_runs_may_nest(disk: tuple[DeviceSpec, ...]) -> None:
    """A handler of events may run another machine; its deadline is its own, and the outer one still holds."""
    inner_outcomes: list[Outcome] = []
    with MachineRunner() as outer, MachineRunner() as inner:

        def on_event(_: object) -> None:
            if not inner_outcomes:
                inner_outcomes.append(inner.run(job("spin", disk, timeout=0.05), ignore))

        outcome = outer.run(job("message_flood", disk, timeout=0.3, max_messages=1 << 40, max_report=1 << 50), on_event)
    assert timed_out(inner_outcomes[0])
    assert timed_out(outcome)


CTRL_C = """
import sys
from tests.machines import job
from vmm.machine.runner import MachineRunner

print("ready", flush=True)
try:
    with MachineRunner() as runner:
        runner.run(job("spin", timeout=60.0), print)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
"""


@pytest.mark.parametrize("delay", [0.0, 0.3])
def test_ctrl_c_ends_a_run(delay: float) -> None:
    process = subprocess.Popen([sys.executable, "-c", CTRL_C], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2 + delay)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert output == "interrupted\n"


def test_a_handler_that_raises_ends_the_run_and_the_machine(disk: tuple[DeviceSpec, ...]) -> None:
    class Stop(Exception):  # noqa: N818
        pass

    def on_event(_: object) -> None:
        raise Stop

    with Machine(hostile_operation(), 1, MEMORY) as machine:
        with pytest.raises(Stop):
            machine.run(job("message_flood", disk), on_event)
        assert not machine.reusable
    with MachineRunner() as runner:
        with pytest.raises(Stop):
            runner.run(job("message_flood", disk), on_event)
        assert runner.run(job("innocent", disk), ignore).status == 0


# --- budgets and the pool ----------------------------------------------------------------------------------------


def test_message_budget(disk: tuple[DeviceSpec, ...], runner: MachineRunner) -> None:
    events: list[object] = []
    outcome = runner.run(job("message_flood", disk, max_messages=500), events.append)
    assert outcome.failure is not None
    assert (outcome.failure.kind, outcome.failure.limit) == (FailureKind.LIMIT, "max-messages")
    assert outcome.usage.messages == len(events) == 500
    assert all(isinstance(event, MessageEvent) for event in events)


def test_memory_budget(runner: MachineRunner) -> None:
    """What lies above the limit does not exist."""
    outcome = runner.run(job("above_memory"), ignore)
    assert outcome.failure is not None
    assert outcome.failure.address == calltable.COLD_BASE + MEMORY


def test_machines_are_kept_and_told_apart(disk: tuple[DeviceSpec, ...], runner: MachineRunner) -> None:
    first = runner.run(job("innocent", disk), ignore).usage.exits
    again = runner.run(job("innocent", disk), ignore).usage.exits
    assert again < first
    without = runner.run(job("innocent"), ignore)
    assert without.status == 0
    larger = replace(job("innocent", disk), limits=Limits(max_memory=2 * MEMORY))
    assert runner.run(larger, ignore).usage.exits == first


def test_same_request_same_report(disk: tuple[DeviceSpec, ...], runner: MachineRunner) -> None:
    reports = []
    for _ in range(3):
        events: list[object] = []
        outcome = runner.run(job("wrong_cbor", disk), events.append)
        reports.append((outcome.status, events))
    assert reports[0] == reports[1] == reports[2]
