"""The targets, one module each: see ``fuzzing/README.md`` for what a module holds and how to add one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

#: In the order in which they are listed.
NAMES = ("device", "queue", "control", "report", "elf", "fault", "cbor", "arguments", "wire", "bundle")

#: Packages besides our own whose branches guide the search, by target.
INSTRUMENTED = {"elf": ("elftools",)}

_FOLDER = Path(__file__).resolve().parent.parent
#: Inputs that reach much, a folder for each target, made by ``--merge``.
CORPUS = _FOLDER / "corpus"
#: Inputs that once found something, a folder for each target; nothing removes them.
FINDINGS = _FOLDER / "findings"


@dataclass(frozen=True)
class Target:
    """What is fuzzed and how.

    :param run: takes an input; raises when the invariant does not hold, and answers nothing.
    :param seeds: inputs to begin with, made by running the real thing.
    :param max_length: bytes of an input.
    :param dictionary: what mutations insert.
    """

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    max_length: int = 4096
    dictionary: tuple[bytes, ...] = ()

    @property
    def invariant(self) -> str:
        """The first line of the target's module."""
        module = importlib.import_module(f"fuzzing.targets.{self.name}")
        return (module.__doc__ or "").partition("\n\n")[0].strip().replace("\n", " ")


def load(name: str) -> Target:
    """A target by name.

    :raises KeyError: there is none.
    """
    if name not in NAMES:
        raise KeyError(f"there is no target {name}; there are {', '.join(NAMES)}")
    target: Target = importlib.import_module(f"fuzzing.targets.{name}").TARGET
    return target


def inputs(name: str) -> list[Path]:
    """The committed inputs of a target: its corpus and what once found something."""
    folders = (CORPUS / name, FINDINGS / name)
    return sorted(path for folder in folders if folder.is_dir() for path in folder.iterdir())
