"""The examples of docs/api.md, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import vmm
from examples.build import build_zig

DOCUMENT = Path(__file__).resolve().parent.parent.parent / "docs" / "api.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 12


@pytest.mark.kvm
def test_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vmm_machine: vmm.Machine) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"count_elf": str(build_zig(tmp_path / "elf"))}
    for number, example in enumerate(EXAMPLES):
        exec(compile(example, f"docs/api.md, example {number + 1}", "exec"), names)
    # The last one defines a test that pytest would run with the plugin's fixture.
    names["test_image"](vmm_machine)


def test_exceptions_are_all_documented() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in vmm.__all__:
        value = getattr(vmm, name)
        if isinstance(value, type) and issubclass(value, vmm.VmmError):
            assert f"`{name}`" in text, name
