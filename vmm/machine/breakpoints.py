"""The guest's memory as a debugger sees it: what ring 3 has, without the breakpoints that are planted in it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.machine.layout import Region
    from vmm.machine.memory import GuestMemory

_INT3 = 0xCC


class BreakpointMemory:
    """Memory with breakpoints.

    :param regions: of the machine; those that ring 3 may not touch, and devices, are not there for a debugger.
    """

    __slots__ = ("_memory", "_planted", "_regions")

    def __init__(self, memory: GuestMemory, regions: list[Region]) -> None:
        self._memory = memory
        self._regions = [region for region in regions if region.user and not region.device]
        #: Breakpoints, and the bytes that were there; None where nothing is planted, because nothing can be executed.
        self._planted: dict[int, int | None] = {}

    def get(self, address: int, length: int) -> bytes:
        """Bytes without breakpoints; fewer where they end, none where nothing is."""
        length = min(length, self._end_of(address) - address)
        if length <= 0:
            return b""
        data = bytearray(self._memory.view(address, length, writable=False))
        for place, original in self._planted.items():
            if original is not None and address <= place < address + length:
                data[place - address] = original
        return bytes(data)

    def put(self, address: int, data: bytes) -> bool:
        """Change bytes, of text and constants too, below the breakpoints; all of them or none."""
        if address + len(data) > self._end_of(address):
            return False
        # What the guest may not write is written through the same view as what it may.
        view = self._memory.view(address, len(data), writable=False)
        view[:] = data
        for place, original in self._planted.items():
            if original is not None and address <= place < address + len(data):
                self._planted[place] = data[place - address]
                view[place - address] = _INT3
        return True

    def insert(self, address: int) -> bool:
        """Make the guest trap where it would execute what lies there; False where nothing is.

        What cannot be executed stays as it is: the page fault is the trap.
        """
        region = next((region for region in self._regions if region.start <= address < region.end), None)
        if region is None:
            return False
        if address in self._planted:
            return True
        if region.execute:
            view = self._memory.view(address, 1, writable=False)
            self._planted[address] = view[0]
            view[0] = _INT3
        else:
            self._planted[address] = None
        return True

    def remove(self, address: int) -> None:
        """Undo :meth:`insert`."""
        original = self._planted.pop(address, None)
        if original is not None:
            self._memory.view(address, 1, writable=False)[0] = original

    def remove_all(self) -> None:
        """Undo every :meth:`insert`."""
        for address in list(self._planted):
            self.remove(address)

    def __contains__(self, address: int) -> bool:
        """Whether a breakpoint is at an address."""
        return address in self._planted

    def executable(self, address: int) -> bool:
        """Whether the breakpoint at an address is an ``int3``."""
        return self._planted.get(address) is not None

    def ranges(self) -> list[tuple[int, int]]:
        """[start, end) of all that is there."""
        return [(region.start, region.end) for region in self._regions]

    def _end_of(self, address: int) -> int:
        """Where the memory ends that an address lies in; the address itself where there is none."""
        end = address
        while True:
            further = [region.end for region in self._regions if region.start <= end < region.end]
            if not further:
                return end
            end = max(further)
