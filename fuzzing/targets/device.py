"""Whatever a guest writes to registers and memory, nothing but a DeviceEvent leaves the bus, every access ends within
its budgets, and neither memory that no device may write nor a read-only file changes.
"""

from __future__ import annotations

from collections.abc import Iterable

from fuzzing.codec import Source
from fuzzing.files import System
from fuzzing.guest import Ended, Guest
from fuzzing.memory import Memory
from fuzzing.opcodes import STEPS, Step, play
from fuzzing.targets import Target

_memory = Memory()


def perform(data: bytes, steps: tuple[Step, ...]) -> None:
    """Play an input with some of the steps."""
    _memory.reset()
    with System().watched() as system:
        try:
            guest = Guest(Source(data), _memory, system)
        except Ended:
            return
        try:
            play(guest, steps)
            guest.check()
        finally:
            guest.close()


def run(data: bytes) -> None:
    """See above."""
    perform(data, STEPS)


def seeds() -> Iterable[bytes]:
    """Real runs, hostile runs, and a request of each kind."""
    from fuzzing.seeds import devices

    return devices.device()


TARGET = Target("device", run, seeds, max_length=8192)
