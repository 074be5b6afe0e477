"""One run: a request goes in, typed messages come out, and whatever went wrong is one typed error."""

from __future__ import annotations

import errno as errnos
import os

from vmm.boundary import FailureKind, Job, Limits, LogEvent, MessageEvent, ProgressEvent, limit_message
from vmm.cbor import encode
from vmm.errors import (
    DebuggerError,
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
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeVar

    from calltable.message import Message
    from vmm.boundary import DeviceSpec, Event, Failure, Outcome, Runner
    from vmm.errors import Detail

    T = TypeVar("T")

#: The operations that come with the package.
OPERATIONS = ("info", "measure", "check", "map", "create", "resize")
#: Those that run on behalf of the others: with the package's own ELF, unseen by a debugger and without progress.
HELPERS = ("references",)
#: Those that run in the place of another operation, by what is asked of it; ``--op-elf`` stands for them too.
VARIANTS = ("unlock",)

#: Bytes of an operation's ELF file that are read at most; what is loaded has a window of 4 MiB.
MAX_ELF = 64 << 20

#: Messages of one report that are kept, and items of arrays in them: an item of three bytes takes sixty here.  A guest
#: that emits more is up to no good.  A qcow2 image has at most 65536 snapshots and 65535 bitmaps with two flags each.
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
    if name not in (*OPERATIONS, *HELPERS, *VARIANTS):
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


def debug_file(name: str) -> str:
    """Path of the debugging information of a guest that comes with the package: an operation, or ``runtime``."""
    return os.path.join(_GUESTS, name + ".debug")


class Session:
    """Runs operations, one after another, on one runner.

    :param runner: what runs jobs; stays the caller's.
    :param limits: of each run.
    :param elf: run this ELF instead of the operation's own (``--op-elf``).
    :param log_level: 0 off, 1 error, 2 warning, 3 info, 4 debug.
    :raises UsageError: another log level.
    :param on_log: gets level and one printable line of the guest's log.
    :param on_progress: gets work done and total work.
    :param await_debugger: called before each run with the operation's name, None for an ELF that has none; waits for a
        debugger and answers the descriptor of its connection, which stays the caller's.
    """

    __slots__ = ("_await_debugger", "_elf", "_elves", "_log_level", "_on_log", "_on_progress", "limits", "runner")

    def __init__(
        self,
        runner: Runner,
        *,
        limits: Limits | None = None,
        elf: bytes | None = None,
        log_level: int = 0,
        on_log: Callable[[int, str], None] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        await_debugger: Callable[[str | None], int] | None = None,
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
        self._await_debugger = await_debugger

    def operation(self, name: str) -> bytes:
        """The ELF to run for an operation, read once."""
        if self._elf is not None and name not in HELPERS:
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
        *,
        operation: str | None = None,
    ) -> Outcome:
        """Run an ELF with a request, handing each payload to ``on_payload``; answers only when the run completed.

        :param names: the devices' file names, for errors.
        :param operation: its name, if it has one; neither debugger nor progress is about those of :data:`HELPERS`.
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

        helper = operation in HELPERS
        job = Job(
            elf=elf,
            request=encoded,
            devices=tuple(devices),
            limits=self.limits,
            log_level=self._log_level,
            progress=self._on_progress is not None and not helper,
            debugger=None if self._await_debugger is None or helper else self._await_debugger(operation),
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
        kept: bool = True,
    ) -> Message:
        """Run an operation; its list messages go to ``on_message``, its main message is the answer.

        :param on_message: None where there are no ``lists``.
        :param main: name of the message that answers; exactly one, and nothing after it.
        :param lists: names of the messages that may come before it.
        :param statuses: with which the operation may end after its answer.
        :param kept: whether ``on_message`` keeps what it gets; then there may be :data:`MAX_KEPT`.
        :raises RefusedError: the operation said why it could not answer.
        :raises GuestFailedError: it broke the contract.
        """
        allowed = frozenset((main, "error", *lists))
        answered: list[Message] = []
        count = items = 0

        def on_payload(payload: bytes) -> None:
            nonlocal count, items
            message = decode_message(payload, allowed)
            if answered:
                raise GuestFailedError(f"the guest emitted {message.NAME} after {answered[0].NAME}")
            if message.NAME in (main, "error"):
                answered.append(message)
                return
            if kept:
                count += 1
                items += message.items()
                if count > MAX_KEPT:
                    raise GuestFailedError(f"the guest emitted more than {MAX_KEPT} messages")
                if items > MAX_KEPT:
                    raise GuestFailedError(f"the guest emitted messages with more than {MAX_KEPT} items in arrays")
            if on_message is not None:
                on_message(message)

        elf = self.operation(operation)
        outcome = self.execute(elf, request.as_fields(), devices, on_payload, names, operation=operation)
        message = answered[0] if answered else None
        if message is not None and message.NAME == "error":
            raise self.refused(message, names, outcome)
        if message is None or outcome.status not in statuses:
            said = f"emitted {message.NAME}" if message is not None else "did not answer"
            raise GuestFailedError(f"the guest {said} and ended with status {outcome.status}")
        return message

    def refused(self, message: Message, names: Sequence[str], outcome: Outcome) -> VmmError:
        """The error for an ``error`` message; ``guest-code`` and what the guest found are among its details.

        The operation refused (:class:`RefusedError`), unless it only passes on what the host knows better: a file
        that failed (:class:`FileError`), memory that it may not have (:class:`LimitReachedError`).

        :param names: the devices' file names.
        :param outcome: of the run; says why a device's file failed.
        """
        fields = message.as_fields()
        code = printable(str(fields.pop("code")))
        text = printable(str(fields.pop("message")))
        number = int(str(fields.pop("device", None) or 0))
        name = _device_name(number, names)
        details: dict[str, Detail] = {"guest_code": code, "file": name}
        if code == "no-memory":
            limit = self.limits.max_memory
            return LimitReachedError(
                f"{limit_message('max-memory', limit)}: {text}", **details, limit="max-memory", value=limit
            )
        details.update({key: value for key, value in fields.items() if isinstance(value, (str, int))})
        reason = _at(outcome.device_errors, number)
        if code == "io" and reason is not None:
            return _file_failed(f"{text}: {printable(reason)}", name, _at(outcome.device_errnos, number), details)
        kind = NoChecksError if code == "no-checks" else RefusedError
        return kind(text, **details)


def _at(items: Sequence[T | None], index: int) -> T | None:
    return items[index] if index < len(items) else None


def _file_failed(
    text: str, name: str | None, number: int | None, details: Mapping[str, Detail] | None = None
) -> FileError:
    named = text if name is None else f"{printable(name)}: {text}"
    errno = None if number is None else errnos.errorcode.get(number)
    return FileError(named, **{"file": name, "errno": errno, **(details or {})})


def _device_name(device: int | None, names: Sequence[str]) -> str | None:
    if not names:
        return None
    return names[device] if device is not None and device < len(names) else names[0]


def failure_error(failure: Failure, names: Sequence[str] = ()) -> VmmError:
    """The error for a failed run; it carries the failure."""
    text = printable(failure.message)
    name = _device_name(failure.device, names)
    error: VmmError
    if failure.kind == FailureKind.LIMIT:
        value = failure.limit_value
        if value is not None and value % 1 == 0:
            value = int(value)
        error = LimitReachedError(text, file=name, limit=failure.limit, value=value)
    elif failure.kind == FailureKind.IO:
        error = _file_failed(text, name, failure.errno)
    elif failure.kind == FailureKind.KVM:
        error = KvmError(text, file=name)
    elif failure.kind == FailureKind.DEBUGGER:
        error = DebuggerError(text, file=name)
    else:
        error = GuestFailedError(text, file=name, kind=str(failure.kind))
    error.failure = failure
    return error
