"""Images by foreign writers: qemu-img's recorded answers (release 7.2.22), for the formats that are built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ForeignImages, foreign_source
from tests.differential.oracle import comparable
from tests.differential.ours import Ours, explain

pytestmark = pytest.mark.kvm

RELEASE = "7.2.22"
COMMANDS = ("info", "info_f", "check", "measure_raw", "measure_qcow2")
#: Drivers that are built; the others are named and refused.
BUILT = ("raw", "qcow2", "vpc", "luks")

DIFFERENCES = Path(__file__).resolve().parents[2] / "docs" / "differences.json"


def _expected() -> dict[str, Any]:
    source = foreign_source()
    return json.loads((source / "expected.json").read_text()) if source else {}


def _differences() -> list[dict[str, Any]]:
    return list(json.loads(DIFFERENCES.read_text())["differences"]) if DIFFERENCES.exists() else []


EXPECTED = _expected()
CASES = [(name, command) for name in EXPECTED for command in COMMANDS if command in EXPECTED[name]["answers"][RELEASE]]


def _driver(name: str) -> str:
    argv: list[str] = EXPECTED[name]["argv"]["info_f"]
    return argv[argv.index("-f") + 1]


def _known_difference(name: str, command: str) -> tuple[str, int] | None:
    """The entry of docs/differences.json that covers an image and a command, and our exit status there."""
    for entry in _differences():
        status = entry.get("cases", {}).get(name, {}).get(command)
        if status is not None:
            return str(entry["id"]), int(status)
    return None


@pytest.mark.skipif(not CASES, reason="no foreign images (PYVMM_IMAGES)")
@pytest.mark.parametrize(("name", "command"), CASES, ids=["/".join(case) for case in CASES])
def test_recorded_answer(
    name: str, command: str, ours: Ours, foreign_images: ForeignImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = EXPECTED[name]["answers"][RELEASE][command]
    path = foreign_images.root / name
    monkeypatch.chdir(path.parent)
    arguments: list[str] = EXPECTED[name]["argv"][command]
    answer = ours.run(*arguments)
    assert answer.rc in (0, 1, 2, 3, 63), explain(answer)
    difference = _known_difference(name, command)
    if difference is not None:
        entry, status = difference
        assert answer.rc == status, f"{entry}: {explain(answer)}"
        assert answer.rc != recorded["rc"] or entry in ("fixed-vhd", "luks2"), f"{entry}: no difference any more"
        code = json.loads(answer.stdout).get("error", {}).get("guest-code")
        assert code in (None, "unsupported", "no-checks", "needs-reference"), explain(answer)
    elif _driver(name) not in BUILT and recorded["rc"] in (0, 2, 3):
        assert answer.rc in (1, 63), explain(answer)
        error = json.loads(answer.stdout)["error"]
        assert error.get("guest-code", error["code"]) in ("unsupported", "no-checks"), explain(answer)
    else:
        assert answer.rc == recorded["rc"], f"{explain(answer)}\nqemu-img: {recorded}"
        if "json" in recorded:
            assert comparable(answer.json) == comparable(recorded["json"])


@pytest.mark.skipif(not CASES, reason="no foreign images (PYVMM_IMAGES)")
def test_every_difference_is_one() -> None:
    """An entry of docs/differences.json that names no recorded image is stale."""
    unknown = [name for entry in _differences() for name in entry.get("cases", ()) if name not in EXPECTED]
    assert unknown == []
