"""Data flows one way, and so do imports: operations and machine meet at the boundary and nowhere else."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: What each part may import, those for annotations included.  Nothing that is not written here.
MAY_IMPORT: dict[str, set[str]] = {
    "calltable": set(),
    "vmm.record": set(),
    "vmm.cbor": set(),
    "vmm.boundary": {"calltable", "vmm.record"},
    "vmm.errors": {"vmm.boundary"},
    "vmm.host": {"vmm.errors"},
    "vmm.kvm_device": {"vmm.boundary", "vmm.errors"},
    "vmm.kvm": {"vmm.boundary", "vmm.errors", "vmm.kvm_device"},
    "vmm.devices": {"calltable", "vmm.boundary", "vmm.errors", "vmm.host", "vmm.devices.script", "vmm.devices.trace"},
    "vmm.devices.trace": {"vmm.boundary", "vmm.cbor", "vmm.devices"},
    "vmm.devices.script": {"vmm.boundary", "vmm.cbor", "vmm.devices", "vmm.devices.trace"},
    "vmm.machine": {"calltable", "vmm.record", "vmm.boundary", "vmm.errors", "vmm.host", "vmm.kvm", "vmm.devices"},
    "vmm.sandbox": {
        *("calltable", "vmm.record", "vmm.cbor", "vmm.boundary", "vmm.errors", "vmm.kvm_device", "vmm.kvm"),
        *("vmm.machine", "vmm.devices.script", "vmm.devices.trace"),
    },
    "vmm.operations": {"calltable", "vmm.record", "vmm.cbor", "vmm.boundary", "vmm.errors", "vmm.host"},
    "vmm.version": set(),
    "vmm.picture": {"vmm.record", "vmm.errors", "vmm.operations"},
    "vmm.replay": {
        *("calltable", "vmm.record", "vmm.cbor", "vmm.boundary", "vmm.errors", "vmm.operations", "vmm.version"),
    },
    "vmm.api": {
        "vmm.record",
        "vmm.cbor",
        "vmm.boundary",
        "vmm.errors",
        "vmm.operations",
        "vmm.machine",
        "vmm.sandbox",
        "vmm.picture",
    },
    "vmm.cli": {
        *("calltable", "vmm.record", "vmm.cbor", "vmm.boundary", "vmm.errors", "vmm.operations", "vmm.machine"),
        *("vmm.sandbox", "vmm.replay", "vmm.version", "vmm.picture"),
    },
    "vmm.pytest_plugin": {"vmm.api", "vmm.boundary"},
    "vmm.__main__": {"vmm.cli"},
    "vmm": {"vmm.api", "vmm.boundary", "vmm.errors", "vmm.operations"},
}

#: The only doors from outside into what runs guests: module -> what it opens.
DOORS = {
    "vmm.api": {"vmm.machine.runner"},
    "vmm.cli.run": {"vmm.machine.runner"},
    "vmm.cli.doctor": {"vmm.machine.doctor"},
    # The jailed process runs guests; its broker knows the names of the shipped ones, and nothing that runs them.
    "vmm.sandbox.worker": {
        *("vmm.kvm.binding", "vmm.devices.script", "vmm.devices.trace"),
        *(f"vmm.machine.{name}" for name in ("debugger", "faults", "guests", "runner", "symbols")),
    },
    "vmm.sandbox.jail": {"vmm.kvm.binding"},
    "vmm.sandbox.broker": {"vmm.machine.guests"},
}


def _modules() -> dict[str, Path]:
    found = {}
    for package in ("vmm", "calltable"):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _imported(module: str) -> Iterator[str]:
    """The modules of the tree that a module names, wherever in its source."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                name = full if full in MODULES else str(node.module)
                if name in MODULES and name != module:
                    yield name


GRAPH = {module: set(_imported(module)) for module in MODULES}


def _part(module: str) -> str:
    """The part of the table that a module belongs to."""
    return next(name for name in (module, module.rpartition(".")[0], module.partition(".")[0]) if name in MAY_IMPORT)


def _folder(module: str) -> str:
    """``vmm.devices.queue`` -> ``vmm.devices``."""
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("module", sorted(GRAPH))
def test_direction(module: str) -> None:
    part = _part(module)
    wrong = {name for name in GRAPH[module] if _part(name) not in {part, *MAY_IMPORT[part]}}
    assert not wrong, f"{module} ({part}) imports {sorted(wrong)}"


def test_no_cycles() -> None:
    TopologicalSorter(GRAPH).prepare()


def test_doors() -> None:
    inside = {"vmm.kvm", "vmm.devices", "vmm.machine"}
    found = {
        module: {name for name in names if _folder(name) in inside}
        for module, names in GRAPH.items()
        if _folder(module) not in {"vmm.kvm", "vmm.machine"}
    }
    opened = {module: {name for name in names if _folder(name) != _folder(module)} for module, names in found.items()}
    assert {module: names for module, names in opened.items() if names} == DOORS


def test_the_table_is_complete() -> None:
    tops = {_folder(module) for module in MODULES if module.startswith("vmm.")}
    assert tops == {part for part in MAY_IMPORT if part.count(".") == 1}
    assert set(MAY_IMPORT) - tops <= set(MODULES)
