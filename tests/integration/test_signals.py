"""Signals that end the command: what was begun is cleaned up, one line says so, the status is the signal's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.build import compile_c
from tests.integration.command import COMMAND, environment, family, listing, wait_for_guest, wait_until

#: An operation that never ends.
SPIN = """
#include "pyvmm.h"
PYVMM_OPERATION(0);
int64_t _start(const struct pyvmm_table *table) { for (volatile uint64_t i = 0;; i++) (void)table; }
"""

MEANINGS = [
    (signal.SIGINT, 130, b"pyvmm: interrupted\n"),
    (signal.SIGTERM, 143, b"pyvmm: terminated\n"),
    (signal.SIGHUP, 129, b"pyvmm: hung up\n"),
]


@pytest.fixture(scope="module")
def spin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spin")
    (folder / "spin.c").write_text(SPIN)
    (folder / "spin.elf").write_bytes(compile_c(folder / "spin.c"))
    return folder / "spin.elf"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    path = folder / "new"
    path.write_bytes(b"old")
    return path


def ignore_hangup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@pytest.fixture
def running(spin: Path, target: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    """A `create` that replaces a file and never ends by itself."""
    words = ["run", "create", "--force", "--op-elf", str(spin), "--timeout", "60", str(target), "1M"]
    with subprocess.Popen(
        [*COMMAND, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        preexec_fn=getattr(request, "param", None),
    ) as process:
        wait_for_guest(process.pid)
        everybody = family(process.pid)
        yield process
        if process.poll() is None:
            process.kill()
        process.wait()
    for pid in everybody:
        wait_until(lambda pid=pid: not os.path.exists(f"/proc/{pid}"), "a process was left")  # type: ignore[misc]


@pytest.mark.kvm
@pytest.mark.parametrize(("number", "status", "line"), MEANINGS)
def test_ends_clean(
    number: signal.Signals, status: int, line: bytes, running: subprocess.Popen[bytes], target: Path
) -> None:
    running.send_signal(number)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out, err) == (status, b"", line)
    assert listing(target.parent) == {"new"}
    assert target.read_bytes() == b"old"


@pytest.mark.kvm
def test_more_signals_do_not_break_the_clean_up(running: subprocess.Popen[bytes], target: Path) -> None:
    running.send_signal(signal.SIGTERM)
    for _ in range(2000):
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            # Does nothing once the process has been waited for.
            running.send_signal(number)
    out, err = running.communicate(timeout=60)
    # Of signals that are pending together the one with the lowest number comes first.
    assert (running.returncode, err) in [(status, line) for _, status, line in MEANINGS]
    assert out == b""
    assert listing(target.parent) == {"new"}


@pytest.mark.kvm
@pytest.mark.parametrize("running", [ignore_hangup], indirect=True)
def test_what_is_ignored_stays_ignored(running: subprocess.Popen[bytes]) -> None:
    """As under nohup(1)."""
    running.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(0.3)
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 143


#: The console script, with Ctrl-C when a module is about to be imported.
EARLY = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from vmm.__main__ import entry
entry()
"""


@pytest.mark.parametrize(
    ("module", "status", "line"),
    [
        ("vmm.cli.main", -signal.SIGINT, b""),
        ("vmm.errors", -signal.SIGINT, b""),
        # Imported when the handlers are there.
        ("vmm.cli.run", 130, b"pyvmm: interrupted\n"),
        ("vmm.operations.measure", 130, b"pyvmm: interrupted\n"),
    ],
)
def test_while_the_command_is_being_loaded(module: str, status: int, line: bytes) -> None:
    command = [sys.executable, "-c", EARLY.format(module=module), "run", "measure", "--size", "1M"]
    done = subprocess.run(command, capture_output=True, check=False, env=environment())
    assert (done.returncode, done.stdout, done.stderr) == (status, b"", line)


#: A signal where Python cannot raise: in a finaliser.
FINALISER = """
import os, signal, sys
from vmm.cli import main, signals
class Ends:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        print("not reached")
def command(process=None):
    Ends()
    return 0
main.main = command
main.entry()
"""


def test_in_a_finaliser() -> None:
    done = subprocess.run([sys.executable, "-c", FINALISER], capture_output=True, check=False, env=environment())
    assert (done.returncode, done.stdout, done.stderr) == (143, b"", b"pyvmm: terminated\n")


#: More signals while the first one's clean-up is under way.
CLEANING = """
import os, signal
from vmm.cli import main
def command(process=None):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), number)
        print("cleaned up", flush=True)
main.main = command
main.entry()
"""


def test_while_cleaning_up() -> None:
    done = subprocess.run([sys.executable, "-c", CLEANING], capture_output=True, check=False, env=environment())
    assert (done.returncode, done.stdout, done.stderr) == (143, b"cleaned up\n", b"pyvmm: terminated\n")


def test_the_library_installs_nothing() -> None:
    program = (
        "import signal; names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)\n"
        "before = [*map(signal.getsignal, names)]\n"
        "import vmm; vmm.Machine; from vmm.cli.main import main; main(['--version'])\n"
        "assert before == [*map(signal.getsignal, names)]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
