"""The real command in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: ``python -m vmm``: the command as it is, wherever the package is installed.
COMMAND = (sys.executable, "-m", "vmm")


@dataclass(frozen=True)
class Done:
    """How the command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def one_line(self) -> str:
        """The only line of stderr; nothing on stdout."""
        assert self.out == "", self
        assert self.err.count("\n") == 1, self
        assert self.err.startswith("pyvmm: "), self
        return self.err


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "PYVMM_TRACEBACK"}


def run(*words: str, cwd: Path | None = None, user: int | None = None) -> Done:
    """Run ``pyvmm`` with these words."""
    done = subprocess.run(
        [*COMMAND, *words], cwd=cwd, capture_output=True, timeout=120, check=False, env=environment(), user=user
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())
