"""Kills at moments spread over a `create`: the old file or the whole new one, nothing else, nobody left.

``PYVMM_KILL_ROUNDS`` says how many rounds (60 unless set).  The same number gives the same rounds: recipe, place,
victim, and how far into the run, whose length is measured first.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import vmm
from tests.integration.command import COMMAND, environment, family, has_vcpu, listing, wait_until
from tests.integration.mounts import Stage

pytestmark = pytest.mark.kvm

ROUNDS = int(os.environ.get("PYVMM_KILL_ROUNDS", "60"))
#: Every process of a round has this in its environment.
MARK = "PYVMM_TEST_ROUND"
OLD = b"what was there before\n" * 1000

#: What is made; each takes a while, in a way of its own.
RECIPES = (
    ["-f", "raw", "-o", "preallocation=full", "SIZE=8M"],
    ["-f", "raw", "-o", "preallocation=falloc", "SIZE=8M"],
    ["-f", "vpc", "-o", "subformat=fixed", "SIZE=8M"],
    ["-f", "qcow2", "-o", "preallocation=metadata,cluster_size=512", "SIZE=32M"],
    ["-f", "qcow2", "-o", "preallocation=full", "SIZE=4M"],
    ["-f", "qcow2", "SIZE=1G"],
)


def the_command(process: subprocess.Popen[bytes]) -> None:
    process.kill()


def its_group(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)


def what_runs_the_machine(process: subprocess.Popen[bytes]) -> None:
    """The command itself, or a process that it has for this."""
    for pid in filter(has_vcpu, family(process.pid)):
        os.kill(pid, signal.SIGKILL)


def politely(number: signal.Signals) -> Callable[[subprocess.Popen[bytes]], None]:
    return lambda process: process.send_signal(number)


@dataclass(frozen=True)
class Victim:
    """Who is ended how, and with which statuses the command may end then, besides success when it was faster."""

    strike: Callable[[subprocess.Popen[bytes]], None]
    #: None: any.
    statuses: tuple[int, ...] | None


#: Negative statuses of signals that can be caught: before there are handlers.
VICTIMS = {
    "command": Victim(the_command, (-signal.SIGKILL,)),
    "group": Victim(its_group, (-signal.SIGKILL,)),
    "machine": Victim(what_runs_the_machine, None),
    "SIGTERM": Victim(politely(signal.SIGTERM), (143, -signal.SIGTERM)),
    "SIGINT": Victim(politely(signal.SIGINT), (130, -signal.SIGINT, 1)),
    "SIGHUP": Victim(politely(signal.SIGHUP), (129, -signal.SIGHUP)),
}


@dataclass(frozen=True)
class Whole:
    """What a recipe makes when nobody interferes."""

    digest: str
    seconds: float


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Place:
    """A folder for targets.

    :param folder: as the command names it.
    :param seen: as this process does.
    :param prefix: what runs the command there.
    """

    def __init__(self, folder: Path, seen: Path, prefix: list[str]) -> None:
        self.folder = folder
        self.seen = seen
        self._prefix = prefix
        self._whole: dict[int, Whole] = {}

    def start(self, recipe: int, mark: str) -> subprocess.Popen[bytes]:
        *words, size = RECIPES[recipe]
        # Fixed time and identity: the same bytes each time.
        fixed = ["--unix-time", "1700000000", "--uuid", "00112233445566778899aabbccddeeff"]
        target = str(self.folder / "image")
        return subprocess.Popen(
            [*self._prefix, *COMMAND, "run", "create", "--force", *words, *fixed, target, size.removeprefix("SIZE=")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**environment(), MARK: mark},
            start_new_session=True,
        )

    def whole(self, recipe: int) -> Whole:
        """Run a recipe to its end, once."""
        if recipe not in self._whole:
            started = time.monotonic()
            with self.start(recipe, "whole") as process:
                _, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
            self._whole[recipe] = Whole(digest_of(self.seen / "image"), time.monotonic() - started)
            (self.seen / "image").unlink()
        return self._whole[recipe]


@pytest.fixture(scope="module")
def nameless(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Where a file needs no name while it is written."""
    folder = tmp_path_factory.mktemp("nameless")
    return Place(folder, folder, [])


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Where it needs one, and a guard."""
    with Stage(tmp_path_factory.mktemp("named")) as stage:
        mounted = stage.faults(stage.folder / "target")
        with pytest.raises(OSError, match="not supported"):
            os.open(stage.path(mounted.on), os.O_TMPFILE | os.O_RDWR)
        yield Place(mounted.on, stage.path(mounted.folder), stage.inside())


def marked(mark: str) -> list[str]:
    """Processes of a round that are still there."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in path.read_bytes().split(b"\0"):
                found.append(path.parent.name)
        except OSError:
            continue
    return found


#: What is resized, from which size to which; see RECIPES.
RESIZES: tuple[tuple[list[str], list[str]], ...] = (
    (["-f", "qcow2", "-o", "cluster_size=512"], ["1G"]),
    (["-f", "qcow2", "-o", "cluster_size=512,preallocation=metadata"], ["--shrink", "1M"]),
    (["-f", "qcow2"], ["--preallocation=full", "48M"]),
    (["-f", "vpc"], ["700G"]),
    (["-f", "vmdk"], ["1T"]),
    (["-f", "vhdx", "-o", "block_size=1M"], ["1T"]),
)


@pytest.mark.parametrize("round_", range(ROUNDS // 3))
def test_kill_resize(round_: int, tmp_path: Path) -> None:
    """In place: the image opens, is consistent, and has its old size or the new one."""
    made, words = RESIZES[round_ % len(RESIZES)]
    name = list(VICTIMS)[(round_ // 2 + round_) % len(VICTIMS)]
    image = tmp_path / "image"
    with vmm.Machine() as machine:
        subprocess.run([*COMMAND, "run", "create", "-q", *made, image, "16M"], check=True, timeout=60)
        original = image.read_bytes()
        sizes = [machine.info(image).virtual_size]
        command = [*COMMAND, "run", "resize", *words[:-1], str(image), words[-1]]
        started = time.monotonic()
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        seconds = time.monotonic() - started
        sizes.append(machine.info(image).virtual_size)
        image.write_bytes(original)
        mark = f"{os.getpid()}-resize-{round_}"
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**environment(), MARK: mark},
            start_new_session=True,
        ) as process:
            # The first half is the start of two interpreters.
            time.sleep(seconds * (0.5 + 0.5 * ((round_ * 0.6180339887 + 0.31) % 1.0)))
            VICTIMS[name].strike(process)
            out, err = process.communicate(timeout=60)
        wait_until(lambda: not marked(mark), f"left behind: {marked(mark)}")
        statuses = VICTIMS[name].statuses
        assert statuses is None or process.returncode in (0, *statuses), (process.returncode, out, err)
        assert listing(tmp_path) == {"image"}
        size = machine.info(image).virtual_size
        assert size in (sizes[1:] if process.returncode == 0 else sizes)
        # The copies of a VHD's footer are two sectors, and so are a VMDK's header and descriptor: between them is a
        # moment.  Of a VHDX it is a table that is half written.
        fine = (0, 3) if made[1] == "qcow2" else (0, 2, 3)
        assert machine.check(image).exit_status in fine
        # The lock went with the process.
        if size == sizes[0]:
            assert machine.resize(image, words[-1], shrink=True).virtual_size == sizes[1]


@pytest.mark.parametrize("place", ["nameless", "named"])
@pytest.mark.parametrize("round_", range(ROUNDS // 2))
def test_kill(place: str, round_: int, request: pytest.FixtureRequest) -> None:
    where: Place = request.getfixturevalue(place)
    recipe = round_ % len(RECIPES)
    name = list(VICTIMS)[(round_ // 2 + round_) % len(VICTIMS)]
    existing = round_ % 4 < 2
    whole = where.whole(recipe)
    # The golden ratio spreads any number of rounds evenly; the end, where files are put in place, gets more of them.
    share = (round_ * 0.6180339887 + 0.31) % 1.0
    moment = whole.seconds * (share if round_ % 3 else 0.7 + 0.35 * share)
    mark = f"{os.getpid()}-{place}-{round_}"
    target = where.seen / "image"
    for left in where.seen.iterdir():
        left.unlink()  # of a round that failed
    if existing:
        target.write_bytes(OLD)
    descriptors = len(os.listdir("/proc/self/fd"))

    with where.start(recipe, mark) as process:
        time.sleep(moment)
        VICTIMS[name].strike(process)
        out, err = process.communicate(timeout=60)
    wait_until(lambda: not marked(mark), f"left behind: {marked(mark)}")

    statuses = VICTIMS[name].statuses
    assert statuses is None or process.returncode in (0, *statuses), (process.returncode, out, err)
    if b"Traceback" in err:
        # Ctrl-C before the first line of ours: the interpreter's own start cannot be helped.
        assert name == "SIGINT", err
        frames = [line for line in err.splitlines() if b"/vmm/" in line]
        assert all(b"/vmm/__main__.py" in line or b"/vmm/__init__.py" in line for line in frames), err
    allowed = {"image"} if existing or process.returncode == 0 else set()
    # The file system in user space may still be at it.
    wait_until(lambda: allowed <= listing(where.seen) <= {"image"}, f"{name} left {listing(where.seen)}")
    if target.exists():
        old = hashlib.sha256(OLD).hexdigest() if existing else whole.digest
        assert digest_of(target) in ({whole.digest} if process.returncode == 0 else {old, whole.digest})
        target.unlink()
    assert len(os.listdir("/proc/self/fd")) == descriptors
