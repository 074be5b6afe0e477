"""Images by foreign writers: qemu-img's recorded answers (release 7.2.22), for the formats that are built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ForeignImages, foreign_source
from tests.differential.oracle import TIMED_OUT, Answer, comparable
from tests.differential.ours import Ours, explain

pytestmark = pytest.mark.kvm

RELEASE = "7.2.22"
COMMANDS = ("info", "info_f", "check", "measure_raw", "measure_qcow2", "map")
#: Drivers that are built; the others are named and refused.
BUILT = ("raw", "qcow2", "vpc", "vhdx", "vmdk", "luks")

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


def _object(answer: Answer) -> dict[str, Any]:
    """The JSON object, or the last of those in an array."""
    shown = json.loads(answer.stdout)
    return dict(shown[-1] if isinstance(shown, list) else shown)


def _without_holes(extents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Extents with holes of the file filled: what lies in one piece of the file is one extent."""
    merged: list[dict[str, Any]] = []
    for extent in extents:
        last = merged[-1] if merged else None
        placed = "offset" in extent and last is not None and "offset" in last
        if last is not None and placed and last["offset"] + last["length"] == extent["offset"]:
            last["length"] += extent["length"]
        else:
            kept = ("start", "length", "depth", "present", "offset")
            merged.append({key: extent[key] for key in (kept if "offset" in extent else extent) if key in extent})
    return merged


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
        code = _object(answer).get("error", {}).get("guest-code")
        assert code in (None, "unsupported", "no-checks", "needs-reference"), explain(answer)
    elif _driver(name) not in BUILT and recorded["rc"] in (0, 2, 3):
        assert answer.rc in (1, 63), explain(answer)
        error = _object(answer)["error"]
        assert error.get("guest-code", error["code"]) in ("unsupported", "no-checks"), explain(answer)
    else:
        _expect_recorded(answer, command, recorded)


def _expect_recorded(answer: Answer, command: str, recorded: dict[str, Any]) -> None:
    assert answer.rc == recorded["rc"], f"{explain(answer)}\nqemu-img: {recorded}"
    if "json" not in recorded:
        return
    if command == "map":
        # The holes of a raw file are where this file system left them; qemu-img's where another one did.
        assert _without_holes(json.loads(answer.stdout)) == _without_holes(recorded["json"])
    else:
        assert comparable(answer.json) == comparable(recorded["json"])


#: Differences that are none once references are followed.
FOLLOWED = ("reference-needed", "reference-not-opened")


@pytest.mark.skipif(not CASES, reason="no foreign images (PYVMM_IMAGES)")
@pytest.mark.parametrize(
    ("name", "command"),
    [case for case in CASES if _driver(case[0]) in BUILT],
    ids=["/".join(case) for case in CASES if _driver(case[0]) in BUILT],
)
def test_recorded_answer_with_chain(
    name: str, command: str, ours: Ours, foreign_images: ForeignImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = EXPECTED[name]["answers"][RELEASE][command]
    path = foreign_images.root / name
    monkeypatch.chdir(path.parent)
    answer = ours.run(*EXPECTED[name]["argv"][command], "--chain")
    difference = _known_difference(name, command)
    if recorded["rc"] == TIMED_OUT:
        assert json.loads(answer.stdout)["error"]["reason"] == "loop"
    elif difference is not None and difference[0] not in FOLLOWED:
        assert answer.rc == difference[1], explain(answer)
    else:
        _expect_recorded(answer, command, recorded)


@pytest.mark.skipif(not CASES, reason="no foreign images (PYVMM_IMAGES)")
def test_every_difference_is_one() -> None:
    """An entry of docs/differences.json that names no recorded image is stale."""
    unknown = [name for entry in _differences() for name in entry.get("cases", ()) if name not in EXPECTED]
    assert unknown == []
