"""The real gdb on ``pyvmm run --gdb``: by the command that it prints, in batch mode."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.build import compile_c
from tests.integration.command import COMMAND, Done, environment, run

pytestmark = [pytest.mark.kvm, pytest.mark.gdb]

SOURCE = Path(__file__).resolve().parent / "guests" / "debuggee.c"
ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60
WAITING = re.compile(r"pyvmm: waiting for gdb on port \d+ of 127\.0\.0\.1:\n  (gdb .*)\n")


def line_of(text: str) -> int:
    """The line of the source that holds some text."""
    return next(n for n, line in enumerate(SOURCE.read_text().splitlines(), 1) if text in line)


class Waiting:
    """A command that waits for gdb."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
        )
        assert self.process.stderr is not None
        self.said = self.process.stderr.readline() + self.process.stderr.readline()
        found = WAITING.fullmatch(self.said)
        assert found is not None, self.said
        self.gdb = shlex.split(found[1])

    def start(self, *commands: str) -> subprocess.Popen[str]:
        """gdb as it was printed, with commands of the test's."""
        extra = [word for command in commands for word in ("-ex", command)]
        words = [self.gdb[0], "-nx", "-batch", "-iex", "set style enabled off", "-iex", "set width 0", *self.gdb[1:]]
        environment = {**os.environ, "DEBUGINFOD_URLS": "", "LC_ALL": "C.UTF-8"}
        return subprocess.Popen(
            [*words, *extra], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=environment,
        )  # fmt: skip

    def debug(self, *commands: str) -> str:
        """What gdb says to these commands."""
        with self.start(*commands) as process:
            text, _ = process.communicate(timeout=PATIENCE)
        return text

    def done(self) -> Done:
        """How the command ended; its stderr without the lines about gdb."""
        out, err = self.process.communicate(timeout=PATIENCE)
        assert "Traceback" not in err, err
        return Done(self.process.returncode, out, err)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "image"
    path.write_bytes(bytes(4096))
    return str(path)


class Debuggees:
    """Compiled guests, and commands that wait for gdb."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.waiting: list[Waiting] = []

    def elf(self, *defines: str) -> str:
        path = self.folder / f"debug gee{'-'.join(defines)}.elf"
        path.write_bytes(compile_c(SOURCE, defines=defines))
        return str(path)

    def wait(self, *words: str) -> Waiting:
        return self.wait_for("run", *words)

    def wait_for(self, *words: str) -> Waiting:
        made = Waiting(*words, "--gdb", "0")
        self.waiting.append(made)
        return made


@pytest.fixture
def debuggees(tmp_path: Path) -> Iterator[Debuggees]:
    made = Debuggees(tmp_path)
    yield made
    for waiting in made.waiting:
        waiting.close()


def test_a_session(debuggees: Debuggees, image: str) -> None:
    """Break by name, look, step, change, and go on to the same answer as without gdb."""
    elf = debuggees.elf()
    plain = run("run", elf, image)
    assert plain.json["fields"] == {"value": 0, "letter": "p"}
    waiting = debuggees.wait(elf, image)
    text = waiting.debug(
        "info symbol $pc",
        "break add",
        "continue",
        "backtrace",
        "info args",
        "next",
        "next",
        "print sum",
        "print counter",
        "x/s &word",
        "stepi",
        "finish",
        "info registers rip eflags",
        "delete",
        "continue",
    )
    assert "_start in section .text" in text
    assert re.search(rf"Breakpoint 1, add \(left=10, right=1\) at .*debuggee\.c:{line_of('sum = left')}\n", text)
    assert re.search(rf"#1 +0x[0-9a-f]+ in work \(start=10\) at .*:{line_of('total = add')}\n", text)
    assert re.search(rf"#2 +0x[0-9a-f]+ in _start \(table=0x300000.*\) at .*:{line_of('= work(10)')}\n", text)
    assert "left = 10\nright = 1\n" in text
    assert f"{line_of('counter += sum')}\t    counter += sum;\n" in text
    assert f"{line_of('return sum')}\t    return sum;\n" in text
    assert "$1 = 11\n$2 = 11\n" in text
    assert re.search(r'<word>:\s+"planted"', text)
    assert "Value returned is $3 = 11\n" in text
    assert re.search(r"rip +0x[0-9a-f]+ +0x[0-9a-f]+ <work\+\d+>\n", text)
    assert re.search(r"eflags +0x[0-9a-f]+ +\[[A-Z ]*\]\n", text)
    assert " TF " not in text
    assert "exited normally" in text
    done = waiting.done()
    assert (done.status, done.out, done.err) == (plain.status, plain.out, "")


def test_changes(debuggees: Debuggees, image: str) -> None:
    """A variable, memory, and a register."""
    waiting = debuggees.wait(debuggees.elf(), image)
    text = waiting.debug(
        "tbreak add if right == 3",
        "continue",
        "set var left = 20",
        "set var word[0] = 'q'",
        "finish",
        "set $rax = 5",
        "print $rax",
        "print add(1, 2)",
        "continue",
    )
    assert "add (left=13, right=3)" in text
    assert "Value returned is $1 = 23" in text
    assert "$2 = 5\n$3 = 3\n" in text
    assert waiting.done().json["fields"] == {"value": 5, "letter": "q"}


def test_a_watched_variable(debuggees: Debuggees, image: str) -> None:
    """gdb steps instruction by instruction then."""
    waiting = debuggees.wait(debuggees.elf(), image)
    text = waiting.debug(
        "break work", "continue", "set can-use-hw-watchpoints 0", "watch counter", "continue", "detach"
    )
    assert "Old value = 0\nNew value = 11\n" in text
    assert waiting.done().json["fields"] == {"value": 0, "letter": "p"}


@pytest.mark.parametrize("command", ["c", "detach", "kill"])
def test_a_fault(debuggees: Debuggees, image: str, command: str) -> None:
    """A page fault stops at its line, and ends the run as it would have."""
    elf = debuggees.elf("END=2")
    plain = run("run", elf, image)
    assert plain.status == 70
    waiting = debuggees.wait(elf, image)
    text = waiting.debug("continue", "backtrace 1", "print place", "print *place", command)
    assert "page fault: write at 0xa0fff8 (guard page below the stack) by the instruction at 0x" in text
    assert "Program received signal SIGSEGV" in text
    assert f"{line_of('the fault')}\t    *place = 1; /* the fault */\n" in text
    assert "crash (place=0xa0fff8)" in text
    assert "Cannot access memory at address 0xa0fff8" in text
    if command == "c":
        assert "Program terminated with signal SIGSEGV" in text
    done = waiting.done()
    assert (done.status, done.out, done.err) == (plain.status, plain.out, plain.err)


def test_control_c(debuggees: Debuggees, image: str) -> None:
    waiting = debuggees.wait(debuggees.elf("END=1"), image, "--timeout", "0.5")
    process = waiting.start("break spin", "continue", "echo spins\\n", "continue", "backtrace 1", "kill")
    assert process.stdout is not None
    text = ""
    while not text.endswith("spins\n"):
        line = process.stdout.readline()
        assert line, text
        text += line
    # The deadline of a run without gdb passes.
    time.sleep(0.7)
    process.send_signal(signal.SIGINT)
    text += process.communicate(timeout=PATIENCE)[0]
    assert "Program received signal SIGINT" in text
    assert re.search(r"spin \(\) at .*debuggee\.c:", text)
    done = waiting.done()
    assert (done.status, done.err) == (130, f"pyvmm: {image}: the debugger ended the run\n")


def test_detach(debuggees: Debuggees, image: str) -> None:
    waiting = debuggees.wait(debuggees.elf(), image)
    text = waiting.debug("break add", "continue", "detach")
    assert "detached" in text
    assert waiting.done().json["fields"] == {"value": 0, "letter": "p"}


def test_quit_is_detach(debuggees: Debuggees, image: str) -> None:
    waiting = debuggees.wait(debuggees.elf(), image)
    waiting.debug("stepi")
    assert waiting.done().status == 0


def test_a_shipped_operation(debuggees: Debuggees, image: str) -> None:
    """Functions of operation and runtime by name, with their sources, through device requests."""
    plain = run("run", "info", image)
    waiting = debuggees.wait("info", image)
    text = waiting.debug(
        "break raw.raw.open",
        "break disk.readMany",
        "continue",
        "backtrace",
        "continue",
        "finish",
        "stepi 200",
        "delete",
        "continue",
    )
    assert re.search(r"Breakpoint 2, disk\.readMany \(.*\) at .*disk\.zig:\d+\n", text)
    assert re.search(r"#\d+ +.*sdk\.start \(\) at .*guest/sdk/sdk\.zig:\d+\n", text)
    assert re.search(r"Breakpoint 1, raw\.raw\.open \(.*\) at .*guest/formats/raw/raw\.zig:\d+\n", text)
    assert "exited normally" in text
    done = waiting.done()
    assert (done.status, done.out, done.err) == (0, plain.out, "")


def test_gdb_understands_the_description(debuggees: Debuggees, image: str) -> None:
    waiting = debuggees.wait("info", image)
    vector = ("print $xmm0.v2_double", "set $xmm1.v4_float[2] = 1.5", "print $xmm1.v4_float[2]")
    text = waiting.debug("print $mxcsr", *vector, "print $fs_base", "info mem", "detach")
    assert "warning" not in text
    assert "$1 = [ IM DM ZM OM UM PM ]\n$2 = {0, 0}\n$3 = 1.5\n$4 = 0\n" in text
    assert "Using memory regions provided by the target." in text


def test_one_connection_from_this_host_only(debuggees: Debuggees, image: str) -> None:
    waiting = debuggees.wait("info", image)
    port = int(waiting.gdb[-1].rpartition(":")[2])
    assert waiting.gdb[-1] == f"target remote 127.0.0.1:{port}"
    with socket.create_connection(("127.0.0.1", port)):
        time.sleep(0.2)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
    done = waiting.done()
    assert (done.status, done.err) == (130, f"pyvmm: {image}: the connection to the debugger was lost\n")


def test_a_port_that_is_taken(image: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = run("run", "info", image, "--gdb", str(port))
    assert done.status == 64
    assert done.one_line() == f"pyvmm: --gdb: port {port} of 127.0.0.1: Address already in use\n"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--gdb", "65536"), "--gdb takes a port, 0 to 65535, not '65536'"),
        (("--gdb=x",), "--gdb takes a port, 0 to 65535, not 'x'"),
        (("--gdb", "0", "another"), "--gdb takes one FILE, not 2"),
    ],
)
def test_wrong_words(image: str, words: tuple[str, ...], text: str) -> None:
    done = run("run", "info", image, *words)
    assert done.status == 64
    assert done.one_line() == f"pyvmm: {text}\n"


def test_nobody_comes(image: str) -> None:
    """Ctrl-C while it waits."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vmm", "run", "info", image, "--gdb", "0"], stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("pyvmm: waiting for gdb")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err.splitlines()[-1]) == (130, "pyvmm: interrupted")


def test_control_c_at_the_command_itself(debuggees: Debuggees, image: str) -> None:
    """While the guest stands still and gdb says nothing."""
    waiting = debuggees.wait("info", image)
    port = int(waiting.gdb[-1].rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"$?#3f")
        connection.settimeout(PATIENCE)
        assert connection.recv(1) == b"+"
        waiting.process.send_signal(signal.SIGINT)
        done = waiting.done()
    assert (done.status, done.err) == (130, "pyvmm: interrupted\n")


def test_a_file_that_is_not_there_is_told_before_gdb_is_waited_for() -> None:
    done = run("run", "info", "/nonexistent/image", "--gdb", "0")
    assert done.status == 1
    assert "waiting" not in done.err


def test_a_replay(debuggees: Debuggees, image: str, tmp_path: Path) -> None:
    """A recorded run under gdb, without its image: breakpoints and steps, and it still reproduces."""
    bundle = str(tmp_path / "run.pyvmm")
    elf = debuggees.elf()
    assert run("run", elf, "--record", bundle, image).status == 0
    os.unlink(image)
    waiting = debuggees.wait_for("replay", bundle, "--op-elf", elf)
    text = waiting.debug("break add", "continue", "info args", "next", "stepi", "delete", "continue")
    assert "left = 10\nright = 1\n" in text
    done = waiting.done()
    assert done.status == 0, done
    assert done.out.splitlines()[-1].startswith(f"{bundle}: reproduced: status 0")


def test_a_replay_of_a_shipped_operation(debuggees: Debuggees, image: str, tmp_path: Path) -> None:
    """The debugging information is found by the name of the operation that was recorded."""
    bundle = str(tmp_path / "run.pyvmm")
    assert run("run", "info", "-f", "raw", "--record", bundle, image).status == 0
    os.unlink(image)
    waiting = debuggees.wait_for("replay", bundle)
    text = waiting.debug("backtrace", "continue")
    assert re.search(r"#0 .*start .*\.zig:\d+", text), text
    done = waiting.done()
    assert done.status == 0, done
    assert "reproduced: status 0" in done.out


def test_a_replay_that_is_killed(debuggees: Debuggees, image: str, tmp_path: Path) -> None:
    bundle = str(tmp_path / "run.pyvmm")
    elf = debuggees.elf()
    assert run("run", elf, "--record", bundle, image).status == 0
    waiting = debuggees.wait_for("replay", bundle, "--op-elf", elf)
    waiting.debug("kill")
    assert waiting.done().status != 0
