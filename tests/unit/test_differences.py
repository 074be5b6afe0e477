"""docs/differences.md and its twin for programs say the same."""

from __future__ import annotations

import json
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_twins() -> None:
    entries = json.loads((DOCS / "differences.json").read_text(encoding="utf-8"))["differences"]
    text = (DOCS / "differences.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows == [f"| `{entry['id']}` | {entry['what']} | {entry['why']} |" for entry in entries]
