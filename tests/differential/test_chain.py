"""With --chain the answers are qemu-img's, which follows by default: random chains of qcow2, raw and VHD files."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.differential.oracle import comparable, comparable_text, make, qemu_img, qemu_io
from tests.differential.ours import Ours, explain
from tests.differential.recipes import KIB, MIB, SEED

pytestmark = [pytest.mark.kvm, pytest.mark.qemu_img]

CHAINS = 24


@dataclass(frozen=True)
class Link:
    """One file of a chain."""

    name: str
    driver: str


def _writes(rng: random.Random, size: int, driver: str) -> list[str]:
    """Patterns, and for qcow2 zeroes, anywhere in the disk."""
    commands = []
    for _ in range(rng.randrange(6)):
        length = min(rng.choice((512, 4 * KIB, 64 * KIB, 200 * KIB, MIB)), size)
        start = rng.randrange(0, size - length + 1, 512)
        kinds = ["write -P 7", "write -P 7", "write -P 0"]
        if driver == "qcow2":
            kinds += ["write -z", "write -z -u", "discard"]
        commands.append(f"{rng.choice(kinds)} {start} {length}")
    return commands


def build(folder: Path, seed: int) -> list[Link]:
    """A chain of 2 to 5 files, the first image first; sizes of overlay and backing file do not depend on each other."""
    rng = random.Random(SEED + 7000 + seed)
    count = rng.randint(2, 5)
    (folder / "sub").mkdir()
    links: list[Link] = []
    for level in range(count):
        last = level == 0
        driver = rng.choice(("qcow2", "raw", "vpc")) if last else "qcow2"
        # Every other one in a directory below, so that names are relative to different places.
        name = f"sub/{level}.{driver}" if rng.random() < 0.4 and level != count - 1 else f"{level}.{driver}"
        size = rng.randrange(1, 5 * MIB // 512) * 512 if driver != "raw" else rng.randrange(1, 5 * MIB)
        options = []
        if driver == "qcow2":
            options.append(f"cluster_size={rng.choice((512, 4 * KIB, 64 * KIB))}")
            if rng.random() < 0.2:
                options = ["cluster_size=64k", "extended_l2=on"]
            if rng.random() < 0.2:
                options.append(f"data_file={folder / name}.data")
        elif driver == "vpc" and rng.random() < 0.3:
            options.append("subformat=fixed")
        path = folder / name
        backing = []
        if links:
            below = links[-1]
            up = "../" if "/" in name else ""
            form = ["-F", below.driver]
            backing = ["-b", f"{up}{below.name}", "-u", *form]
        made = ["-o", ",".join(options)] if options else []
        make("create", "-q", "-f", driver, *made, *backing, str(path), str(size))
        disk = json.loads(qemu_img("info", "--output=json", "-f", driver, str(path)).stdout)["virtual-size"]
        qemu_io(path, driver, *_writes(rng, min(size, disk), driver))
        links.append(Link(name, driver))
    return links[::-1]


@pytest.fixture(scope="module", params=range(CHAINS))
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Link]]:
    folder = tmp_path_factory.mktemp("chain")
    return folder, build(folder, request.param)


def test_info_of_the_whole_chain(chain: tuple[Path, list[Link]], ours: Ours) -> None:
    folder, links = chain
    path = str(folder / links[0].name)
    oracle = qemu_img("info", "--backing-chain", "--output=json", path)
    assert oracle.rc == 0, oracle.stderr
    answer = ours.run("info", "--backing-chain", "--output=json", path)
    assert answer.rc == 0, explain(answer)
    found, expected = json.loads(answer.stdout), json.loads(oracle.stdout)
    assert [comparable(one) for one in found] == [comparable(one) for one in expected]
    assert len(found) == len(links)
    text = qemu_img("info", "--backing-chain", path)
    answer = ours.run("info", "--backing-chain", path)
    assert comparable_text(answer.stdout) == comparable_text(text.stdout)
    # One image, and nothing else, without it.
    one = ours.run("info", "--chain", "--output=json", path)
    assert comparable(one.json) == comparable(expected[0])


@pytest.mark.parametrize("target", ["raw", "qcow2", "qcow2:cluster_size=512", "qcow2:cluster_size=2M"])
def test_measure(chain: tuple[Path, list[Link]], ours: Ours, target: str) -> None:
    folder, links = chain
    driver, _, options = target.partition(":")
    arguments = ["-O", driver, *(["-o", options] if options else []), "--output=json", str(folder / links[0].name)]
    oracle = qemu_img("measure", *arguments)
    assert oracle.rc == 0, oracle.stderr
    answer = ours.run("measure", "--chain", *arguments)
    assert answer.rc == 0, explain(answer)
    assert comparable(answer.json) == comparable(oracle.json)


def test_check(chain: tuple[Path, list[Link]], ours: Ours) -> None:
    folder, links = chain
    path = str(folder / links[0].name)
    oracle = qemu_img("check", "--output=json", path)
    answer = ours.run("check", "--chain", "--output=json", path)
    assert answer.rc == oracle.rc, explain(answer)
    assert comparable(answer.json) == comparable(oracle.json)


# --- what qemu-img refuses --------------------------------------------------------------------------------------------


def _overlay(path: Path, name: str, size: str = "1M") -> None:
    make("create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", "qcow2", str(path), size)


def _change_format(path: Path, change: tuple[bytes, bytes]) -> None:
    """Change the header extension that states the backing file's format, which qemu-img writes only as it should be."""
    data = path.read_bytes()
    old = bytes.fromhex("e2792aca00000005") + b"qcow2"
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, old.replace(*change)))


UNKNOWN_DRIVER = (b"qcow2", b"qcowx")
NO_DRIVER = (bytes.fromhex("e2792aca"), bytes.fromhex("12345678"))


@pytest.mark.parametrize("operation", ["info --backing-chain", "measure -O qcow2", "measure -O raw", "check"])
@pytest.mark.parametrize("broken", ["missing", "no image", "unknown driver", "truncated", "deep"])
def test_what_is_broken_below_is_an_error(tmp_path: Path, ours: Ours, operation: str, broken: str) -> None:
    top, base = tmp_path / "top", tmp_path / "base"
    _overlay(top, "base")
    if broken == "no image":
        base.write_bytes(bytes(4096))
    elif broken == "truncated":
        make("create", "-q", "-f", "qcow2", str(base), "1M")
        base.write_bytes(base.read_bytes()[:60])
    elif broken == "deep":
        _overlay(base, "gone")
    elif broken == "unknown driver":
        make("create", "-q", "-f", "qcow2", str(base), "1M")
        _change_format(top, UNKNOWN_DRIVER)
    words = operation.split()
    oracle = qemu_img(*words, str(top))
    answer = ours.run(words[0], *words[1:], *(["--chain"] if "--backing-chain" not in words else []), str(top))
    assert (answer.rc, oracle.rc) == (1, 1), explain(answer)
    assert answer.stdout == ""
    assert answer.stderr.count("\n") == 1


def test_a_backing_file_without_a_stated_format_is_probed(tmp_path: Path, ours: Ours) -> None:
    for driver in ("qcow2", "raw", "vpc"):
        base, top = tmp_path / f"base-{driver}", tmp_path / f"top-{driver}"
        make("create", "-q", "-f", driver, str(base), "2M")
        qemu_io(base, driver, "write -P 1 64k 300k")
        _overlay(top, base.name, "3M")
        _change_format(top, NO_DRIVER)
        arguments = ("measure", "-O", "qcow2", "--output=json", str(top))
        oracle = qemu_img(*arguments)
        assert comparable(ours.run(*arguments, "--chain").json) == comparable(oracle.json)
        listed = json.loads(qemu_img("info", "--backing-chain", "--output=json", str(top)).stdout)
        answer = json.loads(ours.run("info", "--backing-chain", "--output=json", str(top)).stdout)
        assert [comparable(one) for one in answer] == [comparable(one) for one in listed]
