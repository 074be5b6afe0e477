"""What tests of record and replay share: bundles taken apart and changed, and both sides on a runner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cbor2
import pytest

from tests.integration.exerciser import MEMORY, Exerciser
from vmm.boundary import DeviceSpec, Event, Job, Limits, MessageEvent, Outcome, TraceEvent
from vmm.errors import GuestFailedError
from vmm.machine.runner import MachineRunner
from vmm.replay.player import Player, Verdict
from vmm.replay.reader import BundleReader
from vmm.replay.recorder import Recorder
from vmm.replay.writer import BundleWriter


@dataclass(frozen=True)
class Answer:
    status: int
    out: str
    err: str

    @property
    def last(self) -> str:
        return self.out.splitlines()[-1]


Command = Callable[..., Answer]


def items(path: Path | str) -> list[list[Any]]:
    """The items of a bundle that follow its header."""
    found: list[list[Any]] = []
    with BundleReader(str(path)) as reader:
        while reader.next_run() is not None:
            found.append(["run"])
            for event in reader.events():
                if isinstance(event, TraceEvent):
                    found.append(["trace", event.payload])
                elif isinstance(event, MessageEvent):
                    found.append(["message", event.payload])
            found.append(["end", reader.end])
    return found


def messages(path: Path | str) -> list[Any]:
    return [cbor2.loads(item[1]) for item in items(path) if item[0] == "message"]


def rewrite(path: Path | str, change: Callable[[list[list[Any]]], None]) -> None:
    """Change the items of a bundle, its header and run items included."""
    taken: list[list[Any]] = []
    with BundleReader(str(path)) as reader:
        from vmm.replay import reader as module

        real = module.BundleReader._item

        def item(self: BundleReader) -> tuple[str, list[Any]]:
            name, fields = real(self)
            taken.append([name, *fields])
            return name, fields

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module.BundleReader, "_item", item)
            while reader.next_run() is not None:
                for _ in reader.events():
                    pass
    change(taken)
    writer = BundleWriter(str(path), 1 << 30)
    for entry in taken:
        writer.item(entry)
    writer.commit()
    writer.close()


def record(runner: MachineRunner, path: Path, work: Job, on_event: Callable[[Event], None] | None = None) -> Outcome:
    recorder = Recorder(runner, str(path))
    try:
        outcome = recorder.run(work, on_event or (lambda _: None))
        assert recorder.commit()
        return outcome
    finally:
        recorder.close()


def replay(runner: MachineRunner, path: Path, elf: bytes, **options: Any) -> Verdict:
    (verdict,) = Player(runner, elf=elf, **options).replay(str(path))
    return verdict


def refuse(event: Event) -> None:
    """A caller that wants no messages."""
    if isinstance(event, MessageEvent):
        raise GuestFailedError("the guest emitted nonsense")


def exercise(exerciser: Exerciser, steps: list[dict[str, Any]], *devices: DeviceSpec) -> Job:
    request = cbor2.dumps({"steps": steps}, canonical=True)
    return Job(exerciser.elf, request, devices, Limits(max_memory=MEMORY))
