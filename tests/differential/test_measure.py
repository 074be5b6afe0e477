"""`measure` gives qemu-img's two numbers, for raw and qcow2 targets, whatever the source."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from tests.differential.oracle import Answer, comparable, qemu_img
from tests.differential.ours import REFUSALS, Ours, explain
from tests.differential.recipes import CLUSTER_SIZES, SEED, Images, Recipe, all_recipes, probed_as

pytestmark = [pytest.mark.kvm, pytest.mark.qemu_img]

TARGETS: tuple[tuple[str, str], ...] = (
    ("raw", ""),
    ("qcow2", ""),
    *(("qcow2", f"cluster_size={size}") for size in CLUSTER_SIZES),
    *(("qcow2", f"refcount_bits={1 << order}") for order in range(7)),
    ("qcow2", "compat=0.10"),
    ("qcow2", "compat=0.10,cluster_size=512"),
    ("qcow2", "extended_l2=on"),
    ("qcow2", "extended_l2=on,cluster_size=16k"),
    ("qcow2", "preallocation=metadata"),
    ("qcow2", "preallocation=falloc,cluster_size=4096"),
    ("qcow2", "preallocation=full"),
    ("qcow2", "lazy_refcounts=on,refcount_bits=64,cluster_size=512"),
)

REFUSED_TARGETS: tuple[tuple[str, str], ...] = (
    ("qcow2", "cluster_size=511"),
    ("qcow2", "cluster_size=4M"),
    ("qcow2", "refcount_bits=3"),
    ("qcow2", "refcount_bits=128"),
    ("qcow2", "compat=0.10,refcount_bits=8"),
    ("qcow2", "compat=2.0"),
    ("qcow2", "compat=v2"),
    ("qcow2", "extended_l2=on,cluster_size=4096"),
    ("qcow2", "no_such_option=1"),
    ("qcow2", "preallocation=sideways"),
    ("raw", "cluster_size=512"),
    ("no-such-format", ""),
)


LARGE = ("raw-1T-hole", "vpc-dynamic-1T")


@dataclass(frozen=True)
class Case:
    recipe: Recipe
    target: str
    options: str

    @property
    def identifier(self) -> str:
        return f"{self.recipe.name}->{self.target}{'[' + self.options + ']' if self.options else ''}"


def _cases() -> list[Case]:
    """Every image to raw and to default qcow2, and to one further target chosen by the fixed seed."""
    rng = random.Random(SEED + 10)
    cases = []
    for recipe in all_recipes():
        cases.append(Case(recipe, "raw", ""))
        cases.append(Case(recipe, "qcow2", ""))
        target, options = rng.choice(TARGETS[2:])
        cases.append(Case(recipe, target, options))
        if recipe.name in LARGE:
            # Above the limit of --size: an image as source is measured all the same.
            cases.append(Case(recipe, "qcow2", "cluster_size=512,lazy_refcounts=off"))
    return cases


def _arguments(target: str, options: str) -> list[str]:
    return ["-O", target, *(["-o", options] if options else []), "--output=json"]


def _same(oracle: Answer, answer: Answer) -> None:
    if oracle.rc != 0:
        assert answer.rc in REFUSALS, f"qemu-img refused: {oracle.stderr}\nours: {explain(answer)}"
        return
    assert answer.rc == 0, explain(answer)
    assert comparable(answer.json) == comparable(oracle.json)


@pytest.mark.parametrize("case", _cases(), ids=lambda case: case.identifier)
def test_image(case: Case, ours: Ours, images: Images) -> None:
    path = str(images.path(case.recipe))
    common = ["-f", case.recipe.driver, *_arguments(case.target, case.options), path]
    _same(qemu_img("measure", *common), ours.run("measure", *common))


def _sizes() -> list[tuple[str, str, str]]:
    rng = random.Random(SEED + 11)
    sizes = ["0", "1", "511", "512", "513", "1M", "64M", "1G", "4095M", "1T", "2P", "128G", "137438953473", "1E"]
    sizes += ["9223372036854775807", "9223372036854774784", "9223372036854775808", "18446744073709551615", "8E", "-1"]
    sizes += ["2251799813685248", "2251799813685249", "1.5G", "1k", "3b"]
    sizes += [str(rng.randrange(1, 1 << rng.randrange(10, 50))) for _ in range(30)]
    return [(size, *rng.choice(TARGETS)) for size in sizes for _ in range(2)]


@pytest.mark.parametrize(("size", "target", "options"), _sizes())
def test_size(size: str, target: str, options: str, ours: Ours) -> None:
    common = ["--size", size, *_arguments(target, options)]
    _same(qemu_img("measure", *common), ours.run("measure", *common))


@pytest.mark.parametrize(("target", "options"), REFUSED_TARGETS)
def test_refused(target: str, options: str, ours: Ours) -> None:
    common = ["--size", "1M", *_arguments(target, options)]
    oracle = qemu_img("measure", *common)
    assert oracle.rc == 1, oracle.stdout
    assert ours.run("measure", *common).rc in REFUSALS


@pytest.mark.parametrize("case", _cases()[::40], ids=lambda case: case.identifier)
def test_human_text(case: Case, ours: Ours, images: Images) -> None:
    path = str(images.path(case.recipe))
    common = ["-f", case.recipe.driver, "-O", case.target, *(["-o", case.options] if case.options else []), path]
    assert ours.run("measure", *common).stdout == qemu_img("measure", *common).stdout


@pytest.mark.parametrize("case", _cases()[4::30], ids=lambda case: case.identifier)
def test_detected(case: Case, ours: Ours, images: Images) -> None:
    """Without `-f`, detection decides as qemu-img's does, but for fixed VHDs: docs/differences.json, fixed-vhd."""
    path = str(images.path(case.recipe))
    common = [*_arguments(case.target, case.options), path]
    _same(qemu_img("measure", *probed_as(case.recipe, path), *common), ours.run("measure", *common))
