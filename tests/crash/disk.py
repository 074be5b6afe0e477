"""A disk that loses power: what a file may hold when a plan of steps is cut off.

The model is that of ``guest/formats/steps.zig``: a sector of 512 bytes is written whole or not at all, everything
before a flush is there after it, and what lies between two flushes reaches the disk in any order, partly, or not at
all.
"""

from __future__ import annotations

import io
import random
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmm.cbor import SequenceDecoder

SECTOR = 512


@dataclass(frozen=True)
class Step:
    """One step of a plan; ``kind`` is write, zero, length or flush."""

    kind: str
    offset: int = 0
    length: int = 0
    data: bytes = b""

    def apply(self, disk: bytearray) -> None:
        """Do it whole."""
        if self.kind == "write":
            end = self.offset + len(self.data)
            disk.extend(bytes(max(0, end - len(disk))))
            disk[self.offset : end] = self.data
        elif self.kind == "zero":
            disk[self.offset : self.offset + self.length] = bytes(self.length)
        elif self.kind == "length":
            del disk[self.length :]
            disk.extend(bytes(self.length - len(disk)))

    def sectors(self) -> list[Step]:
        """What may be done of it: a write or a range of zeroes sector by sector, a length at once."""
        if self.kind not in ("write", "zero"):
            return [self]
        pieces = []
        position, end = self.offset, self.offset + self.length
        # Zeroes of megabytes in larger pieces: it is all the same to whoever reads them.
        unit = SECTOR if self.length <= 1 << 18 else 1 << 16
        while position < end:
            stop = min(end, (position // unit + 1) * unit)
            data = self.data[position - self.offset : stop - self.offset]
            pieces.append(Step(self.kind, position, stop - position, data))
            position = stop
        return pieces


class RefusedPlanError(Exception):
    """The planner refused; the text is its reason."""


def decode(output: bytes) -> list[tuple[str, dict[str, Any]]]:
    """The messages that a host tool wrote."""
    source = io.BytesIO(output)
    decoder = SequenceDecoder(source)
    items: list[Any] = []
    while source.tell() < len(output):
        items.append(decoder.item())
    return [(name, fields) for name, fields in items]


def plan(tool: Path, driver: str, image: Path, size: int, *words: str) -> list[Step]:
    """The steps with which a format's planner would resize an image.

    :raises RefusedPlanError: it would not.
    """
    command = [str(tool), "resize", driver, str(image), str(size), *words]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    items = decode(done.stdout)
    if done.returncode:
        assert items, done.stderr
        raise RefusedPlanError(items[-1][1]["message"])
    steps: list[Step] = []
    for name, fields in items:
        if name != "step":
            continue
        step = Step(fields["kind"], fields["offset"], fields["length"], fields.get("bytes") or b"")
        last = steps[-1] if steps else step
        # The tool cuts long writes into pieces.
        if last.kind == step.kind == "write" and steps and last.offset + last.length == step.offset:
            steps[-1] = Step("write", last.offset, last.length + step.length, last.data + step.data)
        else:
            steps.append(step)
    return steps


def epochs(steps: Sequence[Step]) -> Iterator[tuple[list[Step], list[Step]]]:
    """For each stretch between two flushes: all steps before it, and its own."""
    done: list[Step] = []
    current: list[Step] = []
    for step in (*steps, Step("flush")):
        if step.kind == "flush":
            if current:
                yield list(done), current
            done += current
            current = []
        else:
            current.append(step)


def states(original: bytes, steps: Sequence[Step], seed: int, shuffles: int = 8) -> Iterator[tuple[str, bytes]]:
    """Everything that is tried: name and content, many of them the same.

    After every step; with every write half done, from either side and in random sectors; and random sectors of each
    stretch between two flushes in random order.
    """
    rng = random.Random(seed)
    yield "nothing", original
    before = bytearray(original)
    for number, step in enumerate(steps):
        pieces = step.sectors()
        if step.kind in ("write", "zero") and len(pieces) > 1:
            half = len(pieces) // 2
            chosen = [piece for piece in pieces if rng.random() < 0.5]
            for name, part in (("head", pieces[:half]), ("tail", pieces[half:]), ("some", chosen)):
                yield f"{name} of step {number}", _with(before, part)
        step.apply(before)
        yield f"steps to {number}", bytes(before)
    for done, current in epochs(steps):
        start = bytearray(original)
        for step in done:
            step.apply(start)
        pieces = [piece for step in current for piece in step.sectors()]
        if len(pieces) < 2:
            continue
        for shuffle in range(shuffles):
            share = rng.choice((0.1, 0.5, 0.9))
            chosen = [piece for piece in pieces if rng.random() < share]
            rng.shuffle(chosen)
            yield f"shuffle {shuffle} after {len(done)} steps", _with(start, chosen)


def _with(before: bytearray, steps: Sequence[Step]) -> bytes:
    disk = bytearray(before)
    for step in steps:
        step.apply(disk)
    return bytes(disk)
