"""Runs what a bundle holds, without the image, and says whether it was the same."""

from __future__ import annotations

import os

from calltable import MAX_DEVICES
from vmm.boundary import DEFAULT_MAX_RECORD, FailureKind, Job, Limits, LogEvent, MessageEvent, ProgressEvent, TraceEvent
from vmm.cbor import DecodeError, decode
from vmm.errors import BundleError, FileError, LimitReachedError, OperationLoadError
from vmm.operations.files import os_reason
from vmm.operations.session import HELPERS, OPERATIONS, VARIANTS, failure_error, load_operation, load_runtime
from vmm.operations.text import printable
from vmm.record import dataclass, replace
from vmm.replay.bundle import LIMITS, is_timeout, outcome_fields, sha256
from vmm.replay.compare import EventComparer, outcome_difference
from vmm.replay.reader import BundleReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import ClassVar

    from vmm.boundary import Event, Failure, Outcome, Runner
    from vmm.cbor import Value
    from vmm.replay.bundle import RecordedRun


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of the replay of one run."""

    REPRODUCED: ClassVar[str] = "reproduced"
    DIFFERENT: ClassVar[str] = "not-reproduced"
    #: The clock ended the recorded run or the replay: no run can repeat that bit for bit.
    TIMEOUT: ClassVar[str] = "ended-by-time"

    verdict: str
    #: The first difference, or what the clock had to do with it.
    difference: str | None
    #: How the replay ended; with neither when the recorded run's caller ended it (``refusal``).
    status: int | None
    failure: Failure | None
    #: The error with which the recorded run's caller refused the report, repeated here.
    refusal: str | None
    messages: int
    #: Calls to devices: as recorded (None when the run was ended at an event, as the recorded one), and recorded.
    calls: int | None
    recorded_calls: int
    #: Bytes of the image that the bundle holds, zeroes included.
    data_bytes: int


class _RefusedError(Exception):
    """The replay has come to the event at which the recorded run's caller ended it."""


class _Loaded:
    """One run out of a bundle, ready to be run: owns the descriptors."""

    def __init__(self, run: RecordedRun) -> None:
        self.run = run
        self.fds: list[int] = []
        self.trace = bytearray()
        self.calls = 0
        self.data_bytes = 0
        self.events: list[MessageEvent | LogEvent] = []
        self.end: dict[str, Value] = {}

    def outcome(self) -> dict[str, Value] | None:
        """How the recorded run ended; None when its caller refused the report."""
        outcome = self.end.get("outcome")
        return outcome if isinstance(outcome, dict) else None

    def refusal(self) -> str | None:
        """Why the recorded run's caller refused the report."""
        refusal = self.end.get("refused")
        return printable(str(refusal.get("message"))) if isinstance(refusal, dict) else None

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


class Player:
    """Replays bundles.

    :param runner: what runs the jobs; stays the caller's.
    :param elf: the operation's ELF, when the recorded one did not come with the package.
    :param limits: what a recorded run may have been allowed at most; ``timeout`` is for each replay.
    :param timeout: wall time in seconds for each replay, whatever the recorded run had.
    :param log_level: at least this much of the guest's log; what was not recorded is not compared.
    :param on_message: gets each message as the guest wrote it: hostile input.
    :param on_log: gets level and text of each line: hostile input.
    :param await_debugger: called before each run with the name of its operation, None for the given ELF; waits for a
        debugger and answers the descriptor of its connection, which stays the caller's.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        elf: bytes | None = None,
        limits: Limits | None = None,
        timeout: float | None = None,
        max_record: int = DEFAULT_MAX_RECORD,
        log_level: int = 0,
        on_message: Callable[[bytes], None] | None = None,
        on_log: Callable[[int, bytes], None] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        await_debugger: Callable[[str | None], int] | None = None,
    ) -> None:
        self._runner = runner
        self._elf = elf
        self._limits = limits if limits is not None else Limits()
        self._timeout = timeout
        self._max_record = max_record
        self._log_level = log_level
        self._on_message = on_message
        self._on_log = on_log
        self._on_progress = on_progress
        self._await_debugger = await_debugger

    def replay(self, path: str) -> Iterator[Verdict]:
        """Replay every run of a bundle, one after another.

        :raises BundleError: the bundle is damaged, of another version, or of another runtime.
        :raises OperationLoadError: it needs an ELF that is not there, or another one than was given.
        :raises LimitReachedError: a recorded run was allowed more than this player allows.
        :raises VmmError: the machine cannot run; see :mod:`vmm.errors`.
        """
        with BundleReader(path, self._max_record) as reader:
            count = 0
            while (run := reader.next_run()) is not None:
                count += 1
                name, elf = self._operation(reader, run)
                limits = self._allowed(run)
                loaded = _Loaded(run)
                try:
                    self._load(reader, loaded)
                    yield self._play(loaded, name, elf, limits)
                finally:
                    loaded.close()
            if not count:
                reader.fail("it holds no run")

    def _operation(self, reader: BundleReader, run: RecordedRun) -> tuple[str | None, bytes]:
        """The ELF that was recorded, by its hash, and its name when it came with the package."""
        runtime = sha256(load_runtime())
        if runtime != run.runtime_sha256:
            raise BundleError(
                f"'{printable(reader.path)}' was recorded by {printable(reader.program)} with another guest runtime: "
                f"SHA-256 {run.runtime_sha256.hex()}, here it is {runtime.hex()}",
                file=reader.path,
            )
        wanted = run.elf_sha256
        if self._elf is not None:
            found = sha256(self._elf)
            if found == wanted:
                return None, self._elf
            raise OperationLoadError(
                f"The given ELF is not the one that was recorded: SHA-256 {found.hex()}, recorded {wanted.hex()}",
                file=reader.path,
            )
        for name in (*OPERATIONS, *VARIANTS, *HELPERS):
            elf = load_operation(name)
            if sha256(elf) == wanted:
                return name, elf
        raise OperationLoadError(
            f"'{printable(reader.path)}' was recorded with an operation that does not come with this package: SHA-256 "
            f"{wanted.hex()}, {run.elf_length} bytes; give its ELF with --op-elf",
            file=reader.path,
        )

    def _allowed(self, run: RecordedRun) -> Limits:
        """The limits of the replay: the recorded ones, since a guest can ask for what is left of them."""
        for name, field in LIMITS.items():
            most, recorded = getattr(self._limits, field), getattr(run.limits, field)
            if recorded > most:
                raise LimitReachedError(
                    f"the recorded run had {name} {recorded}, more than the {most} that this replay may have",
                    limit=name,
                    value=most,
                )
        timeout = self._timeout if self._timeout is not None else self._limits.timeout
        return replace(run.limits, timeout=timeout, max_host_memory=self._limits.max_host_memory)

    def _load(self, reader: BundleReader, loaded: _Loaded) -> None:
        """The rest of the run out of the bundle: bytes into files without a name in memory, calls into one trace."""
        devices = loaded.run.devices
        if len(devices) > MAX_DEVICES:
            reader.fail(f"a run has {len(devices)} devices")
        try:
            for index, device in enumerate(devices):
                loaded.fds.append(os.memfd_create(f"pyvmm-replay-{index}", os.MFD_CLOEXEC))
                os.ftruncate(loaded.fds[-1], device.length)
            for event in reader.events():
                if isinstance(event, TraceEvent):
                    self._load_trace(reader, loaded, event.payload)
                elif isinstance(event, (MessageEvent, LogEvent)):
                    loaded.events.append(event)
        except OSError as error:
            raise FileError(f"Memory for the bytes of '{printable(reader.path)}': {os_reason(error)}") from None
        assert reader.end is not None
        loaded.end = reader.end

    @staticmethod
    def _load_trace(reader: BundleReader, loaded: _Loaded, payload: bytes) -> None:
        try:
            item = decode(payload)
        except DecodeError as error:
            reader.fail(f"a trace cannot be decoded: {error}")
        if not isinstance(item, list) or not item or not isinstance(item[0], str):
            reader.fail("a trace is no array that begins with its kind")
        if item[0] != "data":
            loaded.trace += payload
            loaded.calls += 1
            return
        if len(item) != 4:
            reader.fail("data are no device, offset and bytes")
        _, number, offset, content = item
        if type(number) is not int or not 0 <= number < len(loaded.fds):
            reader.fail("data are of a device that the run does not have")
        length = loaded.run.devices[number].length
        size = len(content) if isinstance(content, bytes) else content
        if type(offset) is not int or type(size) is not int or not (offset >= 0 and 0 <= size <= length - offset):
            reader.fail(f"data lie outside the {length} bytes of device {number}")
        loaded.data_bytes += size
        if isinstance(content, bytes):
            view = memoryview(content)
            while view:
                written = os.pwrite(loaded.fds[number], view, offset)
                view, offset = view[written:], offset + written

    def _play(self, loaded: _Loaded, name: str | None, elf: bytes, limits: Limits) -> Verdict:
        run = loaded.run
        log_level = max(run.log_level, self._log_level)
        comparer = EventComparer(loaded.events, run.log_level)
        refusal = loaded.refusal()
        calls: int | None = None
        if is_timeout(loaded.outcome()) and self._timeout is None:
            limits = replace(limits, timeout=min(limits.timeout, run.limits.timeout))

        def on_event(event: Event) -> None:
            nonlocal calls
            if isinstance(event, (MessageEvent, LogEvent)):
                comparer.take(event)
                if isinstance(event, LogEvent):
                    if self._on_log is not None:
                        self._on_log(event.level, event.text)
                elif self._on_message is not None:
                    self._on_message(event.payload)
                if refusal is not None and comparer.complete:
                    raise _RefusedError
            elif isinstance(event, ProgressEvent):
                if self._on_progress is not None:
                    self._on_progress(event.done, event.total)
            else:
                calls = _calls_done(event)

        job = Job(
            elf=elf,
            request=run.request,
            devices=tuple(replace(device, fd=fd) for device, fd in zip(run.devices, loaded.fds, strict=True)),
            limits=limits,
            log_level=log_level,
            progress=run.progress,
            replay=bytes(loaded.trace),
            debugger=None if self._await_debugger is None else self._await_debugger(name),
        )
        outcome: Outcome | None = None
        try:
            outcome = self._runner.run(job, on_event)
        except _RefusedError:
            pass
        verdict, difference = _judge(loaded, outcome, comparer, calls, same_log=log_level == run.log_level)
        return Verdict(
            verdict=verdict,
            difference=difference,
            status=None if outcome is None else outcome.status,
            failure=None if outcome is None else outcome.failure,
            refusal=refusal,
            messages=comparer.messages,
            calls=calls,
            recorded_calls=loaded.calls,
            data_bytes=loaded.data_bytes,
        )


def _calls_done(event: TraceEvent) -> int:
    """What the machine's side says at the end of a replay: ``["end", calls]``."""
    try:
        item = decode(event.payload)
    except DecodeError:
        return 0
    return item[1] if isinstance(item, list) and len(item) == 2 and isinstance(item[1], int) else 0


def _judge(
    loaded: _Loaded, outcome: Outcome | None, comparer: EventComparer, calls: int | None, *, same_log: bool
) -> tuple[str, str | None]:
    """The verdict on a replay, and why."""
    failure = None if outcome is None else outcome.failure
    recorded = loaded.outcome()
    if failure is not None and failure.kind in (FailureKind.KVM, FailureKind.WORKER):
        raise failure_error(failure)
    timed_out = failure is not None and (failure.kind, failure.limit) == (FailureKind.LIMIT, "timeout")
    ran_past = is_timeout(recorded) and failure is not None and failure.kind == FailureKind.DIVERGED
    if comparer.difference is None and (timed_out or (ran_past and calls == loaded.calls)):
        who = "the recorded run" if is_timeout(recorded) else "the replay (--timeout)"
        return Verdict.TIMEOUT, (
            f"the clock ended {who}, which no run can repeat bit for bit; until then {comparer.messages} messages and "
            f"{calls} of {loaded.calls} device calls were as recorded"
        )
    # A message that differs comes before what follows from it; that a message is missing comes after.
    difference = comparer.difference
    if difference is None and failure is not None and failure.kind == FailureKind.DIVERGED:
        difference = failure.message
    if difference is None and outcome is not None and recorded is not None:
        fields = outcome_fields(outcome)
        if not same_log:
            recorded, fields = dict(recorded), dict(fields)
            recorded.pop("usage", None)
            fields.pop("usage")
        difference = outcome_difference(recorded, fields)  # type: ignore[arg-type]  # plain fields
    if difference is None and outcome is not None and recorded is None:
        difference = f"the report of the recorded run was refused ({loaded.refusal()}), this one's was not"
    difference = difference or comparer.finish()
    if difference is None and outcome is not None and calls != loaded.calls:
        difference = f"the run made {calls} of {loaded.calls} recorded device calls"
    return (Verdict.DIFFERENT, difference) if difference is not None else (Verdict.REPRODUCED, None)
