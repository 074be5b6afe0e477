"""Puts a prisoner into a jail of some layers, lets it make its attempt, and says in a word what came of it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pty
import py_compile
import shutil
import signal
import socket
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.escape.library import library, program
from tests.escape.table import OUTPUT_MAX, ROOT, USER, Attempt, layers_of
from vmm.boundary import KVM_DEVICE
from vmm.sandbox import wire
from vmm.sandbox.binding import lib
from vmm.sandbox.broker import Worker, WorkerLostError
from vmm.sandbox.layers import LAYERS
from vmm.sandbox.settings import JailSettings
from vmm.sandbox.spawn import Process

_PROGRAM = "import sys; sys.path[:0] = {paths!r}; from tests.escape.prisoner import main; main()"
_libc = ctypes.CDLL(None, use_errno=True)
_IPC_PRIVATE, _IPC_CREAT, _IPC_EXCL, _IPC_RMID = 0, 0o1000, 0o2000, 0
_MS_PRIVATE, _MNT_DETACH = 0x40000, 2
#: The file that one attempt creates where everybody would see it.
_IN_ROOT = Path("/pyvmm-escape-test")
_PATIENCE = 60.0
#: Seconds after which somebody who should have died of the broker's death, and has not, never will.
_SURVIVED = 0.3


#: Columns of the table, besides those of the layers.
EVERYTHING, REST, NOTHING = "everything", "all but seccomp", "nothing"


@dataclass(frozen=True, slots=True)
class Found:
    """What came of one attempt with one set of layers."""

    attempt: str
    broker: str
    #: Empty where the attempt cannot be made; why is the outcome.
    column: str
    expected: str
    outcome: str

    @property
    def deviates(self) -> bool:
        """It is not what the table says."""
        return bool(self.column) and self.outcome not in self.expected.split("|")


class EscapeError(Exception):
    """A prisoner could not be put into the jail that was asked for."""


def prepare() -> None:
    """Compile what prisoners need, once and before there are many; an ordinary user finds what root has compiled."""
    library()
    program()
    for module in Path(__file__).parent.glob("*.py"):
        with contextlib.suppress(OSError):
            py_compile.compile(str(module), doraise=False)


def broker() -> str:
    """Who this process is, as the table has it."""
    return ROOT if os.geteuid() == 0 else USER


class World:
    """What there is to attack: files, sockets, shared memory, a terminal, and a secret of this process."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self.folder = Path(tempfile.mkdtemp(prefix="pyvmm-escape-"))
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.folder.chmod(0o755)
        self._secret = ctypes.create_string_buffer(os.urandom(16).hex().encode())
        self._in_environment()
        self._files()
        self._sockets()
        self._host_memory()
        master, self.terminal = pty.openpty()
        self._stack.callback(os.close, master)
        self._stack.callback(os.close, self.terminal)
        self.namespace = self._open("/proc/self/ns/net", os.O_RDONLY)
        self.pidfd = os.pidfd_open(os.getpid())
        self._stack.callback(os.close, self.pidfd)
        self.kvm = self._open(KVM_DEVICE, os.O_RDWR)

    def _open(self, path: str | Path, flags: int) -> int:
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
        self._stack.callback(os.close, descriptor)
        return descriptor

    def _in_environment(self) -> None:
        name = "PYVMM_ESCAPE_SECRET"
        os.environ[name] = self._secret.value.decode()
        self._stack.callback(os.environ.pop, name, None)

    def _files(self) -> None:
        os.umask(os.umask(0o022))
        folder = self.folder
        for name in ("image", "beside", "output"):
            (folder / name).write_bytes(bytes(8192))
            (folder / name).chmod(0o600)
        (folder / "new").mkdir(mode=0o700)
        (folder / "private" / "mnt").mkdir(parents=True)
        if os.geteuid() == 0:
            # A mount of its own that is private: on hosts where mounts are shared, those below it would be seen outside
            # whatever the namespace.
            private = os.fsencode(folder / "private")
            if _libc.mount(private, private, None, 0x1000, None) == 0:
                self._stack.callback(_libc.umount2, private, _MNT_DETACH)
                _libc.mount(b"none", private, None, ctypes.c_ulong(_MS_PRIVATE), None)
            shutil.copyfile(program(), folder / "setuid")
            (folder / "setuid").chmod(0o4755)
        self.image = self._open(folder / "image", os.O_RDONLY)
        self.output = self._open(folder / "output", os.O_RDWR)
        self.memfd = os.memfd_create("program", os.MFD_CLOEXEC)
        self._stack.callback(os.close, self.memfd)
        os.write(self.memfd, program().read_bytes())

    def _sockets(self) -> None:
        self._tcp = self._stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self._abstract = b"\0pyvmm-escape-" + os.urandom(8).hex().encode()
        listener = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(self._abstract)
        listener.listen()
        self._host_socket: socket.socket | None = None

    def _host_memory(self) -> None:
        self._shm_key = int.from_bytes(os.urandom(3), "little") + 1
        segment = _libc.shmget(self._shm_key, 4096, _IPC_CREAT | _IPC_EXCL | 0o600)
        assert segment >= 0, os.strerror(ctypes.get_errno())
        self._stack.callback(_libc.shmctl, segment, _IPC_RMID, None)
        self._queue = f"pyvmm-escape-{os.getpid()}-{os.urandom(4).hex()}"
        name = b"/" + self._queue.encode()
        queue = _libc.mq_open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, None)
        assert queue >= 0, os.strerror(ctypes.get_errno())
        os.close(queue)
        self._stack.callback(_libc.mq_unlink, name)

    def refresh(self) -> None:
        """Everything as it was before an attempt."""
        for name in ("image", "beside"):
            (self.folder / name).touch(mode=0o600)
        if not os.path.sameopenfile(self.image, reopened := os.open(self.folder / "image", os.O_RDONLY)):
            os.dup2(reopened, self.image, inheritable=False)
        os.close(reopened)
        os.ftruncate(self.output, 8192)
        for name in ("disk", "link"):
            (self.folder / name).unlink(missing_ok=True)
        for path in [*(self.folder / "new").iterdir(), *self.folder.glob("core*")]:
            path.unlink()
        if broker() == ROOT:
            _IN_ROOT.unlink(missing_ok=True)
            while self.mounted():
                _libc.umount2(os.fsencode(self.folder / "private" / "mnt"), _MNT_DETACH)
        _libc.mq_unlink(b"/" + self._queue.encode() + b"-new")
        if self._host_socket is not None:
            self._host_socket.close()
        self._host_socket = socket.socket()

    def facts(self, attempt: Attempt) -> tuple[dict[str, Any], list[int]]:
        """What the prisoner is told, and the descriptors that it gets."""
        assert self._host_socket is not None
        facts = {
            "attempt": attempt.name,
            "library": str(library()),
            "broker": os.getpid(),
            "folder": str(self.folder),
            "secret-address": ctypes.addressof(self._secret),
            "secret-inverted": bytes(byte ^ 0xFF for byte in self._secret.value),
            "tcp": list(self._tcp.getsockname()),
            "abstract": self._abstract,
            "shm-key": self._shm_key,
            "queue": self._queue,
            "host-name": os.uname().nodename,
        }
        host = self._host_socket.fileno()
        return facts, [
            *(self.kvm, self.image, self.output, host),
            *(self.terminal, self.namespace, self.memfd, self.pidfd),
        ]

    # --- did the host notice?

    def mounted(self) -> bool:
        """Something was mounted here."""
        return os.path.ismount(self.folder / "private" / "mnt")

    def queue_was_made(self) -> bool:
        """A message queue was made here."""
        return int(_libc.mq_unlink(b"/" + self._queue.encode() + b"-new")) == 0

    def descriptors_grew(self) -> bool:
        """This process has a second descriptor of the image."""
        found = 0
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found += os.readlink(f"/proc/self/fd/{number}") == str(self.folder / "image")
        return found != 1

    def close(self) -> None:
        """Remove all of it."""
        self.refresh()
        assert self._host_socket is not None
        self._host_socket.close()
        self._stack.close()

    def __enter__(self) -> World:
        self.refresh()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _imprison(world: World, attempt: Attempt, layers: tuple[str, ...]) -> Worker:
    """A prisoner whose jail is closed."""
    worker = Worker(Process(layers, program=_PROGRAM))
    try:
        worker.send(*world.facts(attempt))
        worker.close_jail(JailSettings(layers=layers, file_size=OUTPUT_MAX))
        if worker.report.missing or [layer.name for layer in worker.report.layers] != list(layers):
            raise EscapeError(f"the jail of {layers} did not close: {worker.report.layers}, {worker.process.problem}")
    except BaseException:
        worker.process.kill()
        raise
    return worker


def make(world: World, attempt: Attempt, layers: tuple[str, ...]) -> str:
    """Make one attempt in a jail of these layers; the outcome as the table words it.

    :raises EscapeError: the layers cannot be closed here.
    """
    world.refresh()
    if attempt.way == "outlive":
        return _outlive(world, attempt, layers)
    worker = _imprison(world, attempt, layers)
    try:
        if attempt.way == "peek":
            return _peek(worker.process.pid)
        dumped = False
        try:
            worker.send({})
            if attempt.way == "core":
                dumped = _dumped_core(worker.process.pid)
            result = _result(worker)
        except WorkerLostError:
            return _word(worker.process.status, dumped)
        if result < 0:
            return errno.errorcode.get(-result, str(result))
        return "no effect" if attempt.affects is not None and not attempt.affects(world, worker.report) else "done"
    finally:
        worker.process.kill()


def _result(worker: Worker) -> int:
    while True:
        for item in worker.receive(time.monotonic() + _PATIENCE):
            if isinstance(item, wire.Problem):
                if "result" not in item.details:
                    raise EscapeError(f"the attempt broke: {item.message}")
                return int(item.details["result"])


def _word(status: int | None, dumped: bool) -> str:
    if status is None:
        raise EscapeError("nobody knows how the prisoner ended")
    if status >= 0:
        return f"exit {status}"
    return signal.Signals(-status).name + (" with core" if dumped else "")


def _dumped_core(pid: int) -> bool:
    """Wait for the end of a process, which can still be waited for afterwards: did it leave a core?"""
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return ended is not None and ended.si_code == os.CLD_DUMPED


def _peek(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/mem", "rb"):
            return "done"
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def _outlive(world: World, attempt: Attempt, layers: tuple[str, ...]) -> str:
    """A broker of its own for the prisoner, and its sudden death."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # The child does nothing but start a process and die.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            worker = _imprison(world, attempt, layers)
            worker.send({"announce": True})
            worker.receive(time.monotonic() + _PATIENCE)
            os.write(writing, str(worker.process.pid).encode())
            signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    try:
        text = os.read(reading, 32)
        if not text:
            raise EscapeError("the prisoner did not start to spin")
        pid = int(text)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
    deadline = time.monotonic() + (_PATIENCE if "parent-death" in layers else _SURVIVED)
    while time.monotonic() < deadline:
        if not _lives(pid):
            return "SIGKILL"
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    return "done"


def _lives(pid: int) -> bool:
    """A process runs; one that ended and that nobody has waited for does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def impossible(attempt: Attempt) -> str:
    """Why an attempt shows nothing on this host; empty where it can be made."""
    if broker() not in attempt.brokers:
        return f"for {' and '.join(attempt.brokers)} only"
    if attempt.way == "core":
        pattern = Path("/proc/sys/kernel/core_pattern").read_text(encoding="utf-8", errors="replace").strip()
        if not pattern or pattern[0] in "|/@":
            return f"cores do not go to the current folder here ({pattern})"
    return ""


def columns(attempt: Attempt) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """What the table says of an attempt, for this broker: the column, the layers that are closed, the outcome."""
    me = broker()
    everything = tuple(LAYERS)
    yield EVERYTHING, everything, attempt.everything
    yield REST, tuple(name for name in everything if name != "seccomp"), attempt.expected_rest(me)
    yield NOTHING, layers_of(attempt, me, ()), attempt.expected_free(me)
    for layers, outcome in attempt.expected_alone(me, lib.pyvmm_landlock_version()).items():
        yield " + ".join(layers), layers_of(attempt, me, layers), outcome


def run(attempts: Iterable[Attempt]) -> Iterator[Found]:
    """Make attempts, each with every set of layers that the table has for it."""
    with World() as world:
        for attempt in attempts:
            reason = impossible(attempt)
            if reason:
                yield Found(attempt.name, broker(), "", "", reason)
                continue
            for column, layers, outcome in columns(attempt):
                yield Found(attempt.name, broker(), column, outcome, make(world, attempt, layers))
