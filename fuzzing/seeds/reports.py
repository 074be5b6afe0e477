"""Seeds of the targets that read reports: what real operations emitted, and one message of each kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fuzzing.codec import Sink
from fuzzing.messages import NAMES
from fuzzing.seeds import runs
from vmm.boundary import Event, LogEvent, MessageEvent, ProgressEvent
from vmm.machine.runner import MachineRunner

_COMMANDS = {"info": 0, "measure": 1, "check": 2, "create": 3}
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


def report() -> Iterable[bytes]:
    """Of the target ``report``."""
    yield from _real()
    for place in range(len(NAMES)):
        for command in range(16):
            # Fields that are there, of small value; then again, many times.
            fields = bytes(2 * index % 0xF0 for index in range(2, 60))
            yield bytes(_script(command, 0).byte(0, place).raw(fields).byte(4, 20).data)
    for kind in range(10):
        for has in range(5):
            sink = _script(has & 1 and 8, 0, 1 | has & 2).byte(kind | 0xF0, 0xF8 | has).byte(14)
            sink.byte(has + 1).number(0, 5, 14, 2, 0x400000).raw(bytes(range(12, 60)))
            yield bytes(sink.data)
