"""Whatever a control block and a batch hold, the doorbell answers it and delivers exactly the messages that are there,
within the budgets, or ends the run with a DeviceEvent.
"""

from __future__ import annotations

from collections.abc import Iterable

from fuzzing.opcodes import Player
from fuzzing.targets import Target
from fuzzing.targets.device import perform

_STEPS = (
    Player.control,
    Player.control_at,
    Player.batch,
    Player.block_at,
    Player.poke,
    Player.poke_number,
    Player.disturb,
    Player.fault,
    Player.surprise,
    Player.end_run,
    Player.write_anywhere,
)


def run(data: bytes) -> None:
    """See above."""
    perform(data, _STEPS)


def seeds() -> Iterable[bytes]:
    """The control commands of real runs, and a batch of each shape."""
    from fuzzing.seeds import devices

    return devices.control(_STEPS)


TARGET = Target("control", run, seeds, max_length=4096)
