"""One run: a request goes in, typed messages come out, and whatever went wrong is one typed error."""

from __future__ import annotations

import os

from vmm.boundary import FailureKind, Job, Limits, LogEvent, MessageEvent, ProgressEvent
from vmm.cbor import encode
from vmm.errors import (
    FileError,
    GuestFailedError,
    KvmError,
    LimitReachedError,
    NoChecksError,
    OperationLoadError,
    RefusedError,
    UsageError,
    VmmError,
)
from vmm.operations.decode import decode_message
from vmm.operations.text import printable, printable_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from calltable.message import Message
    from vmm.boundary import DeviceSpec, Event, Failure, Outcome, Runner

#: The operations that come with the package.
OPERATIONS = ("info", "measure", "check", "create")

#: Bytes of an operation's ELF file that are read at most; what is loaded has a window of 4 MiB.
MAX_ELF = 64 << 20

#: Messages of one report that are kept; a guest that emits more is up to no good.  A qcow2 image has at most 65536
#: snapshots and 65535 bitmaps.
MAX_KEPT = 200_000

_GUESTS = os.path.join(os.path.dirname(os.path.dirname(__file__)), "_guest")


def is_path(operation: str) -> bool:
    """Whether what stands for an operation names an ELF file: it contains ``/`` or ends with ``.elf``."""
    return "/" in operation or operation.endswith(".elf")


def load_operation(name: str) -> bytes:
    """The ELF of an operation that comes with the package.

    :raises UsageError: there is no such operation.
    :raises OperationLoadError: it has not been built.
    """
    if name not in OPERATIONS:
        raise UsageError(f"There is no operation '{printable(name)}'; there are {', '.join(OPERATIONS)}")
    return _load_guest(name, "operation")


def load_runtime() -> bytes:
    """The ELF of the runtime that comes with the package.

    :raises OperationLoadError: it has not been built.
    """
    return _load_guest("runtime", "guest")


def _load_guest(name: str, what: str) -> bytes:
    path = os.path.join(_GUESTS, name + ".elf")
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise OperationLoadError(f"The {what} {name} has not been built: run `make guest`", operation=name) from None


class Session:
    """Runs operations, one after another, on one runner.

    :param runner: what runs jobs; stays the caller's.
    :param limits: of each run.
    :param elf: run this ELF instead of the operation's own (``--op-elf``).
    :param log_level: 0 off, 1 error, 2 warning, 3 info, 4 debug.
    :raises UsageError: another log level.
    :param on_log: gets level and one printable line of the guest's log.
    :param on_progress: gets work done and total work.
    """

    __slots__ = ("_elf", "_elves", "_log_level", "_on_log", "_on_progress", "limits", "runner")

    def __init__(
        self,
        runner: Runner,
        *,
        limits: Limits | None = None,
        elf: bytes | None = None,
        log_level: int = 0,
        on_log: Callable[[int, str], None] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if log_level not in range(5):
            raise UsageError(f"a log level of {log_level}; there are 0 (off) to 4 (debug)")
        self.runner = runner
        self.limits = limits if limits is not None else Limits()
        self._elf = elf
        self._elves: dict[str, bytes] = {}
        self._log_level = log_level
        self._on_log = on_log
        self._on_progress = on_progress

    def operation(self, name: str) -> bytes:
        """The ELF to run for an operation, read once."""
        if self._elf is not None:
            return self._elf
        if name not in self._elves:
            self._elves[name] = load_operation(name)
        return self._elves[name]

    def execute(
        self,
        elf: bytes,
        request: object,
        devices: Sequence[DeviceSpec],
        on_payload: Callable[[bytes], None],
        names: Sequence[str] = (),
    ) -> Outcome:
        """Run an ELF with a request, handing each payload to ``on_payload``; answers only when the run completed.

        :param names: the devices' file names, for errors.
        :raises VmmError: the run failed; ``failure`` of the error says how.
        """
        try:
            encoded = encode(request)
        except UnicodeEncodeError:
            raise UsageError("The request contains text that is not UTF-8") from None
        except TypeError as error:
            raise UsageError(f"The request cannot be encoded: {error}") from None

        def on_event(event: Event) -> None:
            if isinstance(event, MessageEvent):
                on_payload(event.payload)
            elif isinstance(event, LogEvent):
                if self._on_log is not None:
                    self._on_log(event.level, printable_bytes(event.text))
            elif isinstance(event, ProgressEvent) and self._on_progress is not None:
                self._on_progress(event.done, event.total)

        job = Job(
            elf=elf,
            request=encoded,
            devices=tuple(devices),
            limits=self.limits,
            log_level=self._log_level,
            progress=self._on_progress is not None,
        )
        outcome = self.runner.run(job, on_event)
        if outcome.failure is not None:
            raise failure_error(outcome.failure, names)
        return outcome

    def answer(
        self,
        operation: str,
        request: Message,
        devices: Sequence[DeviceSpec],
        on_message: Callable[[Message], None] | None = None,
        *,
        main: str,
        lists: Sequence[str] = (),
        names: Sequence[str] = (),
        statuses: Sequence[int] = (0,),
    ) -> Message:
        """Run an operation; its list messages go to ``on_message``, its main message is the answer.

        :param on_message: None where there are no ``lists``.
        :param main: name of the message that answers; exactly one, and nothing after it.
        :param lists: names of the messages that may come before it.
        :param statuses: with which the operation may end after its answer.
        :raises RefusedError: the operation said why it could not answer.
        :raises GuestFailedError: it broke the contract.
        """
        allowed = frozenset((main, "error", *lists))
        answered: list[Message] = []
        kept = 0

        def on_payload(payload: bytes) -> None:
            nonlocal kept
            message = decode_message(payload, allowed)
            if answered:
                raise GuestFailedError(f"the guest emitted {message.NAME} after {answered[0].NAME}")
            if message.NAME in (main, "error"):
                answered.append(message)
                return
            kept += 1
            if kept > MAX_KEPT:
                raise GuestFailedError(f"the guest emitted more than {MAX_KEPT} messages")
            if on_message is not None:
                on_message(message)

        outcome = self.execute(self.operation(operation), request.as_fields(), devices, on_payload, names)
        message = answered[0] if answered else None
        if message is not None and message.NAME == "error":
            raise refused(message, names, outcome.device_errors)
        if message is None or outcome.status not in statuses:
            said = f"emitted {message.NAME}" if message is not None else "did not answer"
            raise GuestFailedError(f"the guest {said} and ended with status {outcome.status}")
        return message


def _device_name(device: int | None, names: Sequence[str]) -> str | None:
    if not names:
        return None
    return names[device] if device is not None and device < len(names) else names[0]


def refused(message: Message, names: Sequence[str], reasons: Sequence[str | None] = ()) -> RefusedError:
    """The error for an ``error`` message; ``guest-code`` and what the guest found are among its details.

    :param reasons: why each device's file failed, for what the guest knows as ``io`` only.
    """
    fields = message.as_fields()
    code = printable(str(fields.pop("code")))
    text = printable(str(fields.pop("message")))
    device = fields.pop("device", None)
    number = int(str(device or 0))
    details: dict[str, str | int | bool | None] = {"file": _device_name(number, names)}
    reason = reasons[number] if number < len(reasons) else None
    if code == "io" and reason is not None:
        text = f"{text}: {printable(reason)}"
    details.update({key: value for key, value in fields.items() if isinstance(value, (str, int))})
    kind = NoChecksError if code == "no-checks" else RefusedError
    return kind(text, guest_code=code, **details)


def failure_error(failure: Failure, names: Sequence[str] = ()) -> VmmError:
    """The error for a failed run; it carries the failure."""
    text = printable(failure.message)
    name = _device_name(failure.device, names)
    error: VmmError
    if failure.kind == FailureKind.LIMIT:
        value = failure.limit_value
        if value is not None and value == int(value):
            value = int(value)
        error = LimitReachedError(text, file=name, limit=failure.limit, value=value)
    elif failure.kind == FailureKind.IO:
        error = FileError(text, file=name)
    elif failure.kind == FailureKind.KVM:
        error = KvmError(text, file=name)
    else:
        error = GuestFailedError(text, file=name, kind=str(failure.kind))
    error.failure = failure
    return error
