"""Random sizes and options, without a machine: the guest's own code compiled for the host against qemu-img."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.differential.oracle import comparable, qemu_img
from tests.differential.plans import ask
from tests.differential.recipes import SEED

pytestmark = pytest.mark.qemu_img

MEASURED = 200
CREATED = 60


def random_options(rng: random.Random, *, valid: bool) -> dict[str, str]:
    choices: dict[str, tuple[str, ...]] = {
        "cluster_size": tuple(str(512 << bits) for bits in range(13)) + (() if valid else ("3000", "256", "4194304")),
        "refcount_bits": ("1", "2", "4", "8", "16", "32", "64") + (() if valid else ("0", "3", "128")),
        "extended_l2": ("on", "off"),
        "compat": ("0.10", "1.1"),
        "preallocation": ("off", "metadata", "falloc", "full"),
        "lazy_refcounts": ("on", "off"),
    }
    return {name: rng.choice(values) for name, values in choices.items() if rng.random() < 0.4}


def spelled(options: dict[str, str]) -> list[str]:
    return ["-o", ",".join(f"{name}={value}" for name, value in options.items())] if options else []


def words(options: dict[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in options.items()]


@pytest.mark.parametrize("seed", range(4))
def test_measure(seed: int, tool: Path) -> None:
    rng = random.Random(SEED + 100 + seed)
    edges = (0, 1, 511, 513, 2**63 - 1, 2**51, 2**51 + 1, 2**37, 2**37 + 1)
    answered = 0
    for _ in range(MEASURED // 4):
        size = rng.choice(edges) if rng.random() < 0.15 else int(2 ** rng.uniform(0, 53))
        options = random_options(rng, valid=False)
        oracle = qemu_img("measure", "--output=json", "-O", "qcow2", "--size", str(size), *spelled(options))
        ours = ask(tool, "measure", "qcow2", f"size={size}", *words(options))
        if oracle.rc != 0:
            assert "error" in ours, f"{size} {options}: {oracle.stderr}"
            continue
        expected = (oracle.json["required"], oracle.json["fully-allocated"])
        assert (ours.get("required"), ours.get("fully_allocated")) == expected, f"{size} {options}"
        answered += 1
    assert answered > MEASURED // 8


@pytest.mark.parametrize("seed", range(4))
def test_create(seed: int, tool: Path, tmp_path: Path) -> None:
    rng = random.Random(SEED + 200 + seed)
    answered = 0
    for _ in range(CREATED // 4):
        options = random_options(rng, valid=True)
        size = int(
            2 ** rng.uniform(0, {"falloc": 22, "full": 22, "metadata": 25}.get(options.get("preallocation", ""), 45))
        )
        theirs, ours = tmp_path / "theirs", tmp_path / "ours"
        oracle = qemu_img("create", "-f", "qcow2", *spelled(options), str(theirs), str(size))
        answer = ask(tool, "create", "qcow2", str(ours), f"size={size}", *words(options))
        what = f"{size} {options}"
        if oracle.rc != 0:
            assert "error" in answer, f"{what}: {oracle.stderr}"
            continue
        assert "error" not in answer, f"{what}: {answer}"
        line = " ".join(f"{option['name']}={option['value']}" for option in answer["options"])
        assert oracle.stdout == f"Formatting '{theirs}', fmt=qcow2 {line}\n"
        assert ours.stat().st_size == theirs.stat().st_size, what
        described = [
            comparable(qemu_img("info", "--output=json", str(path)).json, "filename") for path in (ours, theirs)
        ]
        assert described[0] == described[1], what
        if size < 1 << 34:
            checked = qemu_img("check", "--output=json", str(ours))
            assert checked.rc == 0, f"{what}: {checked.stdout}"
        answered += 1
    assert answered > CREATED // 8
