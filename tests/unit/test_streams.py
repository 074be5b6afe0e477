"""The command with standard streams that are closed, full, or read by nobody."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.integration.command import COMMAND, environment

CLOSED_OUT, CLOSED_ERR, FULL_OUT, FULL_ERR = ">&-", "2>&-", ">/dev/full", "2>/dev/full"


def run(redirection: str, *words: str) -> tuple[int, str, str]:
    script = f'exec "$@" {redirection}'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *COMMAND, *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment(),
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("words", [("--version",), ("run", "nothing", "--output=json")])
@pytest.mark.parametrize(
    ("redirection", "reason"), [(CLOSED_OUT, "Bad file descriptor"), (FULL_OUT, "No space left on device")]
)
def test_stdout_that_takes_nothing(redirection: str, reason: str, words: tuple[str, ...]) -> None:
    assert run(redirection, *words) == (1, "", f"pyvmm: writing to stdout failed: {reason}\n")


@pytest.mark.parametrize("redirection", [CLOSED_ERR, FULL_ERR])
def test_stderr_that_takes_nothing(redirection: str) -> None:
    assert run(redirection, "run", "nothing") == (64, "", "")
    assert run(redirection, "run", "measure", "--size", "x") == (64, "", "")
    status, out, _ = run(redirection, "--version")
    assert (status, out.split()[0]) == (0, "pyvmm")


def test_no_stream_at_all() -> None:
    assert run("<&- >&- 2>&-", "--version")[0] == 1
    assert run("<&- >&- 2>&-", "run", "measure", "--size", "x")[0] == 64


@pytest.mark.parametrize("words", [("--version",), ("run", "nothing", "--output=json")])
def test_a_reader_that_is_gone(words: tuple[str, ...]) -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"], stdin=subprocess.PIPE) as reader:
        reader.wait(60)
        done = subprocess.run(
            [*COMMAND, *words], stdout=reader.stdin, stderr=subprocess.PIPE, timeout=120, check=False, env=environment()
        )
    assert (done.returncode, done.stderr) == (1, b"")
