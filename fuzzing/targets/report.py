"""Whatever a guest emits and however its run ends, there is a typed report or a VmmError; text shows no raw character,
JSON is valid and ASCII, and both are in proportion to what was emitted.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterable

from calltable.message import Message
from calltable.messages import MESSAGES
from fuzzing import messages
from fuzzing.codec import Source
from fuzzing.console import Runner, Said, command
from fuzzing.oracle import check_text
from fuzzing.targets import Target
from vmm.boundary import Event, Failure, FailureKind, Frame, Job, LogEvent, MessageEvent, Outcome, ProgressEvent, Usage
from vmm.cbor import encode
from vmm.errors import GuestFailedError
from vmm.operations.decode import decode_envelope, decode_message

#: Command lines by number; ``op.elf`` stands for the ELF of every operation.
COMMANDS = (
    ("run", "info", "--op-elf", "op.elf", "image"),
    ("run", "measure", "--op-elf", "op.elf", "-O", "qcow2", "image"),
    ("run", "check", "--op-elf", "op.elf", "image"),
    ("run", "create", "--op-elf", "op.elf", "-f", "raw", "new", "1M"),
    ("run", "op.elf", "image"),
    ("run", "info", "--op-elf", "op.elf", "image", "other"),
    ("run", "info", "--op-elf", "op.elf", "--qemu-version", "9.0", "image"),
    ("run", "check", "--op-elf", "op.elf", "image", "other"),
    ("run", "resize", "--op-elf", "op.elf", "image", "1M"),
)
#: Chosen by the highest bit, since all numbers are taken.
MAP = ("run", "map", "--op-elf", "op.elf", "image")
#: What each operation emits: its answer, then what may come before it.
EXPECTED = {
    "info": (
        *("info", "info-snapshot", "info-bitmap", "info-reference", "info-partition-table", "info-partition"),
        *("info-filesystem", "info-note"),
    ),
    "measure": ("measure",),
    "check": ("check", "check-finding"),
    "resize": ("resize",),
    "create": ("create", "create-file"),
    "map": ("map", "map-extents"),
}
_KINDS = ("panic", "page-fault", "exception", "triple-fault", "protocol", "limit", "io", "kvm", "worker", "diverged")
_LIMITS = (None, "timeout", "max-read", "max-messages", "\x1b[2J")
_VALUES = (None, 0.15, 1.0, 1e300, float("inf"), float("nan"), -0.0, 2.0**64)
_ALL = frozenset(MESSAGES)
_EVENTS_MAX = 400

#: Characters of output, besides a constant, for each byte of payload, log and failure.
_OUT_OF_IN = 80


class Script:
    """What the guest of an input does, and how its run ends."""

    def __init__(self, source: Source, names: tuple[str, ...]) -> None:
        self._names = names
        self.status = source.byte()
        self._ending = source.byte()
        self.failure = self._failure(source) if self._ending & 1 else None
        self.errors = (messages.text(source),) if self._ending & 2 else ()
        self.events: list[Event] = []
        while source and len(self.events) < _EVENTS_MAX:
            self._event(source)

    def _event(self, source: Source) -> None:
        choice = source.byte()
        kind = choice & 7
        if kind <= 2:
            # The answer itself, a message that may come before it, any message at all.
            names = (self._names[:1], self._names, messages.NAMES)[kind]
            self.events.append(MessageEvent(messages.message(source, names)))
        elif kind == 3:
            self.events.append(MessageEvent(source.block()))
        elif kind == 4:
            # Again what came last, as floods are made.
            again = self.events[-1 - (choice >> 7) :]
            self.events += again * min(source.byte(), _EVENTS_MAX - len(self.events))
        elif kind == 5:
            self.events.append(LogEvent(choice >> 3 & 7, source.take(source.byte())))
        elif kind == 6:
            self.events.append(ProgressEvent(source.number(), source.number()))
        else:
            self.events.append(MessageEvent(messages.message(source, ("error",))))

    def _failure(self, source: Source) -> Failure:
        choice, has = source.byte(), source.byte()
        text = messages.text
        return Failure(
            FailureKind(_KINDS[choice % len(_KINDS)]),
            text(source),
            limit=_LIMITS[has % len(_LIMITS)],
            limit_value=_VALUES[source.byte() % len(_VALUES)],
            device=source.number() if has & 8 else None,
            errno=source.byte() if has & 16 else None,
            vector=source.number() if has & 32 else None,
            error_code=source.number() if has & 64 else None,
            address=source.number() if has & 128 else None,
            access=text(source) if choice & 16 else None,
            region=text(source) if choice & 32 else None,
            registers={text(source): source.number() for _ in range(choice >> 6)},
            backtrace=tuple(
                Frame(source.number(), text(source) or None, text(source) or None, source.byte() or None)
                for _ in range(source.byte() & 3)
            ),
            recent_requests=tuple(text(source) for _ in range(source.byte() & 3)),
        )

    def play(self, job: Job, on_event: Callable[[Event], None]) -> Outcome:
        """As a runner's ``run``."""
        for event in self.events:
            on_event(event)
        status = None if self.failure is not None else self.status
        return Outcome(status, self.failure, Usage(), tuple(d.length for d in job.devices), self.errors)

    def size(self) -> int:
        """About how many bytes it says."""
        total = len(repr(self.failure)) + len(repr(self.errors))
        for event in self.events:
            total += len(event.payload) if isinstance(event, MessageEvent) else 8
            total += len(event.text) if isinstance(event, LogEvent) else 0
        return total


def _decode(payload: bytes) -> None:
    """A typed message that is what was sent, or the one error."""
    try:
        name, fields = decode_envelope(payload)
        assert type(name) is str
        assert isinstance(fields, dict)
        message = decode_message(payload, _ALL)
    except GuestFailedError as error:
        assert len(error.message) <= 1000 + len(payload)
        check_text(error.message, also="")
        return
    assert isinstance(message, Message)
    again = decode_message(encode([message.NAME, message.as_fields()]), _ALL)
    assert again == message
    assert hash(again) == hash(message)


def _check_json(said: Said) -> None:
    assert said.out.isascii()
    # A map is an array; one that was begun and failed ends with the error.
    found = [item for value in said.json() for item in (value if isinstance(value, list) else [value])]
    assert all(isinstance(item, dict) for item in found)
    for item in found:
        if "error" in item and isinstance(item["error"], dict) and "exit-status" in item["error"]:
            assert isinstance(item["error"]["message"], str)


def run(data: bytes) -> None:
    """See above."""
    source = Source(data)
    choice = source.byte()
    words = list(MAP if choice & 128 else COMMANDS[choice & 7])
    json = bool(choice & 8)
    words += ["--output=json"] * json + ["-vv"] * bool(choice & 16) + ["-p"] * bool(choice & 32)
    script = Script(source, EXPECTED.get(words[1], messages.NAMES))
    payloads = [event.payload for event in script.events if isinstance(event, MessageEvent)]
    for payload in dict.fromkeys(payloads):
        if choice & 64:
            tracemalloc.start()
        try:
            _decode(payload)
            assert not tracemalloc.is_tracing() or tracemalloc.get_traced_memory()[1] < 300 * len(payload) + (64 << 10)
        finally:
            if choice & 64:
                tracemalloc.stop()
    said = command(words, Runner(script.play))
    if json:
        _check_json(said)
    runs = len({"image", "other"} & set(words)) or 1
    most = runs * (_OUT_OF_IN * script.size() + 20_000)
    shown = len(said.out) + len(said.err)
    assert shown <= most, f"{shown} characters of output, {most} allowed"


def seeds() -> Iterable[bytes]:
    """Reports and failures of real runs, and one of each message."""
    from fuzzing.seeds import reports

    return reports.report()


TARGET = Target("report", run, seeds, max_length=4096, dictionary=tuple(name.encode() for name in messages.NAMES))
