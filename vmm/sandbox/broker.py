"""The broker: runs jobs in jailed workers and believes nothing that they say.

It opens files and the KVM device, starts workers, hands them descriptors, and reads what comes back as hostile input:
every frame is checked (:mod:`vmm.sandbox.wire`), counted against the job's limits again, and waited for no longer than
the job may take.  A worker that breaks the protocol, dies or is late is killed; the next job gets a new one.
"""

from __future__ import annotations

import _socket
import os
from struct import Struct
from time import monotonic

from vmm.boundary import (
    KVM_DEVICE,
    Failure,
    FailureKind,
    LogEvent,
    MessageEvent,
    Outcome,
    TraceEvent,
    Usage,
    limit_outcome,
)
from vmm.errors import KvmError, KvmUnavailableError, OperationLoadError, SandboxError, UsageError, VmmError
from vmm.kvm_device import open_device
from vmm.record import replace
from vmm.sandbox import wire
from vmm.sandbox.filesystems import is_fuse
from vmm.sandbox.layers import LAYERS, JailReport
from vmm.sandbox.namespaces import namespaces
from vmm.sandbox.settings import JailSettings, settings_for
from vmm.sandbox.spawn import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Self

    from vmm.boundary import Event, Frame, Job

_DESCRIPTORS = Struct("i")
_READ = 256 << 10
#: Seconds in which a worker has to close its jail, and by which it may be late with the end of a job: it counts the
#: job's time itself, and better.
PATIENCE_START = 60.0
PATIENCE_END = 5.0
#: Seconds for symbols, besides what their reader allows itself.
PATIENCE_SYMBOLS = 30.0
#: Machines that a worker keeps: as many as there are operations, and some.
MACHINES = 6
#: Bytes of real memory that the worker's interpreter takes before its first job.
INTERPRETER_MEMORY = 64 << 20
#: Operations that a worker remembers.
_REMEMBERED = 64
#: SIGSYS: the filter's answer to a system call that it does not let through.
_SIGSYS = -31

_ERRORS: dict[str, type[VmmError]] = {
    kind.code: kind for kind in (KvmUnavailableError, KvmError, OperationLoadError, UsageError, SandboxError)
}


class WorkerLostError(Exception):
    """The worker is gone, or no longer to be trusted; the text says why."""


class WorkerStarvedError(WorkerLostError):
    """The kernel ended the worker: its control group had no more memory."""


class WorkerLateError(Exception):
    """The worker did not answer in time."""


class Worker:
    """A started worker, and what the broker remembers of it.

    :param process: a process that waits for its settings.
    """

    def __init__(self, process: Process) -> None:
        self.process = process
        self.report = JailReport()
        self._buffer = bytearray()
        self._operations: dict[bytes, int] = {}
        self._numbers = 0

    def close_jail(self, settings: JailSettings, kvm: int | None = None, kvm_path: str = KVM_DEVICE) -> None:
        """Let it close its jail; :attr:`report` says what became of it.

        :param kvm: a descriptor of the KVM device, for workers that run machines.
        :param kvm_path: its path, for errors.
        :raises SandboxError: it did not get so far.
        """
        outside = namespaces()
        if self.process.problem:
            outside[""] = f"no {self.process.problem}"
        start = monotonic()
        try:
            message = wire.settings_message(
                settings, outside, os.geteuid(), kvm_path.encode("utf-8", "backslashreplace").decode()
            )
            self.send(message, [] if kvm is None else [kvm])
            items = self.receive(start + PATIENCE_START)
        except (WorkerLostError, WorkerLateError) as error:
            self.process.kill()
            raise SandboxError(f"the process that runs the machine did not come up: {error}") from None
        report = items[0] if len(items) == 1 else None
        if not isinstance(report, JailReport) or {layer.name for layer in report.layers} != set(settings.layers):
            self.process.kill()
            raise SandboxError("the process that runs the machine did not say how its jail is closed")
        self.report = replace(report, pid=self.process.pid, memory=self._limit_memory(settings))

    def _limit_memory(self, settings: JailSettings) -> str:
        """The worker's control group with its limits, where it has one."""
        group = self.process.group
        # Its interpreter has a place in it as well.
        limited = None if group is None else group.limit(settings.memory + INTERPRETER_MEMORY, settings.machines + 1)
        return limited or "address space (RLIMIT_AS); there is no control group v2 to be had with a memory controller"

    @property
    def idle(self) -> bool:
        """It lives, and has said nothing since the end of its last run; anything that it says now is out of turn."""
        channel = self.process.channel
        channel.settimeout(0)
        try:
            channel.recv(1, _socket.MSG_PEEK)
        except BlockingIOError:
            return not self._buffer
        except OSError:
            pass
        return False

    def send(self, value: object, descriptors: Sequence[int] = (), deadline: float | None = None) -> None:
        """One frame, and descriptors with it.

        :param deadline: by :func:`time.monotonic`; None: soon.
        :raises WorkerLostError: nobody reads it.
        :raises WorkerLateError: it was not read in time.
        """
        data = memoryview(wire.frame(value))
        channel = self.process.channel
        channel.settimeout(PATIENCE_START if deadline is None else max(0.001, deadline - monotonic()))
        ancillary = []
        if descriptors:
            packed = b"".join(map(_DESCRIPTORS.pack, descriptors))
            ancillary.append((_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed))
        try:
            sent = channel.sendmsg([data], ancillary)
            if sent < len(data):
                channel.sendall(data[sent:])
        except TimeoutError:
            raise WorkerLateError("it did not read what it was sent") from None
        except OSError as error:
            raise self._death(error) from None

    def receive(self, deadline: float) -> list[wire.Item]:
        """The items of the next frame.

        :param deadline: by :func:`time.monotonic`.
        :raises WorkerLostError: it died, or said something that the protocol does not have.
        :raises WorkerLateError: no frame came in time.
        """
        buffer, channel = self._buffer, self.process.channel
        need = wire.LENGTH.size
        while True:
            if len(buffer) >= need:
                if need > wire.LENGTH.size:
                    data = bytes(buffer[wire.LENGTH.size : need])
                    del buffer[:need]
                    try:
                        return wire.items_of(data)
                    except wire.WireError as error:
                        raise WorkerLostError(f"it broke the protocol: {error}") from None
                length = wire.LENGTH.unpack_from(buffer)[0]
                if not 0 < length <= wire.MAX_FRAME:
                    raise WorkerLostError(f"it broke the protocol: a frame of {length} bytes")
                need += length
                continue
            left = deadline - monotonic()
            if left <= 0:
                raise WorkerLateError("it did not answer in time")
            try:
                channel.settimeout(None if left == float("inf") else left)
                # Without ancillary data: descriptors that it might send are never seen.
                data = channel.recv(_READ)
            except TimeoutError:
                continue
            except OSError as error:
                raise self._death(error) from None
            if not data:
                raise self._death(None)
            buffer += data

    def _death(self, error: OSError | None) -> WorkerLostError:
        self.process.kill()
        status = self.process.status
        if self.process.out_of_memory:
            return WorkerStarvedError("its control group had no more memory")
        if status is None:
            return WorkerLostError(f"it is gone ({error.strerror})" if error is not None else "it is gone")
        if status == _SIGSYS:
            return WorkerLostError("it made a system call that the jail forbids and was killed (SIGSYS)")
        return WorkerLostError(f"it was killed by signal {-status}" if status < 0 else f"it ended with status {status}")

    def operation(self, elf: bytes) -> tuple[bytes | None, int]:
        """What to send for an operation: its ELF when the worker does not have it, and its number."""
        known = self._operations.get(elf)
        if known is not None:
            return None, known
        self._numbers += 1
        number = self._operations[elf] = self._numbers % _REMEMBERED
        for other, taken in list(self._operations.items()):
            if taken == number and other != elf:
                del self._operations[other]
        return elf, number


class _Meter:
    """Counts of what a worker hands on, which it should have counted itself."""

    def __init__(self, job: Job) -> None:
        self._limits = job.limits
        self._traced = job.record or job.replay is not None
        self._messages = self._bytes = self._logs = 0

    def count(self, event: Event) -> None:
        limits = self._limits
        if isinstance(event, MessageEvent):
            self._messages += 1
            self._bytes += len(event.payload)
        elif isinstance(event, LogEvent):
            self._logs += 1
            self._bytes += len(event.text)
        elif isinstance(event, TraceEvent) and not self._traced:
            raise WorkerLostError("it broke the protocol: a trace that nobody asked for")
        if max(self._messages, self._logs) > limits.max_messages or self._bytes > limits.max_report:
            raise WorkerLostError("it broke the protocol: a report beyond its limits")


class JailedRunner:
    """The :class:`vmm.boundary.Runner` that runs jobs in jailed workers, each kept warm until :meth:`close`.

    One job at a time; from any thread, and from programs with many.  After ``fork`` a child gets workers of its own.

    :param kvm_path: the KVM device.
    :param machines: how many each worker keeps warm; 1: none, for a single run.
    :param layers: the layers to close; fewer are for tests.
    :param require: refuse to run unless every layer holds.
    :param verify_network: look at the jail's network over netlink, and say what is there in the report.
    :param on_report: told of each jail that was closed.
    :param process: a process that was started beforehand with all layers' namespaces, to save time.
    :param reap: wait for each worker that ends; False where this process is about to end itself.
    """

    def __init__(
        self,
        *,
        kvm_path: str = KVM_DEVICE,
        machines: int = MACHINES,
        layers: Iterable[str] = tuple(LAYERS),
        require: bool = False,
        verify_network: bool = False,
        on_report: Callable[[JailReport], None] | None = None,
        process: Process | None = None,
        reap: bool = True,
    ) -> None:
        self._kvm_path = kvm_path
        self._machines = machines
        self._layers = tuple(layers)
        self._require = require
        self._verify_network = verify_network
        self._on_report = on_report
        self._started = process
        self._reap = reap
        self._workers: dict[JailSettings, Worker] = {}
        self._broker = os.getpid()

    def run(self, job: Job, on_event: Callable[[Event], None]) -> Outcome:
        """Run one job to its end; see :class:`vmm.boundary.Runner`.

        :raises SandboxError: no worker can be started, or ``require`` and a layer is missing.
        """
        self._forget_the_parents()
        layers = self._layers_for(job)
        settings = settings_for(job, layers, machines=self._machines, verify_network=self._verify_network)
        worker = self._idle(settings) or self._start(settings)
        settled = False
        try:
            outcome = self._run(worker, job, on_event)
            settled = True
        except WorkerLateError:
            outcome = limit_outcome("timeout", job.limits.timeout)
        except WorkerStarvedError:
            outcome = limit_outcome("max-host-memory", settings.memory)
        except WorkerLostError as error:
            outcome = Outcome(
                None, Failure(FailureKind.WORKER, f"the process that runs the machine failed: {error}"), Usage()
            )
        finally:
            # Also when on_event raised: what the worker still says is nobody's.
            if not settled:
                self._workers.pop(settings, None)
                worker.process.kill()
        return self._with_symbols(outcome, job)

    def _layers_for(self, job: Job) -> tuple[str, ...]:
        """The layers of a job: root stays root's user where a file that is written would not obey another one."""
        if os.geteuid() == 0 and any(not device.read_only and is_fuse(device.fd) for device in job.devices):
            return tuple(name for name in self._layers if name != "identity")
        return self._layers

    def _run(self, worker: Worker, job: Job, on_event: Callable[[Event], None]) -> Outcome:
        elf, number = worker.operation(job.elf)
        descriptors = [device.fd for device in job.devices]
        if job.debugger is not None:
            descriptors.append(job.debugger)
        deadline = monotonic() + job.limits.timeout + PATIENCE_END
        worker.send(wire.job_message(job, elf, number), descriptors, deadline)
        meter = _Meter(job)
        while True:
            items = worker.receive(deadline if job.debugger is None else float("inf"))
            for index, item in enumerate(items):
                if isinstance(item, (Outcome, wire.Problem)) and index != len(items) - 1:
                    raise WorkerLostError("it broke the protocol: something after the end of a run")
                if isinstance(item, Outcome):
                    return _checked(item, job)
                if isinstance(item, wire.Problem):
                    raise _problem(item)
                if isinstance(item, (JailReport, wire.Addresses)):
                    raise WorkerLostError("it broke the protocol: an item out of place")
                meter.count(item)
                on_event(item)

    def _idle(self, settings: JailSettings) -> Worker | None:
        """The worker that waits for such a job; one that died or is not silent is replaced."""
        worker = self._workers.get(settings)
        if worker is None or worker.idle:
            return worker
        del self._workers[settings]
        worker.process.kill()
        return None

    def _start(self, settings: JailSettings, *, kvm: bool = True) -> Worker:
        device = open_device(self._kvm_path) if kvm else None
        try:
            process, self._started = self._started, None
            worker = Worker(process if process is not None else Process(settings.layers))
            try:
                worker.close_jail(settings, device, self._kvm_path)
                self._refuse(worker.report)
            except BaseException:
                worker.process.kill()
                raise
        finally:
            if device is not None:
                os.close(device)
        self._workers[settings] = worker
        if self._on_report is not None:
            self._on_report(worker.report)
        return worker

    def examine(self) -> JailReport:
        """Close a jail and say what became of it, without a machine.

        :raises SandboxError: no worker can be started.
        """
        self._forget_the_parents()
        settings = JailSettings(layers=self._layers, verify_network=self._verify_network)
        worker = self._idle(settings) or self._start(settings, kvm=False)
        return worker.report

    def _refuse(self, report: JailReport) -> None:
        held = {layer.name for layer in report.layers if layer.holds}
        missing = [name for name in self._layers if name not in held]
        if self._require and missing:
            details = {layer.name: layer.detail for layer in report.layers}
            names = ", ".join(f"{name} ({details.get(name) or 'not with this file system'})" for name in missing)
            raise SandboxError(f"layers of the sandbox are missing, and --require-sandbox does not allow that: {names}")

    def _with_symbols(self, outcome: Outcome, job: Job) -> Outcome:
        """The outcome with functions and lines where a failure has code addresses."""
        failure = outcome.failure
        if failure is None or not failure.backtrace or any(frame.function for frame in failure.backtrace):
            return outcome
        frames = self._symbols(failure.backtrace, job.elf)
        return replace(outcome, failure=replace(failure, backtrace=frames))

    def _symbols(self, frames: tuple[Frame, ...], elf: bytes) -> tuple[Frame, ...]:
        """The frames with their symbols, looked up in a worker without KVM; as they are when that fails."""
        from vmm.machine import guests

        settings = JailSettings(layers=self._layers, features=("symbols",))
        runtime = guests.runtime()
        worker: Worker | None = None
        try:
            worker = self._idle(settings) or self._start(settings, kvm=False)
            message = {
                "symbolise": [[f.address, f.function, f.file, f.line] for f in frames],
                "elf": elf,
                "runtime": runtime,
                "debug": _beside(elf),
                "runtime-debug": _beside(runtime),
            }
            worker.send(message)
            items = worker.receive(monotonic() + PATIENCE_SYMBOLS)
            if len(items) == 1 and isinstance(items[0], wire.Addresses) and len(items[0].frames) == len(frames):
                return items[0].frames
            raise WorkerLostError("it broke the protocol: no frames")
        except (WorkerLostError, WorkerLateError, SandboxError):
            self._workers.pop(settings, None)
            if worker is not None:
                worker.process.kill()
            return frames

    def _forget_the_parents(self) -> None:
        if self._broker != os.getpid():
            # Letting go of a process of the parent's closes this process's copy of its channel, and no more.
            self._workers.clear()
            self._started = None
            self._broker = os.getpid()

    def close(self) -> None:
        """End every worker.  Idempotent."""
        self._forget_the_parents()
        if self._started is not None:
            self._started.kill(wait=self._reap)
            self._started = None
        while self._workers:
            self._workers.popitem()[1].process.kill(wait=self._reap)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _beside(elf: bytes) -> bytes | None:
    """The ELF with debugging information that lies beside a shipped one; None for any other."""
    from vmm.machine import guests

    found = guests.debug_of(elf)
    return None if found is elf else found


def _checked(outcome: Outcome, job: Job) -> Outcome:
    """An outcome that fits its job."""
    if (outcome.status is None) == (outcome.failure is None):
        raise WorkerLostError("it broke the protocol: a run that both ended and failed, or neither")
    count = len(job.devices)
    if {len(outcome.device_lengths), len(outcome.device_errors), len(outcome.device_errnos)} != {count}:
        raise WorkerLostError("it broke the protocol: an outcome for other devices")
    return outcome


def _problem(problem: wire.Problem) -> Exception:
    """The error that a worker met."""
    kind = _ERRORS.get(problem.code)
    if kind is None:
        return WorkerLostError(f"an error inside it: {problem.message}")
    error = kind(problem.message)
    # What an error always has is not the worker's to say.
    error.details = {key: value for key, value in problem.details.items() if key not in ("code", "message")}
    return error
