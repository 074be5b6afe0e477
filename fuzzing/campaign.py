"""Campaigns: processes of :mod:`fuzzing.child`, what they found, and the corpus that they leave."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from fuzzing import targets
from fuzzing.console import temporary_folder
from fuzzing.minimise import minimise
from fuzzing.targets import Target

ROOT = Path(__file__).resolve().parent.parent

#: Seconds after which libFuzzer calls one input a hang.
TIMEOUT = 20
#: MiB of resident memory that end a process.
RSS_MIB = 2048

_COUNTERS = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)")
_EXECUTED = re.compile(r"stat::number_of_executed_units:\s+(\d+)")


@dataclass
class Result:
    """What a campaign did."""

    #: Inputs run, edges and features covered, inputs in the working corpus.
    executions: int = 0
    edges: int = 0
    features: int = 0
    inputs: int = 0
    #: Inputs that broke the invariant.
    artifacts: list[Path] = field(default_factory=list)
    #: The end of each log of a process that did not end well.
    trouble: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Nothing was found, and nothing went wrong."""
        return not self.artifacts and not self.trouble

    def line(self, name: str) -> str:
        """One line for people."""
        found = f"{len(self.artifacts)} findings" if self.artifacts else "trouble" if self.trouble else "no finding"
        return (
            f"{name}: {self.executions} executions, {self.edges} edges, {self.features} features, "
            f"{self.inputs} inputs: {found}"
        )


def name_of(data: bytes) -> str:
    """What libFuzzer calls an input."""
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def write_inputs(folder: Path, inputs: list[bytes]) -> None:
    """Each under its own name."""
    folder.mkdir(parents=True, exist_ok=True)
    for data in inputs:
        (folder / name_of(data)).write_bytes(data)


def _environment() -> dict[str, str]:
    """For children: our modules can be imported, and hash order is the same every time."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"}


def _command(target: Target, *options: str) -> list[str]:
    common = (f"-max_len={target.max_length}", f"-timeout={TIMEOUT}", f"-rss_limit_mb={RSS_MIB}")
    return [sys.executable, "-m", "fuzzing.child", target.name, *common, *options]


def _dictionary(target: Target, work: Path) -> list[str]:
    if not target.dictionary:
        return []
    path = work / "dictionary"
    words = ("".join(f"\\x{byte:02x}" for byte in word) for word in target.dictionary)
    path.write_text("".join(f'"{word}"\n' for word in words))
    return [f"-dict={path}"]


def _committed(target: Target) -> list[str]:
    folders = (targets.CORPUS / target.name, targets.FINDINGS / target.name)
    return [str(folder) for folder in folders if folder.is_dir()]


def run(
    target: Target, work: Path, *, seconds: int = 0, runs: int = -1, jobs: int = 1, seed: int = 0, prepare: str = ""
) -> Result:
    """Fuzz for some time or so many inputs, whichever ends first; what is found stays in ``work``.

    :param seconds: 0: until ``runs`` are done.
    :param runs: inputs of each process; -1: no end.
    :param jobs: processes, on one corpus.
    :param seed: of the random numbers, the next one for each process; 0: another each time.
    :param prepare: Python code that each process runs first, for tests of the harness.
    """
    corpus, artifacts = work / "corpus", work / "artifacts"
    for folder in (corpus, artifacts):
        folder.mkdir(parents=True, exist_ok=True)
    known = set(artifacts.iterdir())
    options = [f"-artifact_prefix={artifacts}/", "-print_final_stats=1", "-reload=1", *_dictionary(target, work)]
    options += [f"-max_total_time={seconds}"] * bool(seconds) + [f"-runs={runs}"] * (runs >= 0)
    # libFuzzer ends its process without Python's clean-up.
    with temporary_folder() as temporary:
        statuses = _wait(target, work, options, jobs, seed, prepare, {**_environment(), "TMPDIR": temporary})
    result = Result(artifacts=sorted(set(artifacts.iterdir()) - known))
    for job, status in enumerate(statuses):
        _add(result, (work / f"log-{job}").read_text(errors="replace"), status)
    return result


def _wait(
    target: Target, work: Path, options: list[str], jobs: int, seed: int, prepare: str, environment: dict[str, str]
) -> list[int]:
    """Start the processes and wait for them; their exit statuses."""
    children: list[subprocess.Popen[bytes]] = []
    for job in range(jobs):
        command = _command(target, *options, *([f"-seed={seed + job}"] if seed else []))
        if prepare:
            start = f"import sys; {prepare}; from fuzzing.child import main; main(sys.argv[1:])"
            command[1:3] = ["-c", start]
        with (work / f"log-{job}").open("wb") as log:
            children.append(
                subprocess.Popen(
                    [*command, str(work / "corpus"), *_committed(target)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=ROOT,
                    env=environment,
                )
            )
    try:
        return [child.wait() for child in children]
    finally:
        for child in children:
            if child.poll() is None:
                child.terminate()
                child.wait()


def _add(result: Result, log: str, status: int) -> None:
    result.executions += sum(map(int, _EXECUTED.findall(log)))
    for edges, features, inputs in _COUNTERS.findall(log)[-1:]:
        result.edges = max(result.edges, int(edges))
        result.features = max(result.features, int(features))
        result.inputs = max(result.inputs, int(inputs))
    if status != 0:
        result.trouble.append(f"a process ended with status {status}:\n{log[-3000:]}")


def merge(target: Target, work: Path) -> tuple[int, int]:
    """Put the fewest inputs that do what the committed and the working corpus do in the place of the former.

    Answers how many there are, and their bytes.
    """
    folders = (targets.CORPUS / target.name, work / "corpus")
    paths = sorted(path for folder in folders if folder.is_dir() for path in folder.iterdir())
    kept = minimise(target.run, [path.read_bytes() for path in paths])
    shutil.rmtree(targets.CORPUS / target.name, ignore_errors=True)
    write_inputs(targets.CORPUS / target.name, kept)
    return len(kept), sum(map(len, kept))
