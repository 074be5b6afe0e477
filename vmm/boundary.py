"""The narrow boundary around the machine.

What opens files and renders reports talks to what runs the machine through the types of this module and nothing
else: a :class:`Job` (open descriptors and one encoded request) goes in, :class:`Event` objects and one
:class:`Outcome` come out.  Everything in them is plain data, so that the inner side can live in another process
without its callers noticing.
"""

from __future__ import annotations

from calltable import DEFAULT_MEMORY
from vmm.record import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ClassVar, Protocol
else:
    Protocol = object

MIB = 1 << 20

#: Bytes that the process that runs the machine gets by default, beyond guest memory and its interpreter.
HOST_MEMORY = 1 << 30

#: Bytes of the record of runs by default, before compression.
DEFAULT_MAX_RECORD = 1 << 30

#: Where Linux puts the device node of KVM.
KVM_DEVICE = "/dev/kvm"


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """One block device of the machine: an open file descriptor.

    The descriptor stays the caller's; it is not closed here.  ``length`` is the exact length in bytes at the time of
    opening, ``allocated`` the bytes that its file system had allocated then; None: to be asked of the descriptor, which
    some file systems answer to their owner only.  A ``resizable`` device may grow, up to ``max_length`` bytes.
    """

    fd: int
    length: int
    read_only: bool = True
    resizable: bool = False
    max_length: int | None = None
    allocated: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run may use; every one of them ends the run with its own error (exit status 75)."""

    #: Wall time in seconds, > 0.
    timeout: float = 30.0
    #: Bytes that the guest may read from devices.
    max_read: int = 16 << 30
    #: Bytes that the guest may write to devices (zeroes written as holes do not count).
    max_write: int = 16 << 30
    #: Messages of the report.
    max_messages: int = 1_000_000
    #: Bytes of the whole report.
    max_report: int = 256 * MIB
    #: Bytes of guest arena memory, a multiple of 2 MiB.
    max_memory: int = DEFAULT_MEMORY
    #: Bytes of memory of the process that runs the machine, beyond what its interpreter takes; None: HOST_MEMORY more
    #: than ``max_memory``.
    max_host_memory: int | None = None
    #: Length in bytes that an output file may reach.
    max_output: int = 1 << 46


@dataclass(frozen=True, slots=True)
class Job:
    """One operation on its devices."""

    #: The operation's ELF file, whole.
    elf: bytes
    #: The request, encoded (one CBOR item).
    request: bytes
    devices: tuple[DeviceSpec, ...] = ()
    limits: Limits = field(default_factory=Limits)
    #: 0 off, 1 error, 2 warning, 3 info, 4 debug.
    log_level: int = 0
    progress: bool = False
    #: Report every request to a device as a :class:`TraceEvent`.
    record: bool = False
    #: Serve the devices from this encoded trace; their descriptors hold only the bytes that were read.
    replay: bytes | None = None
    #: An open, connected stream to gdb, which controls the run; None without one.  Stays the caller's.  No deadline
    #: then, unless gdb lets go of the guest.
    debugger: int | None = None


@dataclass(frozen=True, slots=True)
class MessageEvent:
    """One CBOR message of the report, exactly as the guest wrote it: hostile input."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One line of the guest's log: hostile input."""

    level: int
    text: bytes


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """Work done so far."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """One request to a device and its answer, or a piece of the bytes it read: one CBOR item, for a recorder."""

    payload: bytes


Event = MessageEvent | LogEvent | ProgressEvent | TraceEvent


@dataclass(frozen=True, slots=True)
class Usage:
    """What a run used.  Times are wall time in nanoseconds."""

    exits: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    messages: int = 0
    report_bytes: int = 0
    elapsed_ns: int = 0


def limit_message(limit: str, value: float) -> str:
    """What an error says of a limit that ended a run: the option's name and its value, in the option's unit."""
    return f"the run passed its limit: --{limit} is {format(value, 'g') if isinstance(value, float) else value}"


class FailureKind(str):
    """Why a run did not complete.  (A plain ``str`` class: importing :mod:`enum` costs a third of an interpreter.)"""

    __slots__ = ()

    PANIC: ClassVar[FailureKind]
    PAGE_FAULT: ClassVar[FailureKind]
    EXCEPTION: ClassVar[FailureKind]
    TRIPLE_FAULT: ClassVar[FailureKind]
    PROTOCOL: ClassVar[FailureKind]
    LIMIT: ClassVar[FailureKind]
    IO: ClassVar[FailureKind]
    KVM: ClassVar[FailureKind]
    WORKER: ClassVar[FailureKind]
    DIVERGED: ClassVar[FailureKind]
    DEBUGGER: ClassVar[FailureKind]

    @property
    def value(self) -> str:
        """The plain string."""
        return str(self)


#: Every kind, in the order of the class.
FAILURE_KINDS = (
    *("panic", "page-fault", "exception", "triple-fault", "protocol", "limit", "io", "kvm", "worker", "diverged"),
    "debugger",
)
for _kind in FAILURE_KINDS:
    setattr(FailureKind, _kind.upper().replace("-", "_"), FailureKind(_kind))


@dataclass(frozen=True, slots=True)
class Frame:
    """A code address, and where it lies in the source when that is known."""

    address: int
    function: str | None = None
    file: str | None = None
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """How a run failed: everything that a report of a fault needs, as plain data."""

    kind: FailureKind
    #: One sentence, control characters escaped.
    message: str
    #: For LIMIT: which ("timeout", "max-read", "max-write", "max-messages", "max-report", "max-output",
    #: "max-host-memory") and its value.
    limit: str | None = None
    limit_value: float | None = None
    #: For IO: the device and the errno.
    device: int | None = None
    errno: int | None = None
    #: For exceptions: vector, error code, faulting address, what was accessed and what lies there.
    vector: int | None = None
    error_code: int | None = None
    address: int | None = None
    access: str | None = None
    region: str | None = None
    registers: dict[str, int] = field(default_factory=dict)
    #: The innermost frame first.
    backtrace: tuple[Frame, ...] = ()
    #: The last block requests, newest last, one line each.
    recent_requests: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: with the status the operation gave, or with a failure."""

    status: int | None
    failure: Failure | None
    usage: Usage
    #: Length in bytes of each device at the end, in the order of the job.
    device_lengths: tuple[int, ...] = ()
    #: For each device, why its file last failed (reading, writing, no space), or None.
    device_errors: tuple[str | None, ...] = ()
    #: The errno of each, where the system gave one.
    device_errnos: tuple[int | None, ...] = ()


def limit_outcome(limit: str, value: float) -> Outcome:
    """A run of which nothing is known but that a limit of its process ended it."""
    message = limit_message(limit, value)
    return Outcome(None, Failure(FailureKind.LIMIT, message, limit=limit, limit_value=value), Usage())


class Runner(Protocol):
    """What runs jobs.  One job at a time; many jobs one after another."""

    def run(self, job: Job, on_event: Callable[[Event], None]) -> Outcome:
        """Run one job to its end.  Events arrive in order, before this returns.

        :raises vmm.errors.KvmUnavailableError: KVM cannot be used.
        :raises vmm.errors.OperationLoadError: the ELF is not one that the machine can run.
        """

    def close(self) -> None:
        """Give up every machine.  Idempotent."""
