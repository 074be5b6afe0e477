"""How far the answers agree with qemu-img's on the images of a folder: ``make agreement DIR=...``.

Every file below the folder is asked about with its format given and with detection.  Agreements are counted for each
operation; a disagreement that no case of docs/differences.json names is printed, and makes the exit status 1.  The
format that is given is the one that `--format NAME=FMT` names for a file, otherwise the one that ours detects.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.differential.oracle import Answer, comparable, qemu_img
from tests.differential.ours import REFUSALS, Ours
from vmm.cli.runoptions import BY_OPERATION

DIFFERENCES = Path(__file__).resolve().parents[2] / "docs" / "differences.json"
#: As docs/differences.json calls them.
COMMANDS: dict[str, tuple[str, ...]] = {
    "info": ("info",),
    "check": ("check",),
    "measure_raw": ("measure", "-O", "raw"),
    "measure_qcow2": ("measure", "-O", "qcow2"),
    "map": ("map",),
}
#: Seconds that no answer may take.
SLOW = 2.0


@dataclass(frozen=True)
class Disagreement:
    """Two answers to one question."""

    name: str
    command: str
    given: bool
    theirs: str
    ours: str
    #: The entry of docs/differences.json that names it.
    listed: str | None

    def __str__(self) -> str:
        choice = "with -f" if self.given else "detected"
        return f"{self.name}: {self.command}, {choice}\n    qemu-img: {self.theirs}\n    ours:     {self.ours}"


@dataclass
class Agreement:
    """What came of the questions about some images."""

    asked: Counter[str] = field(default_factory=Counter)
    agreed: Counter[str] = field(default_factory=Counter)
    #: Questions that qemu-img never answered.
    unanswered: Counter[str] = field(default_factory=Counter)
    disagreements: list[Disagreement] = field(default_factory=list)
    #: What took longer than SLOW: file, command, seconds.
    slow: list[tuple[str, str, float]] = field(default_factory=list)

    @property
    def unlisted(self) -> list[Disagreement]:
        """Those that make the judgement."""
        return [found for found in self.disagreements if found.listed is None]


def _parsed(answer: Answer) -> Any:
    try:
        value = json.loads(answer.stdout)
    except ValueError:
        return None
    if isinstance(value, dict):
        return comparable(value)
    return value


def _same(theirs: Answer, ours: Answer) -> bool:
    if theirs.rc not in (0, 2, 3):
        return ours.rc == theirs.rc or (theirs.rc == 1 and ours.rc in REFUSALS)
    return ours.rc == theirs.rc and _parsed(ours) == _parsed(theirs)


def _short(answer: Answer) -> str:
    value = _parsed(answer)
    if isinstance(value, list) and value:
        value = value[-1] if "error" in value[-1] else value[:3]
    if isinstance(value, dict) and "error" in value:
        value = value["error"].get("message", value)
    text = str(value) if value is not None else answer.stderr.strip()
    return f"rc {answer.rc}, {text[:300]}"


def _differences() -> dict[tuple[str, str], str]:
    """(image, command) -> the entry that names them."""
    entries = json.loads(DIFFERENCES.read_text(encoding="utf-8"))["differences"]
    return {
        (name, command): entry["id"]
        for entry in entries
        for name, commands in entry.get("cases", {}).items()
        for command in commands
    }


def _format(ours: Ours, path: Path) -> str:
    answer = _parsed(ours.run("info", "--output=json", str(path)))
    if "error" in answer:
        return str(answer["error"].get("format") or "raw")
    return str(answer["format"])


def _questions(path: Path, driver: str) -> Iterator[tuple[str, bool, list[str], list[str]]]:
    """Command, whether the format is given, qemu-img's words, our words."""
    for command, words in COMMANDS.items():
        chain = ["--chain"] if any("--chain" in option.names for option in BY_OPERATION[words[0]]) else []
        for given in (True, False):
            common = [*words, *(["-f", driver] if given else []), "--output=json"]
            yield command, given, [*common, f"./{path.name}"], [*common, *chain, f"./{path.name}"]


def compare(folder: Path, formats: dict[str, str] | None = None) -> Agreement:
    """Ask about every file below a folder."""
    result = Agreement()
    listed = _differences()
    paths = sorted(path for path in folder.resolve().rglob("*") if path.is_file() and not path.is_symlink())
    with Ours() as ours:
        for path in paths:
            name = path.relative_to(folder.resolve()).as_posix()
            driver = (formats or {}).get(name) or _format(ours, path)
            for command, given, theirs, mine in _questions(path, driver):
                key = f"{command} {'with -f' if given else 'detected'}"
                result.asked[key] += 1
                # From its folder: qemu-img looks there for a data file only when it stands there.
                with contextlib.chdir(path.parent):
                    oracle = qemu_img(*theirs)
                    started = time.monotonic()
                    answer = ours.run(*mine)
                    took = time.monotonic() - started
                if took > SLOW:
                    result.slow.append((name, key, took))
                if oracle.timed_out:
                    result.unanswered[key] += 1
                elif _same(oracle, answer):
                    result.agreed[key] += 1
                else:
                    # Where detection differs, so does everything that is detected.
                    entry = listed.get((name, f"{command}_f" if given else "info")) or listed.get((name, command))
                    found = Disagreement(name, command, given, _short(oracle), _short(answer), entry)
                    result.disagreements.append(found)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the counts and what is not listed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--format", action="append", default=[], metavar="NAME=FMT", help="format of a file")
    options = parser.parse_args(arguments)
    result = compare(options.folder, dict(text.rsplit("=", 1) for text in options.format))
    lines = []
    for key, asked in result.asked.items():
        silent = f", {result.unanswered[key]} without an answer of qemu-img" if result.unanswered[key] else ""
        lines.append(f"{key:24} {result.agreed[key]:5} of {asked:5} agree{silent}")
    known = Counter(found.listed for found in result.disagreements if found.listed)
    lines += [f"listed: {entry} ({count})" for entry, count in sorted(known.items())]
    lines += [f"slow: {name}: {key} took {took:.1f} s" for name, key, took in result.slow]
    lines += [str(found) for found in result.unlisted]
    lines.append(f"{len(result.unlisted)} disagreements that docs/differences.json does not list")
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if result.unlisted else 0


if __name__ == "__main__":
    sys.exit(main())
