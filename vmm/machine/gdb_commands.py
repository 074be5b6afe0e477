"""What each packet of gdb's asks, and its answer: a stopped machine as gdb sees it.

Source: "Debugging with GDB", appendix E, "Packets", "Stop Reply Packets", "General Query Packets", "Memory Map Format".
What is not here is answered with an empty packet, which means that it is not supported.
"""

from __future__ import annotations

from vmm.machine.gdb_protocol import PACKET_SIZE, GdbProtocolError, address_and_length, number, unhex
from vmm.machine.gdb_registers import NUMBERS, REGISTERS, TARGET_XML, RegisterFile
from vmm.record import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object

OK, UNSUPPORTED = b"OK", b""
#: Error numbers are those of errno.
_EFAULT, _EINVAL = b"E0e", b"E16"

#: gdb's numbers of signals (include/gdb/signals.def of gdb).
SIGINT, SIGILL, SIGTRAP, SIGABRT, SIGFPE, SIGBUS, SIGSEGV, SIGSYS, SIGXCPU = 2, 4, 5, 6, 8, 10, 11, 12, 24

#: The only thread.
_THREAD = b"1"
_THREADS = frozenset((b"0", b"1", b"-1", b"p1.1", b"p0.0", b"p1.-1", b"p-1.-1"))

_FEATURES = (
    f"PacketSize={PACKET_SIZE:x};QStartNoAckMode+;qXfer:features:read+;qXfer:memory-map:read+;swbreak+;vContSupported+"
)
#: Registers that each stop names unasked: what gdb wants to know first.
_EXPEDITED = tuple(NUMBERS[name] for name in ("rip", "rsp", "rbp"))


@dataclass(frozen=True, slots=True)
class Stop:
    """Why the guest stands still: a signal, and whether it was a breakpoint of the debugger's."""

    signal: int
    breakpoint: bool = False


@dataclass(frozen=True, slots=True)
class Resume:
    """gdb lets the guest go on: to the next stop, or for one step, repeated while in [start, end)."""

    step: bool
    start: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class Detach:
    """gdb lets go of the guest."""


@dataclass(frozen=True, slots=True)
class Kill:
    """gdb ends the guest."""


Action = Resume | Detach | Kill


class Memory(Protocol):
    """What a debugger sees of a machine's memory; see :class:`vmm.machine.breakpoints.BreakpointMemory`."""

    def get(self, address: int, length: int) -> bytes:
        """Bytes; fewer where they end, none where nothing is."""

    def put(self, address: int, data: bytes) -> bool:
        """Change bytes, all of them or none."""

    def insert(self, address: int) -> bool:
        """Make the guest stop before it executes what lies there; False where nothing is."""

    def remove(self, address: int) -> None:
        """Undo :meth:`insert`."""

    def ranges(self) -> list[tuple[int, int]]:
        """[start, end) of all that is there."""


class Target(Protocol):
    """A stopped machine."""

    @property
    def memory(self) -> Memory:
        """Its memory."""

    #: Of this stop.
    registers: RegisterFile
    stop: Stop

    @property
    def alive(self) -> bool:
        """Registers may be changed: the guest can go on."""


class Commands:
    """Answers packets.

    :param target: what they are about.
    """

    __slots__ = ("_ack_change", "_knows_swbreak", "_target")

    def __init__(self, target: Target) -> None:
        self._target = target
        self._knows_swbreak = False
        self._ack_change = False

    def take_ack_change(self) -> bool:
        """Whether the last packet ended acknowledgments; asked once, after its answer."""
        asked, self._ack_change = self._ack_change, False
        return asked

    def stop_reply(self) -> bytes:
        """The ``T`` packet of the present stop."""
        target = self._target
        parts = [b"T%02x" % target.stop.signal]
        parts += [b"%02x:%s;" % (number_, _hex(target.registers.read(number_))) for number_ in _EXPEDITED]
        parts.append(b"thread:%s;" % _THREAD)
        if target.stop.breakpoint and self._knows_swbreak:
            parts.append(b"swbreak:;")
        return b"".join(parts)

    def handle(self, packet: bytes) -> bytes | Action:
        """The answer to a packet, or what it makes the guest do; the answer then comes when that is done."""
        try:
            return self._handle(packet)
        except (GdbProtocolError, IndexError):
            return _EINVAL

    def _handle(self, packet: bytes) -> bytes | Action:
        letter, rest = packet[:1], packet[1:]
        simple = _SIMPLE.get(letter)
        if simple is not None:
            return simple(self, rest)
        if letter in (b"c", b"s"):
            return self._resume(letter == b"s", rest)
        if letter in (b"C", b"S"):
            # The guest has no signals: what was one has ended it already.
            signal, _, address = rest.partition(b";")
            number(signal)
            return self._resume(letter == b"S", address)
        if letter == b"D":
            return Detach()
        if letter == b"k" or packet.startswith(b"vKill;"):
            return Kill()
        if packet.startswith(b"vCont"):
            return self._vcont(packet[5:])
        return UNSUPPORTED

    def _why(self, rest: bytes) -> bytes:
        return UNSUPPORTED if rest else self.stop_reply()

    def _read_registers(self, rest: bytes) -> bytes:
        return UNSUPPORTED if rest else _hex(self._target.registers.all())

    def _write_registers(self, rest: bytes) -> bytes:
        data = unhex(rest)
        return OK if self._target.alive and self._target.registers.set_all(data) else _EINVAL

    def _read_register(self, rest: bytes) -> bytes:
        return _hex(self._target.registers.read(_register(rest)))

    def _write_register(self, rest: bytes) -> bytes:
        name, _, value = rest.partition(b"=")
        index, data = _register(name), unhex(value)
        return OK if self._target.alive and self._target.registers.write(index, data) else _EINVAL

    def _read_memory(self, rest: bytes) -> bytes:
        address, length = address_and_length(rest)
        return _hex(self._target.memory.get(address, min(length, PACKET_SIZE // 2))) or _EFAULT

    def _write_memory(self, rest: bytes) -> bytes:
        place, _, text = rest.partition(b":")
        return self._put(place, unhex(text))

    def _write_binary(self, rest: bytes) -> bytes:
        place, _, data = rest.partition(b":")
        return self._put(place, data)

    def _put(self, place: bytes, data: bytes) -> bytes:
        address, length = address_and_length(place)
        if length != len(data):
            return _EINVAL
        # gdb asks with no bytes whether it may send bytes.
        return OK if not data or self._target.memory.put(address, data) else _EFAULT

    def _insert(self, rest: bytes) -> bytes:
        address = _breakpoint(rest)
        if address is None:
            return UNSUPPORTED
        return OK if self._target.memory.insert(address) else _EFAULT

    def _remove(self, rest: bytes) -> bytes:
        address = _breakpoint(rest)
        if address is None:
            return UNSUPPORTED
        self._target.memory.remove(address)
        return OK

    def _thread(self, rest: bytes) -> bytes:
        return OK if rest in _THREADS else _EINVAL

    def _choose_thread(self, rest: bytes) -> bytes:
        return self._thread(rest[1:]) if rest[:1] in (b"g", b"c") else UNSUPPORTED

    def _query(self, rest: bytes) -> bytes:
        name, colon, arguments = rest.partition(b":")
        if name == b"Supported":
            self._knows_swbreak = b"swbreak+" in arguments.split(b";")
            return _FEATURES.encode()
        if name == b"Attached":
            # So that gdb's `quit` lets the run end by itself.
            return b"1"
        if name == b"C":
            return b"QC" + _THREAD
        if name == b"fThreadInfo":
            return b"m" + _THREAD
        if name == b"sThreadInfo":
            return b"l"
        if name == b"Symbol" and colon:
            return OK
        if name == b"Xfer":
            return self._transfer(arguments)
        return UNSUPPORTED

    def _transfer(self, arguments: bytes) -> bytes:
        kind, _, rest = arguments.partition(b":")
        verb, _, rest = rest.partition(b":")
        annex, _, part = rest.rpartition(b":")
        if verb != b"read":
            return UNSUPPORTED
        if kind == b"features":
            document = TARGET_XML if annex == b"target.xml" else None
        elif kind == b"memory-map":
            document = self._memory_map() if annex == b"" else None
        else:
            return UNSUPPORTED
        offset, length = address_and_length(part)
        if document is None or offset > len(document):
            return b"E00"
        # Escaping may double it.
        piece = document[offset : offset + min(length, PACKET_SIZE // 2 - 1)]
        return (b"m" if offset + len(piece) < len(document) else b"l") + piece

    def _memory_map(self) -> bytes:
        """Everything as RAM: gdb does not put its own kind of breakpoint into what it takes for ROM."""
        lines = [
            '<?xml version="1.0"?>',
            '<!DOCTYPE memory-map SYSTEM "gdb-memory-map.dtd">',
            "<memory-map>",
        ]
        lines += [
            f'<memory type="ram" start="{start:#x}" length="{end - start:#x}"/>'
            for start, end in sorted(self._target.memory.ranges())
        ]
        return "\n".join([*lines, "</memory-map>\n"]).encode()

    def _set(self, rest: bytes) -> bytes:
        if rest != b"StartNoAckMode":
            return UNSUPPORTED
        self._ack_change = True
        return OK

    def _resume(self, step: bool, address: bytes) -> bytes | Action:
        if address:
            place = number(address).to_bytes(8, "little")
            if not (self._target.alive and self._target.registers.write(NUMBERS["rip"], place)):
                return _EINVAL
        return Resume(step)

    def _vcont(self, rest: bytes) -> bytes | Action:
        if rest == b"?":
            return b"vCont;c;C;s;S;r"
        if not rest.startswith(b";"):
            return UNSUPPORTED
        # The first action that is about the only thread counts.
        for action in rest[1:].split(b";"):
            what, colon, thread = action.partition(b":")
            if colon and thread not in _THREADS:
                continue
            kind, argument = what[:1], what[1:]
            if kind in (b"C", b"S"):
                number(argument)
            elif kind == b"r":
                start, end = address_and_length(argument)
                return Resume(True, start, end)
            elif kind not in (b"c", b"s") or argument:
                return _EINVAL
            return Resume(kind in (b"s", b"S"))
        return _EINVAL


_SIMPLE = {
    b"?": Commands._why,
    b"g": Commands._read_registers,
    b"G": Commands._write_registers,
    b"p": Commands._read_register,
    b"P": Commands._write_register,
    b"m": Commands._read_memory,
    b"M": Commands._write_memory,
    b"X": Commands._write_binary,
    b"Z": Commands._insert,
    b"z": Commands._remove,
    b"H": Commands._choose_thread,
    b"T": Commands._thread,
    b"q": Commands._query,
    b"Q": Commands._set,
}


def _hex(data: bytes) -> bytes:
    return data.hex().encode()


def _register(text: bytes) -> int:
    index = number(text)
    if index >= len(REGISTERS):
        raise GdbProtocolError("there is no such register")
    return index


def _breakpoint(rest: bytes) -> int | None:
    """The address of ``0,ADDRESS,KIND``; None for breakpoints that are not instructions."""
    kind, _, place = rest.partition(b",")
    if kind != b"0":
        return None
    address, length = address_and_length(place.partition(b";")[0])
    if length != 1:
        raise GdbProtocolError("a breakpoint of this architecture has one byte")
    return address
