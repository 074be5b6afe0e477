"""`create` writes what qemu-img would: the same `info`, no finding of `check`, an empty disk, the same refusals."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.differential.oracle import comparable, make, qemu_img
from tests.differential.ours import REFUSALS, Ours, explain
from tests.differential.recipes import CLUSTER_SIZES, SEED

pytestmark = [pytest.mark.kvm, pytest.mark.qemu_img]

#: Up to this virtual size the content is compared with that of qemu-img's own file.
COMPARE_UP_TO = 1 << 30


@dataclass(frozen=True)
class Case:
    driver: str
    size: str
    options: str = ""
    arguments: tuple[str, ...] = ()

    @property
    def identifier(self) -> str:
        more = "".join(f" {argument}" for argument in self.arguments)
        return f"{self.driver}-{self.size}{'[' + self.options + ']' if self.options else ''}{more}"


def _cases() -> list[Case]:
    rng = random.Random(SEED + 20)
    cases = [Case("raw", size) for size in ("0", "1", "511", "512", "513", "1M", "3000001", "5G", "1T")]
    cases += [Case("raw", "1M", f"preallocation={mode}") for mode in ("off", "falloc", "full")]
    cases += [Case("raw", "1M", "nocow=on"), Case("raw", "1M", "extent_size_hint=1M")]
    for size in (
        "0",
        "1",
        "512",
        "34816",
        "34817",
        "1M",
        "4M",
        "35651584",
        "53426191",
        "1G",
        "127G",
        "136899993601",
        "1T",
    ):
        cases += [Case("vpc", size), Case("vpc", size, "force_size=on")]
    cases += [Case("vpc", "2040G"), Case("vpc", "2040G", "force_size")]
    # Not 0: qemu-img takes its own empty fixed VHD for a dynamic one and cannot read it.
    for size in ("512", "34817", "1M", "7000000"):
        cases += [Case("vpc", size, "subformat=fixed"), Case("vpc", size, "subformat=fixed,force_size=on")]
    cases += [Case("vpc", "1M", "subformat=dynamic")]
    cases += [Case("vhdx", size) for size in ("1", "1M", "1025M", "33T")]
    cases += [Case("vhdx", "3500000", f"subformat=fixed,block_state_zero={on}") for on in ("on", "off")]
    cases += [Case("vhdx", "9G", "block_size=1M,log_size=2M"), Case("vhdx", "1M", "block_state_zero=off,nocow=on")]
    cases += [Case("qcow2", size) for size in ("0", "1", "511", "513", "1M", "1000000", "64M", "10G", "64T", "2P")]
    for cluster in CLUSTER_SIZES:
        size = rng.choice(("1M", "64M", "3000000"))
        cases.append(Case("qcow2", size, f"cluster_size={cluster}"))
        cases.append(Case("qcow2", size, f"cluster_size={cluster},compat=0.10"))
    for order in range(7):
        cluster = rng.choice((512, 4096, 65_536))
        cases.append(Case("qcow2", "9M", f"refcount_bits={1 << order},cluster_size={cluster}"))
    for cluster in (16_384, 65_536, 2 << 20):
        cases.append(Case("qcow2", "40M", f"extended_l2=on,cluster_size={cluster}"))
    for mode in ("off", "metadata", "falloc", "full"):
        for more in ("", ",cluster_size=512", ",cluster_size=2M", ",extended_l2=on", ",refcount_bits=1"):
            cases.append(Case("qcow2", rng.choice(("1M", "3000000")), f"preallocation={mode}{more}"))
    cases.append(Case("qcow2", "1G", "preallocation=metadata"))
    cases.append(Case("qcow2", "9M", "preallocation=metadata,cluster_size=512"))
    cases += [Case("qcow2", "1M", f"compat={level}") for level in ("v2", "v3", "1.1")]
    cases += [Case("qcow2", "1M", f"lazy_refcounts={on}") for on in ("on", "off")]
    cases += [Case("qcow2", "1M", f"compression_type={kind}") for kind in ("zlib", "zstd")]
    cases += [Case("qcow2", "1M", "lazy_refcounts=on,refcount_bits=64,cluster_size=512,compression_type=zstd")]
    cases += [Case("qcow2", "8G", "cluster_size=512"), Case("qcow2", "1M", "nocow=off")]
    cases += [Case("qcow2", "1M", "", ("-u", "-b", name, "-F", kind)) for name, kind in BACKING]
    cases.append(Case("qcow2", "1M", "backing_file=up.img,backing_fmt=raw,cluster_size=1k", ("-u",)))
    cases.append(Case("qcow2", "1M", "extended_l2=on", ("-u", "-b", "up.qcow2", "-F", "qcow2")))
    return cases


BACKING = (
    ("up.img", "raw"),
    ("a" * 900, "raw"),
    ("sub/up.qcow2", "qcow2"),
    ("nbd://host/export", "raw"),
    ("ü \\ x", "vpc"),
)

REFUSED = [
    Case("raw", "-1"),
    Case("raw", "1M", "preallocation=metadata"),
    Case("raw", "1M", "cluster_size=512"),
    Case("raw", "9223372036854775808"),
    Case("raw", "twelve"),
    Case("raw", "1M", "", ("-b", "x", "-F", "raw", "-u")),
    Case("vpc", "2041G"),
    Case("vpc", "1M", "subformat=sparse"),
    Case("vpc", "1M", "force_size=maybe"),
    Case("vpc", "1M", "cluster_size=65536"),
    Case("vpc", "1M", "", ("-b", "x", "-F", "raw", "-u")),
    Case("vhdx", "65T"),
    Case("vhdx", "1M", "block_size=3M"),
    Case("vhdx", "1M", "log_size=0"),
    Case("vhdx", "1M", "subformat=sparse"),
    Case("vhdx", "1M", "block_state_zero=maybe"),
    Case("vhdx", "1M", "cluster_size=65536"),
    Case("vhdx", "1M", "", ("-b", "x", "-F", "raw", "-u")),
    Case("qcow2", "1M", "cluster_size=256"),
    Case("qcow2", "1M", "cluster_size=4M"),
    Case("qcow2", "1M", "cluster_size=1000"),
    Case("qcow2", "1M", "refcount_bits=0"),
    Case("qcow2", "1M", "refcount_bits=24"),
    Case("qcow2", "1M", "refcount_bits=128"),
    Case("qcow2", "1M", "compat=0.9"),
    Case("qcow2", "1M", "compat=0.10,refcount_bits=1"),
    Case("qcow2", "1M", "compat=0.10,lazy_refcounts=on"),
    Case("qcow2", "1M", "compat=0.10,extended_l2=on"),
    Case("qcow2", "1M", "compat=0.10,compression_type=zstd"),
    Case("qcow2", "1M", "compression_type=lzma"),
    Case("qcow2", "1M", "extended_l2=on,cluster_size=8192"),
    Case("qcow2", "1M", "preallocation=none"),
    Case("qcow2", "1M", "data_file_raw=on"),
    Case("qcow2", "1M", "data_file_raw=on,backing_file=x,backing_fmt=raw", ("-u",)),
    Case("qcow2", "1M", "no_such_option=1"),
    Case("qcow2", "1M", "preallocation=metadata", ("-u", "-b", "x", "-F", "raw", "-o", "data_file_raw=on")),
    Case("qcow2", "1M", "", ("-u", "-b", "b" * 1024, "-F", "raw")),
    Case("qcow2", "128G", "cluster_size=512,extended_l2=on"),
    Case("qcow2", "137438953473", "cluster_size=512"),
    Case("qcow2", "3P"),
    Case("no-such-format", "1M"),
]


def _arguments(case: Case, path: Path) -> list[str]:
    options = ["-o", case.options] if case.options else []
    return ["-f", case.driver, *options, *case.arguments, str(path), case.size]


@pytest.mark.parametrize("case", _cases(), ids=lambda case: case.identifier)
def test_same_as_qemu(case: Case, ours: Ours, tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    oracle = qemu_img("create", *_arguments(case, theirs))
    assert oracle.rc == 0, f"case makes no sense: {oracle.stderr}"
    answer = ours.run("create", *_arguments(case, mine))
    assert answer.rc == 0, explain(answer)
    assert answer.stdout.replace(str(mine), "F") == oracle.stdout.replace(str(theirs), "F")
    expected = qemu_img("info", "-f", case.driver, "--output=json", str(theirs))
    got = qemu_img("info", "-f", case.driver, "--output=json", str(mine))
    assert got.rc == expected.rc == 0, got.stderr
    assert comparable(got.json, "filename") == comparable(expected.json, "filename")
    assert mine.stat().st_mode == theirs.stat().st_mode
    if case.driver == "qcow2" and "-b" not in case.arguments and "-u" not in case.arguments:
        check = qemu_img("check", "-f", "qcow2", str(mine))
        assert check.rc == 0, explain(check)
    if got.json["virtual-size"] <= COMPARE_UP_TO and "-u" not in case.arguments:
        make("compare", "-f", case.driver, "-F", case.driver, str(mine), str(theirs))
    if case.driver == "raw" or "subformat=fixed" in case.options:
        assert mine.stat().st_size == theirs.stat().st_size
    assert sorted(tmp_path.iterdir()) == [mine, theirs], "nothing else is left behind"


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.identifier)
def test_refused(case: Case, ours: Ours, tmp_path: Path) -> None:
    oracle = qemu_img("create", *_arguments(case, tmp_path / "theirs"))
    assert oracle.rc == 1, f"qemu-img accepts this: {oracle.stdout}"
    answer = ours.run("create", *_arguments(case, tmp_path / "mine"))
    assert answer.rc in REFUSALS, explain(answer)
    assert answer.stderr.startswith("pyvmm: ")
    assert list(tmp_path.glob("mine*")) == [], "nothing is left behind"


@pytest.mark.parametrize("option", ["encryption=on", "encrypt.format=luks", "encrypt.format=aes"])
def test_encryption_is_refused(option: str, ours: Ours, tmp_path: Path) -> None:
    answer = ours.run("create", "-f", "qcow2", "-o", option, str(tmp_path / "mine"), "1M")
    assert answer.rc in REFUSALS, explain(answer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("more", ["", ",data_file_raw=on", ",cluster_size=4096", ",preallocation=metadata"])
def test_data_file(more: str, ours: Ours, tmp_path: Path) -> None:
    """The image and its data file are both written; qemu-img reads the pair."""
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    answer = ours.run("create", "-f", "qcow2", "-o", f"data_file={mine}.data{more}", str(mine), "1M")
    assert answer.rc == 0, explain(answer)
    make("create", "-q", "-f", "qcow2", "-o", f"data_file={theirs}.data{more}", str(theirs), "1M")
    got, expected = (qemu_img("info", "--output=json", str(path)) for path in (mine, theirs))
    assert got.rc == 0, got.stderr
    assert got.stdout.count(f"{mine}.data") == 1
    assert comparable(got.json, "filename", "data-file") == comparable(expected.json, "filename", "data-file")
    assert qemu_img("check", "-f", "qcow2", str(mine)).rc == 0
    make("compare", str(mine), str(theirs))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine.data", "theirs", "theirs.data"]


def test_existing_file_is_replaced_whole(ours: Ours, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"\xff" * (1 << 20))
    kept = ours.run("create", "-q", "-f", "qcow2", str(path), "1M")
    assert kept.rc == 1
    assert "it exists and is kept (--force replaces it)" in kept.stderr
    assert path.read_bytes() == b"\xff" * (1 << 20)
    assert ours.run("create", "-q", "--force", "-f", "qcow2", str(path), "1M").rc == 0
    assert qemu_img("check", "-f", "qcow2", str(path)).rc == 0
    refused = ours.run("create", "-q", "--force", "-f", "qcow2", "-o", "cluster_size=3", str(path), "1M")
    assert refused.rc in REFUSALS
    assert qemu_img("check", "-f", "qcow2", str(path)).rc == 0, "a refusal leaves the old file alone"


@pytest.mark.parametrize("case", [c for c in _cases() if c.driver != "raw"][::25], ids=lambda case: case.identifier)
def test_our_own_operations_agree(case: Case, ours: Ours, tmp_path: Path) -> None:
    path = tmp_path / "mine"
    assert ours.run("create", *_arguments(case, path)).rc == 0
    check = ours.run("check", "-f", case.driver, str(path))
    assert check.rc == 0, explain(check)
    mine = ours.run("info", "-f", case.driver, "--output=json", str(path))
    theirs = qemu_img("info", "-f", case.driver, "--output=json", str(path))
    assert comparable(mine.json) == comparable(theirs.json)
