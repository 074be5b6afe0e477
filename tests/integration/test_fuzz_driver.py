"""The driver of coverage-guided fuzzing: each target for a moment, and a finding as it would be found."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzzing import campaign, targets

pytestmark = pytest.mark.atheris


@pytest.mark.parametrize("name", targets.NAMES)
def test_a_moment_of_each_target(name: str, tmp_path: Path) -> None:
    result = campaign.run(targets.load(name), tmp_path, runs=100, seed=1)
    assert result.trouble == []
    assert result.clean
    assert result.executions >= 100
    # Modules are instrumented: a harness without coverage would count nothing.
    assert result.edges > 20
    assert result.line(name).endswith("no finding")


def test_a_planted_bug_is_found_and_kept(tmp_path: Path) -> None:
    plant = "import vmm.devices.budget as b; b.Meter.message = lambda self, count: None"
    target = targets.load("control")
    result = campaign.run(target, tmp_path, runs=2000, seed=1, prepare=plant)
    assert not result.clean
    (artifact,) = result.artifacts
    assert artifact.read_bytes()
    assert "AssertionError" in result.trouble[0]
    # Without the bug it is an input like others.
    target.run(artifact.read_bytes())
