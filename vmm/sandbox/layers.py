"""The layers of the jail: their names, in the order in which they close, and what became of each."""

from __future__ import annotations

from vmm.record import dataclass

#: Name -> what it takes away.
LAYERS: dict[str, str] = {
    "user-namespace": "privileges over anything of the host",
    "mount-namespace": "the host's mounts",
    "pid-namespace": "the host's processes",
    "ipc-namespace": "shared memory and message queues",
    "uts-namespace": "the host's name",
    "cgroup-namespace": "the host's control groups",
    "network-namespace": "the network",
    "empty-root": "every file: the root is empty and read-only",
    "identity": "the rights of root over its own files",
    "no-capabilities": "every capability, in every set",
    "no-new-privs": "privileges of programs that it might execute",
    "not-dumpable": "core dumps, and being looked into by processes of the same user",
    "resource-limits": "memory, file size, descriptors, processes beyond what a run needs",
    "landlock": "opening files, connecting, signalling, by the kernel's access rules",
    "seccomp": "every system call that a running machine does not make",
    "parent-death": "outliving the process that it works for",
}

#: The layers that are made with the process; the others close it from inside.
NAMESPACES = tuple(name for name in LAYERS if name.endswith("-namespace"))


class LayerError(Exception):
    """A layer does not hold; the text says why."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What became of one layer."""

    name: str
    #: It holds.
    holds: bool
    #: How, or why not: one printable sentence, may be empty.
    detail: str = ""


@dataclass(frozen=True, slots=True)
class JailReport:
    """The jail as its worker found it, before it saw an image."""

    layers: tuple[Layer, ...] = ()
    #: What bounds the worker's memory.
    memory: str = ""
    #: Process id of the worker in the broker's PID namespace.
    pid: int = 0
    #: What closing it took, in nanoseconds.
    close_ns: int = 0

    @property
    def missing(self) -> tuple[Layer, ...]:
        """The layers that do not hold."""
        return tuple(layer for layer in self.layers if not layer.holds)

    def as_dict(self) -> dict[str, object]:
        """The JSON form."""
        layers = {
            layer.name: {"holds": layer.holds, **({"detail": layer.detail} if layer.detail else {})}
            for layer in self.layers
        }
        return {"complete": not self.missing, "layers": layers, "memory": self.memory}
