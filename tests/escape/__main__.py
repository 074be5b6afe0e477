"""Prints the escape table: what a prisoner tried, what came of it, and which layers stop it alone.

    python -m tests.escape [GROUP...]

As root it does everything twice, also as an ordinary user, at the same time.  Ends with 1 when anything deviates from
the table.  With ``--lines`` it prints what it found, one JSON object a line, for itself and for the tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict

from tests.escape.attempts import ATTEMPTS, GROUPS
from tests.escape.harness import EVERYTHING, NOTHING, REST, Found, broker, prepare, run
from tests.escape.table import NEEDS, NOT_ALONE, ROOT, USER
from tests.ordinary_user import ROOT as REPOSITORY
from tests.ordinary_user import ordinary
from vmm.sandbox.layers import LAYERS


def as_user(groups: Iterable[str]) -> subprocess.Popen[str]:
    """The same, by an ordinary user, started."""
    command = ordinary(sys.executable, "-m", "tests.escape", "--lines", *groups)
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def read(lines: Iterable[str]) -> list[Found]:
    """What ``--lines`` printed."""
    return [Found(**json.loads(line)) for line in lines]


def _table(found: list[Found], who: str) -> None:
    print(f"\nThe broker is {'root' if who == ROOT else 'an ordinary user'}.\n")
    rows: list[tuple[str, ...]] = []
    for name in dict.fromkeys(one.attempt for one in found):
        mine = [one for one in found if one.attempt == name]
        if not mine[0].column:
            rows.append((name, "-", "-", "-", mine[0].outcome))
            continue
        outcomes = {one.column: one.outcome + (" (!)" if one.deviates else "") for one in mine}
        fixed = [outcomes.pop(column) for column in (EVERYTHING, REST, NOTHING)]
        alone = ", ".join(f"{column}: {outcome}" for column, outcome in outcomes.items())
        rows.append((name, *fixed, alone or "-"))
    heads = ("attempt", EVERYTHING, REST, NOTHING, "each layer alone that stops it")
    widths = [max(len(row[index]) for row in (heads, *rows)) for index in range(4)]
    for row in (heads, tuple("-" * width for width in (*widths, 30)), *rows):
        print("  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[4]]).rstrip())
    print()
    for layer in LAYERS:
        stopped = sum(one.column.split(" + ")[0] == layer and not one.deviates for one in found)
        needs = f" (needs {', '.join(NEEDS[who][layer])})" if layer in NEEDS[who] else ""
        print(f"{layer}{needs}: stops {stopped} alone" if stopped else f"{layer}: {NOT_ALONE.get((who, layer), '-')}")


def main(words: list[str]) -> int:
    """Run it; answers the exit status."""
    groups = [word for word in words if not word.startswith("--")] or list(GROUPS)
    chosen = [attempt for attempt in ATTEMPTS.values() if attempt.group in groups]
    if "--lines" in words:
        for one in run(chosen):
            print(json.dumps(asdict(one)), flush=True)
        return 0
    prepare()
    user = as_user(groups) if broker() == ROOT else None
    found = {broker(): list(run(chosen))}
    if user is not None:
        found[USER] = read(user.communicate()[0].splitlines())
        if user.returncode:
            return 1
    for who, ones in found.items():
        _table(ones, who)
    deviations = [one for ones in found.values() for one in ones if one.deviates]
    for one in deviations:
        print(f"\n{one.attempt} ({one.broker}; {one.column}): {one.outcome}, expected {one.expected}")
    total = sum(len(ones) for ones in found.values())
    print(f"\n{len(chosen)} attempts, {total} prisoners, {len(deviations)} deviations")
    return 1 if deviations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
