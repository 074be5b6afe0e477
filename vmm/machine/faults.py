"""From what the processor says about a trap to what a report says: plain data of :mod:`vmm.boundary`."""

from __future__ import annotations

from struct import Struct

from calltable import OPERATION_BASE, OPERATION_SIZE, STACK_BASE
from vmm.boundary import Failure, FailureKind, Frame
from vmm.devices.errors import DeviceEvent
from vmm.machine.layout import STACK_TOP, describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.kvm import Vcpu
    from vmm.machine.layout import Region
    from vmm.machine.memory import GuestMemory

PAGE_FAULT = 14
_WITH_SELECTOR = (10, 11, 12, 13)

#: Names of the vectors (Intel SDM volume 3, table 6-1).
_NAMES = {
    0: "divide error",
    1: "debug trap",
    2: "non-maskable interrupt",
    3: "breakpoint",
    4: "overflow",
    5: "bound range exceeded",
    6: "invalid opcode",
    7: "device not available",
    8: "double fault",
    10: "invalid TSS",
    11: "segment not present",
    12: "stack fault",
    13: "general protection fault",
    14: "page fault",
    16: "x87 floating-point error",
    17: "alignment check",
    18: "machine check",
    19: "SIMD floating-point error",
    20: "virtualization exception",
    21: "control protection fault",
}

#: What a trap stub leaves on the ring-0 stack: error code, then what the processor pushed.
_FRAME = Struct("<6Q")
_WORDS = Struct("<QQ")
MAX_FRAMES = 32


class GuestTrap(DeviceEvent):
    """A trap stub rang: ``vector``."""

    def __init__(self, vector: int) -> None:
        super().__init__(vector)
        self.vector = vector


class GuestShutdown(DeviceEvent):
    """The processor gave up: a fault while it delivered a fault."""


class GuestStuck(DeviceEvent):
    """KVM cannot continue this guest; the text says why."""


class DebuggerGone(DeviceEvent):
    """The debugger ended the run, or its connection is lost; the text says which."""


def backtrace(memory: GuestMemory, registers: dict[str, int]) -> list[int]:
    """Code addresses, innermost first, by frame pointers; the chain is the guest's and may be nonsense."""
    addresses = [registers["rip"]]
    frame = registers["rbp"]
    floor = STACK_BASE
    while floor <= frame <= STACK_TOP - _WORDS.size and frame % 8 == 0 and len(addresses) < MAX_FRAMES:
        floor = frame + _WORDS.size
        frame, address = _WORDS.unpack(memory.get(frame, _WORDS.size))
        if address == 0:
            break
        addresses.append(address)
    return addresses


def frames(addresses: list[int]) -> tuple[Frame, ...]:
    """Frames without symbols."""
    return tuple(Frame(address) for address in addresses)


def from_trap(vector: int, vcpu: Vcpu, memory: GuestMemory, regions: list[Region]) -> Failure:
    """The report of an exception."""
    registers = vcpu.registers()
    stack = memory.get(registers["rsp"], _FRAME.size)
    inside = ""
    error_code = 0
    if len(stack) == _FRAME.size:
        error_code, registers["rip"], selector, registers["rflags"], registers["rsp"], _ = _FRAME.unpack(stack)
        if selector & 3 == 0:
            inside = " in ring 0"
    name = _NAMES.get(vector, f"exception {vector}")
    trace = frames(backtrace(memory, registers))
    if vector == PAGE_FAULT:
        address = int(vcpu.special_registers().cr2)
        access = "execute" if error_code & 16 else "write" if error_code & 2 else "read"
        region = describe(address, regions)
        return Failure(
            FailureKind.PAGE_FAULT,
            f"page fault{inside}: {access} at {address:#x} ({region}) by the instruction at {registers['rip']:#x}",
            vector=vector,
            error_code=error_code,
            address=address,
            access=access,
            region=region,
            registers=registers,
            backtrace=trace,
        )
    code = f" (error code {error_code:#x})" if vector in _WITH_SELECTOR and error_code else ""
    return Failure(
        FailureKind.EXCEPTION,
        f"{name}{inside}{code} at the instruction at {registers['rip']:#x}",
        vector=vector,
        error_code=error_code,
        region=describe(registers["rip"], regions),
        registers=registers,
        backtrace=trace,
    )


def from_abort(message: bytes, site: int, vcpu: Vcpu, memory: GuestMemory) -> Failure:
    """The report of a panic: the site it blames first, then the frames of the operation that led there."""
    registers = vcpu.registers()
    chain = [a for a in backtrace(memory, registers) if 0 <= a - OPERATION_BASE < OPERATION_SIZE]
    # The site is the last byte of a call whose return address is in the chain; what comes before is the panic itself.
    for index, address in enumerate(chain):
        if address - site in (0, 1):
            chain = chain[index + 1 :]
            break
    text = escape(message) or "the guest gave no reason"
    return Failure(
        FailureKind.PANIC,
        f"panic: {text}",
        registers=registers,
        backtrace=frames([site, *chain] if site else chain),
    )


def from_stop(kind: FailureKind, message: str, vcpu: Vcpu, memory: GuestMemory) -> Failure:
    """The report of a run that was ended where it stood."""
    registers = vcpu.registers()
    return Failure(kind, message, registers=registers, backtrace=frames(backtrace(memory, registers)))


def escape(text: bytes) -> str:
    """Text of the guest's, with everything that is not printable escaped."""
    decoded = text.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in decoded)
