"""What broker and worker say to each other: frames of one CBOR item each, after their length (u32, little endian).

The broker trusts its own side only: what it reads is checked here against the few forms that there are, in bounded
memory, and everything else is a :class:`WireError`.  The worker reads from the broker, which is trusted.
"""

from __future__ import annotations

import os
from struct import Struct

from calltable import MAX_DEVICES, MESSAGE_MAX
from vmm.boundary import (
    FAILURE_KINDS,
    DeviceSpec,
    Failure,
    FailureKind,
    Frame,
    Job,
    Limits,
    LogEvent,
    MessageEvent,
    Outcome,
    ProgressEvent,
    TraceEvent,
    Usage,
)
from vmm.cbor import DecodeError, decode, encode
from vmm.record import dataclass
from vmm.sandbox.layers import LAYERS, JailReport, Layer
from vmm.sandbox.settings import JailSettings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm.boundary import Event
    from vmm.cbor import Value

LENGTH = Struct("<I")
#: Bytes at which a worker sends a frame.
FLUSH_AT = 64 << 10
#: Bytes of a piece of a trace.
MAX_TRACE = 1 << 20
#: Bytes that a frame may have; each can become an object of 64 bytes in the broker.
MAX_FRAME = MAX_TRACE + 2 * FLUSH_AT
#: Characters of any text of the worker's.
MAX_TEXT = 16384
MAX_ITEMS = 4096

_U64 = (1 << 64) - 1
#: Digits of the largest number.
_DIGITS = 20


class WireError(Exception):
    """The worker said something that the protocol does not have."""


@dataclass(frozen=True, slots=True)
class Problem:
    """An error that the worker met instead of an outcome: class code, sentence, details."""

    code: str
    message: str
    details: dict[str, str | int | bool]


@dataclass(frozen=True, slots=True)
class Addresses:
    """Frames with their symbols: the answer of a worker that looks them up."""

    frames: tuple[Frame, ...]


if TYPE_CHECKING:
    Item = Event | Outcome | Problem | JailReport | Addresses


def frame(value: object) -> bytes:
    """One frame."""
    data = encode(value)
    return LENGTH.pack(len(data)) + data


# --- what the broker sends -----------------------------------------------------------------------------------------


def settings_message(settings: JailSettings, namespaces: Mapping[str, str], user: int, kvm_path: str) -> object:
    """The first frame: how to close the jail, and the broker's namespaces and effective user to compare with.

    A descriptor of the KVM device comes with it where machines are to run; its path is for errors.
    """
    return {
        "layers": list(settings.layers),
        "memory": settings.memory,
        "machines": settings.machines,
        "file-size": settings.file_size,
        "features": list(settings.features),
        "verify-network": settings.verify_network,
        "namespaces": dict(namespaces),
        "user": user,
        "kvm-path": kvm_path,
    }


def settings_of(message: Mapping[str, object]) -> JailSettings:
    """What :func:`settings_message` put in."""
    return JailSettings(
        layers=tuple(message["layers"]),  # type: ignore[arg-type]
        memory=message["memory"],  # type: ignore[arg-type]
        machines=message["machines"],  # type: ignore[arg-type]
        file_size=message["file-size"],  # type: ignore[arg-type]
        features=tuple(message["features"]),  # type: ignore[arg-type]
        verify_network=bool(message["verify-network"]),
    )


_LIMITS = ("max_read", "max_write", "max_messages", "max_report", "max_memory", "max_output")


def job_message(job: Job, elf: bytes | None, number: int) -> object:
    """A job; its devices' descriptors come with it, in order, and the debugger's last.

    :param elf: the operation, None when the worker has it.
    :param number: what the worker remembers the operation by.
    """
    limits = job.limits
    return {
        "elf": elf,
        "number": number,
        "request": job.request,
        "devices": [[d.length, d.read_only, d.resizable, d.max_length, _allocated(d)] for d in job.devices],
        # In nanoseconds: the subset of CBOR has no fractions.
        "timeout": round(min(float(1 << 63), limits.timeout * 1e9)),
        "limits": [getattr(limits, name) for name in _LIMITS],
        "log-level": job.log_level,
        "progress": job.progress,
        "record": job.record,
        "replay": job.replay,
        "debugger": job.debugger is not None,
    }


def _allocated(device: DeviceSpec) -> int:
    """What the worker cannot ask: it has another user, and no fstat(2)."""
    return os.fstat(device.fd).st_blocks * 512 if device.allocated is None else device.allocated


def job_of(message: Mapping[str, object], elf: bytes, descriptors: list[int]) -> Job:
    """The job of a :func:`job_message`, with the descriptors that came with it."""
    devices = message["devices"]
    numbers = message["limits"]
    debugger = descriptors[-1] if message["debugger"] else None
    return Job(
        elf=elf,
        request=message["request"],  # type: ignore[arg-type]
        devices=tuple(
            DeviceSpec(fd, *facts)
            for fd, facts in zip(descriptors, devices, strict=False)  # type: ignore[call-overload]
        ),
        limits=Limits(
            timeout=message["timeout"] / 1e9,  # type: ignore[operator]
            **dict(zip(_LIMITS, numbers, strict=True)),  # type: ignore[call-overload]
        ),
        log_level=message["log-level"],  # type: ignore[arg-type]
        progress=bool(message["progress"]),
        record=bool(message["record"]),
        replay=message["replay"],  # type: ignore[arg-type]
        debugger=debugger,
    )


# --- what the worker sends -----------------------------------------------------------------------------------------


def event_item(event: Event) -> list[object]:
    """An event."""
    if isinstance(event, MessageEvent):
        return ["m", event.payload]
    if isinstance(event, LogEvent):
        return ["l", event.level, event.text]
    if isinstance(event, ProgressEvent):
        return ["p", event.done, event.total]
    return ["t", event.payload]


def outcome_item(outcome: Outcome) -> list[object]:
    """The end of a run."""
    usage, failure = outcome.usage, outcome.failure
    return [
        "o",
        outcome.status,
        None if failure is None else _failure_fields(failure),
        [getattr(usage, name) for name in Usage.__match_args__],
        list(outcome.device_lengths),
        list(outcome.device_errors),
        list(outcome.device_errnos),
    ]


def _failure_fields(failure: Failure) -> dict[str, object]:
    fields: dict[str, object] = {name: getattr(failure, name) for name in Failure.__match_args__}
    fields["kind"] = str(failure.kind)
    if failure.limit_value is not None:
        # The subset of CBOR has no fractions; the shortest text that is this number says it exactly.
        fields["limit_value"] = repr(failure.limit_value)
    fields["backtrace"] = [_frame_fields(one) for one in failure.backtrace]
    fields["recent_requests"] = list(failure.recent_requests)
    return {name: value for name, value in fields.items() if value is not None}


def _frame_fields(one: Frame) -> list[object]:
    return [one.address, one.function, one.file, one.line]


def problem_item(code: str, message: str, details: Mapping[str, object]) -> list[object]:
    """An error instead of an outcome."""
    plain = {key: value for key, value in details.items() if isinstance(value, (str, int))}
    return ["e", code, message, plain]


def report_item(report: JailReport) -> list[object]:
    """The jail is closed."""
    return ["j", [[layer.name, layer.holds, layer.detail] for layer in report.layers], report.close_ns]


def addresses_item(frames: tuple[Frame, ...]) -> list[object]:
    """Frames with symbols."""
    return ["a", [_frame_fields(one) for one in frames]]


# --- what the broker makes of it -----------------------------------------------------------------------------------


def items_of(data: bytes | bytearray) -> list[Item]:
    """The items of one frame's content: hostile input.

    :raises WireError: not exactly one list of items that the protocol has.
    """
    try:
        value = decode(bytes(data))
    except DecodeError as error:
        raise WireError(f"a frame that is no CBOR of the subset: {error}") from None
    if not isinstance(value, list):
        raise WireError("a frame that is no list")
    return [_item(one) for one in value]


def _item(value: Value) -> Item:
    if not isinstance(value, list) or not value:
        raise WireError("an item that is no list")
    kind = value[0]
    if kind == "m" and len(value) == 2:
        return MessageEvent(_bytes(value[1], MESSAGE_MAX))
    if kind == "l" and len(value) == 3:
        return LogEvent(_number(value[1]), _bytes(value[2], MAX_TEXT))
    if kind == "p" and len(value) == 3:
        return ProgressEvent(_number(value[1]), _number(value[2]))
    if kind == "t" and len(value) == 2:
        return TraceEvent(_bytes(value[1], MAX_TRACE))
    if kind == "o" and len(value) == 7:
        return _outcome(value)
    if kind == "e" and len(value) == 4:
        return Problem(_text(value[1]), _text(value[2]), _details(value[3]))
    if kind == "j" and len(value) == 3:
        return JailReport(tuple(_layer(one) for one in _list(value[1], len(LAYERS))), close_ns=_number(value[2]))
    if kind == "a" and len(value) == 2:
        return Addresses(tuple(_frame(one) for one in _list(value[1], MAX_ITEMS)))
    raise WireError("an item of an unknown kind")


def _number(value: object, most: int = _U64) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise WireError("a number that is none, or out of range")
    return value


def _optional_number(value: object) -> int | None:
    return None if value is None else _number(value)


def _bytes(value: object, most: int) -> bytes:
    if not isinstance(value, bytes) or len(value) > most:
        raise WireError(f"bytes that are none, or more than {most}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise WireError(f"a text that is none, or longer than {MAX_TEXT}")
    if value.isprintable():
        return value
    # Escaped once more: whoever wrote it may not have done it.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in value)


def _optional_text(value: object) -> str | None:
    return None if value is None else _text(value)


def _list(value: object, most: int) -> list[Value]:
    if not isinstance(value, list) or len(value) > most:
        raise WireError(f"a list that is none, or longer than {most}")
    return value


def _map(value: object, most: int) -> dict[str, Value]:
    if not isinstance(value, dict) or len(value) > most:
        raise WireError(f"a map that is none, or larger than {most}")
    return value


def _details(value: object) -> dict[str, str | int | bool]:
    found: dict[str, str | int | bool] = {}
    for key, one in _map(value, 32).items():
        if isinstance(one, str):
            found[_text(key)] = _text(one)
        elif isinstance(one, (bool, int)):
            found[_text(key)] = one
        else:
            raise WireError("a detail that is neither text nor number")
    return found


def _layer(value: object) -> Layer:
    name, holds, detail = _fields(value, 3)
    if name not in LAYERS or not isinstance(holds, bool):
        raise WireError("a layer that does not exist")
    return Layer(str(name), holds, _text(detail))


def _fields(value: object, count: int) -> list[Value]:
    found = _list(value, count)
    if len(found) != count:
        raise WireError(f"a list of {len(found)}, not {count}")
    return found


def _frame(value: object) -> Frame:
    address, function, file, line = _fields(value, 4)
    return Frame(_number(address), _optional_text(function), _optional_text(file), _optional_number(line))


def _outcome(value: list[Value]) -> Outcome:
    _, status, failure, usage, lengths, errors, numbers = value
    counts = [_number(one) for one in _fields(usage, len(Usage.__match_args__))]
    return Outcome(
        status=None if status is None else _number(status, 0xFFFF_FFFF),
        failure=None if failure is None else _failure(failure),
        usage=Usage(*counts),
        device_lengths=tuple(_number(one) for one in _list(lengths, MAX_DEVICES)),
        device_errors=tuple(_optional_text(one) for one in _list(errors, MAX_DEVICES)),
        device_errnos=tuple(_optional_number(one) for one in _list(numbers, MAX_DEVICES)),
    )


_TEXTS = ("limit", "access", "region")
_NUMBERS = ("device", "errno", "vector", "error_code", "address")


def _amount(value: object) -> float:
    """The value of a limit: a whole number, or seconds with a fraction."""
    text = _text(value)
    try:
        amount = int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS else float(text)
    except ValueError:
        raise WireError("the value of a limit that is no number") from None
    if not 0 <= amount <= _U64:
        raise WireError("the value of a limit that is out of range")
    return amount


def _failure(value: object) -> Failure:
    fields = _map(value, len(Failure.__match_args__))
    if not set(fields) <= set(Failure.__match_args__) or fields.get("kind") not in FAILURE_KINDS:
        raise WireError("a failure of an unknown kind")
    return Failure(
        FailureKind(fields["kind"]),
        _text(fields.get("message")),
        limit_value=_amount(fields["limit_value"]) if "limit_value" in fields else None,
        registers={_text(name): _number(one) for name, one in _map(fields.get("registers", {}), 64).items()},
        backtrace=tuple(_frame(one) for one in _list(fields.get("backtrace", []), 64)),
        recent_requests=tuple(_text(one) for one in _list(fields.get("recent_requests", []), MAX_ITEMS)),
        **{name: _optional_text(fields.get(name)) for name in _TEXTS},  # type: ignore[arg-type]
        **{name: _optional_number(fields.get(name)) for name in _NUMBERS},  # type: ignore[arg-type]
    )
