"""Kills while an image of several files is made: each is whole or not there, what refers to the others comes last."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.integration.command import COMMAND, environment

pytestmark = pytest.mark.kvm

ROUNDS = 12
EXTENTS = 12
WORDS = ("-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse")
FIXED = ("--unix-time", "1700000000", "--uuid", "00112233445566778899aabbccddeeff")


def start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, "run", "create", "-q", *WORDS, *FIXED, str(folder / "a.vmdk"), f"{2 * EXTENTS}G"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        start_new_session=True,
    )


def test_kill(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    started = time.monotonic()
    with start(whole) as process:
        _, err = process.communicate(timeout=60)
    seconds = time.monotonic() - started
    assert process.returncode == 0, err
    names = {path.name: path.read_bytes() for path in whole.iterdir()}
    assert len(names) == EXTENTS + 1
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        with start(folder) as process:
            # Most of the way: the end, where names appear, is what it is about.
            time.sleep(seconds * (0.4 + 0.7 * number / ROUNDS))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=60)
        found = {path.name: path.read_bytes() for path in folder.iterdir()}
        for name, content in found.items():
            if name != "a.vmdk":
                assert content == names[name]
        if "a.vmdk" in found:
            assert sorted(found) == sorted(names)
