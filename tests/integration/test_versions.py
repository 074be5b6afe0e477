"""The version rule of the call table: what an older operation was promised, a newer table keeps."""

from __future__ import annotations

from pathlib import Path

import cbor2
import pytest

from calltable import TABLE_MAJOR, TABLE_MINOR
from tests.hostile.build import compile_c
from tools.generate import model
from tools.generate.header import header
from vmm.boundary import Event, Job, MessageEvent
from vmm.errors import OperationLoadError
from vmm.machine.runner import MachineRunner

SOURCE = Path(__file__).resolve().parent / "guests" / "versioned.c"


def _run(elf: bytes) -> tuple[int | None, list[object]]:
    messages: list[object] = []

    def collect(event: Event) -> None:
        assert isinstance(event, MessageEvent)
        messages.append(cbor2.loads(event.payload))

    with MachineRunner(warm=False) as runner:
        outcome = runner.run(Job(elf=elf, request=cbor2.dumps({})), collect)
    assert outcome.failure is None
    return outcome.status, messages


@pytest.mark.kvm
@pytest.mark.parametrize("minor", range(TABLE_MINOR + 1))
def test_an_operation_built_against_an_older_minor_runs(minor: int, tmp_path: Path) -> None:
    (tmp_path / "pyvmm.h").write_text(header(model.at_minor(model.load(), minor)), encoding="utf-8")
    defines = (f"NEEDED={minor}", *(("USE_NEWEST",) if minor >= 1 else ()))
    elf = compile_c(SOURCE, defines=defines, include=tmp_path)
    assert _run(elf) == (0, [["version", {"minor": TABLE_MINOR}]])


def test_the_header_of_an_older_minor_does_not_have_the_newest_entry(tmp_path: Path) -> None:
    (tmp_path / "pyvmm.h").write_text(header(model.at_minor(model.load(), 0)), encoding="utf-8")
    with pytest.raises(AssertionError, match="write_many"):
        compile_c(SOURCE, defines=("USE_NEWEST",), include=tmp_path)


@pytest.mark.kvm
def test_an_operation_that_needs_a_newer_minor_is_refused_by_both_versions() -> None:
    elf = compile_c(SOURCE, defines=(f"NEEDED={TABLE_MINOR + 1}",))
    with pytest.raises(OperationLoadError) as caught:
        _run(elf)
    assert f"{TABLE_MAJOR}.{TABLE_MINOR + 1}" in caught.value.message
    assert f"{TABLE_MAJOR}.{TABLE_MINOR}" in caught.value.message


@pytest.mark.kvm
def test_an_operation_of_another_major_is_refused(tmp_path: Path) -> None:
    text = header(model.load()).replace("#define PYVMM_TABLE_MAJOR 0x1", "#define PYVMM_TABLE_MAJOR 0x2")
    (tmp_path / "pyvmm.h").write_text(text, encoding="utf-8")
    with pytest.raises(OperationLoadError, match=r"2\.0"):
        _run(compile_c(SOURCE, include=tmp_path))
