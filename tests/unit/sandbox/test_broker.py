"""The broker and a worker that lies: a typed error, the liar killed, nothing left over, and the next job runs."""

from __future__ import annotations

import os
import py_compile
import signal
import time
import tracemalloc
from collections.abc import Iterator

import pytest

from tests.unit.sandbox import liar
from tests.unit.sandbox.lies import ANSWERS, HONEST
from vmm.boundary import DeviceSpec, Event, FailureKind, Job, Limits, Outcome
from vmm.errors import KvmError, SandboxError
from vmm.record import replace
from vmm.sandbox import broker, spawn, wire
from vmm.sandbox.broker import JailedRunner

PROTOCOL = "the process that runs the machine failed: it broke the protocol: "
#: The request is what the worker answers; see ``liar``.
JOB = Job(b"ELF", ANSWERS["nothing is wrong"], limits=Limits(timeout=20.0))

#: Lie -> how its error begins after PROTOCOL.
LIES = {
    "text in the place of a frame": "a frame of 1347703880 bytes",
    "an empty frame": "a frame of 0 bytes",
    "a frame of 4 GiB": "a frame of 4294967295 bytes",
    "a frame that is a little too long": f"a frame of {wire.MAX_FRAME + 1} bytes",
    "no CBOR": "a frame that is no CBOR of the subset",
    "half an item": "a frame that is no CBOR of the subset",
    "two items": "a frame that is no CBOR of the subset: 16 bytes after the item",
    "10,000 deep": "a frame that is no CBOR of the subset",
    "20 deep": "a frame that is no CBOR of the subset",
    "a million lists": "an item that is no list",
    "a string of 2^63 bytes": "a frame that is no CBOR of the subset",
    "a list of 2^63 items": "a frame that is no CBOR of the subset",
    "a tag": "a frame that is no CBOR of the subset: tag 2",
    "an indefinite length": "a frame that is no CBOR of the subset",
    "a duplicate key": "a frame that is no CBOR of the subset",
    "a fraction": "a frame that is no CBOR of the subset: a value of type float",
    "a lone surrogate": "a frame that is no CBOR of the subset",
    "no list": "a frame that is no list",
    "an item that is no list": "an item that is no list",
    "an empty item": "an item that is no list",
    "an unknown item": "an item of an unknown kind",
    "an item that is too long": "an item of an unknown kind",
    "a message that is text": "bytes that are none",
    "a message that is too long": "bytes that are none, or more than",
    "negative progress": "a number that is none, or out of range",
    "a truth in the place of a number": "a number that is none",
    "a level of 2^64": "a number that is none, or out of range",
    "a trace that nobody asked for": "a trace that nobody asked for",
    "a second report of the jail": "an item out of place",
    "addresses": "an item out of place",
    "an answer and more": "something after the end of a run",
    "two answers": "something after the end of a run",
    "status and failure": "a run that both ended and failed, or neither",
    "neither status nor failure": "a run that both ended and failed, or neither",
    "a status of 2^32": "a number that is none, or out of range",
    "a negative status": "a number that is none, or out of range",
    "an unknown failure": "a failure of an unknown kind",
    "an unknown field of a failure": "a failure of an unknown kind",
    "a failure without a message": "a text that is none",
    "a failure of a million frames": "a list that is none, or longer than 64",
    "a long text": "a text that is none, or longer than",
    "more registers than there are": "a map that is none, or larger than 64",
    "usage of other things": "a list of 5, not 6",
    "lengths of other devices": "an outcome for other devices",
    "errors of other devices": "an outcome for other devices",
    "lengths of a million devices": "a list that is none, or longer than",
    "an error with a list of details": "a detail that is neither text nor number",
    "an error with a thousand details": "a map that is none, or larger than",
    "three messages": "a report beyond its limits",
    "a hundred bytes": "a report beyond its limits",
    "three lines": "a report beyond its limits",
}

#: Lie or deed -> the whole error.
ENDS = {
    "an error of its own": "an error inside it: it broke",
    "an error of an unknown kind": "an error inside it: no",
    "half a frame and its end": "it ended with status 3",
    "half a frame and its death": "it was killed by signal 9",
    "it hangs up": "it was killed by signal 9",
}

#: What the job's time ends.
LATE = ("silence", "a flood of progress", "a flood of nothing", "a byte now and then")

#: What is not wrong when it is said.
AFTERWARDS = ("an answer, and then another", "an answer, and half a frame")


class Started(spawn.Process):
    """A process of this test's."""

    __slots__ = ()
    #: Names of deeds, one for each process.
    deeds: list[str]
    all: list[Started]

    def __init__(self, layers: object) -> None:
        super().__init__((), program=liar.PROGRAM.format(name=self.deeds.pop(0) if self.deeds else ""))
        self.all.append(self)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def gone(process: spawn.Process) -> bool:
    """It has ended, and has been waited for."""
    return not os.path.exists(f"/proc/{process.pid}")


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    """The worker's interpreter does not write what it compiles."""
    py_compile.compile(liar.__file__)


@pytest.fixture
def _liars(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Liars in the place of workers; nothing of them is left afterwards."""
    Started.deeds, Started.all = [], []
    monkeypatch.setattr(broker, "Process", Started)
    before = descriptors()
    yield
    assert all(gone(process) for process in Started.all)
    Started.all.clear()
    assert descriptors() == before


@pytest.fixture
def runner(_liars: None) -> Iterator[JailedRunner]:
    with JailedRunner(kvm_path=os.devnull) as made:
        yield made


def ignore(_: Event) -> None:
    pass


def run(runner: JailedRunner, lie: str, job: Job = JOB) -> Outcome:
    """A job for a liar, who does not survive it, and one for an honest worker; answers the first."""
    if lie in ANSWERS:
        job = replace(job, request=ANSWERS[lie])
    else:
        Started.deeds = [lie]
    outcome = runner.run(job, ignore)
    assert gone(Started.all[0])
    assert runner.run(JOB, ignore) == HONEST
    assert len(Started.all) == 2
    return outcome


def failure(outcome: Outcome) -> str:
    assert outcome.status is None
    assert outcome.failure is not None
    assert outcome.failure.kind == FailureKind.WORKER
    assert outcome.failure.message.isprintable()
    return outcome.failure.message


def test_every_lie_is_told() -> None:
    told = {*LIES, *ENDS, *LATE, *AFTERWARDS, "nothing is wrong", "descriptors", "escapes", "an error of KVM's"}
    assert told == {*ANSWERS, *liar.DEEDS}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie(lie: str, runner: JailedRunner) -> None:
    job = replace(JOB, limits=Limits(timeout=20.0, max_messages=2, max_report=99))
    assert failure(run(runner, lie, job)).startswith(PROTOCOL + LIES[lie])


@pytest.mark.parametrize("lie", ENDS)
def test_an_end(lie: str, runner: JailedRunner) -> None:
    assert failure(run(runner, lie)) == f"the process that runs the machine failed: {ENDS[lie]}"


@pytest.mark.parametrize("lie", LATE)
def test_no_lie_lasts(lie: str, runner: JailedRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "PATIENCE_END", 0.1)
    tracemalloc.start()
    try:
        outcome = run(runner, lie, replace(JOB, limits=Limits(timeout=0.2)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert outcome.failure is not None
    assert outcome.failure.kind == FailureKind.LIMIT
    assert (outcome.failure.limit, outcome.failure.limit_value) == ("timeout", 0.2)
    assert peak < 8 << 20


def test_a_worker_that_does_not_read(runner: JailedRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job does not fit the channel: sending ends with the job's time, not with the patience of the start."""
    monkeypatch.setattr(broker, "PATIENCE_END", 0.1)
    Started.deeds = ["deaf"]
    start = time.monotonic()
    outcome = runner.run(replace(JOB, elf=bytes(8 << 20), limits=Limits(timeout=0.2)), ignore)
    assert time.monotonic() - start < broker.PATIENCE_START / 2
    assert outcome.failure is not None
    assert outcome.failure.limit == "timeout"
    assert gone(Started.all[0])


def test_a_frame_takes_bounded_memory() -> None:
    """The worst that a byte can be is an empty container."""
    size = 20_000
    lists = b"\x99" + size.to_bytes(2, "big") + b"\x80" * size
    tracemalloc.start()
    try:
        with pytest.raises(wire.WireError):
            wire.items_of(lists)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100 * size


def test_descriptors_do_not_arrive(runner: JailedRunner) -> None:
    Started.deeds = ["descriptors"]
    counts = []
    assert runner.run(JOB, lambda _: counts.append(descriptors())) == HONEST
    assert len(counts) == 300
    assert set(counts) == {descriptors()}


def test_escapes(runner: JailedRunner) -> None:
    failed = runner.run(replace(JOB, request=ANSWERS["escapes"]), ignore).failure
    assert failed is not None
    frame = failed.backtrace[0]
    texts = [failed.message, failed.access, failed.region, failed.limit, frame.function, frame.file]
    texts += [*failed.registers, *failed.recent_requests]
    assert set(texts) == {"\\x1b]0;owned\\x07\\x1b[2J\\u202e\\n"}


def test_an_error_of_kvm(runner: JailedRunner) -> None:
    with pytest.raises(KvmError) as caught:
        runner.run(replace(JOB, request=ANSWERS["an error of KVM's"]), ignore)
    assert caught.value.message.isprintable()
    assert caught.value.as_dict()["code"] == "kvm"
    assert caught.value.as_dict()["errno"] == "EIO"
    assert all(f"{key}{value}".isprintable() for key, value in caught.value.details.items())
    assert gone(Started.all[0])
    assert runner.run(JOB, ignore) == HONEST


@pytest.mark.parametrize("lie", AFTERWARDS)
def test_what_comes_after_the_end_is_not_the_next_answer(lie: str, runner: JailedRunner) -> None:
    assert runner.run(replace(JOB, request=ANSWERS[lie]), ignore) == HONEST
    assert runner.run(replace(JOB, request=ANSWERS["an error of its own"]), ignore).failure is not None
    assert len(Started.all) == 2


def test_an_honest_worker_is_kept(runner: JailedRunner) -> None:
    for _ in range(3):
        assert runner.run(JOB, ignore) == HONEST
    assert len(Started.all) == 1


def test_a_worker_that_died_between_jobs_is_replaced(runner: JailedRunner) -> None:
    assert runner.run(JOB, ignore) == HONEST
    os.kill(Started.all[0].pid, signal.SIGKILL)
    os.waitid(os.P_PID, Started.all[0].pid, os.WEXITED | os.WNOWAIT)
    assert runner.run(JOB, ignore) == HONEST
    assert gone(Started.all[0])
    assert len(Started.all) == 2


@pytest.mark.parametrize("lie", liar.REPORTS)
@pytest.mark.parametrize("require", [False, True])
@pytest.mark.usefixtures("_liars")
def test_a_lie_about_the_jail(lie: str, require: bool) -> None:
    Started.deeds = [lie]
    before = descriptors()
    with JailedRunner(kvm_path=os.devnull, require=require) as runner:
        with pytest.raises(SandboxError, match=r"^the process that runs the machine did not "):
            runner.run(JOB, ignore)
        assert gone(Started.all[0])
        assert descriptors() == before
        assert runner.run(JOB, ignore) == HONEST


def test_an_exception_of_the_callers(runner: JailedRunner) -> None:
    """What the worker still says is nobody's; it is killed."""
    Started.deeds = ["a flood of progress"]

    def refuse(_: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run(JOB, refuse)
    assert gone(Started.all[0])
    assert runner.run(JOB, ignore) == HONEST


def test_devices_stay_the_callers(runner: JailedRunner) -> None:
    fd = os.open(os.devnull, os.O_RDONLY)
    try:
        outcome = runner.run(replace(JOB, devices=(DeviceSpec(fd, 0),)), ignore)
        assert failure(outcome) == f"{PROTOCOL}an outcome for other devices"
        os.fstat(fd)
    finally:
        os.close(fd)
