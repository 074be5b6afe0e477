"""The guests that come with the package."""

from __future__ import annotations

import os

from vmm.errors import KvmError

_FOLDER = os.path.join(os.path.dirname(os.path.dirname(__file__)), "_guest")

_runtime: bytes | None = None


def _read(name: str) -> bytes:
    with open(os.path.join(_FOLDER, name), "rb") as file:
        return file.read()


def runtime() -> bytes:
    """The runtime's ELF, read once.

    :raises KvmError: the package was not built.
    """
    global _runtime
    if _runtime is None:
        try:
            _runtime = _read("runtime.elf")
        except OSError as error:
            raise KvmError(
                f"the guest runtime is not built ({error.strerror}): install the package with `pip install .`, "
                "or run `make guest`"
            ) from None
    return _runtime


def debug_of(elf: bytes) -> bytes:
    """The ELF with debugging information that belongs to an ELF: beside the shipped file, or itself."""
    try:
        names = sorted(os.listdir(_FOLDER))
    except OSError:
        return elf
    for name in names:
        if not name.endswith(".elf"):
            continue
        path = os.path.join(_FOLDER, name)
        try:
            if os.path.getsize(path) == len(elf) and _read(name) == elf:
                return _read(name[: -len(".elf")] + ".debug")
        except OSError:
            continue
    return elf
