"""What tests of the machine share: jobs for the hostile operation, and the whole state of a machine as one value."""

from __future__ import annotations

from dataclasses import dataclass

import calltable
from tests.hostile.build import GUESTS, compile_c
from vmm.boundary import DeviceSpec, Job, Limits
from vmm.kvm import State
from vmm.machine.machine import Machine

MEMORY = 8 << 20


def hostile_operation() -> bytes:
    """The operation that does what its request names."""
    return compile_c(GUESTS / "hostile.c")


def mini_runtime() -> bytes:
    """A runtime without call table and devices."""
    return compile_c(GUESTS / "mini_runtime.c", calltable.RUNTIME_BASE)


def job(name: str, devices: tuple[DeviceSpec, ...] = (), *, timeout: float = 10.0, **limits: int) -> Job:
    """A job of the hostile operation; its request is a CBOR text string."""
    text = name.encode()
    request = (bytes([0x60 + len(text)]) if len(text) < 24 else bytes([0x78, len(text)])) + text
    return Job(hostile_operation(), request, devices, Limits(timeout=timeout, max_memory=MEMORY, **limits))


@dataclass(frozen=True)
class MachineState:
    """All that a run could leave behind.  The boot page and the request are the host's, written before each run."""

    memory: bytes
    vcpu: State
    devices: object

    def differences(self, other: MachineState) -> list[str]:
        """What differs, by name; addresses for memory."""
        found = list(self.vcpu.differences(other.vcpu))
        if self.devices != other.devices:
            found.append("devices")
        if self.memory != other.memory:
            size = calltable.PAGE_SIZE
            starts = range(0, len(self.memory), size)
            different = [at for at in starts if self.memory[at : at + size] != other.memory[at : at + size]]
            found.extend(f"memory at {calltable.RAM_BASE + at:#x}" for at in different)
        return found


def state_of(machine: Machine) -> MachineState:
    """The state of a machine that stands at READY."""
    machine.vcpu.settle()
    memory = bytearray(machine.memory.all)
    for start, size in (
        (calltable.BOOT_INFO, calltable.PAGE_SIZE),
        (calltable.REQUEST_BASE, calltable.REQUEST_SIZE),
    ):
        at = start - calltable.RAM_BASE
        memory[at : at + size] = bytes(size)
    return MachineState(bytes(memory), machine.vcpu.save(), machine.bus.state())


def fresh_state(first: Job, runtime: bytes | None = None) -> MachineState:
    """The state of a machine that was booted for a job and has not run it."""
    with Machine(first.elf, len(first.devices), first.limits.max_memory, runtime=runtime) as machine:
        machine.boot(first)
        return state_of(machine)
