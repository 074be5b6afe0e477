"""Which namespaces a process is in (namespaces(7))."""

from __future__ import annotations

import os

from vmm.sandbox.layers import NAMESPACES

_SHORT = {"mount": "mnt", "network": "net"}


def namespace(layer: str) -> str:
    """What identifies this process's namespace of a layer."""
    kind = layer.removesuffix("-namespace")
    return os.readlink(f"/proc/self/ns/{_SHORT.get(kind, kind)}")


def namespaces() -> dict[str, str]:
    """All of them by layer; empty text where the kernel has no such kind."""
    found = {}
    for layer in NAMESPACES:
        try:
            found[layer] = namespace(layer)
        except OSError:
            found[layer] = ""
    return found
