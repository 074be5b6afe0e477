"""What every hostile image has to end in: an answer or a typed refusal, and never a failure of the guest."""

from __future__ import annotations

import json
from pathlib import Path

from calltable._generated import ERROR_CODES
from tests.differential.oracle import Answer
from tests.differential.ours import Ours, explain

#: Answered, refused, corrupt, leaks, no checks.  70 (the guest failed) and 75 (a limit) would be bugs here.
ALLOWED = (0, 1, 2, 3, 63)

OPERATIONS: tuple[tuple[str, ...], ...] = (
    ("info",),
    ("check",),
    ("measure", "-O", "raw"),
    ("measure", "-O", "qcow2"),
    ("map",),
)


def _judge(what: tuple[str, ...], path: Path, answer: Answer) -> None:
    assert answer.rc in ALLOWED, f"{what}: {explain(answer)}"
    report = json.loads(answer.stdout)
    if isinstance(report, list):
        # A map that was begun ends with its error.
        report = report[-1]
    if "error" not in report:
        # 1 with counters: a check that had to leave something out, as qemu-img's.
        assert answer.rc in (0, 2, 3) or (answer.rc == 1 and report["check-errors"] > 0), f"{what}: {explain(answer)}"
        return
    assert answer.rc in (1, 63), f"{what}: {explain(answer)}"
    error = report["error"]
    assert error["message"], error
    assert "\n" not in error["message"], error
    if error["code"] == "file":
        assert path.stat().st_size == 0, "an empty file never reaches the guest; everything else does"
    else:
        assert error["code"] in ("refused", "no-checks"), error
        assert error["guest-code"] in ERROR_CODES, error


def survives(ours: Ours, path: Path, driver: str | None) -> None:
    """Run every operation on an image, with detection and with its format given."""
    choices: list[tuple[str, ...]] = [()] if driver is None else [(), ("-f", driver)]
    for operation in OPERATIONS:
        for choice in choices:
            what = (*operation, *choice)
            _judge(what, path, ours.run(*what, "--output=json", str(path)))
