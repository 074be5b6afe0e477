"""Our side of a comparison: the command line, run inside the test process on machines that stay warm."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.differential.oracle import Answer

#: Exit statuses with which we refuse what qemu-img refuses with 1: 1 by the guest, 64 (EX_USAGE) by the parser.
REFUSALS = (1, 64)


class Ours:
    """``pyvmm run ...`` on one warm runner: the parser, the machine and the renderer that users get."""

    def __init__(self) -> None:
        from vmm.machine.runner import MachineRunner

        self._runner = MachineRunner(warm=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.close()

    def run(self, *arguments: str) -> Answer:
        """Run one operation; an exception that is no SystemExit is a bug and fails the test."""
        from vmm.cli.main import main

        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                rc = main(["run", *arguments], runner=self._runner)
            except SystemExit as stop:
                rc = stop.code if isinstance(stop.code, int) else 1
        return Answer(rc, out.getvalue(), err.getvalue())


def run_process(*arguments: str, cwd: Path | None = None) -> Answer:
    """The real command in its own process."""
    command = Path(sys.executable).with_name("pyvmm")
    done = subprocess.run([str(command), *arguments], cwd=cwd, capture_output=True, timeout=120, check=False)
    return Answer(done.returncode, done.stdout.decode(), done.stderr.decode())


def explain(answer: Answer) -> str:
    """What a failed assertion shows of an answer."""
    return f"rc {answer.rc}\n{answer.stdout[-2000:]}{answer.stderr[-2000:]}"
