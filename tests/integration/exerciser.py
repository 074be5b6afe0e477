"""Runs lists of call-table calls in a real machine, on temporary files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cbor2

from tools.build_guests import Guest, compile_elf
from vmm.boundary import DeviceSpec, Event, Job, Limits, LogEvent, MessageEvent, Outcome, ProgressEvent
from vmm.machine.machine import Machine

SOURCE = Path(__file__).resolve().parent / "guests" / "exerciser.zig"
MEMORY = 16 << 20

Step = dict[str, Any]


def build(folder: Path) -> bytes:
    """The operation's ELF."""
    from calltable import OPERATION_BASE

    return compile_elf(Guest("exerciser", SOURCE, OPERATION_BASE), folder).read_bytes()


@dataclass
class Ran:
    """What came of it."""

    outcome: Outcome
    #: The fields of the ``answer`` messages.
    answers: list[dict[str, Any]]
    events: list[Event]
    #: The files afterwards.
    files: list[bytes]

    @property
    def logs(self) -> list[tuple[int, bytes]]:
        return [(event.level, event.text) for event in self.events if isinstance(event, LogEvent)]

    @property
    def progress(self) -> list[tuple[int, int]]:
        return [(event.done, event.total) for event in self.events if isinstance(event, ProgressEvent)]


class Exerciser:
    """Machines for the operation, one for each number of devices, warm."""

    def __init__(self, elf: bytes) -> None:
        self.elf = elf
        self.machines: dict[int, Machine] = {}

    def machine(self, devices: int) -> Machine:
        """The warm machine with so many devices."""
        machine = self.machines.get(devices)
        if machine is None or not machine.reusable:
            if machine is not None:
                machine.close()
            machine = self.machines[devices] = Machine(self.elf, devices, MEMORY)
        return machine

    def close(self) -> None:
        for machine in self.machines.values():
            machine.close()

    def run(
        self,
        steps: list[Step],
        *contents: bytes,
        limits: Limits | None = None,
        log_level: int = 0,
        progress: bool = False,
        prepare: Callable[[int], None] | None = None,
        **spec: Any,
    ) -> Ran:
        """Run the steps on files with these contents; ``prepare`` is called with each descriptor before the run."""
        with ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile()) for _ in contents]
            devices = []
            for file, content in zip(files, contents, strict=True):
                os.pwrite(file.fileno(), content, 0)
                devices.append(DeviceSpec(file.fileno(), len(content), **{"read_only": False, **spec}))
                if prepare is not None:
                    prepare(file.fileno())
            request = cbor2.dumps({"steps": steps}, canonical=True)
            job = Job(self.elf, request, tuple(devices), limits or Limits(max_memory=MEMORY), log_level, progress)
            events: list[Event] = []
            outcome = self.machine(len(files)).run(job, events.append)
            answers = []
            for event in events:
                if isinstance(event, MessageEvent) and event.payload[:1] == b"\x82":
                    name, fields = cbor2.loads(event.payload)
                    answers.append(fields if name == "answer" else {"error": fields})
            after = [os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0) for file in files]
            return Ran(outcome, answers, events, after)
