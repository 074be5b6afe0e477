"""Every limit is hit exactly where it says, and its error names the option and the value, in text and JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import vmm
from tests.integration.command import listing, run
from tests.machines import job
from vmm.boundary import Limits, Usage
from vmm.machine.runner import MachineRunner
from vmm.record import replace
from vmm.sandbox.broker import JailedRunner

if TYPE_CHECKING:
    from vmm.boundary import Event, Job, Outcome

pytestmark = pytest.mark.kvm

MIB = 1 << 20


class Watched(MachineRunner):
    """Remembers what the last run used."""

    usage = Usage()
    lengths: tuple[int, ...] = ()

    def run(self, job: Job, on_event: Callable[[Event], None]) -> Outcome:
        outcome = super().run(job, on_event)
        self.usage = outcome.usage
        self.lengths = outcome.device_lengths
        return outcome


@pytest.fixture(scope="module")
def runner() -> Iterator[Watched]:
    with Watched() as made:
        yield made


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of 8 MiB in the smallest clusters: `check` reads and remembers a lot."""
    path = tmp_path_factory.mktemp("image") / "image.qcow2"
    vmm.create(path, "qcow2", 400 * MIB, cluster_size=512, preallocation="metadata")
    return path


def used(runner: Watched, limit: str) -> int:
    """What the last run used of a limit."""
    return {
        "max-read": runner.usage.read_bytes,
        "max-write": runner.usage.write_bytes,
        "max-messages": runner.usage.messages,
        "max-report": runner.usage.report_bytes,
        "max-output": max(runner.lengths, default=0),
    }[limit]


CREATE = ["create", "-f", "qcow2", "new", "1G"]
CHECK = ["check"]


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("max-read", CHECK),
        ("max-read", ["measure", "-O", "qcow2"]),
        ("max-write", CREATE),
        ("max-messages", CREATE),
        ("max-report", CREATE),
        ("max-output", CREATE),
        ("max-output", ["create", "-f", "vpc", "-o", "subformat=fixed", "new", "10M"]),
        ("max-output", ["create", "new", "10M"]),
        ("max-output", ["create", "-f", "qcow2", "-o", "data_file=data", "new", "10M"]),
    ],
)
def test_hit_exactly_where_it_says(
    limit: str, words: list[str], runner: Watched, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    operands = [] if words[0] == "create" else [str(image)]

    def go(value: int | None) -> None:
        limits = Limits() if value is None else replace(Limits(), **{limit.replace("-", "_"): value})
        machine = vmm.Machine(limits=limits, runner=runner)
        if words[0] == "create":
            options: dict[str, Any] = dict(word.split("=") for word in words if "=" in word)
            name = words[words.index("-f") + 1] if "-f" in words else "raw"
            machine.create("new", name, words[-1], force=True, **options)
        else:
            machine.run(words[0], operands[0])

    go(None)
    amount = used(runner, limit)
    assert amount > 0
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.stat().st_size < 16 * MIB}
    go(amount)
    with pytest.raises(vmm.LimitReachedError) as caught:
        go(amount - 1)
    assert caught.value.details["limit"] == limit
    assert caught.value.details["value"] == amount - 1
    assert {name: (tmp_path / name).stat().st_size for name in listing(tmp_path)} == {
        name: len(content) for name, content in made.items()
    }
    for path in tmp_path.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [
        ("max-read", 511, CHECK),
        ("max-write", 511, CREATE),
        ("max-messages", 0, CREATE),
        ("max-report", 10, CREATE),
        ("max-output", 196_608, CREATE),
    ],
)
def test_named_by_the_command(limit: str, value: int, words: list[str], image: Path, tmp_path: Path) -> None:
    operands = [] if words is CREATE else [str(image)]
    name = operands[0] if operands else "new"
    message = f"the run passed its limit: --{limit} is {value}"
    done = run("run", words[0], f"--{limit}", str(value), *words[1:], *operands, cwd=tmp_path)
    assert done.status == 75, done
    assert done.one_line() == f"pyvmm: {name}: {message}\n"
    done = run("run", words[0], f"--{limit}={value}", "--output=json", *words[1:], *operands, cwd=tmp_path)
    assert done.status == 75
    error = done.json["error"]
    assert (error["code"], error["message"], error["exit-status"]) == ("limit", message, 75)
    assert (error["limit"], error["value"], error["file"]) == (limit, value, name)
    assert listing(tmp_path) == set()


def test_timeout(image: Path) -> None:
    done = run("run", "check", "--timeout", "0.005", str(image))
    assert done.status == 75
    assert done.one_line() == f"pyvmm: {image}: the run passed its limit: --timeout is 0.005\n"
    error = run("run", "check", "--timeout=0.005", "--output=json", str(image)).json["error"]
    assert (error["limit"], error["value"], error["exit-status"]) == ("timeout", 0.005, 75)
    assert error["message"] == "the run passed its limit: --timeout is 0.005"


def test_memory(image: Path) -> None:
    """In steps of 2 MiB, which is what the option is rounded up to."""
    megabytes = 2
    while (done := run("run", "check", "--max-memory", f"{megabytes}M", str(image))).status == 75:
        message = f"the run passed its limit: --max-memory is {megabytes * MIB}: qcow2: this image needs "
        assert done.one_line().startswith(f"pyvmm: {image}: {message}")
        error = run("run", "check", f"--max-memory={megabytes}M", "--output=json", str(image)).json["error"]
        assert error["message"].startswith(message)
        assert (error["code"], error["exit-status"], error["guest-code"]) == ("limit", 75, "no-memory")
        assert (error["limit"], error["value"], error["file"]) == ("max-memory", megabytes * MIB, str(image))
        megabytes += 2
    assert done.status == 0
    assert 2 < megabytes < 64


@pytest.mark.parametrize("seconds", ["0.0001", "0.00001", "1e-9", "0.1", "0.15"])
def test_every_timeout_is_said_as_it_was_given(seconds: str) -> None:
    """Also one that is no fraction of small numbers, and through the process border."""
    with JailedRunner() as runner:
        outcome = runner.run(job("spin", timeout=float(seconds)), lambda _: None)
    assert outcome.failure is not None
    assert (outcome.failure.limit, outcome.failure.limit_value) == ("timeout", float(seconds))
