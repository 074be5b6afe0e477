"""A run under gdb: breakpoints, single steps and faults of the guest as stops of a debugger.

Built on the machine's own trap stubs.  A breakpoint is ``int3`` in the guest's text, a step is RFLAGS.TF; both end in a
stub of :mod:`vmm.machine.cpu`, which has told its vector to the trap doorbell and stands in ring 0.  What ring 3 had in
rip, rsp and rflags lies on the ring-0 stack then; to go on, it is put back there, and the stub returns with ``iretq``.
Ctrl-C, and the end of a stepped instruction that a device served, leave the vCPU in ring 3 itself.

The guest must not see any of it: TF in what it pushes, or in the registers of a fault, is taken out again, and a trap
that nobody here asked for is its own and ends the run as it would have without a debugger.

What this needs has to be imported beforehand where nothing can be opened any more; it reads, writes and polls the
connection and nothing else.
"""

from __future__ import annotations

from struct import Struct

from calltable import KERNEL_STACK_BASE
from vmm.devices.errors import DeviceEvent, LimitExceeded, MemoryAccessError, ProtocolViolation, RunAborted
from vmm.machine import cpu
from vmm.machine.breakpoints import BreakpointMemory
from vmm.machine.faults import PAGE_FAULT, DebuggerGone, GuestTrap
from vmm.machine.gdb_commands import (
    SIGABRT,
    SIGBUS,
    SIGFPE,
    SIGILL,
    SIGINT,
    SIGSEGV,
    SIGSYS,
    SIGTRAP,
    SIGXCPU,
    Commands,
    Detach,
    Kill,
    Resume,
    Stop,
)
from vmm.machine.gdb_link import GdbLink
from vmm.machine.gdb_registers import FXSAVE_SIZE, RegisterFile
from vmm.machine.layout import KERNEL_STACK_TOP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.devices.bus import Bus
    from vmm.kvm import Vcpu
    from vmm.machine.gdb_commands import Action
    from vmm.machine.layout import Region
    from vmm.machine.memory import GuestMemory

TRAP_FLAG = 1 << 8
#: Behind the error code, what the processor pushed: rip, cs, rflags, rsp, ss.
_FRAME = Struct("<5Q")
_FRAME_OFFSET = 8

#: Instructions for which TF is not only the debugger's: PUSHF, POPF, INT1, IRET, SYSCALL (Intel SDM volume 2).
_PUSHF, _POPF, _INT1, _IRET, _SYSCALL = 0x9C, 0x9D, 0xF1, 0xCF, 0x0F05
_PREFIXES = bytes((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3, *range(0x40, 0x50)))
_LONGEST_INSTRUCTION = 15

_SIGNALS = {0: SIGFPE, 1: SIGTRAP, 3: SIGTRAP, 6: SIGILL, 7: SIGFPE, 8: SIGBUS, 16: SIGFPE, 17: SIGBUS, 19: SIGFPE}


class _Standing(DeviceEvent):
    """The guest stands still in ring 3, between two instructions."""


class SteppingBus:
    """The bus while one instruction is stepped: makes the run loop look up after each access.

    KVM finishes an access at the next entry and raises no debug trap for an instruction that it emulated: without this
    a step over a doorbell would be two.
    """

    __slots__ = ("_bus", "_vcpu", "accessed")

    def __init__(self, bus: Bus, vcpu: Vcpu) -> None:
        self._bus = bus
        self._vcpu = vcpu
        self.accessed = False

    def write(self, address: int, value: int, size: int) -> int:
        """See :meth:`vmm.devices.bus.Bus.write`."""
        signal = self._bus.write(address, value, size)
        self._look_up()
        return signal

    def read(self, address: int, size: int) -> int:
        """See :meth:`vmm.devices.bus.Bus.read`."""
        value = self._bus.read(address, size)
        self._look_up()
        return value

    def _look_up(self) -> None:
        self.accessed = True
        self._vcpu.interrupt()


class Debugger:
    """gdb at the other end of a connection, in charge of one run.

    :param descriptor: the connection; stays the caller's.
    :param describe: one sentence for what ended a run.
    """

    def __init__(
        self,
        descriptor: int,
        vcpu: Vcpu,
        memory: GuestMemory,
        regions: list[Region],
        bus: Bus,
        describe: Callable[[DeviceEvent], str],
    ) -> None:
        self._link = GdbLink(descriptor)
        self._commands = Commands(self)
        self._vcpu = vcpu
        self._memory = memory
        self.memory = BreakpointMemory(memory, regions)
        self._bus = bus
        self._describe = describe
        #: Where the frame of the trap lies that the guest stands in; None in ring 3.
        self._frame: int | None = None
        #: What ended the run, once something has.
        self._event: DeviceEvent | None = None
        self._stepping: SteppingBus | None = None
        self._start = 0
        self.stop = Stop(SIGTRAP)

    def run(self, entry: int, drive: Callable[[Bus | SteppingBus, Callable[[], None]], None]) -> bool:
        """From READY on: stop at the operation's entry, then do what gdb says.

        :param entry: the operation's first instruction.
        :param drive: runs the guest to its end on a bus, with what to call when it was interrupted.
        :returns: True when the run is complete; False when gdb has let go of a guest that can go on.
        :raises DeviceEvent: what ended the run.
        """
        self._drive = drive
        self._vcpu.settle()
        self._load()
        try:
            self.memory.insert(entry)
            running = self._go(step=False)
            self.memory.remove(entry)
            if self._event is None:
                # Nobody has asked for the breakpoint.
                self.stop = Stop(SIGTRAP)
            while running:
                action = self._converse()
                if isinstance(action, Detach):
                    self._commit(step=False)
                    return False
                running = self._resume(action)
                if running:
                    self._report()
            self._farewell(b"W%02x" % ((self._bus.control.status or 0) & 0xFF))
            return True
        finally:
            self.memory.remove_all()

    # What gdb wants ------------------------------------------------------------------------------------------------

    def _converse(self) -> Resume | Detach:
        """Answer packets until one makes the guest do something.

        :raises DeviceEvent: the run is over.
        """
        try:
            action = self._answer()
        except DebuggerGone:
            if self._event is not None:
                raise self._event from None
            raise
        if isinstance(action, Kill):
            self._farewell(b"OK")
            raise self._event or DebuggerGone("the debugger ended the run")
        if isinstance(action, Detach):
            self._farewell(b"OK")
        if self._event is not None:
            if isinstance(action, Resume):
                self._farewell(b"X%02x" % self.stop.signal)
            raise self._event
        return action

    def _answer(self) -> Action:
        link, commands = self._link, self._commands
        while True:
            answer = commands.handle(link.receive())
            if not isinstance(answer, bytes):
                return answer
            link.send(answer)
            link.no_acks = commands.take_ack_change() or link.no_acks

    def _report(self) -> None:
        """Tell gdb that the guest has stopped.

        :raises DebuggerGone: nobody listens; or what ended the run, when something has.
        """
        try:
            if self._event is not None:
                self._link.send(b"O" + f"{self._describe(self._event)}\n".encode().hex().encode())
            self._link.send(self._commands.stop_reply())
        except DebuggerGone:
            if self._event is not None:
                raise self._event from None
            raise

    def _farewell(self, packet: bytes) -> None:
        """A last packet; whether it arrives changes nothing."""
        try:
            self._link.send(packet)
        except DebuggerGone:
            pass

    # The guest goes on ---------------------------------------------------------------------------------------------

    def _resume(self, action: Resume) -> bool:
        """Do what gdb asked; False when the run is complete."""
        if not action.step:
            if self._place() in self.memory:
                # Off the breakpoint first; what it leads to may be a stop of its own.
                if not self._go(step=True):
                    return False
                if self._event is not None or self.stop.breakpoint or self._caught():
                    return True
            return self._go(step=False)
        while self._go(step=True):
            place = self._place()
            inside = action.start <= place < action.end
            if self._event is not None or not inside or place in self.memory or self.stop.breakpoint:
                return True
            if self._caught():
                return True
        return False

    def _caught(self) -> bool:
        """Whether Ctrl-C has come, which is the stop then."""
        if self._link.look():
            self.stop = Stop(SIGINT)
            return True
        return False

    def _place(self) -> int:
        return self.registers.general["rip"]

    def _go(self, *, step: bool) -> bool:
        """Let the guest go until it stops, for one instruction when it is stepped; False when the run is complete."""
        self._start = start = self._place()
        own = bool(self.registers.general["rflags"] & TRAP_FLAG)
        lifted = step and start in self.memory
        if lifted:
            self.memory.remove(start)
        opcode = self._opcode(start) if step else 0
        self._stepping = SteppingBus(self._bus, self._vcpu) if step else None
        self._commit(step=step)
        try:
            self._drive(self._stepping or self._bus, self._check)
        except GuestTrap as trap:
            self._trapped(trap, step, own, opcode)
        except _Standing:
            self._stand(step, own, opcode)
        except DebuggerGone:
            raise
        except DeviceEvent as event:
            if step:
                self._put_flag(own)
            self._load()
            self._end(event)
        else:
            return False
        finally:
            self._stepping = None
            if lifted:
                self.memory.insert(start)
        return True

    def _check(self) -> None:
        """The run loop was interrupted: by the clock, or because a stepped instruction touched a device."""
        stepping = self._stepping
        finished = stepping is not None and stepping.accessed
        if not (finished or self._link.look()) or self._in_ring_0():
            # Of a stub nothing is shown; Ctrl-C waits for the next time.
            return
        if not finished or self._link.interrupted or self._vcpu.registers()["rip"] != self._start:
            raise _Standing

    def _in_ring_0(self) -> bool:
        return int(self._vcpu.special_registers().cs.selector) & 3 == 0

    # The guest stops -----------------------------------------------------------------------------------------------

    def _trapped(self, trap: GuestTrap, step: bool, own: bool, opcode: int) -> None:
        """A trap stub rang: a breakpoint, the end of a step, or a fault of the guest's."""
        self._vcpu.settle()
        top = self._vcpu.registers()["rsp"]
        stack = self._memory.get(top + _FRAME_OFFSET, _FRAME.size)
        if not KERNEL_STACK_BASE <= top <= KERNEL_STACK_TOP - _FRAME_OFFSET - _FRAME.size:
            self._load()
            self._end(trap)
            return
        place, selector, flags, pointer, data = _FRAME.unpack(stack)
        user = selector & 3 == 3
        stepped = trap.vector == cpu.DEBUG and step and user and not own and opcode != _INT1
        hit = trap.vector == cpu.BREAKPOINT and user and self.memory.executable(place - 1)
        # gdb calls functions with a return address on the stack and a breakpoint there, where nothing can be executed.
        fetched = trap.vector == PAGE_FAULT and user and place in self.memory and not self.memory.executable(place)
        if step and not (stepped and opcode in (_POPF, _IRET)):
            flags = flags & ~TRAP_FLAG | (TRAP_FLAG if own else 0)
        if stepped and opcode == _PUSHF:
            self._hide_pushed_flag(pointer)
        if step and opcode == _SYSCALL and place != self._start:
            # Where a host lets it, it has put RFLAGS into r11 and jumped to nowhere.
            registers = self._vcpu.registers()
            registers["r11"] = registers["r11"] & ~TRAP_FLAG | (TRAP_FLAG if own else 0)
            self._vcpu.set_registers(registers)
        if hit:
            place -= 1
        self._memory.put(top + _FRAME_OFFSET, _FRAME.pack(place, selector, flags, pointer, data))
        self._load(top + _FRAME_OFFSET)
        if stepped or hit or fetched:
            self.stop = Stop(SIGTRAP, breakpoint=hit or fetched)
        else:
            self._end(trap)

    def _stand(self, step: bool, own: bool, opcode: int) -> None:
        """The vCPU stands in ring 3: after an access of a stepped instruction, or because of Ctrl-C."""
        if step:
            moved = self._vcpu.registers()["rip"] != self._start
            if not (moved and opcode in (_POPF, _IRET)):
                self._put_flag(own)
            if not own:
                # Some hosts raise the debug trap for an instruction that they emulated; it would come with the next.
                self._vcpu.drop_exception(cpu.DEBUG)
        self._load()
        self.stop = Stop(SIGINT if self._link.interrupted else SIGTRAP)

    def _end(self, event: DeviceEvent) -> None:
        """The run is over; gdb may look at what is left."""
        self._event = event
        self.stop = Stop(_signal(event))

    def _put_flag(self, on: bool) -> None:
        """TF of a vCPU that stands in ring 3."""
        registers = self._vcpu.registers()
        registers["rflags"] = registers["rflags"] & ~TRAP_FLAG | (TRAP_FLAG if on else 0)
        self._vcpu.set_registers(registers)

    def _hide_pushed_flag(self, pointer: int) -> None:
        """Take TF out of the flags that the guest has just pushed."""
        try:
            view = self._memory.view(pointer + 1, 1, writable=True)
        except MemoryAccessError:
            return
        view[0] &= 0xFF ^ TRAP_FLAG >> 8

    def _opcode(self, address: int) -> int:
        """The opcode of an instruction behind its prefixes: one byte, or two behind 0F; 0 when there is none."""
        code = self.memory.get(address, _LONGEST_INSTRUCTION).lstrip(_PREFIXES)
        return int.from_bytes(code[: 2 if code[:1] == b"\x0f" else 1], "big")

    def _load(self, frame: int | None = None) -> None:
        """Read the registers of the stopped guest."""
        general = self._vcpu.registers()
        special = self._vcpu.special_registers()
        selectors = {name: int(getattr(special, name).selector) for name in ("cs", "ss", "ds", "es", "fs", "gs")}
        bases = {"fs_base": int(special.fs.base), "gs_base": int(special.gs.base)}
        self._inner = {name: general[name] for name in ("rip", "rsp", "rflags")}
        self._frame = frame
        if frame is not None:
            words = _FRAME.unpack(self._memory.get(frame, _FRAME.size))
            general["rip"], selectors["cs"], general["rflags"], general["rsp"], selectors["ss"] = words
            selectors["cs"] &= 0xFFFF
            selectors["ss"] &= 0xFFFF
        self.registers = RegisterFile(general, selectors, bases, self._vcpu.fpu()[:FXSAVE_SIZE])

    def _commit(self, *, step: bool) -> None:
        """Give the guest the registers as they are now, with TF for a step."""
        registers = self.registers
        general = dict(registers.general)
        if step:
            general["rflags"] |= TRAP_FLAG
        if self._frame is not None:
            _, selector, _, _, data = _FRAME.unpack(self._memory.get(self._frame, _FRAME.size))
            frame = _FRAME.pack(general["rip"], selector, general["rflags"], general["rsp"], data)
            self._memory.put(self._frame, frame)
            # The stub's own, which take it to the frame.
            general.update(self._inner)
        self._vcpu.set_registers(general)
        if registers.fpu_changed:
            self._vcpu.set_fpu(bytes(registers.fpu))

    # What gdb sees: vmm.machine.gdb_commands.Target ----------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Registers may be changed: the guest can go on."""
        return self._event is None


def _signal(event: DeviceEvent) -> int:
    """gdb's number of the signal that a process would have got."""
    if isinstance(event, GuestTrap):
        return _SIGNALS.get(event.vector, SIGSEGV)
    if isinstance(event, RunAborted):
        return SIGABRT
    if isinstance(event, LimitExceeded):
        return SIGXCPU
    if isinstance(event, ProtocolViolation):
        return SIGSYS
    # Triple faults, and what KVM cannot go on with.
    return SIGBUS
