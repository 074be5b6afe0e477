"""What a device sees of guest memory."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object


class GuestMemory(Protocol):
    """The ranges of guest memory that devices may touch, and no others.

    An implementation refuses whatever is no RAM, and what only ring 0 may touch; with ``writable`` also what the
    guest itself may not write (its text, its constants, the call table, the boot page).  It remembers ranges handed
    out as writable, where a later reset must know what the host wrote.
    """

    def view(self, address: int, length: int, *, writable: bool) -> memoryview:
        """The bytes [address, address + length) themselves, not a copy: format ``B``, one dimension.

        Any two integers may come in: negative ones never, but sums beyond 2^64.  A ``length`` of 0 answers an empty
        view wherever ``address`` lies.

        :raises vmm.devices.errors.MemoryAccessError: not all of the range may be touched.
        """
