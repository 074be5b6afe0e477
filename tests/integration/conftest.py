"""Fixtures of the tests on real machines."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.build import build_c, build_zig
from tests.integration.exerciser import Exerciser, build
from tests.integration.recording import Answer, Command
from vmm.boundary import DeviceSpec
from vmm.cli.main import main
from vmm.machine.runner import MachineRunner


@pytest.fixture(scope="session")
def exerciser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exerciser]:
    """Warm machines whose operation makes the calls that it is told."""
    made = Exerciser(build(tmp_path_factory.mktemp("exerciser")))
    yield made
    made.close()


@pytest.fixture(scope="module")
def runner() -> Iterator[MachineRunner]:
    with MachineRunner() as made:
        yield made


@pytest.fixture
def pyvmm(runner: MachineRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command inside this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Answer:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(words, runner)
        return Answer(status, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[DeviceSpec]:
    path = tmp_path / "disk"
    path.write_bytes(bytes(range(256)) * 4096)
    fd = os.open(path, os.O_RDWR)
    yield DeviceSpec(fd, 1 << 20)
    os.close(fd)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("examples")
    return {"c": build_c(folder), "zig": build_zig(folder)}
