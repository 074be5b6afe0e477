"""Closing the jail, from inside: each layer in turn, and what became of it.

The order matters.  What needs files or privileges comes first, what takes them away later, and the system call filter
last, because after it none of the other calls can be made.  Nothing here has seen a byte of an image.
"""

from __future__ import annotations

import os
import resource

from calltable import MAX_DEVICES
from vmm.kvm.binding import requests
from vmm.sandbox import calls, network
from vmm.sandbox.binding import ffi, lib
from vmm.sandbox.layers import LAYERS, NAMESPACES, Layer, LayerError
from vmm.sandbox.namespaces import namespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmm.sandbox.settings import JailSettings

#: Who root becomes; the kernel's overflow id, which owns nothing.
NOBODY = 65534
#: Where the empty root is mounted on its way to be the root: any directory does, and one of these is everywhere.
_PLACES = (b"/proc", b"/tmp", b"/dev")
#: Descriptors beyond which none can be had: the channel, KVM, two for each of the machines kept, the devices.
MAX_DESCRIPTORS = 48 + MAX_DEVICES
#: Timers and queued signals (getrlimit(2); the resource module lacks the name): a run has one timer.
MAX_SIGNALS = 16
_RLIMIT_SIGPENDING = 11
#: From this release on KVM makes a task of the caller's for each machine, unless the mitigation that it serves is off
#: for good (Linux commit d96c77bd4eeb); the limit on processes must leave room for it.
_KVM_TASKS_SINCE = (6, 13)


def _check(result: int, what: str) -> int:
    if result < 0:
        raise LayerError(f"{what}: {os.strerror(-result)}")
    return result


class Jail:
    """The jail of this process, as far as it is closed.

    :param settings: what to close.
    :param namespaces: the broker's namespaces: name of a layer -> what ``/proc/self/ns`` says there.
    :param user: the broker's effective user id.
    """

    def __init__(self, settings: JailSettings, namespaces: Mapping[str, str], user: int) -> None:
        self.settings = settings
        self._outside = namespaces
        self._layers: dict[str, Layer] = {}
        self._user = user

    def close(self) -> tuple[Layer, ...]:
        """Close every layer of the settings; what cannot be closed is in the answer."""
        # Before the root is gone; the size of what is there must not count against the machine.
        self._size = _address_space()
        self._tasks = kvm_makes_tasks()
        self._libseccomp: int = lib.pyvmm_find_libseccomp()
        self._own_user = namespace("user-namespace") != self._outside["user-namespace"]
        # For identity maps after the root is gone.
        self._proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
        for name in NAMESPACES:
            if name == "user-namespace" and self._user == 0 and not self._own_user:
                continue
            self._layer(name, lambda name=name: self._namespace(name))  # type: ignore[misc]
        self._layer("empty-root", self._empty_root)
        self._layer("identity", self._identity)
        if self._user == 0 and not self._own_user:
            self._layer("user-namespace", self._late_user_namespace)
        os.close(self._proc)
        self._layer("no-capabilities", self._capabilities)
        self._layer("no-new-privs", self._no_new_privs)
        self._layer("resource-limits", self._resource_limits)
        self._layer("landlock", self._landlock)
        self._layer("not-dumpable", self._not_dumpable)
        # A change of identity has cleared what the process was started with.
        self._layer("parent-death", self._parent_death)
        self._layer("seccomp", self._seccomp)
        return tuple(self._layers[name] for name in LAYERS if name in self._layers)

    def _layer(self, name: str, step: Callable[[], str]) -> None:
        if name not in self.settings.layers:
            return
        try:
            self._layers[name] = Layer(name, True, step())
        except LayerError as error:
            self._layers[name] = Layer(name, False, str(error))
        except OSError as error:
            self._layers[name] = Layer(name, False, error.strerror or str(error))

    def _holds(self, name: str) -> bool:
        layer = self._layers.get(name)
        return layer is not None and layer.holds

    def _namespace(self, name: str) -> str:
        if namespace(name) == self._outside[name]:
            raise LayerError(self._outside.get("", "it is the broker's"))
        if name != "network-namespace":
            return ""
        if not self.settings.verify_network:
            return network.glance()
        from vmm.sandbox.inspection import inspect

        return inspect()

    def _empty_root(self) -> str:
        if not self._holds("mount-namespace"):
            raise LayerError("there is no mount namespace for it")
        place = next(place for place in _PLACES if os.path.isdir(place))
        _check(lib.pyvmm_empty_root(place), "mounting it")
        return ""

    def _identity(self) -> str:
        if self._user == 0 and not self._own_user:
            _check(lib.pyvmm_change_identity(NOBODY, NOBODY), f"becoming user {NOBODY}")
            return f"user {NOBODY} of the host"
        if self._user == 0:
            raise LayerError("it is root's user, in a user namespace")
        return f"the broker's user {self._user}"

    def _late_user_namespace(self) -> str:
        """Root's: made after the change of identity, and owning none of the other namespaces."""
        _check(lib.pyvmm_user_namespace(self._proc), "making it")
        self._own_user = True
        return ""

    def _capabilities(self) -> str:
        _check(lib.pyvmm_drop_capabilities(), "emptying the sets")
        return ""

    def _no_new_privs(self) -> str:
        _check(lib.pyvmm_prctl(lib.PR_SET_NO_NEW_PRIVS, 1), "prctl")
        return ""

    def _resource_limits(self) -> str:
        settings = self.settings
        memory = self._size + settings.memory
        # Processes are counted for each user, in a user namespace from 1 on: this one.
        processes = 1 + settings.machines if self._tasks else 0
        signals = MAX_SIGNALS
        if not self._own_user:
            # Shared with whatever else this user runs on the host.
            signals = resource.getrlimit(_RLIMIT_SIGPENDING)[0]
            if self._tasks:
                processes = resource.getrlimit(resource.RLIMIT_NPROC)[0]
        for kind, most in (
            (resource.RLIMIT_AS, memory),
            (resource.RLIMIT_FSIZE, settings.file_size),
            (resource.RLIMIT_NOFILE, MAX_DESCRIPTORS),
            (resource.RLIMIT_NPROC, processes),
            (_RLIMIT_SIGPENDING, signals),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_MEMLOCK, 0),
            (resource.RLIMIT_MSGQUEUE, 0),
        ):
            hard = resource.getrlimit(kind)[1]
            if hard != resource.RLIM_INFINITY:
                most = hard if most == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(kind, (most, most))
        tasks = f"{settings.machines} tasks of KVM's own" if self._tasks else "0 processes"
        return (
            f"memory {memory} bytes, files {settings.file_size} bytes, {MAX_DESCRIPTORS} descriptors, {tasks}, "
            "no core dump"
        )

    def _landlock(self) -> str:
        version = lib.pyvmm_landlock_version()
        if version <= 0:
            raise LayerError("the kernel has none, or it is switched off (CONFIG_SECURITY_LANDLOCK, lsm=)")
        _check(lib.pyvmm_landlock(version), "restricting")
        return f"version {version}, no right at all"

    def _not_dumpable(self) -> str:
        _check(lib.pyvmm_prctl(lib.PR_SET_DUMPABLE, 0), "prctl")
        return ""

    def _parent_death(self) -> str:
        _check(lib.pyvmm_prctl(lib.PR_SET_PDEATHSIG, 9), "prctl")
        return ""

    def _seccomp(self) -> str:
        if not self._holds("no-new-privs"):
            raise LayerError("it needs no-new-privs")
        if self._libseccomp < 0:
            raise LayerError("libseccomp.so.2 is not installed, or too old (Debian: libseccomp2)")
        rules = calls.rules(requests(), debugger="debugger" in self.settings.features)
        _check(load_filter(rules), "loading the filter")
        return f"{len({name for name, _ in rules})} system calls"


def load_filter(rules: list[calls.Rule], output: int = -1) -> int:
    """Load the filter of some rules, or write it as the kernel would get it to a descriptor; 0 or minus an errno."""
    table = ffi.new("struct pyvmm_rule[]", len(rules))
    names = [ffi.new("char[]", name.encode()) for name, _ in rules]
    for entry, name, (_, compare) in zip(table, names, rules, strict=True):
        entry.name = name
        if compare is not None:
            entry.argument, entry.mask, entry.value = compare
    return int(lib.pyvmm_filter(table, len(rules), output))


def _address_space() -> int:
    """Bytes of this process's address space (proc(5), statm)."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def kvm_makes_tasks() -> bool:
    """Whether KVM makes a task for each machine, which counts as a process of whoever runs it."""
    release = os.uname().release.split(".")
    digits = tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in release[:2])
    if digits < _KVM_TASKS_SINCE:
        return False
    try:
        with open("/sys/module/kvm/parameters/nx_huge_pages", "rb") as file:
            return file.read().strip() != b"never"
    except OSError:
        # Not to be seen here: better a task too many than no machine.
        return True
