"""`make bench` measures everything in one run and never judges by the clock."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.kvm


def _bench(*arguments: str) -> str:
    command = [sys.executable, "-m", "bench", "--rounds", "1", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_json() -> None:
    report = json.loads(_bench("--output", "json"))
    measured = {row["name"]: row["median_us"] for row in report["rows"]}
    assert {"python -c pass", "pyvmm vpc-fixed", "cold vpc-fixed", "warm qcow2", "bare VM in C"} <= set(measured)
    assert all(median > 0 for median in measured.values())
    assert all(cost["exits"] > 0 for cost in report["costs"])
    compared = {ratio["name"]: ratio for ratio in report["ratios"]}
    assert compared["command line / python -c pass"]["aim"] == "<= 2.5"
    if shutil.which("qemu-img"):
        assert compared["jailed images/s / qemu-img, raw"]["aim"] == ">= 5.0"


def test_table_shows_the_aims() -> None:
    table = _bench()
    assert "aim <= 2.5: " in table
    assert "exits" in table
