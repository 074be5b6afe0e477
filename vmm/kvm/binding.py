"""The compiled binding, typed as far as cffi objects can be, and its absence as a typed error.

``lib`` is typed ``Any`` because the functions exist only after compilation; the façade classes beside this module
are what the rest of the package uses.
"""

from __future__ import annotations

import errno
import os

from vmm.errors import KvmError, KvmUnavailableError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

try:
    from vmm.kvm._binding import ffi as _ffi
    from vmm.kvm._binding import lib as _lib
except ImportError as error:
    raise KvmUnavailableError(
        f"the KVM binding is not built ({error}): install the package with `pip install .`, or run `make guest`"
    ) from None

ffi: Any = _ffi
lib: Any = _lib

_PREFIXES = ("KVM_GET_", "KVM_SET_", "KVM_CREATE_", "KVM_CHECK_", "KVM_RUN")


def requests() -> tuple[int, ...]:
    """The ioctl numbers that this package uses."""
    return tuple(getattr(lib, name) for name in dir(lib) if name.startswith(_PREFIXES))


def check(result: int, what: str) -> int:
    """``result`` of a call of the binding, when it is not minus an errno.

    :raises KvmError: it is.
    """
    if result < 0:
        raise KvmError(f"{what} failed: {os.strerror(-result)}", errno=errno.errorcode.get(-result))
    return result


def address_of(buffer: object) -> int:
    """The host address of a writable buffer."""
    with ffi.from_buffer(buffer, require_writable=True) as pinned:
        return int(ffi.cast("uintptr_t", pinned))
