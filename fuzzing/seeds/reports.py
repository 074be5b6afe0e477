"""Seeds of the targets that read reports: what real operations emitted, and one message of each kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from calltable.message import UINT_MAX, Field, Message
from calltable.messages import MESSAGES
from fuzzing.codec import Sink
from fuzzing.messages import NAMES
from fuzzing.seeds import runs
from fuzzing.targets.report import EXPECTED
from tests.hostile.reports import AGREEING
from vmm.boundary import Event, LogEvent, MessageEvent, ProgressEvent
from vmm.cbor import encode
from vmm.machine.runner import MachineRunner

_COMMANDS = {"info": 0, "measure": 1, "check": 2, "create": 3, "map": 128}
_RAW, _LOG, _PROGRESS = 3, 5, 6


def _events() -> Iterator[tuple[str, int, list[Event]]]:
    """Operation, status and events of each run that ended by itself."""
    with MachineRunner() as runner:
        for name, job in runs.operations():
            events: list[Event] = []
            outcome = runner.run(job, events.append)
            if outcome.status is not None:
                yield name, outcome.status, events


def payloads() -> Iterable[bytes]:
    """Messages of real runs, the small ones."""
    found = {e.payload for _, _, events in _events() for e in events if isinstance(e, MessageEvent)}
    return sorted(payload for payload in found if len(payload) <= 400)


def _script(choice: int, status: int, ending: int = 0) -> Sink:
    return Sink().byte(choice, status & 0xFF, ending)


def _real() -> Iterator[bytes]:
    for number, (name, status, events) in enumerate(_events()):
        # Text and JSON, verbose and not, by turns.
        sink = _script(_COMMANDS[name] | (number & 7) << 3, status)
        for event in events[:60]:
            if isinstance(event, MessageEvent):
                sink.byte(_RAW).block(event.payload)
            elif isinstance(event, LogEvent):
                sink.byte(_LOG | event.level << 3, len(event.text[:255])).raw(event.text[:255])
            elif isinstance(event, ProgressEvent):
                sink.byte(_PROGRESS).number(event.done, event.total)
        yield bytes(sink.data)


def _fill(kind: type[Message], large: bool, text: str) -> dict[str, object]:
    """Every field of a message: numbers as large as they go or 0, every text the same."""

    def value(field: Field) -> object:
        if field.nested is not None:
            return _fill(field.nested, large, text)
        return {"text": text, "bytes": text.encode(), "bool": large}.get(field.kind, UINT_MAX if large else 0)

    return {field.key: [value(field)] * 2 if field.many else value(field) for field in kind.FIELDS}


def _whole() -> Iterator[bytes]:
    """An answer of each operation with everything that it can hold."""
    for operation, command in (*_COMMANDS.items(), ("info", 6), ("info", 5)):
        for large in (False, True):
            for text in ("gpt", "\x1b[31m", "\u202e\U000e0001"):
                for json in (0, 8):
                    sink = _script(command | json, 0)
                    kinds = iter(("leak", text))
                    for name in (*EXPECTED[operation][1:] * (1 + (operation == "check")), operation):
                        fields = _fill(MESSAGES[name], large, text)
                        if name == "check-finding":
                            fields |= {"kind": next(kinds), "count": 0}
                        if name == "check":
                            counters = dict.fromkeys(("check-errors", "corruptions", "leaks"), 7 * large)
                            fields |= {**counters, "total-clusters": 9, "findings-omitted": int(large)}
                        fields |= AGREEING.get(name, {})
                        sink.byte(_RAW).block(encode([name, fields]))
                    yield bytes(sink.data)


def report() -> Iterable[bytes]:
    """Of the target ``report``."""
    yield from _real()
    yield from _whole()
    for place in range(len(NAMES)):
        for command in range(16):
            # Fields that are there, of small value; then again, many times.
            fields = bytes(2 * index % 0xF0 for index in range(2, 60))
            for kind in range(3):
                yield bytes(_script(command, 0).byte(kind, place).raw(fields).byte(4, 20).data)
    for kind in range(10):
        for has in range(5):
            sink = _script(has & 1 and 8, 0, 1 | has & 2).byte(kind | 0xF0, 0xF8 | has).byte(14)
            sink.byte(has + 1).number(0, 5, 14, 2, 0x400000).raw(bytes(range(12, 60)))
            yield bytes(sink.data)
