"""`create -b`: the backing file is opened, its format checked and its size taken, as qemu-img does it."""

from __future__ import annotations

import json
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


def test_differencing_vhd(ours: Ours, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """qemu-img makes none; it opens ours as a dynamic disk of the parent's size."""
    monkeypatch.chdir(folder)
    words = ("create", "-f", "vpc", "-b", "../base.vpc", "-F", "vpc")
    answer = ours.run(*words, "sub/new")
    assert answer.rc == 0, explain(answer)
    parent, child = (ours.run("info", "--output=json", "-f", "vpc", name).json for name in ("base.vpc", "sub/new"))
    assert child["virtual-size"] == parent["virtual-size"]
    facts = child["pyvmm"]["vhd"]
    assert facts["type"] == "differencing"
    assert facts["parent-uuid"] == parent["pyvmm"]["vhd"]["uuid"]
    assert facts["parent-timestamp"] == int((folder / "base.vpc").stat().st_mtime) - 946_684_800
    named = {entry["source"]: entry["name"] for entry in child["pyvmm"]["references"]}
    assert named == {"dynamic-header": "base.vpc", "W2ru": ".\\..\\base.vpc"}
    assert ours.run("check", "-f", "vpc", "sub/new").rc == 0
    oracle = qemu_img("info", "-f", "vpc", "--output=json", "sub/new", cwd=folder)
    assert oracle.json["virtual-size"] == parent["virtual-size"]
    again = ours.run(*words, "sub/larger", "1G")
    assert again.rc == 1
    assert "a differencing disk is as large as its parent" in again.stderr
    unseen = ours.run("create", "-f", "vpc", "-u", "-b", "/missing/parent.vhd", "-F", "vpc", "sub/unseen", "1G")
    assert unseen.rc == 0, explain(unseen)
    child = ours.run("info", "--output=json", "-f", "vpc", "sub/unseen").json
    assert {"source": "W2ku", "name": "\\missing\\parent.vhd"}.items() <= child["pyvmm"]["references"][-1].items()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("-F", "vpc"), "Backing format cannot be used without backing file"),
        (("-b", "base.raw", "-F", "raw"), "the parent of a differencing disk must be a vpc image, not 'raw'"),
        (("-b", "base.raw", "-F", "vpc"), "Could not open backing image"),
        (("-b", "base.vpc", "-F", "vpc", "-o", "subformat=fixed"), "a fixed disk cannot have a backing file"),
        (("-u", "-b", "a\\b", "-F", "vpc"), "the name of the backing file cannot be written"),
        (("-u", "-b", "n" * 257, "-F", "vpc"), "has 257 UTF-16 units, the limit is 256"),
    ],
)
def test_differencing_vhd_is_refused(
    arguments: tuple[str, ...], text: str, ours: Ours, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    answer = ours.run("create", "-f", "vpc", *arguments, "new", "1M")
    assert answer.rc == 1, explain(answer)
    assert text in answer.stderr
    assert not (folder / "new").exists()


def test_differencing_vhdx_of_a_parent_that_is_not_opened(
    ours: Ours, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    answer = ours.run("create", "-f", "vhdx", "-u", "-b", "sub/parent.vhdx", "-F", "vhdx", "new.vhdx", "5G")
    assert answer.rc == 0, explain(answer)
    image = (folder / "new.vhdx").read_bytes()
    # File parameters: blocks of 16 MiB, HasParent; the metadata lies behind the BAT.
    assert image[0x310000:0x310010] == bytes.fromhex("00000001 02000000 0000004001000000".replace(" ", ""))
    text = image[0x310028 : 0x310028 + 500].decode("utf-16-le", errors="replace")
    assert "parent_linkage{00000000-0000-0000-0000-000000000000}relative_path.\\sub\\parent.vhdx" in text
    oracle = qemu_img("info", "-f", "vhdx", "new.vhdx", cwd=folder)
    assert oracle.rc == 1
    assert "Operation not supported" in oracle.stderr, "it does not read differencing disks"


def test_differencing_vhdx(ours: Ours, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child of a disk that qemu-img made: its size, its identity, its path."""
    monkeypatch.chdir(folder)
    make("create", "-q", "-f", "vhdx", "base.vhdx", "5G", cwd=folder)
    answer = ours.run("create", "-f", "vhdx", "-b", "../base.vhdx", "-F", "vhdx", "sub/new.vhdx")
    assert answer.rc == 0, explain(answer)
    parent, child = (
        ours.run("info", "--output=json", "-f", "vhdx", name).json for name in ("base.vhdx", "sub/new.vhdx")
    )
    assert child["virtual-size"] == parent["virtual-size"] == 5 << 30
    assert child["pyvmm"]["vhdx"]["type"] == "differencing"
    linkage = parent["pyvmm"]["vhdx"]["data-write-guid"]
    assert linkage in json.dumps(child["pyvmm"])
    assert ".\\..\\base.vhdx" in [entry["name"] for entry in child["pyvmm"]["references"]]
    assert ours.run("check", "-f", "vhdx", "sub/new.vhdx").rc == 0
