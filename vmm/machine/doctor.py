"""What this host has: found out by opening /dev/kvm and by running a guest of five instructions, not by guessing."""

from __future__ import annotations

import os
from time import monotonic_ns

from calltable import CONTROL_BASE, OPERATION_BASE, PAGE_SIZE, RAM_BASE
from vmm.boundary import KVM_DEVICE
from vmm.errors import EXIT_OK, EXIT_UNAVAILABLE, VmmError
from vmm.record import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.kvm import Kvm, Vcpu

#: Rounds of the counting loop (two instructions each): enough for a clock, and for a host that interprets.
RING3_ROUNDS = 2_000_000
RING0_ROUNDS = 2_000
EXITS = 200
#: Ring 0 counts as interpreted when an instruction costs this many times one of ring 3.
INTERPRETED_RATIO = 20
_PATIENCE_NS = 5_000_000_000

#: mov ecx, rounds; 1: dec ecx; jnz 1b; 2: mov [CONTROL], eax; jmp 2b
_CODE_HEAD, _CODE_TAIL = b"\xb9", b"\xff\xc9\x75\xfc\x89\x04\x25" + CONTROL_BASE.to_bytes(4, "little") + b"\xeb\xf7"


@dataclass(frozen=True, slots=True)
class Speed:
    """What the probe guest measured."""

    #: Instructions of a counting loop a second, in ring 3 and in ring 0.
    ring3_per_second: int
    ring0_per_second: int
    #: Nanoseconds from the guest through Python and back.
    exit_ns: int

    @property
    def ring0_interpreted(self) -> bool:
        """The host interprets ring 0, as hosts without hardware virtualization of their own do."""
        return self.ring3_per_second > INTERPRETED_RATIO * self.ring0_per_second


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """What was found; ``problem`` says why machines cannot run here and what to do about it."""

    kernel: str
    architecture: str
    kvm_path: str
    problem: VmmError | None
    api_version: int | None = None
    #: Capabilities that the machine uses; 0 is absent.
    capabilities: dict[str, int] = field(default_factory=dict)
    speed: Speed | None = None
    #: Layers that a jail can be made of; None is absent.
    sandbox: dict[str, str | int | bool | None] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Machines can run here."""
        return self.problem is None

    @property
    def exit_status(self) -> int:
        """0 or 69."""
        return EXIT_OK if self.usable else EXIT_UNAVAILABLE

    def as_dict(self) -> dict[str, object]:
        """The JSON form."""
        speed = self.speed
        return {
            "usable": self.usable,
            "error": None if self.problem is None else self.problem.as_dict(),
            "kernel": self.kernel,
            "architecture": self.architecture,
            "kvm": {"path": self.kvm_path, "api-version": self.api_version, "capabilities": dict(self.capabilities)},
            "speed": None
            if speed is None
            else {
                "ring3-instructions-per-second": speed.ring3_per_second,
                "ring0-instructions-per-second": speed.ring0_per_second,
                "ring0-interpreted": speed.ring0_interpreted,
                "exit-nanoseconds": speed.exit_ns,
            },
            "sandbox": dict(self.sandbox),
        }

    def as_text(self) -> str:
        """The lines for people, each ended."""
        lines = [f"kernel: {self.kernel} ({self.architecture})"]
        if self.api_version is not None:
            lines.append(f"KVM: {self.kvm_path}, API version {self.api_version}")
            lines += [
                f"  {name}: {'yes' if value == 1 else value or 'MISSING'}" for name, value in self.capabilities.items()
            ]
        if self.speed is not None:
            ring0 = "interpreted by the host" if self.speed.ring0_interpreted else "native"
            lines += [
                f"ring 3: {self.speed.ring3_per_second / 1e6:.0f} million instructions a second",
                f"ring 0: {ring0}, {1e9 / self.speed.ring0_per_second:.1f} ns an instruction",
                f"exit: {self.speed.exit_ns / 1000:.1f} us, Python included",
            ]
        lines.append("sandbox layers:")
        for name, layer in self.sandbox.items():
            shown = "no" if layer in (None, False) else "yes" if layer is True else layer
            lines.append(f"  {name}: {shown}")
        lines.append("machines run here" if self.problem is None else f"machines cannot run here: {self.problem}")
        return "\n".join(lines) + "\n"


def examine(path: str = KVM_DEVICE) -> DoctorReport:
    """Examine this host.  Raises nothing: what goes wrong is in the report.

    :param path: the KVM device.
    """
    system = os.uname()
    version: int | None = None
    capabilities: dict[str, int] = {}
    speed: Speed | None = None
    problem: VmmError | None = None
    sandbox = _sandbox()
    try:
        from vmm.host.system import landlock_abi
        from vmm.kvm.device import CAPABILITIES, Kvm

        sandbox["landlock-abi"] = landlock_abi()
        with Kvm(path) as kvm:
            version = kvm.api_version
            capabilities = {name: kvm.capability(name) for name in CAPABILITIES}
            speed = _measure(kvm)
    except VmmError as error:
        problem = error
    return DoctorReport(system.release, system.machine, path, problem, version, capabilities, speed, sandbox)


def _measure(kvm: Kvm) -> Speed:
    ring3_ns, exit_ns = _probe(kvm, 3, RING3_ROUNDS)
    ring0_ns, _ = _probe(kvm, 0, RING0_ROUNDS)
    return Speed(2 * RING3_ROUNDS * 10**9 // max(1, ring3_ns), 2 * RING0_ROUNDS * 10**9 // max(1, ring0_ns), exit_ns)


def _probe(kvm: Kvm, ring: int, rounds: int) -> tuple[int, int]:
    """Nanoseconds of the counting loop, and of an exit.

    :raises VmmError: the guest does not do what five instructions do.
    """
    from vmm.kvm.vm import Vm
    from vmm.machine import cpu
    from vmm.machine.layout import Region
    from vmm.machine.memory import GuestMemory
    from vmm.machine.pages import PageTables

    memory = GuestMemory(0)
    try:
        regions = (
            Region("control", CONTROL_BASE, CONTROL_BASE + PAGE_SIZE, write=True, device=True),
            Region("text", OPERATION_BASE, OPERATION_BASE + PAGE_SIZE, execute=True),
        )
        tables = PageTables(memory.all, RAM_BASE)
        tables.map(regions)
        tables.release()
        memory.put(OPERATION_BASE, _CODE_HEAD + rounds.to_bytes(4, "little") + _CODE_TAIL)
        vm: Vm
        with kvm.create_vm() as vm:
            vm.set_memory(0, RAM_BASE, memory.map, memory.offset, memory.size)
            with vm.create_vcpu(cpu.CPUID) as vcpu:
                sregs = vcpu.special_registers()
                cpu.set_special_registers(sregs, tables.root, ring=ring)
                vcpu.set_special_registers(sregs)
                vcpu.set_registers({"rip": OPERATION_BASE, "rflags": cpu.RFLAGS})
                try:
                    vcpu.arm(_PATIENCE_NS, _PATIENCE_NS)
                    return _time(vcpu)
                finally:
                    vcpu.disarm()
    finally:
        memory.close()


def _time(vcpu: Vcpu) -> tuple[int, int]:
    start = monotonic_ns()
    _expect_doorbell(vcpu)
    loop = monotonic_ns()
    for _ in range(EXITS):
        _expect_doorbell(vcpu)
    return loop - start, (monotonic_ns() - loop) // EXITS


def _expect_doorbell(vcpu: Vcpu) -> None:
    from vmm.errors import KvmError
    from vmm.kvm.vcpu import INTERRUPTED, WRITE

    reason = vcpu.enter()
    if reason == INTERRUPTED:
        raise KvmError("a guest of five instructions did not end in five seconds")
    if reason != WRITE or vcpu.exit.address != CONTROL_BASE:
        raise KvmError(f"a guest of five instructions ended with exit reason {reason}")


def _read(path: str) -> str:
    """A file of /proc or /sys; empty when there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def _sandbox() -> dict[str, str | int | bool | None]:
    """The layers that this kernel offers.  Whether one may be used is found out by using it, in the jail."""
    spaces = _read("/proc/sys/user/max_user_namespaces").strip()
    allowed = _read("/proc/sys/kernel/unprivileged_userns_clone").strip() != "0"
    restricted = _read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").strip() == "1"
    actions = _read("/proc/sys/kernel/seccomp/actions_avail").split()
    controllers = _read("/sys/fs/cgroup/cgroup.controllers").split()
    return {
        "user-namespaces": spaces not in ("", "0") and allowed and not restricted,
        "seccomp": " ".join(actions) or None,
        "landlock-abi": None,
        "cgroup-v2": " ".join(controllers) or os.path.exists("/sys/fs/cgroup/cgroup.procs") or None,
        "no-new-privs": "NoNewPrivs:" in _read("/proc/self/status"),
    }
