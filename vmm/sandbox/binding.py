"""The compiled binding of the jail, typed as far as cffi objects can be, and its absence as a typed error."""

from __future__ import annotations

from vmm.errors import SandboxError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

try:
    from vmm.sandbox._binding import ffi as _ffi
    from vmm.sandbox._binding import lib as _lib
except ImportError as error:
    raise SandboxError(
        f"the binding of the sandbox is not built ({error}): install the package with `pip install .`, or run "
        "`make guest`"
    ) from None

ffi: Any = _ffi
lib: Any = _lib
