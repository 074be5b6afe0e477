"""Shrinking a qcow2 image of 512-byte clusters, in place: the case for which qemu-img takes minutes."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from vmm.machine.runner import MachineRunner
from vmm.operations.create import create
from vmm.operations.session import Session

#: Bytes that are cut off an empty image: what both are timed with (qemu-img takes 0.3 s for it), and what only we are,
#: because qemu-img takes half a minute.
BOTH = 15 << 20
OURS = 1 << 30
_KEPT = 1 << 20
ROUNDS = 3


def shrink(folder: Path) -> tuple[float, float, float | None]:
    """Microseconds of a process, medians: ours for OURS, ours for BOTH, qemu-img's for BOTH if it is installed."""
    ours = (str(Path(sys.executable).with_name("pyvmm")), "run")
    program = shutil.which("qemu-img")
    with MachineRunner(warm=True) as runner:
        session = Session(runner)
        large = _median(session, folder, OURS, *ours)
        small = _median(session, folder, BOTH, *ours)
        theirs = None if program is None else _median(session, folder, BOTH, program)
    return large, small, theirs


def _median(session: Session, folder: Path, cut: int, *command: str) -> float:
    path = folder / "shrink.img"
    times = []
    for _ in range(ROUNDS):
        create(session, str(path), "qcow2", size=_KEPT + cut, options={"cluster_size": 512}, force=True)
        words = (*command, "resize", "-q", "-f", "qcow2", "--shrink", str(path), str(_KEPT))
        started = time.perf_counter_ns()
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        times.append((time.perf_counter_ns() - started) / 1000)
    path.unlink()
    return statistics.median(times)
