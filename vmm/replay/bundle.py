"""What a bundle consists of: names and numbers of the format, and runs and outcomes as plain fields.

``docs/bundle.md`` is the specification.
"""

from __future__ import annotations

import hashlib

from vmm.boundary import DeviceSpec, Limits
from vmm.operations.text import printable
from vmm.record import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm.boundary import Failure, Frame, Job, Outcome
    from vmm.cbor import Value
    from vmm.errors import VmmError

#: The first bytes of a file, then two bytes of version (big endian), then one zstd frame.
MAGIC = b"\x93PYVMM\r\n"
VERSION = 1
#: Bytes in front of the zstd frame.
PREFIX = len(MAGIC) + 2

#: Bytes of one item of the content.
MAX_ITEM = 1 << 20
#: Characters of one text of an outcome; names in debugging information can be of any length.
MAX_TEXT = 4096
#: A reader need not keep more than this of the content to unfold it: 2 to this power.
WINDOW_LOG = 22

#: Names of items.
HEADER = "header"
RUN = "run"
TRACE = "trace"
MESSAGE = "message"
LOG = "log"
END = "end"

#: Limits that are part of what a guest can see, by their option names, with the field of :class:`Limits`.
LIMITS = {
    "max-read": "max_read",
    "max-write": "max_write",
    "max-messages": "max_messages",
    "max-report": "max_report",
    "max-memory": "max_memory",
    "max-output": "max_output",
}


def sha256(data: bytes) -> bytes:
    """The SHA-256 of some bytes: how a bundle names an ELF file."""
    return hashlib.sha256(data).digest()


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """What a bundle says of a run before its events."""

    #: SHA-256 and length in bytes of the operation's ELF.
    elf_sha256: bytes
    elf_length: int
    #: SHA-256 of the runtime's ELF.
    runtime_sha256: bytes
    request: bytes
    #: Without descriptors: ``fd`` is -1.
    devices: tuple[DeviceSpec, ...]
    limits: Limits
    log_level: int
    progress: bool


def run_fields(job: Job, runtime: bytes) -> dict[str, object]:
    """The fields of a ``run`` item.

    :param runtime: the runtime's ELF.
    """
    return {
        "elf": {"sha256": sha256(job.elf), "length": len(job.elf)},
        "runtime": {"sha256": sha256(runtime)},
        "request": job.request,
        "devices": [
            {
                "length": device.length,
                "read-only": device.read_only,
                "resizable": device.resizable,
                "max-length": device.max_length,
            }
            for device in job.devices
        ],
        "limits": {
            "timeout-ns": max(1, int(job.limits.timeout * 1e9)),
            **{name: getattr(job.limits, field) for name, field in LIMITS.items()},
        },
        "log-level": job.log_level,
        "progress": job.progress,
    }


def _text(text: str | None) -> str | None:
    return None if text is None else printable(text)[:MAX_TEXT]


def _frame(frame: Frame) -> dict[str, object]:
    return {
        "address": frame.address,
        "function": _text(frame.function),
        "file": _text(frame.file),
        "line": frame.line,
    }


def _failure(failure: Failure) -> dict[str, object]:
    value = failure.limit_value
    return {
        "kind": str(failure.kind),
        "message": _text(failure.message),
        "limit": failure.limit,
        # The subset of CBOR has no floating point.
        "limit-value": None if value is None else repr(float(value)),
        "device": failure.device,
        "errno": failure.errno,
        "vector": failure.vector,
        "error-code": failure.error_code,
        "address": failure.address,
        "access": failure.access,
        "region": _text(failure.region),
        "registers": dict(failure.registers),
        "backtrace": [_frame(frame) for frame in failure.backtrace],
        "recent-requests": [_text(line) for line in failure.recent_requests],
    }


def outcome_fields(outcome: Outcome) -> dict[str, object]:
    """An outcome without what differs from run to run (time, exits), most telling first."""
    usage = outcome.usage
    return {
        "status": outcome.status,
        "failure": None if outcome.failure is None else _failure(outcome.failure),
        "device-lengths": list(outcome.device_lengths),
        "device-errors": [_text(error) for error in outcome.device_errors],
        "usage": {
            "read-bytes": usage.read_bytes,
            "write-bytes": usage.write_bytes,
            "messages": usage.messages,
            "report-bytes": usage.report_bytes,
        },
    }


def refusal_fields(error: VmmError) -> dict[str, object]:
    """How the run's caller ended it: the error that it raised at an event."""
    return {"code": error.code, "message": _text(error.message)}


def is_timeout(outcome: Mapping[str, Value] | None) -> bool:
    """Whether a run with this recorded outcome was ended by the clock."""
    failure = None if outcome is None else outcome.get("failure")
    return isinstance(failure, dict) and (failure.get("kind"), failure.get("limit")) == ("limit", "timeout")
