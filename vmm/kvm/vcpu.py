"""A virtual processor: registers, running, deadlines."""

from __future__ import annotations

import errno
import os

from vmm.errors import KvmError
from vmm.kvm.binding import check, ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Self

#: What :meth:`Vcpu.enter` answers: an MMIO write, an MMIO read, or KVM's exit reason; or a signal.
WRITE: int = lib.PYVMM_WRITE
READ: int = lib.PYVMM_READ
INTERRUPTED = -errno.EINTR
EXIT_SHUTDOWN: int = lib.KVM_EXIT_SHUTDOWN
EXIT_FAIL_ENTRY: int = lib.KVM_EXIT_FAIL_ENTRY
EXIT_INTERNAL_ERROR: int = lib.KVM_EXIT_INTERNAL_ERROR

#: General registers by the names of ``struct kvm_regs``.
REGISTERS: tuple[str, ...] = tuple(name for name, _ in ffi.typeof("struct kvm_regs").fields)
_FXSAVE_SIZE = 512
_PARTS = ("registers", "segments", "events", "fpu")


class State:
    """Registers, control registers, pending events and FPU of a vCPU at one moment."""

    __slots__ = ("raw",)

    def __init__(self) -> None:
        self.raw: Any = ffi.new("struct pyvmm_state *")

    def differences(self, other: State) -> tuple[str, ...]:
        """The names of the parts in which two states differ."""
        bits = lib.pyvmm_compare(self.raw, other.raw)
        return tuple(name for index, name in enumerate(_PARTS) if bits >> index & 1)


class Vcpu:
    """An open vCPU descriptor; made by :meth:`vmm.kvm.Vm.create_vcpu`.

    May be used from any thread, from one at a time.
    """

    __slots__ = ("_run_size", "_timer", "exit", "fd", "run")

    def __init__(self, fd: int, run_size: int) -> None:
        self.fd = fd
        self._run_size = run_size
        self._timer: Any = None
        self.exit: Any = ffi.new("struct pyvmm_exit *")
        self.run: Any = lib.pyvmm_map_run(fd, run_size)
        if self.run == ffi.NULL:
            os.close(fd)
            self.fd = -1
            raise KvmError("mapping the vCPU failed")

    def set_cpuid(self, entries: tuple[tuple[int, int, int, int, int, int], ...]) -> None:
        """Set the CPU model; an index of -1 means that the leaf has none.

        :raises KvmError: KVM refuses.
        """
        table = ffi.new("struct kvm_cpuid_entry2[]", len(entries))
        for entry, (function, index, *values) in zip(table, entries, strict=True):
            entry.function = function
            if index >= 0:
                entry.index = index
                entry.flags = lib.KVM_CPUID_FLAG_SIGNIFCANT_INDEX
            entry.eax, entry.ebx, entry.ecx, entry.edx = values
        check(lib.pyvmm_set_cpuid(self.fd, table, len(entries)), "KVM_SET_CPUID2")

    def registers(self) -> dict[str, int]:
        """The general registers."""
        regs = ffi.new("struct kvm_regs *")
        check(lib.pyvmm_ioctl(self.fd, lib.KVM_GET_REGS, regs), "KVM_GET_REGS")
        return {name: getattr(regs, name) for name in REGISTERS}

    def set_registers(self, values: Mapping[str, int]) -> None:
        """Set all general registers; those not named become 0."""
        regs = ffi.new("struct kvm_regs *")
        for name, value in values.items():
            setattr(regs, name, value)
        check(lib.pyvmm_ioctl(self.fd, lib.KVM_SET_REGS, regs), "KVM_SET_REGS")

    def special_registers(self) -> Any:
        """``struct kvm_sregs`` as a cffi pointer."""
        sregs = ffi.new("struct kvm_sregs *")
        check(lib.pyvmm_ioctl(self.fd, lib.KVM_GET_SREGS, sregs), "KVM_GET_SREGS")
        return sregs

    def set_special_registers(self, sregs: Any) -> None:
        """Set what :meth:`special_registers` gave."""
        check(lib.pyvmm_ioctl(self.fd, lib.KVM_SET_SREGS, sregs), "KVM_SET_SREGS")

    def enter(self) -> int:
        """Run the guest until it exits, or until a signal comes: WRITE, READ, an exit reason, or INTERRUPTED.

        After WRITE, ``exit.address``, ``exit.value`` and ``exit.length`` are the access; after READ :meth:`answer`.

        :raises KvmError: KVM_RUN failed.
        """
        result: int = lib.pyvmm_enter(self.fd, self.run, self.exit)
        if result < 0:
            if result == INTERRUPTED or result == -errno.EAGAIN:
                return INTERRUPTED
            raise KvmError(f"KVM_RUN failed: {os.strerror(-result)}", errno=errno.errorcode.get(-result))
        return result

    def answer(self, value: int) -> None:
        """The result of the MMIO read that the vCPU stands in."""
        lib.pyvmm_answer(self.run, value)

    def settle(self) -> None:
        """Finish the access that the vCPU stands in, without running the guest.

        :raises KvmError: it does not end.
        """
        check(lib.pyvmm_settle(self.fd, self.run), "KVM_RUN to finish an access")

    def save(self) -> State:
        """The state of a settled vCPU."""
        state = State()
        check(lib.pyvmm_save(self.fd, state.raw), "reading the state of the vCPU")
        return state

    def restore(self, state: State) -> None:
        """Put a settled vCPU into a state."""
        check(lib.pyvmm_restore(self.fd, state.raw), "setting the state of the vCPU")

    def interrupt(self) -> None:
        """Make the next :meth:`enter` finish the access that the vCPU stands in and answer INTERRUPTED.

        An access that KVM splits exits once for each part before that.
        """
        self.run.immediate_exit = 1

    def fpu(self) -> bytes:
        """The x87 and SSE state: the FXSAVE image that KVM's XSAVE area begins with (Intel SDM volume 1, 10.5.1)."""
        area = ffi.new("struct kvm_xsave *")
        check(lib.pyvmm_ioctl(self.fd, lib.KVM_GET_XSAVE, area), "KVM_GET_XSAVE")
        return bytes(ffi.buffer(area, _FXSAVE_SIZE))

    def set_fpu(self, image: bytes) -> None:
        """Set the x87 and SSE state from the beginning of an FXSAVE image; what is not in it stays.

        :raises KvmError: KVM refuses it, reserved bits of MXCSR for example.
        """
        area = ffi.new("struct kvm_xsave *")
        check(lib.pyvmm_ioctl(self.fd, lib.KVM_GET_XSAVE, area), "KVM_GET_XSAVE")
        view = ffi.buffer(area)
        view[: len(image)] = image
        # XSTATE_BV: both parts are there, not in their initial state (SDM volume 1, 13.4.2).
        area.region[_FXSAVE_SIZE // 4] |= 3
        check(lib.pyvmm_ioctl(self.fd, lib.KVM_SET_XSAVE, area), "KVM_SET_XSAVE")

    def drop_exception(self, vector: int) -> None:
        """Forget an exception of this vector that the vCPU would take at the next entry."""
        check(lib.pyvmm_drop_exception(self.fd, vector), "KVM_SET_VCPU_EVENTS")

    def arm(self, first_ns: int, interval_ns: int) -> None:
        """Make :meth:`enter` on the calling thread return after ``first_ns`` nanoseconds, then every ``interval_ns``.

        :raises KvmError: the kernel gives no timer, or every real-time signal is taken.
        """
        # Known before it ticks: a KeyboardInterrupt on the way out of here must not leave a timer that nobody stops.
        timer = self._timer = ffi.new("struct pyvmm_timer *")
        check(lib.pyvmm_arm(timer, self.run, first_ns, interval_ns), "starting the deadline timer")

    def disarm(self) -> None:
        """Stop the timer, on the thread that armed it.  Idempotent."""
        timer, self._timer = self._timer, None
        if timer is not None:
            lib.pyvmm_disarm(timer)

    def close(self) -> None:
        """Give up the vCPU.  Idempotent."""
        # A tick writes to what is unmapped here.
        self.disarm()
        run, self.run = self.run, ffi.NULL
        if run != ffi.NULL:
            lib.pyvmm_unmap_run(run, self._run_size)
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
