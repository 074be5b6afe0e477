"""The table: what is tried, what happens with nothing closed, and which layers stop it when they are all there is.

An outcome is one word: ``done``; ``no effect`` (the kernel said yes, and the host does not notice); the name of the
errno; the name of the signal that killed the process; ``exit N`` of a program that took its place.  Alternatives are
separated by ``|``, the usual one first: where hosts differ (a system control, a kernel option), not where we do not
know.

A layer is named with what it needs: ``resource-limits + user-namespace``.  ``NEEDS`` says what each always needs.
``landlock>=4`` is a rule of that version of Landlock's (landlock(7)); older kernels do not have it.
"""

from __future__ import annotations

from vmm.record import dataclass, field
from vmm.sandbox.layers import LAYERS, JailReport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.escape.harness import World
    from tests.escape.prisoner import Place

#: Who the broker is.
ROOT, USER = "root", "user"

#: Layers that do not close without others, for each broker.
NEEDS: dict[str, dict[str, tuple[str, ...]]] = {
    ROOT: {
        "empty-root": ("mount-namespace",),
        "seccomp": ("no-new-privs",),
    },
    USER: {
        # Whoever is not root makes namespaces in a user namespace of his own.
        **{name: ("user-namespace",) for name in LAYERS if name.endswith("-namespace") and name != "user-namespace"},
        "empty-root": ("mount-namespace", "user-namespace"),
        # The bounding set is not his to empty.
        "no-capabilities": ("user-namespace",),
        "landlock": ("no-new-privs",),
        "seccomp": ("no-new-privs",),
    },
}

#: Layers that cannot be shown alone, and why.
NOT_ALONE: dict[tuple[str, str], str] = {
    (USER, "mount-namespace"): "an ordinary user cannot mount anything that it would hide",
    (USER, "identity"): "an ordinary user has no other to become: the layer says whose rights are left",
    (USER, "no-new-privs"): "only root can make the program with the set-user-id bit that this needs",
}

AT_FDCWD = -100
O_RDWR, O_CREAT = 2, 0o100
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
SIGURG = 23
#: What the output may grow to, in bytes: the file size of the prisoner's settings.
OUTPUT_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Attempt:
    """One thing that a prisoner tries."""

    name: str
    group: str
    #: Makes everything ready, and answers the call to make.
    act: Callable[[Place], Callable[[], int]]
    #: What happens when no layer is closed; ``free_user``: to an ordinary user, where that differs.
    free: str
    #: Layer (and what it needs besides) -> what happens when it is the only one.  Of each broker, and of one of them.
    alone: Mapping[str, str] = field(default_factory=dict)
    free_user: str | None = None
    alone_root: Mapping[str, str] = field(default_factory=dict)
    alone_user: Mapping[str, str] = field(default_factory=dict)
    #: With every layer, and with every layer but seccomp.
    everything: str = "SIGSYS"
    rest: str = ""
    rest_user: str | None = None
    #: Layers that are closed in every column, because nothing could be seen without them.
    base: tuple[str, ...] = ()
    #: For ``done``: whether the host noticed.
    affects: Callable[[World, JailReport], bool] | None = None
    #: How it is made: ``call``; ``core``, which looks for a core dump; ``outlive``, by a worker that outlives its
    #: broker; ``peek``, from outside, on the worker.
    way: str = "call"
    #: Whose tests can make it at all.
    brokers: tuple[str, ...] = (ROOT, USER)

    def expected_free(self, broker: str) -> str:
        """What happens with nothing closed."""
        return self.free_user if broker == USER and self.free_user is not None else self.free

    def expected_rest(self, broker: str) -> str:
        """What happens with everything closed but seccomp."""
        return self.rest_user if broker == USER and self.rest_user is not None else self.rest

    def expected_alone(self, broker: str, landlock: int = 99) -> dict[tuple[str, ...], str]:
        """Layers, the one that is shown first -> what happens with them alone.

        :param landlock: the version that the kernel has.
        """
        own = self.alone_root if broker == ROOT else self.alone_user
        found = {}
        for key, outcome in {**self.alone, **own}.items():
            names, _, version = key.partition(">=")
            if int(version or 0) <= landlock:
                found[tuple(names.split(" + "))] = outcome
        return found


def layers_of(attempt: Attempt, broker: str, layers: tuple[str, ...]) -> tuple[str, ...]:
    """All layers to close where some are to be shown."""
    wanted = {*attempt.base, *layers}
    for name in tuple(wanted):
        wanted.update(NEEDS[broker].get(name, ()))
    return tuple(name for name in LAYERS if name in wanted)


def shares(report: JailReport, kind: str) -> bool:
    """The prisoner is in the broker's namespace of this kind, as it found itself."""
    return not any(layer.name == f"{kind}-namespace" and layer.holds for layer in report.layers)


SECCOMP = {"seccomp": "SIGSYS"}


def by_name(**more: str) -> dict[str, str]:
    """Stops whatever names a file."""
    return {"empty-root": "ENOENT", "landlock": "EACCES", **SECCOMP, **more}


#: Stops what root may: by whom the capability is missing.
PRIVILEGE = {"no-capabilities": "EPERM", "user-namespace": "EPERM", "identity": "EPERM"}
