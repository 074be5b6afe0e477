"""`info` gives qemu-img's JSON and its human text, for every image of the matrix and for damaged ones."""

from __future__ import annotations

import pytest

from tests.differential.corruptor import known_recipes
from tests.differential.oracle import comparable, comparable_text, qemu_img
from tests.differential.ours import Ours, explain
from tests.differential.recipes import Images, Recipe, all_recipes, by_writer, probed_as, raw_recipes, vpc_recipes
from tests.images import qcow2_writer as q
from tests.images import vhd_writer

pytestmark = [pytest.mark.kvm, pytest.mark.qemu_img]


#: Names in these hold control characters, which qemu-img prints raw and we never do.
ESCAPED = ("info-snapshot-names", "info-bitmap-names")


def _by_name(recipe: Recipe) -> str:
    return recipe.name


def _named() -> list[Recipe]:
    """References of every kind, and names that are no plain text: none of them may be followed or break the output."""
    images: dict[str, q.Qcow2] = {
        "snapshot-names": q.Qcow2(
            1 << 20, snapshots=(q.Snapshot("1", 'quote " back \\ slash'), q.Snapshot("22", "line\nbreak"))
        ),
        "snapshot-large-state": q.Qcow2(1 << 20, snapshots=(q.Snapshot("1", "state", vm_state_size=5 << 30),)),
        "snapshot-old-date": q.Qcow2(1 << 20, snapshots=(q.Snapshot("1", "dawn", date_sec=0, vm_clock_nsec=0),)),
        "bitmap-names": q.Qcow2(1 << 20, bitmaps=(q.Bitmap("Müller", 16, 2), q.Bitmap("tab\there", 20, 0))),
        "lazy": q.Qcow2(1 << 20, compatible=1),
    }
    recipes = [by_writer(f"info-{name}", "qcow2", image) for name, image in images.items()]
    parent = vhd_writer.Vhd(
        4 << 20,
        vhd_writer.DIFFERENCING,
        parent_name="C:\\parent.vhd",
        locators=(vhd_writer.Locator(b"W2ku", "C:\\parent.vhd".encode("utf-16-le")),),
        blocks={1: b"x"},
    )
    return [*recipes, by_writer("info-vpc-differencing", "vpc", parent)]


@pytest.mark.parametrize("recipe", [*all_recipes(), *_named()], ids=_by_name)
def test_json(recipe: Recipe, ours: Ours, images: Images) -> None:
    common = ["-f", recipe.driver, "--output=json", str(images.path(recipe))]
    oracle, answer = qemu_img("info", *common), ours.run("info", *common)
    assert oracle.rc == 0, oracle.stderr
    assert answer.rc == 0, explain(answer)
    assert comparable(answer.json) == comparable(oracle.json)
    kept = [key for key in answer.json if key in oracle.json]
    assert kept == [key for key in oracle.json if key in answer.json], "order of keys"


@pytest.mark.parametrize("recipe", [*all_recipes()[::2], *(r for r in _named() if r.name not in ESCAPED)], ids=_by_name)
def test_human_text(recipe: Recipe, ours: Ours, images: Images) -> None:
    common = ["-f", recipe.driver, str(images.path(recipe))]
    answer = ours.run("info", *common)
    assert answer.rc == 0, explain(answer)
    assert comparable_text(answer.stdout) == comparable_text(qemu_img("info", *common).stdout)


@pytest.mark.parametrize("recipe", [r for r in all_recipes()[1::4] if r.name != "raw-hole-0"], ids=_by_name)
def test_detected(recipe: Recipe, ours: Ours, images: Images) -> None:
    """Without `-f`.  A fixed VHD is raw for qemu-img's probe and vpc for ours: docs/differences.json, fixed-vhd."""
    path = str(images.path(recipe))
    found = qemu_img("info", *probed_as(recipe, path), "--output=json", path).json
    assert comparable(ours.run("info", "--output=json", path).json) == comparable(found)


@pytest.mark.parametrize("recipe", list(known_recipes()), ids=_by_name)
def test_damaged(recipe: Recipe, ours: Ours, images: Images) -> None:
    common = ["-f", recipe.driver, "--output=json", str(images.path(recipe))]
    oracle, answer = qemu_img("info", *common), ours.run("info", *common)
    assert answer.rc == oracle.rc, f"qemu-img: {explain(oracle)}\nours: {explain(answer)}"
    if oracle.rc == 0:
        assert comparable(answer.json) == comparable(oracle.json)


@pytest.mark.parametrize("recipe", [*list(raw_recipes())[::9], *list(vpc_recipes())[::9]], ids=_by_name)
def test_children_of_newer_releases(recipe: Recipe, ours: Ours, images: Images) -> None:
    """`--qemu-version 8.2` adds the file node as `children`; everything else stays as in 7.2."""
    common = ["-f", recipe.driver, "--output=json", str(images.path(recipe))]
    answer = ours.run("info", "--qemu-version", "8.2.0", *common)
    assert answer.rc == 0, explain(answer)
    (child,) = answer.json["children"]
    assert child["name"] == "file"
    assert child["info"]["format"] == "file"
    assert comparable(answer.json, "children") == comparable(qemu_img("info", *common).json)
