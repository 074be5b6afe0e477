"""Programs of every kind around a worker, and death at every moment: nothing hangs, and nobody is left over."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import vmm
from tests.hostile.build import compile_c
from tests.integration.command import COMMAND, environment
from tests.integration.test_signals import SPIN
from tests.integration.workers import Spinning, children, computes, descriptors, exists, lives, wait_until
from tests.machines import hostile_operation, job
from tests.ordinary_user import ROOT, ordinary
from vmm.boundary import FailureKind, Limits
from vmm.errors import EXIT_GUEST_FAILED, GuestFailedError, SandboxError
from vmm.record import replace
from vmm.sandbox import broker
from vmm.sandbox.broker import JailedRunner
from vmm.sandbox.layers import JailReport
from vmm.sandbox.spawn import Process

pytestmark = pytest.mark.kvm

WHO = ("root", "user") if os.geteuid() == 0 else ("user",)

#: What each program begins with: an image, machines that tell of their workers, and the means to look at them.
PRELUDE = """
import os, signal, sys, threading, time
import vmm
from tests.integration.workers import children, descriptors, exists, lives, wait_until
from vmm.sandbox.broker import JailedRunner

IMAGE = sys.argv[1]
reports = []

def machine():
    return vmm.Machine(runner=JailedRunner(on_report=reports.append))

def works(made):
    assert made.info(IMAGE).format == "raw"

def nobody_is_left():
    assert reports
    assert [report.pid for report in reports if exists(report.pid)] == []
    assert children(os.getpid()) == []
"""

PROGRAMS = {
    "machines of threads that end": """
made = []
for _ in range(8):
    thread = threading.Thread(target=lambda: (made.append(machine()), works(made[-1])))
    thread.start()
    thread.join()
# Who made them is gone; others use them, some at the same time.
threads = [threading.Thread(target=lambda one=one: [works(one) for _ in range(5)]) for one in made]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(reports) == 8
for one in made:
    one.close()
nobody_is_left()
""",
    "a pool of threads": """
from concurrent.futures import ThreadPoolExecutor

def task(number):
    with machine() as made:
        works(made)

with ThreadPoolExecutor(4) as pool:
    list(pool.map(task, range(8)))
assert len(reports) == 8
nobody_is_left()
""",
    "a fork": """
made = machine()
works(made)
parents = reports[0].pid
child = os.fork()
if child == 0:
    status = 1
    try:
        works(made)
        assert reports[-1].pid != parents
        made.close()
        assert not exists(reports[-1].pid)
        assert lives(parents)
        status = 0
    finally:
        os._exit(status)
assert os.waitpid(child, 0)[1] == 0
works(made)
assert len(reports) == 1
child = os.fork()
if child == 0:
    # A child that lets go of it does its parent no harm either.
    del made
    os._exit(0 if lives(parents) else 1)
assert os.waitpid(child, 0)[1] == 0
works(made)
assert len(reports) == 1
made.close()
nobody_is_left()
""",
    "a fork of a thread": """
def forks():
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with machine() as made:
                works(made)
            status = 0
        finally:
            os._exit(status)
    statuses.append(os.waitpid(child, 0)[1])

statuses = []
made = machine()
works(made)
threads = [threading.Thread(target=forks) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert statuses == [0] * 3
works(made)
made.close()
nobody_is_left()
""",
    "SIGCHLD ignored": """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(2):
    with machine() as made:
        works(made)
        os.kill(reports[-1].pid, signal.SIGKILL)
        wait_until(lambda: not exists(reports[-1].pid))
        works(made)
wait_until(lambda: children(os.getpid()) == [])
nobody_is_left()
""",
    "a handler that waits for every child": """
def reap(*_):
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return
        except ChildProcessError:
            return

signal.signal(signal.SIGCHLD, reap)
for _ in range(2):
    with machine() as made:
        works(made)
        os.kill(reports[-1].pid, signal.SIGKILL)
        wait_until(lambda: not exists(reports[-1].pid))
        works(made)
wait_until(lambda: children(os.getpid()) == [])
nobody_is_left()
""",
    "signals all the time": """
ticks = []
signal.signal(signal.SIGALRM, lambda *_: ticks.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
signal.signal(signal.SIGRTMAX, lambda *_: None)
with machine() as made:
    for _ in range(20):
        works(made)
signal.setitimer(signal.ITIMER_REAL, 0)
assert ticks
nobody_is_left()
""",
    "every signal blocked": """
signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
with machine() as made:
    works(made)
    blocked = [line for line in open(f"/proc/{reports[0].pid}/status") if line.startswith("SigBlk")]
    assert int(blocked[0].split()[1], 16) == 0
nobody_is_left()
""",
    "no standard streams": """
for fd in (0, 1, 2):
    os.close(fd)
with machine() as made:
    works(made)
    links = [os.readlink(f"/proc/{reports[0].pid}/fd/{fd}") for fd in (0, 1, 2)]
    assert links == [os.devnull] * 3
nobody_is_left()
""",
    "descriptors that are inherited": """
for fd in range(3, 200):
    os.dup2(0, fd, inheritable=True)
with machine() as made:
    works(made)
    links = [os.readlink(f"/proc/{reports[0].pid}/fd/{fd}") for fd in os.listdir(f"/proc/{reports[0].pid}/fd")]
    assert links.count(os.devnull) == 3
    assert len(links) < 10
nobody_is_left()
""",
    "a thousand descriptors": """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (2000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
for fd in range(3, 1003):
    os.dup2(0, fd, inheritable=True)
with machine() as made:
    works(made)
nobody_is_left()
""",
    "few descriptors": """
import resource
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
before = descriptors()
worked = refused = 0
for limit in range(40, 4, -1):
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    made = machine()
    try:
        works(made)
        worked += 1
    except vmm.VmmError as error:
        # An error that says so, and nothing besides.
        assert "too many open files" in str(error).lower() or "cannot be started" in str(error), error
        refused += 1
    made.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    assert descriptors() == before, limit
assert worked > 5, worked
assert refused > 5, refused
nobody_is_left()
""",
    "nobody closes it": """
before = descriptors()
made = machine()
works(made)
try:
    raise ValueError
except ValueError:
    pass
del made
assert descriptors() == before
nobody_is_left()
# At the end of the program.
made = machine()
works(made)
print(reports[-1].pid)
""",
    "another folder, another user's path": """
os.chdir("/")
sys.path.insert(0, "")
sys.path.append("/nonexistent")
os.environ["PYTHONPATH"] = "/nonexistent"
os.environ["PYTHONSTARTUP"] = "/nonexistent"
os.environ["LD_PRELOAD"] = ""
with machine() as made:
    works(made)
nobody_is_left()
""",
}


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Path]:
    """An image that an ordinary user can read as well."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "image"
        path.write_bytes(bytes(4096))
        yield path


def start(who: str, code: str, *words: str) -> subprocess.Popen[str]:
    """A program of a root or of an ordinary user, started."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PRELUDE + code, *words]
    if who == "user" and os.geteuid() == 0:
        command = ordinary(*command)
    return subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name: str, who: str, image: Path) -> None:
    with start(who, PROGRAMS[name], str(image)) as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, ""), out
    for pid in out.split():
        wait_until(lambda pid=pid: not exists(int(pid)))  # type: ignore[misc]


def test_a_worker_that_is_killed(image: Path) -> None:
    before = descriptors()
    with Spinning() as run:
        first = run.pid
        os.kill(first, signal.SIGKILL)
        failure = run.end().failure
        assert failure is not None
        assert failure.kind == FailureKind.WORKER
        assert failure.message == "the process that runs the machine failed: it was killed by signal 9"
        assert not exists(first)
        assert run.innocent().status == 0
        assert run.pid != first
    assert not exists(run.pid)
    assert descriptors() == before


def test_a_machine_whose_worker_is_killed(image: Path) -> None:
    """The same by the API: the error of a run, and the next one on the same machine."""
    reports: list[JailReport] = []
    with vmm.Machine(runner=JailedRunner(on_report=reports.append), timeout=60) as machine:
        elf = _spin(image)

        def kill() -> None:
            wait_until(lambda: reports)
            wait_until(lambda: computes(reports[-1].pid))
            os.kill(reports[-1].pid, signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        with pytest.raises(GuestFailedError, match="killed by signal 9") as caught:
            machine.run_elf(elf, str(image))
        thread.join()
        assert caught.value.exit_status == EXIT_GUEST_FAILED
        assert machine.info(str(image)).format == "raw"


def _spin(image: Path) -> str:
    """The path of an operation that does not end, beside the image."""
    source = image.with_name("spin.c")
    source.write_text(SPIN)
    elf = image.with_name("spin.elf")
    elf.write_bytes(compile_c(source))
    return str(elf)


def test_a_worker_that_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot count its time any more; the broker does."""
    monkeypatch.setattr(broker, "PATIENCE_END", 0.2)
    with Spinning(timeout=2.0) as run:
        first = run.pid
        os.kill(first, signal.SIGSTOP)
        failure = run.end().failure
        assert failure is not None
        assert (failure.kind, failure.limit, failure.limit_value) == (FailureKind.LIMIT, "timeout", 2.0)
        assert not exists(first)
        assert run.innocent().status == 0


def test_a_worker_that_dies_while_it_closes_its_jail(monkeypatch: pytest.MonkeyPatch) -> None:
    """At one moment after another: the run works, or the error says that the process did not come up."""
    before = descriptors()
    delays = iter([step / 300 for step in range(12)])
    started: list[Process] = []

    def kill(pid: int) -> None:
        # While it can be waited for the number is its own, and the broker waits for the timer.
        if exists(pid):
            os.kill(pid, signal.SIGKILL)

    class Doomed(Process):
        __slots__ = ()

        def __init__(self, layers: object) -> None:
            super().__init__(layers)  # type: ignore[arg-type]
            started.append(self)
            delay = next(delays)
            timers.append(threading.Timer(delay, kill, (self.pid,)))
            timers[-1].start()

    timers: list[threading.Timer] = []
    monkeypatch.setattr(broker, "Process", Doomed)
    refused: list[str] = []
    for _ in range(12):
        with JailedRunner() as runner:
            try:
                runner.examine()
            except SandboxError as error:
                refused.append(str(error))
            timers[-1].join()
    assert set(refused) == {"the process that runs the machine did not come up: it was killed by signal 9"}
    assert not [process.pid for process in started if exists(process.pid)]
    started.clear()
    assert descriptors() == before


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("idle", [False, True])
def test_a_broker_that_is_killed(idle: bool, who: str, image: Path) -> None:
    if idle:
        code = "made = machine(); works(made); print(reports[0].pid, flush=True); time.sleep(1000)"
        process = start(who, code, str(image))
    else:
        hostile_operation()
        code = "from tests.integration.workers import Spinning; run = Spinning(); print(run.pid, flush=True)"
        process = start(who, code, str(image))
    assert process.stdout is not None
    with process:
        line = process.stdout.readline()
        assert line, process.stderr and process.stderr.read()
        worker = int(line)
        assert lives(worker)
        process.kill()
        process.wait()
        # The kernel kills it at once; the runs of a test wait longer where they have to.
        wait_until(lambda: not lives(worker))


ENDS = [
    (signal.SIGINT, 130, b"pyvmm: interrupted\n"),
    (signal.SIGTERM, 143, b"pyvmm: terminated\n"),
    (signal.SIGKILL, -9, b""),
]


@pytest.mark.parametrize(("number", "status", "line"), ENDS)
def test_the_command_is_ended(number: signal.Signals, status: int, line: bytes, image: Path) -> None:
    elf = _spin(image)
    with subprocess.Popen(
        [*COMMAND, "run", elf, "--timeout", "60", str(image)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        wait_until(lambda: [pid for pid in children(process.pid) if computes(pid)])
        (worker,) = children(process.pid)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert out == b""
    assert err == line
    wait_until(lambda: not lives(worker))


def test_the_commands_worker_is_killed(image: Path) -> None:
    elf = _spin(image)
    with subprocess.Popen(
        [*COMMAND, "run", elf, "--timeout", "60", str(image)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        wait_until(lambda: [pid for pid in children(process.pid) if computes(pid)])
        (worker,) = children(process.pid)
        os.kill(worker, signal.SIGKILL)
        out, err = process.communicate(timeout=60)
    assert process.returncode == EXIT_GUEST_FAILED
    assert out == b""
    assert err.decode() == (f"pyvmm: {image}: the process that runs the machine failed: it was killed by signal 9\n")


def test_a_process_number_that_is_somebody_elses() -> None:
    """Who has waited for the worker himself may meet its number again: it is signalled while it is a child's only."""
    process = Process(())
    own = process.pid
    os.kill(own, signal.SIGKILL)
    os.waitpid(own, 0)
    # As if the number had come round, to a process that is no child of this one.
    with subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        process.pid = int(shell.stdout.readline())
        process.kill()
        # Whoever is killed is not gone at once.
        time.sleep(0.2)
        assert lives(process.pid)
        assert process.status is None
        os.kill(process.pid, signal.SIGKILL)


def test_a_machine_that_nobody_closed() -> None:
    before = descriptors()
    reports: list[JailReport] = []
    runner = JailedRunner(on_report=reports.append)
    assert runner.run(job("innocent"), lambda _: None).status == 0
    worker = reports[0].pid
    assert lives(worker)
    del runner
    gc.collect()
    assert not exists(worker)
    assert descriptors() == before


def test_many_runs_leave_nothing() -> None:
    before = descriptors()
    with JailedRunner() as runner:
        assert runner.run(job("innocent"), lambda _: None).status == 0
        during = descriptors()
        for size in range(4):
            work = replace(job("innocent"), limits=Limits(max_memory=(8 + 2 * size) << 20))
            assert runner.run(work, lambda _: None).status == 0
        assert descriptors() - during <= 4
    assert descriptors() == before
