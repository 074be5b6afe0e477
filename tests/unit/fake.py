"""A runner that plays canned events, for everything above the boundary."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from calltable.message import Message
from vmm.boundary import Event, Failure, Job, MessageEvent, Outcome, Usage
from vmm.cbor import encode


def payload(message: Message) -> bytes:
    """A message as a guest emits it."""
    return encode([message.NAME, message.as_fields()])


class FakeRunner:
    """Answers every job with the same events, status and failure, and remembers the jobs."""

    def __init__(self, *messages: Message | bytes | Event, status: int = 0, failure: Failure | None = None) -> None:
        self.events: list[Event] = []
        for message in messages:
            if isinstance(message, Message):
                self.events.append(MessageEvent(payload(message)))
            else:
                self.events.append(MessageEvent(message) if isinstance(message, bytes) else message)
        self.status = status
        self.failure = failure
        self.device_errors: tuple[str | None, ...] = ()
        self.device_errnos: tuple[int | None, ...] = ()
        self.jobs: list[Job] = []
        self.closed = False
        #: Called with each job before its events, for instance to write to its devices.
        self.act: Callable[[Job], None] | None = None

    def run(self, job: Job, on_event: Callable[[Event], None]) -> Outcome:
        self.jobs.append(job)
        if self.act is not None:
            self.act(job)
        for event in self.events:
            on_event(event)
        status = None if self.failure else self.status
        return Outcome(status, self.failure, Usage(), (), self.device_errors, self.device_errnos)

    def close(self) -> None:
        self.closed = True


def names(messages: Sequence[Message]) -> list[str]:
    return [message.NAME for message in messages]
