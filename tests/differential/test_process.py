"""The real command in its own process: the same answers, the same exit statuses, several files in one go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.differential.corruptor import known_recipes
from tests.differential.oracle import comparable, make, qemu_img
from tests.differential.ours import explain, run_process
from tests.differential.recipes import Images, Recipe, all_recipes

pytestmark = [pytest.mark.kvm, pytest.mark.qemu_img]


#: qemu-img has checks for qcow2 only.
SAME = [
    (operation, recipe)
    for recipe in all_recipes()[::30]
    for operation in ("info", "measure", "check")
    if operation != "check" or recipe.driver == "qcow2"
]


@pytest.mark.parametrize(
    ("operation", "recipe"), SAME, ids=[f"{operation}-{recipe.name}" for operation, recipe in SAME]
)
def test_same_answer(operation: str, recipe: Recipe, images: Images) -> None:
    common = [operation, "-f", recipe.driver, "--output=json", str(images.path(recipe))]
    oracle, answer = qemu_img(*common), run_process("run", *common)
    assert answer.rc == oracle.rc, explain(answer)
    assert comparable(answer.json) == comparable(oracle.json)


@pytest.mark.parametrize("recipe", list(known_recipes())[1::20], ids=lambda recipe: recipe.name)
def test_exit_status_of_check(recipe: Recipe, images: Images) -> None:
    path = str(images.path(recipe))
    assert run_process("run", "check", path).rc == qemu_img("check", path).rc


def test_create(tmp_path: Path) -> None:
    mine = tmp_path / "mine.qcow2"
    answer = run_process("run", "create", "-f", "qcow2", "-o", "cluster_size=4k", str(mine), "10M")
    assert answer.rc == 0, explain(answer)
    assert qemu_img("check", str(mine)).rc == 0


def test_several_files_one_object_a_line(tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.qcow2" for index in range(3)]
    for index, path in enumerate(paths):
        make("create", "-q", "-f", "qcow2", str(path), str(index << 20))
    missing = tmp_path / "missing"
    answer = run_process("run", "measure", "--output=json", *(str(path) for path in paths), str(missing))
    assert answer.rc == 1, explain(answer)
    reports = [json.loads(line) for line in answer.stdout.splitlines()]
    assert len(reports) == 4
    expected = [qemu_img("measure", "-O", "raw", "--output=json", str(path)).json for path in paths]
    assert [report["required"] for report in reports[:3]] == [answer["required"] for answer in expected]
    assert reports[3]["error"]["code"] == "file"
