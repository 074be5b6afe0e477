"""Standard streams: closed, full, read by nobody, of another encoding; and progress on stderr."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from calltable.messages import Measure
from tests.integration.command import COMMAND, environment
from tests.unit.fake import FakeRunner
from vmm.boundary import ProgressEvent
from vmm.cli import terminal
from vmm.cli.main import main

MEASURE = Measure(required=1, fully_allocated=2, target="raw", virtual_size=512, format="raw")
Capture = pytest.CaptureFixture[str]

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


@pytest.mark.usefixtures("canned_command")
class TestProgress:
    def test_lines_when_asked(self, capsys: Capture) -> None:
        assert main(["run", "measure", "-p", "-q", "image"], FakeRunner(ProgressEvent(1, 3), MEASURE)) == 0
        assert capsys.readouterr().err == "(33.33/100%)\n"

    def test_rewritten_on_a_terminal(self, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        assert main(["run", "measure", "-p", "-q", "image"], FakeRunner(ProgressEvent(1, 3), MEASURE)) == 0
        assert capsys.readouterr().err == "    (33.33/100%)\r\r" + " " * 16 + "\r"

    def test_unasked_only_after_a_second(self, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        runner = FakeRunner(ProgressEvent(1, 3), MEASURE)
        assert main(["run", "measure", "-q", "image"], runner) == 0
        assert capsys.readouterr().err == ""
        monkeypatch.setattr("vmm.cli.progress.PATIENCE", -1.0)
        assert main(["run", "measure", "-q", "image"], runner) == 0
        assert "(33.33/100%)" in capsys.readouterr().err

    def test_not_wanted(self) -> None:
        runner = FakeRunner(MEASURE)
        assert main(["run", "measure", "-q", "image"], runner) == 0
        assert runner.jobs[0].progress is False


@pytest.mark.usefixtures("canned_command")
def test_broken_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    abandoned: list[bool] = []

    def broken(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("vmm.cli.answers.out", broken)
    monkeypatch.setattr("vmm.cli.main.abandon_stdout", lambda: abandoned.append(True))
    assert main(["run", "measure", "image"], FakeRunner(MEASURE)) == 1
    assert abandoned == [True]


def test_encoding_that_lacks_a_character(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w", encoding="ascii") as stream:
        terminal.write(stream, "é")
    assert (tmp_path / "out").read_text() == "\\xe9"
