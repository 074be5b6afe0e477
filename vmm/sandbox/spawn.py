"""Starting a worker: a clean interpreter in new namespaces, with nothing of this process but a channel.

The worker has no environment, no arguments of the user's, no descriptors but the channel, and its own session, so that
Ctrl-C reaches the broker only.  It dies with the thread that started it (PR_SET_PDEATHSIG, prctl(2)); so that thread
is the main one, or one that is there for nothing else.
"""

from __future__ import annotations

import _socket
import _thread
import os
import sys

from vmm.errors import SandboxError
from vmm.sandbox.binding import ffi, lib
from vmm.sandbox.cgroup import ControlGroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

#: What the worker executes; where its modules are comes before it.  It is not imported by name through a user's path:
#: isolated mode and no site-packages, whose .pth files would run the code of every package that is installed.
_PROGRAM = "import sys; sys.path[:0] = {paths!r}; from vmm.sandbox.worker import main; main()"
_OPTIONS = ("-I", "-S", "-B", "-X", "utf8")
#: Kept of the environment: without it a Python that is linked to a library of its own does not start.
_KEPT = ("LD_LIBRARY_PATH",)

_FLAGS = {
    "user-namespace": lib.CLONE_NEWUSER,
    "mount-namespace": lib.CLONE_NEWNS,
    "pid-namespace": lib.CLONE_NEWPID,
    "ipc-namespace": lib.CLONE_NEWIPC,
    "uts-namespace": lib.CLONE_NEWUTS,
    "cgroup-namespace": lib.CLONE_NEWCGROUP,
    "network-namespace": lib.CLONE_NEWNET,
}
_STEPS = {
    lib.STEP_CLONE: "new namespaces",
    lib.STEP_MAP: "the identity map of a user namespace",
    lib.STEP_CGROUP: "a control group",
    lib.STEP_DESCRIPTORS: "its descriptors",
    lib.STEP_EXEC: "executing the interpreter",
}


class Process:
    """A worker's process and the channel to it.  When nobody holds it any more, it is killed.

    :param layers: the layers whose namespaces are made now.
    :param group: makes a control group to join, None where there is none.
    :param program: what to execute in the place of the worker, for tests; gets the paths of modules.
    :raises SandboxError: no process can be started.
    """

    __slots__ = ("_done", "channel", "group", "out_of_memory", "pid", "problem", "status")

    def __init__(
        self,
        layers: Iterable[str],
        *,
        group: Callable[[], ControlGroup | None] = ControlGroup.create,
        program: str = _PROGRAM,
    ) -> None:
        #: Why there are fewer namespaces than were asked for; empty when there are not.
        self.problem = ""
        #: How it ended, as os.waitstatus_to_exitcode() says; None while it lives, or when somebody else waited for it.
        self.status: int | None = None
        #: The kernel ended it because its control group had no more memory.
        self.out_of_memory = False
        #: There is nothing left to kill or to wait for.
        self._done = True
        try:
            ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        except OSError as error:
            raise _not_started(error.strerror) from None
        #: The control group that it has joined.
        self.group = group()
        try:
            self.pid = _on_lasting_thread(lambda: self._start(frozenset(layers), theirs.fileno(), program))
        except BaseException:
            ours.close()
            self._leave_group()
            raise
        finally:
            theirs.close()
        self.channel = ours
        self._done = False

    def _start(self, layers: frozenset[str], channel: int, program: str) -> int:
        arguments, keep = _arguments(program)
        environment, kept = _strings([f"{name}={os.environ[name]}" for name in _KEPT if name in os.environ])
        try:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise _not_started(f"{os.devnull}: {error.strerror}") from None
        try:
            request = ffi.new("struct pyvmm_spawn *")
            request.program = keep[0]
            request.arguments = arguments
            request.environment = environment
            errors = 2 if os.environ.get("PYVMM_TRACEBACK") == "1" else null
            request.descriptors = [null, null, errors, channel]
            members = ffi.new("char[]", os.fsencode(self.group.members)) if self.group is not None else ffi.NULL
            request.cgroup = members
            attempts = _attempts(layers)
            while True:
                request.namespaces = attempts[0]
                result = lib.pyvmm_spawn(request)
                if result >= 0:
                    return int(request.pid)
                if request.pid:
                    _reap(request.pid)
                what = f"{_STEPS[request.step]}: {os.strerror(-result)}"
                if request.step == lib.STEP_CGROUP and self.group is not None:
                    # It may be made and not be joined: the groups belong to others up to a common one.
                    self._leave_group()
                    request.cgroup = ffi.NULL
                    continue
                if request.step == lib.STEP_DESCRIPTORS or not attempts[0]:
                    break
                self.problem = self.problem or what
                del attempts[0]
            raise _not_started(what)
        finally:
            os.close(null)
            del kept

    def kill(self, *, wait: bool = True) -> None:
        """End the process.  Idempotent.

        :param wait: until it has ended; False where this process is about to end itself.
        """
        self.channel.close()
        if self._done:
            return
        self._done = True
        try:
            # While it can be waited for, its number is no other process's.
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            os.kill(self.pid, 9)
        except (ChildProcessError, ProcessLookupError):
            # The program ignores SIGCHLD, or waits for every child itself; or this is a child of the broker, and the
            # worker is the parent's.
            return
        # A control group cannot be removed before its last process has ended.
        if wait or self.group is not None:
            self.status = _reap(self.pid)
            self.out_of_memory = self.group is not None and self.group.out_of_memory()
            self._leave_group()

    def _leave_group(self) -> None:
        group, self.group = self.group, None
        if group is not None:
            group.remove()

    def __del__(self) -> None:
        if not self._done:
            self.kill()


def _reap(pid: int) -> int | None:
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        # The program ignores SIGCHLD, or waits for every child itself.
        return None


def _not_started(why: str | None) -> SandboxError:
    return SandboxError(f"the process that runs the machine cannot be started ({why})", program=_interpreter())


def _attempts(layers: frozenset[str]) -> list[int]:
    """Sets of namespaces to try, the best first; the last one is none at all."""
    wanted = sum(flag for name, flag in _FLAGS.items() if name in layers)
    user = wanted & _FLAGS["user-namespace"]
    attempts = [wanted]
    if os.geteuid() == 0 and "identity" in layers:
        # Root needs no user namespace for the others, and makes it as the user that it becomes.
        attempts.insert(0, wanted & ~user)
    return [*dict.fromkeys([*attempts, 0])]


def _interpreter() -> str:
    """The Python that this process runs.

    :raises SandboxError: this is a program with Python inside, and there is no interpreter to execute.
    """
    path = sys.executable or ""
    if not os.path.isfile(path):
        raise SandboxError("there is no Python interpreter to run the machine (sys.executable is not set)")
    return path


def module_paths() -> list[str]:
    """Where the worker finds the package and what it needs: the package's own place first, then this path's entries."""
    own = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    standard = os.path.dirname(os.__file__)
    # The interpreter finds these by itself.
    known = {own, standard, os.path.join(standard, "lib-dynload")}
    entries = dict.fromkeys(os.path.abspath(entry) for entry in sys.path if entry)
    return [own, *(entry for entry in entries if entry not in known and os.path.isdir(entry))]


def _strings(texts: list[str]) -> tuple[Any, list[Any]]:
    """A NULL-terminated array of C strings, and what keeps them alive."""
    kept = [ffi.new("char[]", os.fsencode(text)) for text in texts]
    return ffi.new("char *[]", [*kept, ffi.NULL]), kept


def _arguments(program: str) -> tuple[Any, list[Any]]:
    return _strings([_interpreter(), *_OPTIONS, "-c", program.format(paths=module_paths())])


_lasting: tuple[int, Any] | None = None


def _on_lasting_thread(work: Callable[[], int]) -> int:
    """Run ``work`` on a thread that lives as long as the process."""
    if _thread.get_native_id() == os.getpid():
        return work()
    from _queue import SimpleQueue

    global _lasting
    if _lasting is None or _lasting[0] != os.getpid():
        orders: Any = SimpleQueue()
        _thread.start_new_thread(_serve, (orders,))
        _lasting = (os.getpid(), orders)
    answers: Any = SimpleQueue()
    _lasting[1].put((work, answers))
    result = answers.get()
    if isinstance(result, BaseException):
        raise result
    return int(result)


def _serve(orders: Any) -> None:
    while True:
        work, answers = orders.get()
        try:
            answers.put(work())
        except BaseException as error:
            answers.put(error)
