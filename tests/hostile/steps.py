"""Requests for ``guests/steps.c``: lists of what ring 3 shall do, and what came of it."""

from __future__ import annotations

import struct
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import calltable as ct
from tests.hostile.build import GUESTS, ROOT, compile_c
from tests.machines import MachineState, fresh_state, mini_runtime, state_of
from vmm.boundary import DeviceSpec, Event, Job, Limits, MessageEvent, Outcome
from vmm.machine.machine import Machine

END, WRITE, READ, FILL, COPY, CALL, RING, LOOP, COUNT, JUMP, TELL = range(11)
_STEP = struct.Struct("<IIQQQ")
ONES = 2**64 - 1

#: Names of the call table's entries, in order.
ENTRIES: tuple[str, ...] = tuple(
    entry["name"]
    for entry in tomllib.loads((ROOT / "calltable" / "definition" / "table.toml").read_text(encoding="utf-8"))["entry"]
)


class Steps:
    """A request being written.  Data that steps refer to lies behind them in the request."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, int, int | bytes, int | bytes, int]] = []

    def _add(self, what: int, size: int = 0, a: int | bytes = 0, b: int | bytes = 0, c: int = 0) -> Steps:
        self._steps.append((what, size, a, b, c))
        return self

    def write(self, address: int, value: int, size: int = 4) -> Steps:
        """One store of 1, 2, 4, 8 or 16 bytes (of 16, the value twice)."""
        return self._add(WRITE, size, address, value & ONES)

    def read(self, address: int, size: int = 4) -> Steps:
        """One load of 1, 2, 4 or 8 bytes; what it brings is a result."""
        return self._add(READ, size, address)

    def fill(self, address: int, length: int, word: int = 0) -> Steps:
        """Words of 8 bytes."""
        return self._add(FILL, 0, address, word, length)

    def copy(self, address: int, data: bytes) -> Steps:
        """Bytes of the request."""
        return self._add(COPY, 0, address, data, len(data))

    def call(self, entry: str, *arguments: int) -> Steps:
        """An entry of the call table; its answer is a result."""
        return self._add(CALL, ENTRIES.index(entry), struct.pack("<6Q", *[*arguments, 0, 0, 0, 0, 0, 0][:6]))

    def ring(self, command: int, *arguments: int) -> Steps:
        """The doorbell with a block of the operation's own; the block's result is a result."""
        return self._add(RING, command, struct.pack("<6Q", *[*arguments, 0, 0, 0, 0, 0, 0][:6]))

    def count(self, address: int, length: int, word: int) -> Steps:
        """How many words of 8 bytes are this one: a result."""
        return self._add(COUNT, 0, address, word, length)

    def jump(self, address: int) -> Steps:
        """Call code there."""
        return self._add(JUMP, 0, address)

    def tell(self) -> Steps:
        """Send the results so far."""
        return self._add(TELL)

    @contextmanager
    def loop(self, times: int) -> Iterator[None]:
        """The steps added inside, so many times; four levels."""
        at = len(self._steps)
        self._add(LOOP)
        yield
        self._steps[at] = (LOOP, 0, times, len(self._steps) - at - 1, 0)

    def request(self, status: int = 0) -> bytes:
        """The bytes; the operation ends with this status."""
        steps = [*self._steps, (END, 0, status, 0, 0)]
        place = ct.REQUEST_BASE + len(steps) * _STEP.size
        out, data = b"", b""
        for what, size, a, b, c in steps:
            numbers = []
            for value in (a, b):
                if isinstance(value, bytes):
                    numbers.append(place + len(data))
                    data += value + bytes(-len(value) % 8)
                else:
                    numbers.append(value)
            out += _STEP.pack(what, size, *numbers, c)
        assert len(out) + len(data) <= ct.REQUEST_SIZE
        return out + data


@dataclass
class Ran:
    """How a run ended."""

    outcome: Outcome
    events: list[Event] = field(default_factory=list)

    @property
    def results(self) -> list[int]:
        """What the steps found, in order."""
        return [value for event in self.events if isinstance(event, MessageEvent) for value in values(event.payload)]

    @property
    def failed(self) -> str:
        """Kind and message of the failure; empty when there is none."""
        failure = self.outcome.failure
        return "" if failure is None else f"{failure.kind}: {failure.message}"


def values(payload: bytes) -> Sequence[int]:
    """The results in one message."""
    numbers = struct.unpack(f"<{len(payload) // 8}Q", payload)
    assert numbers[0] == len(numbers) - 1
    return numbers[1:]


class Bench:
    """A warm machine of the operation, on the real runtime or on one that does nothing.

    :param devices: of every run.
    :param bare: without the runtime: the devices are as they are after a reset.
    """

    def __init__(self, devices: tuple[DeviceSpec, ...] = (), *, bare: bool = False, memory: int = 2 << 20) -> None:
        self.elf = compile_c(GUESTS / "steps.c")
        self.devices = devices
        self.runtime = mini_runtime() if bare else None
        self.memory = memory
        self.machine: Machine | None = None
        self.machines = 0
        self._fresh: MachineState | None = None

    def run(
        self,
        steps: Steps,
        *,
        on_event: Callable[[Event], None] | None = None,
        status: int = 0,
        log_level: int = 0,
        progress: bool = False,
        timeout: float = 20.0,
        **limits: int,
    ) -> Ran:
        """Run a request; ``on_event`` is called while the guest stands still."""
        bounds = Limits(timeout=timeout, max_memory=self.memory, **limits)
        job = Job(self.elf, steps.request(status), self.devices, bounds, log_level, progress)
        machine = self.ready()
        ran = Ran(Outcome(None, None, None))  # type: ignore[arg-type]  # replaced below

        def keep(event: Event) -> None:
            ran.events.append(event)
            if on_event is not None:
                on_event(event)

        ran.outcome = machine.run(job, keep)
        return ran

    def ready(self) -> Machine:
        """The machine, a new one where the last cannot be used again."""
        if self.machine is None or not self.machine.reusable:
            self.close()
            self.machines += 1
            self.machine = Machine(self.elf, len(self.devices), self.memory, runtime=self.runtime)
        return self.machine

    def check_clean(self) -> None:
        """The machine is as a fresh one, and works."""
        if self.machine is None or not self.machine.reusable:
            return
        if self._fresh is None:
            job = Job(self.elf, Steps().request(), self.devices, Limits(max_memory=self.memory))
            self._fresh = fresh_state(job, self.runtime)
        assert state_of(self.machine).differences(self._fresh) == []
        ran = self.run(Steps(), status=7)
        assert (ran.outcome.status, ran.outcome.failure) == (7, None)

    def close(self) -> None:
        """Give up the machine."""
        if self.machine is not None:
            self.machine.close()
            self.machine = None
