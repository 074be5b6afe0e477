"""Children that outlive a kill: one puts a file in place, the other removes one."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmm.host import system
from vmm.host.system import Guard, replace

PATIENCE = 30.0


def wait_until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def listing(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


def children() -> set[str]:
    """Every child of this process, zombies included, whatever its exit signal."""
    return {
        pid
        for task in Path("/proc/self/task").iterdir()
        for pid in (task / "children").read_text().split()
        if Path("/proc", pid).exists()
    }


def state(pid: int) -> str:
    """What /proc says: R, S, D, Z; X when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def gone(pid: int) -> bool:
    """Ended.  An orphan may stay a zombie where init reaps nobody, as in some containers."""
    return state(pid) in "ZX"


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def nameless(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDWR | os.O_TMPFILE)
    os.write(fd, b"new")
    yield fd
    os.close(fd)


class TestReplace:
    def test_in_place(self, directory: int, nameless: int, tmp_path: Path) -> None:
        (tmp_path / "out").write_bytes(b"old")
        before = children(), signal.pthread_sigmask(signal.SIG_BLOCK, ()), len(os.listdir("/proc/self/fd"))
        replace(nameless, directory, "temporary", "out")
        assert (tmp_path / "out").read_bytes() == b"new"
        assert listing(tmp_path) == {"out"}
        assert before == (
            children(),
            signal.pthread_sigmask(signal.SIG_BLOCK, ()),
            len(os.listdir("/proc/self/fd")),
        )

    def test_what_the_system_refuses_leaves_nothing(self, directory: int, nameless: int, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "taken").write_bytes(b"theirs")
        cases = (
            (nameless, "temporary", "folder", errno.EISDIR),
            (nameless, "taken", "out", errno.EEXIST),
            (nameless, "temporary", "missing/out", errno.ENOENT),
            (1 << 20, "temporary", "out", errno.ENOENT),
        )
        for fd, temporary, name, number in cases:
            with pytest.raises(OSError) as caught:
                replace(fd, directory, temporary, name)
            assert caught.value.errno == number
            assert caught.value.strerror == os.strerror(number)
            assert listing(tmp_path) == {"folder", "taken"}
        assert (tmp_path / "taken").read_bytes() == b"theirs"

    def test_nobody_else_hears_of_the_child(self, directory: int, tmp_path: Path) -> None:
        """From many threads at once: no SIGCHLD, nothing for os.wait() of another thread, no file lost."""
        heard: list[int] = []
        before = signal.signal(signal.SIGCHLD, lambda number, _: heard.append(number))
        failures: list[BaseException] = []

        def work(index: int) -> None:
            try:
                for round_ in range(20):
                    fd = os.open(tmp_path, os.O_RDWR | os.O_TMPFILE)
                    os.write(fd, b"%d" % round_)
                    replace(fd, directory, f"temporary-{index}", f"out-{index}")
                    os.close(fd)
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(-1, os.WNOHANG)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            signal.signal(signal.SIGCHLD, before)
        assert failures == []
        assert heard == []
        assert listing(tmp_path) == {f"out-{index}" for index in range(4)}
        assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"19"}


#: In the place of the C library's: says that the file has its temporary name, and gives a killer time.
SLOW_RENAME = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int renameat(int old_directory, const char *old, int new_directory, const char *new)
{
    struct timespec second = {1, 0};
    close(open("named", O_CREAT | O_WRONLY, 0600));
    syscall(SYS_nanosleep, &second, 0);
    return syscall(SYS_renameat2, old_directory, old, new_directory, new, 0);
}
"""

REPLACER = """
import os, sys
from vmm.operations.output import OutputFile
with OutputFile(sys.argv[1]) as output:
    os.write(output.fd, b"new")
    output.commit()
"""


def start(program: str, *words: str, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, **environment},
        cwd=environment.get("FOLDER"),
    )


@pytest.mark.parametrize("group", [False, True], ids=["process", "group"])
def test_a_kill_between_link_and_rename(group: bool, tmp_path: Path) -> None:
    source, shim = tmp_path / "shim.c", tmp_path / "shim.so"
    source.write_text(SLOW_RENAME)
    # Where there is no C compiler, the ziglang wheel is one.
    compiler = ["cc"] if shutil.which("cc") else [sys.executable, "-m", "ziglang", "cc"]
    subprocess.run([*compiler, "-shared", "-fPIC", "-o", shim, source], check=True)
    folder = tmp_path / "folder"
    folder.mkdir()
    target = folder / "out"
    target.write_bytes(b"old")
    with start(REPLACER, str(target), LD_PRELOAD=str(shim), FOLDER=str(tmp_path)) as process:
        wait_until((tmp_path / "named").exists)
        assert len(listing(folder)) == 2
        os.killpg(process.pid, signal.SIGKILL) if group else process.kill()
        assert process.wait() == -signal.SIGKILL
        # The process is dead, and the file still has the other name: nobody but the child can finish.
        assert len(listing(folder)) == 2
        assert target.read_bytes() == b"old"
    wait_until(lambda: listing(folder) == {"out"})
    assert target.read_bytes() == b"new"


#: Guards a file, says who the guard is, and waits to be ended.
GUARDED = """
import os, sys, time
from vmm.host.system import Guard
directory = os.open(sys.argv[1], os.O_RDONLY)
guard = Guard(directory, "part")
open(os.path.join(sys.argv[1], "part"), "wb").close()
print(guard.process, flush=True)
time.sleep(60)
"""


class TestGuard:
    @pytest.mark.parametrize("how", ["process", "group", "SIGTERM"])
    def test_removes_when_its_process_ends(self, how: str, tmp_path: Path) -> None:
        with start(GUARDED, str(tmp_path)) as process:
            assert process.stdout is not None
            guard = int(process.stdout.readline())
            # None of these is for the guard: blocked, and a session of its own.
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
                os.kill(guard, number)
            assert os.getsid(guard) == os.getpgid(guard) == guard
            assert listing(tmp_path) == {"part"}
            if how == "group":
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.send_signal(signal.SIGTERM if how == "SIGTERM" else signal.SIGKILL)
            process.wait()
        wait_until(lambda: listing(tmp_path) == set())
        wait_until(lambda: gone(guard))

    def test_holds_two_descriptors(self, directory: int, tmp_path: Path) -> None:
        with (tmp_path / "other").open("wb"):
            guard = Guard(directory, "part")
            links = {os.readlink(f"/proc/{guard.process}/fd/{fd}") for fd in os.listdir(f"/proc/{guard.process}/fd")}
            guard.dismiss()
        assert len(links) == 2
        assert str(tmp_path) in links

    def test_dismissed(self, directory: int, tmp_path: Path) -> None:
        before = children(), len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            guard = Guard(directory, "part")
            (tmp_path / "part").touch()
            guard.dismiss()
            assert state(guard.process) == "X"
            guard.dismiss()
        assert listing(tmp_path) == {"part"}
        assert before == (children(), len(os.listdir("/proc/self/fd")))

    def test_that_somebody_killed(self, directory: int) -> None:
        guard = Guard(directory, "part")
        os.kill(guard.process, signal.SIGKILL)
        wait_until(lambda: gone(guard.process))
        guard.dismiss()
        assert state(guard.process) == "X"


def test_fallocate(directory: int, nameless: int) -> None:
    os.truncate(nameless, 1 << 20)
    system.fallocate(nameless, system.FALLOC_KEEP_SIZE, 0, 1 << 20)
    assert os.fstat(nameless).st_blocks == 2048
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        system.fallocate(-1, 0, 0, 1)
    assert caught.value.errno == errno.EBADF
