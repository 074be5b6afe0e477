"""The claims of SECURITY.md and docs/threat-model.md: each has a number and names tests that exist and run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Document -> the letter of its claims.
DOCUMENTS = {"SECURITY.md": "P", "docs/threat-model.md": "C"}

_ROW = re.compile(r"\| ([PC])(\d+) \| (.+?) \| (.*?) \|")
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@dataclass(frozen=True)
class Claim:
    document: str
    number: str
    text: str
    tests: tuple[tuple[str, str], ...]


def claims_of(document: str, text: str) -> Iterator[Claim]:
    """The rows of a document's tables of claims."""
    for line in text.splitlines():
        found = _ROW.fullmatch(line)
        if found is not None:
            yield Claim(document, found[1] + found[2], found[3], tuple(_TEST.findall(found[4])))


CLAIMS = [claim for name in DOCUMENTS for claim in claims_of(name, (ROOT / name).read_text(encoding="utf-8"))]


@cache
def functions(path: str) -> dict[str, ast.FunctionDef]:
    """The test functions of a file, by name."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def problems(claim: Claim) -> list[str]:
    """What is wrong with a claim's tests."""
    if not claim.tests:
        return ["it names no test"]
    found = []
    for path, name in claim.tests:
        if not (ROOT / path).is_file() or name not in functions(path):
            found.append(f"there is no {path}::{name}")
        elif any(
            "mark.skip" in ast.unparse(one)
            for one in functions(path)[name].decorator_list
            if "skipif" not in ast.unparse(one)
        ):
            found.append(f"{path}::{name} is skipped")
    return found


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.number)
def test_every_claim_has_its_tests(claim: Claim) -> None:
    assert problems(claim) == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_claims_are_numbered(document: str) -> None:
    numbers = [claim.number for claim in CLAIMS if claim.document == document]
    assert numbers
    assert len(numbers) == len(set(numbers))
    assert {number[0] for number in numbers} == {DOCUMENTS[document]}
    assert numbers == sorted(numbers, key=lambda number: int(number[1:]))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_promise_stands_outside_the_tables(document: str) -> None:
    """Under a heading with a table of claims there is no list that could hold one more."""
    text = (ROOT / document).read_text(encoding="utf-8")
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        if _ROW.search(section):
            assert not re.search(r"^(\d+\.|[*-]) ", section, flags=re.MULTILINE), section.splitlines()[0]


def test_a_claim_without_a_test_is_found() -> None:
    rows = (
        "| C1 | Nothing. | trust us |\n"
        "| C2 | More. | `tests/unit/test_claims.py::test_of_nothing` |\n"
        "| C3 | Else. | `tests/no.py::test_a` |"
    )
    assert [problems(claim) for claim in claims_of("x", rows)] == [
        ["it names no test"],
        ["there is no tests/unit/test_claims.py::test_of_nothing"],
        ["there is no tests/no.py::test_a"],
    ]
