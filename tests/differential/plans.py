"""Planners and calculators of the guest, compiled for the host: guest/tests/plan_tool.zig as a process."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tools import build_guests

SOURCE = build_guests.GUEST / "tests" / "plan_tool.zig"


def build(folder: Path) -> Path:
    """Compile the tool; its path."""
    output = folder / "plan_tool"
    imports = ("formats", "block", "messages")
    build_guests.zig(
        "build-exe", "-fsingle-threaded", "--name", "plan_tool",
        f"-femit-bin={output}", *build_guests.module_arguments(SOURCE, imports),
    )  # fmt: skip
    return output


def ask(tool: Path, *words: str) -> dict[str, Any]:
    """Its answer, one JSON object; a refusal has the key ``error``."""
    done = subprocess.run([tool, *words], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer
