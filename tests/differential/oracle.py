"""The oracle: qemu-img and qemu-io as processes with a limit, and what is left out of a comparison."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Seconds after which a qemu-img process is given up: some images keep it busy for ever.
TIMEOUT = 20.0
#: Exit status that stands for a process that was given up.
TIMED_OUT = -9

#: Keys of `info` that say something about the file system and not about the image.
FILE_SYSTEM_KEYS = frozenset({"actual-size"})
#: The object in which this project says what qemu-img does not.
OWN_KEYS = frozenset({"pyvmm"})
#: Line of the human text of `info` that says the same as ``actual-size``.
FILE_SYSTEM_LINE = "disk size: "


@dataclass(frozen=True)
class Answer:
    """How a command ended."""

    rc: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        """The JSON object on standard output."""
        answer = json.loads(self.stdout)
        assert isinstance(answer, dict)
        return answer

    @property
    def timed_out(self) -> bool:
        return self.rc == TIMED_OUT


def _run(program: str, *arguments: str, cwd: Path | None = None) -> Answer:
    environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    try:
        done = subprocess.run(
            [program, *arguments], cwd=cwd, env=environment, capture_output=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return Answer(TIMED_OUT, "", f"given up after {TIMEOUT} s")
    return Answer(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


def qemu_img(*arguments: str, cwd: Path | None = None) -> Answer:
    """Ask qemu-img; any end is an answer."""
    return _run("qemu-img", *arguments, cwd=cwd)


def make(*arguments: str, cwd: Path | None = None) -> None:
    """qemu-img as a tool of the test itself: it has to succeed."""
    answer = qemu_img(*arguments, cwd=cwd)
    assert answer.rc == 0, f"qemu-img {' '.join(arguments)}: {answer.stderr}"


def qemu_io(path: Path, driver: str, *commands: str) -> None:
    """Write patterns into an image; every command has to succeed."""
    if not commands:
        return
    arguments = [part for command in commands for part in ("-c", command)]
    answer = _run("qemu-io", "-f", driver, *arguments, str(path))
    assert answer.rc == 0, f"qemu-io {commands}: {answer.stderr}{answer.stdout}"
    assert "error" not in answer.stdout.lower(), answer.stdout


def comparable(answer: dict[str, Any], *drop: str) -> dict[str, Any]:
    """An answer without what cannot be compared: see FILE_SYSTEM_KEYS and OWN_KEYS."""
    dropped = FILE_SYSTEM_KEYS | OWN_KEYS | frozenset(drop)
    return {key: _nested(value, dropped) for key, value in answer.items() if key not in dropped}


def _nested(value: Any, dropped: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {key: _nested(item, dropped) for key, item in value.items() if key not in dropped}
    if isinstance(value, list):
        return [_nested(item, dropped) for item in value]
    return value


def comparable_text(text: str) -> str:
    """The human text of `info` without the line that depends on the file system."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(FILE_SYSTEM_LINE))
