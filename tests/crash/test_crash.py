"""Every resize of the table, cut off everywhere: the image opens, its old content is whole.

``PYVMM_CRASH_ALL=1`` shows every state to qemu-img, not only the prefixes and a sample of the others.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.crash import disk
from tests.crash.cases import CASES, NO_LIMIT, Case
from tests.differential.oracle import qemu_img
from tools import build_guests

pytestmark = pytest.mark.qemu_img

TOOL = build_guests.GUEST / "tests" / "host_tool.zig"
ALL = os.environ.get("PYVMM_CRASH_ALL") == "1"
#: Every so many states that are no prefix are shown to qemu-img.
SAMPLE = 8
SEEDS = 2
BY_NAME = {case.name: case for case in CASES}
NAMES = [pytest.param(case.name, marks=[pytest.mark.kvm] if case.secret else []) for case in CASES]


@pytest.fixture(scope="session")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The formats without the machine."""
    output = tmp_path_factory.mktemp("host-tool") / "host_tool"
    build_guests.zig(
        "build-exe", "-fsingle-threaded", "--name", "host_tool",
        f"-femit-bin={output}", *build_guests.module_arguments(TOOL, ("formats", "block", "messages", "cbor")),
    )  # fmt: skip
    return output


class Judge:
    """Looks at the states of one case."""

    def __init__(self, tool: Path, case: Case, folder: Path) -> None:
        self.tool = tool
        self.case = case
        self.path = folder / "state"
        self.raw = folder / "raw"
        self.image = folder / "image"
        case.build(self.image)
        self.original = self.image.read_bytes()
        self.content = self.read(self.image)
        assert self.status() == 0 or self.status() in case.checked
        self.steps = disk.plan(tool, case.driver, self.image, case.size, *case.words)
        whole = bytearray(self.original)
        for step in self.steps:
            step.apply(whole)
        self.final = bytes(whole)
        self.path.write_bytes(self.final)
        self.new_size = len(self.read(self.path))
        self.kept = min(len(self.content), self.new_size)
        self.beside = [self.case.beside(path) for path in (self.image, self.path)] if self.case.beside else []
        # What qemu-img reads where we have no key.
        self.clear = self.converted(self.image, "before") if case.secret and shutil.which("qemu-img") else None

    def read(self, path: Path) -> bytes:
        """The content by our reader."""
        return self.case.read(self.tool, self.case.driver, path, self.case.limit)

    def status(self, path: Path | None = None) -> int:
        """What our check says."""
        command = [str(self.tool), "check", self.case.driver, str(path or self.image)]
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode

    def ours(self, name: str) -> None:
        """Our check, our content."""
        assert self.status(self.path) in (0, *self.case.checked), name
        self._content(self.read(self.path), self.content, name)
        if self.case.beside is not None:
            assert self.case.beside(self.path) in self.beside, name

    def theirs(self, name: str) -> None:
        """qemu-img's check, qemu-img's content."""
        if self.case.qemu is None or shutil.which("qemu-img") is None:
            return
        if self.case.qemu_check:
            checked = qemu_img("check", "-f", self.case.qemu, str(self.path))
            assert checked.rc in (0, 3), f"{name}: {checked.stdout}{checked.stderr}"
        self._content(self.converted(self.path, name), self.clear or self.content, name)

    def converted(self, path: Path, name: str) -> bytes:
        """The content by qemu-img."""
        driver: dict[str, object] = {"driver": self.case.qemu, "file": {"driver": "file", "filename": str(path)}}
        key: tuple[str, ...] = ()
        if self.case.secret is not None:
            driver["key-secret"] = "s"
            key = ("--object", f"secret,id=s,data={self.case.secret}")
        if self.case.limit < NO_LIMIT:
            told = qemu_img("info", "-f", str(self.case.qemu), "--output=json", str(path))
            assert told.rc == 0, f"{name}: {told.stderr}"
            driver = {"driver": "raw", "size": min(told.json["virtual-size"], self.case.limit), "file": driver}
        converted = qemu_img("convert", *key, "-O", "raw", f"json:{json.dumps(driver)}", str(self.raw))
        assert converted.rc == 0, f"{name}: {converted.stderr}"
        return self.raw.read_bytes()

    def _content(self, found: bytes, before: bytes, name: str) -> None:
        sector = 512
        sizes = {len(before), self.new_size, -(-self.new_size // sector) * sector}
        assert len(found) in sizes, f"{name}: {len(found)} bytes"
        assert found[: self.kept] == before[: self.kept], f"{name}: the content is another one"
        if self.case.zero_when_new and len(found) == self.new_size and before is self.content:
            assert not any(found[self.kept :]), f"{name}: new space is not zero"


@pytest.fixture
def judge(request: pytest.FixtureRequest, tool: Path, tmp_path: Path) -> Judge:
    """For the case that the test names."""
    return Judge(tool, BY_NAME[request.param], tmp_path)


@pytest.mark.parametrize("judge", NAMES, indirect=True)
def test_the_whole_plan(judge: Judge) -> None:
    """The new size, zeroes behind the old content, nothing lost, for both readers; so the others can fail."""
    judge.path.write_bytes(judge.final)
    assert judge.status(judge.path) in judge.case.finished
    found = judge.read(judge.path)
    assert len(found) == judge.new_size != len(judge.content)
    assert found[: judge.kept] == judge.content[: judge.kept]
    assert not any(found[judge.kept :])
    judge.theirs("whole")


@pytest.mark.parametrize("judge", NAMES, indirect=True)
def test_cut_off_anywhere(judge: Judge) -> None:
    seen: dict[bytes, bool] = {}
    for seed in range(SEEDS):
        for number, (name, content) in enumerate(disk.states(judge.original, judge.steps, seed)):
            key = hashlib.sha256(content).digest()
            show = ALL or name.startswith("steps") or number % SAMPLE == 0
            if seen.get(key, False) or (key in seen and not show):
                continue
            judge.path.write_bytes(content)
            if key not in seen:
                judge.ours(name)
            if show:
                judge.theirs(name)
            seen[key] = show
    assert len(seen) > 1
