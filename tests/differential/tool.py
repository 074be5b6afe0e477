"""The guest's planners compiled for the host (guest/tests/plan_tool.zig), built once in a session."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tools import build_guests

_SOURCE = build_guests.GUEST / "tests" / "plan_tool.zig"


def build(folder: Path) -> Path:
    """Compile it into a folder."""
    output = folder / "plan_tool"
    imports = ("formats", "block", "messages")
    build_guests.zig(
        "build-exe", "-fsingle-threaded", "--name", "plan_tool",
        f"-femit-bin={output}", *build_guests.module_arguments(_SOURCE, imports),
    )  # fmt: skip
    return output


def ask(tool: Path, *words: str) -> dict[str, Any]:
    """One answer: an object, with ``error`` in it when the guest's code refused."""
    done = subprocess.run([tool, *words], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


def options_argument(options: dict[str, str]) -> list[str]:
    """Options for qemu-img's command line."""
    return ["-o", ",".join(f"{name}={value}" for name, value in options.items())] if options else []


def options_words(options: dict[str, str]) -> list[str]:
    """Options for the tool."""
    return [f"{name}={value}" for name, value in options.items()]
