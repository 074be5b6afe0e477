"""Few inputs out of many that still take every path between two lines of the host's code.

libFuzzer's own merge counts branches, and loses inputs that differ only in where an exception comes from; counting
passes as well it keeps hundreds.  Lines that follow one another, traced by the interpreter, are in between.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
#: The reference decoder stands for the library's, which is not Python.
_OURS = (f"{_ROOT}/vmm/", f"{_ROOT}/calltable/", f"{_ROOT}/fuzzing/reference.py")

#: A step of one function: its code, the line before, the line.
Step = tuple[CodeType, int, int]


class _Tracer:
    def __init__(self) -> None:
        self.steps: set[Step] = set()
        self._ours: dict[CodeType, bool] = {}

    def call(self, frame: FrameType, event: str, argument: object) -> Any:
        """For ``sys.settrace``: follows the functions of our packages."""
        code = frame.f_code
        ours = self._ours.get(code)
        if ours is None:
            ours = self._ours[code] = code.co_filename.startswith(_OURS)
        if not ours:
            return None
        before = 0
        add = self.steps.add

        def line(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal before
            if event == "line":
                add((code, before, frame.f_lineno))
                before = frame.f_lineno
            elif event == "exception":
                add((code, before, -1))
            return line

        return line


def _steps(run: Callable[[bytes], None], data: bytes) -> set[Step]:
    tracer = _Tracer()
    saved = sys.gettrace()
    sys.settrace(tracer.call)
    try:
        run(data)
    finally:
        sys.settrace(saved)
    return tracer.steps


def minimise(run: Callable[[bytes], None], inputs: Sequence[bytes]) -> list[bytes]:
    """The inputs to keep, by a greedy cover: again and again the one with the most steps that none before it takes."""
    # What happens only the first time (imports, caches) belongs to no input.
    for data in inputs[:20]:
        run(data)
    left = {data: _steps(run, data) for data in sorted(set(inputs), key=lambda data: (len(data), data))}
    kept: list[bytes] = []
    while left:
        best = max(left, key=lambda data: (len(left[data]), -len(data)))
        covered = left.pop(best)
        if not covered:
            break
        kept.append(best)
        for steps in left.values():
            steps -= covered
    return kept
