"""Interleaved timing: every contender once a round, so that a busy machine disturbs all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Samples:
    """Wall times of one contender, in nanoseconds."""

    name: str
    times: tuple[int, ...]

    @property
    def median(self) -> float:
        """Nanoseconds."""
        return float(statistics.median(self.times))

    @property
    def best(self) -> int:
        """Nanoseconds."""
        return min(self.times)


@dataclass(frozen=True)
class Contender:
    """Something to time: ``work`` is called once a sample and may be repeated ``inner`` times a sample."""

    name: str
    work: Callable[[], object]
    inner: int = 1


def race(contenders: Sequence[Contender], rounds: int) -> dict[str, Samples]:
    """Time all contenders in turn, ``rounds`` times, after one round that does not count."""
    times: dict[str, list[int]] = {contender.name: [] for contender in contenders}
    for number in range(rounds + 1):
        for contender in contenders:
            start = time.perf_counter_ns()
            for _ in range(contender.inner):
                contender.work()
            taken = (time.perf_counter_ns() - start) // contender.inner
            if number:
                times[contender.name].append(taken)
    return {name: Samples(name, tuple(values)) for name, values in times.items()}
