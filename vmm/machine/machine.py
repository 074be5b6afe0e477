"""One virtual machine: built for an operation, booted once, run and put back many times."""

from __future__ import annotations

from struct import Struct
from time import monotonic_ns

from calltable import (
    BOOT_DEVICE_FORMAT,
    BOOT_INFO,
    BOOT_INFO_FORMAT,
    BOOT_MAGIC,
    LARGE_PAGE_SIZE,
    MAX_DEVICES,
    MAX_MEMORY,
    OPERATION_BASE,
    OPERATION_SIZE,
    RAM_BASE,
    REQUEST_BASE,
    REQUEST_SIZE,
    RUNTIME_BASE,
    RUNTIME_SIZE,
    TRAP_BASE,
)
from vmm.boundary import KVM_DEVICE, Failure, FailureKind, Outcome, limit_message
from vmm.devices.bus import DONE, READY, Bus
from vmm.devices.errors import DeviceEvent, FileFailed, LimitExceeded, ProtocolViolation, ReplayDiverged, RunAborted
from vmm.errors import KvmError, UsageError
from vmm.kvm import Kvm
from vmm.kvm.vcpu import EXIT_FAIL_ENTRY, EXIT_INTERNAL_ERROR, EXIT_SHUTDOWN, INTERRUPTED, READ, WRITE
from vmm.machine import cpu, elf, faults, guests
from vmm.machine.faults import DebuggerGone, GuestShutdown, GuestStuck, GuestTrap
from vmm.machine.layout import DESCRIPTORS, STACK_TOP, STUBS, Region, fixed_regions
from vmm.machine.memory import RAM_SIZE, GuestMemory
from vmm.machine.pages import PageTables
from vmm.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from vmm.boundary import Event, Frame, Job
    from vmm.kvm import State
    from vmm.machine.debugger import SteppingBus

    #: Frames and the operation's ELF in, the frames with what is known of them out.
    Symboliser = Callable[[tuple[Frame, ...], bytes], tuple[Frame, ...]]

_BOOT = Struct(BOOT_INFO_FORMAT)
_BOOT_DEVICE = Struct(BOOT_DEVICE_FORMAT)

#: How often a run is interrupted, so that Python sees signals (Ctrl-C) and the clock, in nanoseconds.
TICK_NS = 100_000_000
#: How far behind the deadline its tick comes, so that the clock has passed it.
_SLACK_NS = 50_000
#: A deadline that does not come.
_NEVER = 1 << 64


class DeadlinePassed(DeviceEvent):
    """The run's wall time is used up."""


def _ignore(_: Event) -> None:
    pass


def _nanoseconds(timeout: float) -> int:
    """A timeout in seconds as nanoseconds, at least 1; a year stands for more.

    :raises UsageError: not above 0.
    """
    if not timeout > 0:
        raise UsageError(f"a timeout of {timeout} s; it has to be above 0")
    return max(1, int(min(timeout, 366 * 86400.0) * 1e9))


class Snapshot:
    """A machine at READY: what a reset puts back."""

    __slots__ = ("devices", "memory", "vcpu")

    def __init__(self, vcpu: State, devices: object, memory: list[tuple[memoryview, bytes]]) -> None:
        self.vcpu = vcpu
        self.devices = devices
        self.memory = memory


class Machine:
    """A machine for one operation, a number of devices and an amount of memory.

    :param operation: the operation's ELF.
    :param device_count: block devices, 0 to MAX_DEVICES.
    :param max_memory: bytes of arena beyond its hot part, rounded up to 2 MiB.
    :param warm: keep a snapshot, so that the machine can run again.
    :param runtime: another runtime's ELF, for tests.
    :param kvm: the KVM device; see :class:`vmm.kvm.Kvm`.
    :param symbolise: puts functions and lines to the frames of a failure; None: from the operation's ELF, here.
    :raises KvmUnavailableError: KVM cannot be used.
    :raises OperationLoadError: the ELF is not one that the machine can run.
    :raises UsageError: too many devices, or more memory than the memory map has room for.
    """

    def __init__(
        self,
        operation: bytes,
        device_count: int,
        max_memory: int,
        *,
        warm: bool = True,
        runtime: bytes | None = None,
        kvm: str | tuple[int, str] = KVM_DEVICE,
        symbolise: Symboliser | None = None,
    ) -> None:
        if device_count > MAX_DEVICES:
            raise UsageError(f"{device_count} devices; a machine has at most {MAX_DEVICES}")
        if not 0 <= max_memory <= MAX_MEMORY:
            raise UsageError(f"{max_memory} bytes of guest memory; 0 to {MAX_MEMORY} are possible")
        self.operation = operation
        self.warm = warm
        self._kvm = kvm
        self._symbolise = symbolise
        image = elf.parse(operation, OPERATION_BASE, OPERATION_SIZE, "operation")
        elf.check_contract(image.contract, "operation")
        resident = elf.parse(runtime or guests.runtime(), RUNTIME_BASE, RUNTIME_SIZE, "runtime")
        self._entry = image.entry
        self._snapshot: Snapshot | None = None
        self._used = False
        self._exits = 0
        self._request_length = 0
        self._deadline = 0
        self._closers: list[Callable[[], None]] = []
        #: False once the machine is in a state that a reset is not known to mend.
        self.reusable = warm
        try:
            self._build(image, resident, device_count, -(-max_memory // LARGE_PAGE_SIZE) * LARGE_PAGE_SIZE)
        except BaseException:
            self.close()
            raise

    def _build(self, image: elf.Image, resident: elf.Image, device_count: int, cold_size: int) -> None:
        self.memory = memory = GuestMemory(cold_size)
        self._closers.append(memory.close)
        self.regions = regions = fixed_regions(device_count, cold_size)
        for owner, loaded in (("runtime", resident), ("operation", image)):
            for segment in loaded.segments:
                regions.append(
                    Region(
                        f"{owner} {segment.kind}",
                        segment.page_start,
                        segment.page_end,
                        write=segment.write,
                        execute=segment.execute,
                    )
                )
                memory.put(segment.address, segment.data)
        memory.allow(regions)
        memory.put(DESCRIPTORS, cpu.descriptor_page())
        memory.put(STUBS, cpu.stub_page())
        tables = PageTables(memory.all[:RAM_SIZE], RAM_BASE)
        tables.map(regions)
        tables.release()

        with Kvm(self._kvm) as kvm:
            vm = kvm.create_vm()
        self._closers.append(vm.close)
        vm.set_memory(0, RAM_BASE, memory.map, memory.offset, memory.size)
        self.vcpu = vcpu = vm.create_vcpu(cpu.CPUID)
        self._closers.append(vcpu.close)
        sregs = vcpu.special_registers()
        cpu.set_special_registers(sregs, tables.root)
        vcpu.set_special_registers(sregs)
        # As after a call: the return address 0 lies on the stack already.
        vcpu.set_registers({"rip": resident.entry, "rsp": STACK_TOP - 8, "rflags": cpu.RFLAGS})
        self.bus = Bus(device_count, memory)

    def run(self, job: Job, on_event: Callable[[Event], None]) -> Outcome:
        """Run a job of this machine's operation and device count; a warm machine is reset afterwards.

        What ``on_event`` raises passes through, and the machine is then not reusable.

        :raises UsageError: the request is larger than its place.
        """
        if self._used and not self.reusable:
            raise RuntimeError("this machine has run, and cannot run again")
        if len(job.request) > REQUEST_SIZE:
            raise UsageError(f"the request has {len(job.request)} bytes; {REQUEST_SIZE} are possible")
        timeout = _nanoseconds(job.limits.timeout)
        start = monotonic_ns()
        self._deadline = start + timeout
        self._exits = 0
        bus, vcpu = self.bus, self.vcpu
        failure: Failure | None = None
        bus.begin_run(job, on_event, self._check)
        settled = False
        try:
            try:
                self._write_boot_page(job)
                vcpu.arm((timeout - 1) % TICK_NS + 1 + _SLACK_NS, TICK_NS)
                if self._snapshot is None:
                    self._come_up()
                if job.debugger is None:
                    self._drive(DONE)
                else:
                    self._debug(job.debugger, timeout)
            except DeadlinePassed:
                failure = self._timed_out(job.limits.timeout)
            except DebuggerGone as event:
                failure = Failure(FailureKind.DEBUGGER, str(event))
            except DeviceEvent as event:
                failure = self._failure(event)
            except KvmError as error:
                self.reusable = False
                failure = Failure(FailureKind.KVM, error.message)
            finally:
                vcpu.disarm()
            status = bus.control.status if failure is None else None
            bus.finish_replay(on_event)
            usage = bus.usage(self._exits, monotonic_ns() - start)
            outcome = Outcome(status, failure, usage, bus.device_lengths(), bus.device_errors(), bus.device_errnos())
            settled = True
        finally:
            self._used = True
            bus.end_run()
            self.reusable = self.reusable and settled and self._snapshot is not None
        if self.reusable:
            try:
                self.reset()
            except KvmError:
                self.reusable = False
        return outcome

    def boot(self, job: Job) -> None:
        """Only come up, for a job of the kind that :meth:`run` takes, and stand at READY.

        :raises vmm.devices.errors.DeviceEvent: the runtime did not get there in the job's time.
        """
        self._deadline = monotonic_ns() + _nanoseconds(job.limits.timeout)
        self.bus.begin_run(job, _ignore, self._check)
        try:
            self._write_boot_page(job)
            try:
                self.vcpu.arm(TICK_NS, TICK_NS)
                self._come_up()
            finally:
                self.vcpu.disarm()
        finally:
            self.bus.end_run()

    def _come_up(self) -> None:
        """Let the runtime come up; a warm machine is remembered as it is then."""
        self._drive(READY)
        if self.warm:
            self.vcpu.settle()
            hot = [region for region in self.regions if region.write and not region.device and not region.large]
            views = [self.memory.all[region.start - RAM_BASE : region.end - RAM_BASE] for region in hot]
            self._snapshot = Snapshot(self.vcpu.save(), self.bus.state(), [(view, bytes(view)) for view in views])

    def _debug(self, descriptor: int, timeout: int) -> None:
        """Run the guest as a debugger wants it; a guest that it lets go of has ``timeout`` nanoseconds from then on."""
        from vmm.machine.debugger import Debugger

        # Somebody else may have written anywhere.
        self.reusable = False
        self._deadline = _NEVER
        debugger = Debugger(
            descriptor, self.vcpu, self.memory, self.regions, self.bus, lambda event: self._describe(event).message
        )
        if not debugger.run(self._entry, lambda bus, check: self._drive(DONE, bus, check)):
            self._deadline = monotonic_ns() + timeout
            self._drive(DONE)

    def _drive(self, until: int, bus: Bus | SteppingBus | None = None, check: Callable[[], None] | None = None) -> None:
        """Run the guest until it rings READY or DONE.

        :param bus: None: the machine's own.
        :param check: called whenever the guest was interrupted; None: what watches the deadline.
        """
        vcpu = self.vcpu
        bus, check = bus or self.bus, check or self._check
        enter, exit_, write, read = vcpu.enter, vcpu.exit, bus.write, bus.read
        exits = 0
        try:
            while True:
                reason = enter()
                exits += 1
                if reason == WRITE:
                    address = exit_.address
                    if address == TRAP_BASE:
                        raise GuestTrap(exit_.value)
                    signal = write(address, exit_.value, exit_.length)
                    if signal:
                        if signal == until:
                            return
                        raise ProtocolViolation(
                            "the runtime rang READY twice" if signal == READY else "the run ended before READY"
                        )
                elif reason == READ:
                    vcpu.answer(read(exit_.address, exit_.length))
                elif reason == INTERRUPTED:
                    exits -= 1
                    check()
                else:
                    self._unexpected(reason)
        finally:
            self._exits += exits

    def _unexpected(self, reason: int) -> None:
        self.reusable = False
        if reason == EXIT_SHUTDOWN:
            raise GuestShutdown
        if reason == EXIT_INTERNAL_ERROR:
            raise GuestStuck(f"KVM could not emulate an instruction of the guest (suberror {self.vcpu.exit.detail})")
        if reason == EXIT_FAIL_ENTRY:
            raise KvmError(f"the processor refused to enter the guest (reason {self.vcpu.exit.value:#x})")
        raise GuestStuck(f"KVM stopped the guest (exit reason {reason})")

    def _check(self) -> None:
        """End the run when its time is over; Python's signal handlers run on the way here."""
        if monotonic_ns() >= self._deadline:
            raise DeadlinePassed

    def _write_boot_page(self, job: Job) -> None:
        length = len(job.request)
        page = _BOOT.pack(
            BOOT_MAGIC,
            self._entry,
            REQUEST_BASE,
            length,
            self.memory.cold_size,
            job.log_level,
            job.progress,
            len(job.devices),
            0,
        )
        # What lies behind the devices of this machine is zero from the start.
        self.memory.put(BOOT_INFO, page + b"".join([_BOOT_DEVICE.pack(*one) for one in self.bus.boot_devices()]))
        # The request before may have been longer.
        self.memory.put(REQUEST_BASE, job.request + bytes(max(0, self._request_length - length)))
        self._request_length = length

    def _failure(self, event: DeviceEvent) -> Failure:
        return self._complete(self._describe(event))

    def _describe(self, event: DeviceEvent) -> Failure:
        memory, vcpu = self.memory, self.vcpu
        if isinstance(event, GuestTrap):
            return faults.from_trap(event.vector, vcpu, memory, self.regions)
        if isinstance(event, RunAborted):
            return faults.from_abort(event.message, event.site, vcpu, memory)
        if isinstance(event, LimitExceeded):
            message = limit_message(event.limit, event.value)
            return replace(
                faults.from_stop(FailureKind.LIMIT, message, vcpu, memory), limit=event.limit, limit_value=event.value
            )
        if isinstance(event, FileFailed):
            error = event.error
            return Failure(FailureKind.IO, error.message, device=event.device, errno=error.errno)
        if isinstance(event, ProtocolViolation):
            return faults.from_stop(FailureKind.PROTOCOL, event.message, vcpu, memory)
        if isinstance(event, ReplayDiverged):
            return faults.from_stop(FailureKind.DIVERGED, event.message, vcpu, memory)
        if isinstance(event, GuestShutdown):
            message = "triple fault: the processor could not deliver an exception"
            return faults.from_stop(FailureKind.TRIPLE_FAULT, message, vcpu, memory)
        return faults.from_stop(FailureKind.EXCEPTION, str(event), vcpu, memory)

    def _timed_out(self, timeout: float) -> Failure:
        message = limit_message("timeout", timeout)
        stop = faults.from_stop(FailureKind.LIMIT, message, self.vcpu, self.memory)
        return self._complete(replace(stop, limit="timeout", limit_value=timeout))

    def _complete(self, failure: Failure) -> Failure:
        """With symbols and the last block requests."""
        look_up = self._symbolise
        if look_up is None:
            from vmm.machine.symbols import symbolise

            look_up = symbolise
        return replace(
            failure,
            backtrace=look_up(failure.backtrace, self.operation),
            recent_requests=self.bus.recent_requests(),
        )

    def reset(self) -> None:
        """Back to READY: memory that the guest may write, registers, FPU, devices.

        :raises KvmError: KVM did not let go of what the guest was doing.
        """
        snapshot = self._snapshot
        if snapshot is None:
            raise RuntimeError("a machine without a snapshot cannot be reset")
        self.vcpu.settle()
        for view, saved in snapshot.memory:
            view[:] = saved
        self.memory.drop_cold()
        self.vcpu.restore(snapshot.vcpu)
        self.bus.restore(snapshot.devices)

    def close(self) -> None:
        """Give everything back to the host.  Idempotent."""
        self.reusable = False
        self._used = True
        if self._snapshot is not None:
            for view, _ in self._snapshot.memory:
                view.release()
            self._snapshot = None
        while self._closers:
            self._closers.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
