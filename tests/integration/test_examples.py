"""The example operations: built from source, run in the machine, compared with hashlib."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

import vmm
from examples.build import build_c, build_zig, zig_compiler
from tests.integration.command import run

pytestmark = pytest.mark.kvm

SECTOR = 512


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("examples")
    return {
        "c": build_c(folder),
        # Where there is no C compiler, the ziglang wheel is one.
        "c-by-zig": build_c(folder / "by-zig", zig_compiler()),
        "zig": build_zig(folder),
    }


def expected(data: bytes) -> dict[str, object]:
    sectors = [data[start : start + SECTOR] for start in range(0, len(data), SECTOR)]
    return {
        "length": len(data),
        "sha256": hashlib.sha256(data[: 1 << 20]).hexdigest(),
        "sectors": len(sectors),
        "zero-sectors": sum(not any(sector) for sector in sectors),
    }


CONTENTS = {
    "one-byte": b"\0",
    "odd": os.urandom(1000) + bytes(700),
    "chunk": os.urandom(1 << 16),
    "first-mib": os.urandom(1 << 20),
    "longer": os.urandom(100_000) + bytes(2 << 20) + os.urandom(55),
    "abc": b"abc",
    "block-edge": b"a" * 55,
    "block-edge-1": b"a" * 56,
    "block-edge-2": b"a" * 64,
}


@pytest.mark.parametrize("language", ["c", "c-by-zig", "zig"])
def test_same_as_hashlib(language: str, operations: dict[str, Path], vmm_machine: vmm.Machine, tmp_path: Path) -> None:
    for name, data in CONTENTS.items():
        path = tmp_path / name
        path.write_bytes(data)
        answer = vmm_machine.run_elf(operations[language], path)
        assert answer.status == 0
        assert [(message.name, dict(message.fields)) for message in answer.messages] == [("count", expected(data))]


@pytest.mark.parametrize("language", ["c", "zig"])
def test_command(language: str, operations: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(CONTENTS["odd"])
    done = run("run", str(operations[language]), "image", "image", cwd=tmp_path)
    assert (done.status, done.err) == (0, "")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert lines == [{"filename": "image", "message": "count", "fields": expected(CONTENTS["odd"])}] * 2


@pytest.mark.parametrize("language", ["c", "zig"])
def test_refusal(language: str, operations: dict[str, Path]) -> None:
    done = run("run", str(operations[language]), "--output=json")
    assert done.status == 1
    assert done.json["error"]["code"] == "refused"
