"""`check` of qcow2: qemu-img's exit status and every one of its counters, on clean and on damaged images."""

from __future__ import annotations

import pytest

from tests.differential.corruptor import known_recipes, random_recipes
from tests.differential.oracle import Answer, comparable, qemu_img
from tests.differential.ours import Ours, explain
from tests.differential.recipes import Images, Recipe, all_recipes, qcow2_recipes

pytestmark = [pytest.mark.kvm, pytest.mark.qemu_img]

RANDOM = 160
#: Statuses with which `check` gives counters.
ANSWERED = (0, 2, 3)

#: docs/differences.json, check-without-key: qemu-img wants the key of an encrypted image before it looks at it.
OURS_ALONE = ("known-crypt-aes",)


def _by_name(recipe: Recipe) -> str:
    return recipe.name


def _same(oracle: Answer, answer: Answer) -> None:
    if oracle.timed_out:
        assert answer.rc in (*ANSWERED, 1), f"qemu-img gave no answer\nours: {explain(answer)}"
        return
    assert answer.rc == oracle.rc, f"qemu-img: {explain(oracle)}\nours: {explain(answer)}"
    if oracle.rc in ANSWERED:
        assert comparable(answer.json) == comparable(oracle.json), explain(oracle)


def _compare(recipe: Recipe, ours: Ours, images: Images, *options: str) -> None:
    path = str(images.path(recipe))
    common = [*options, "--output=json", path]
    _same(qemu_img("check", *common), ours.run("check", *common))


@pytest.mark.parametrize("recipe", list(qcow2_recipes()), ids=_by_name)
def test_clean(recipe: Recipe, ours: Ours, images: Images) -> None:
    _compare(recipe, ours, images, "-f", "qcow2")


@pytest.mark.parametrize("recipe", [r for r in known_recipes() if r.name not in OURS_ALONE], ids=_by_name)
def test_known_damage(recipe: Recipe, ours: Ours, images: Images) -> None:
    _compare(recipe, ours, images, "-f", "qcow2")


@pytest.mark.parametrize("recipe", [r for r in known_recipes() if r.name in OURS_ALONE], ids=_by_name)
def test_answers_where_qemu_cannot(recipe: Recipe, ours: Ours, images: Images) -> None:
    path = str(images.path(recipe))
    assert qemu_img("check", "-f", "qcow2", path).rc == 1
    assert ours.run("check", "-f", "qcow2", path).rc in ANSWERED


@pytest.mark.parametrize("recipe", list(random_recipes(RANDOM)), ids=_by_name)
def test_random_damage(recipe: Recipe, ours: Ours, images: Images) -> None:
    _compare(recipe, ours, images, "-f", "qcow2")


@pytest.mark.parametrize("recipe", list(qcow2_recipes())[::12], ids=_by_name)
def test_detected(recipe: Recipe, ours: Ours, images: Images) -> None:
    _compare(recipe, ours, images)


@pytest.mark.parametrize("recipe", [r for r in all_recipes() if r.driver == "raw"][::5], ids=_by_name)
def test_raw_has_no_checks(recipe: Recipe, ours: Ours, images: Images) -> None:
    path = str(images.path(recipe))
    assert qemu_img("check", "-f", "raw", path).rc == 63
    assert ours.run("check", "-f", "raw", path).rc == 63
