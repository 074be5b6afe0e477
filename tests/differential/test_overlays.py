"""`create -b`: the backing file is opened, its format checked and its size taken, as qemu-img does it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.differential.oracle import comparable, make, qemu_img
from tests.differential.ours import REFUSALS, Ours, explain

pytestmark = [pytest.mark.kvm, pytest.mark.qemu_img]


@dataclass(frozen=True)
class Case:
    arguments: tuple[str, ...]
    size: tuple[str, ...] = ()
    name: str = "new"

    @property
    def identifier(self) -> str:
        return " ".join((*self.arguments, self.name, *self.size))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    make("create", "-q", "-f", "qcow2", "base.qcow2", "5M", cwd=tmp_path)
    make("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "middle.qcow2", cwd=tmp_path)
    make("create", "-q", "-f", "qcow2", "sub/inner.qcow2", "3M", cwd=tmp_path)
    make("create", "-q", "-f", "vpc", "base.vpc", "4M", cwd=tmp_path)
    (tmp_path / "base.raw").write_bytes(bytes(1000))
    return tmp_path


ACCEPTED = [
    Case(("-b", "base.qcow2", "-F", "qcow2")),
    Case(("-b", "base.qcow2", "-F", "qcow2"), ("1M",)),
    Case(("-b", "base.qcow2", "-F", "qcow2"), ("1G",)),
    Case(("-b", "middle.qcow2", "-F", "qcow2")),
    Case(("-b", "base.qcow2", "-F", "raw")),
    Case(("-b", "base.raw", "-F", "raw")),
    Case(("-b", "base.vpc", "-F", "vpc")),
    Case(("-b", "inner.qcow2", "-F", "qcow2"), name="sub/new"),
    Case(("-b", "../base.qcow2", "-F", "qcow2"), name="sub/new"),
    Case(("-o", "backing_file=base.qcow2,backing_fmt=qcow2")),
    Case(("-o", "backing_file=base.qcow2,backing_fmt=qcow2", "-b", "base.raw", "-F", "raw")),
    Case(("-u", "-b", "missing", "-F", "qcow2"), ("1M",)),
    Case(("-u", "-b", "base.raw", "-F", "qcow2"), ("1M",)),
]
#: With what both say.
REFUSED = [
    (Case(("-b", "base.qcow2")), ("Backing file specified without backing format", "etected format of qcow2")),
    (Case(("-b", "base.raw"), ("1M",)), ("Backing file specified without backing format", "etected format of raw")),
    (
        Case(("-b", "missing", "-F", "qcow2")),
        ("Could not open 'missing': No such file", "Could not open backing image"),
    ),
    (Case(("-b", "missing"), ("1M",)), ("Could not open 'missing': No such file", "Could not open backing image")),
    (Case(("-b", "base.raw", "-F", "qcow2")), ("mage is not in qcow2 format", "Could not open backing image")),
    (Case(("-b", "base.qcow2", "-F", "nosuch")), ("Unknown driver 'nosuch'", "Could not open backing image")),
    (Case(("-u", "-b", "missing", "-F", "qcow2")), ("Image creation needs a size parameter",)),
    (Case(("-u", "-b", "missing"), ("1M",)), ("Backing file specified without backing format",)),
    (Case(("-b", "new", "-F", "raw"), ("1M",)), ("same filename as the backing file",)),
    (Case(("-F", "raw"), ("1M",)), ("Backing format cannot be used without backing file",)),
    (Case(("-b", "", "-F", "raw"), ("1M",)), ("Expected backing file name, got empty string",)),
]


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case.identifier)
def test_same_as_qemu(case: Case, ours: Ours, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    words = ["create", "-f", "qcow2", *case.arguments, case.name, *case.size]
    oracle = qemu_img(*words, cwd=folder)
    assert oracle.rc == 0, oracle.stderr
    theirs = (folder / case.name).read_bytes()
    expected = qemu_img("info", "-U", "--output=json", case.name, cwd=folder)
    answer = ours.run(*words[:1], "--force", *words[1:])
    assert answer.rc == 0, explain(answer)
    assert answer.stdout == oracle.stdout
    assert (folder / case.name).read_bytes() == theirs
    found = qemu_img("info", "-U", "--output=json", case.name, cwd=folder)
    assert comparable(found.json) == comparable(expected.json)


@pytest.mark.parametrize(("case", "texts"), REFUSED, ids=lambda case: getattr(case, "identifier", ""))
def test_refused(case: Case, texts: tuple[str, ...], ours: Ours, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    words = ["create", "-f", "qcow2", *case.arguments, case.name, *case.size]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    answer = ours.run(*words)
    assert answer.rc in REFUSALS, explain(answer)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    oracle = qemu_img(*words, cwd=folder)
    assert oracle.rc == 1, oracle.stdout
    for text in texts:
        assert text in oracle.stderr
        assert text in answer.stderr
