"""Hostile operations on the real runtime: each has its own verdict, and none leaves anything behind."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import calltable
from tests.hostile.build import GUESTS
from tests.machines import MachineState, fresh_state, hostile_operation, job, state_of
from vmm.boundary import DeviceSpec, Event, Failure, FailureKind, LogEvent, MessageEvent, Outcome
from vmm.machine.machine import Machine

pytestmark = pytest.mark.kvm

STACK_END = calltable.STACK_BASE + calltable.STACK_SIZE

#: Page faults: access, region, and the address when it is known beforehand.
PAGE_FAULTS: dict[str, tuple[str, str, int | None]] = {
    "stack_overflow": ("write", "guard page below the stack", None),
    "above_stack": ("write", "guard page above the stack", STACK_END),
    "write_text": ("write", "operation text", None),
    "write_constant": ("write", "operation constants", None),
    "write_call_table": ("write", "runtime constants", calltable.CALL_TABLE),
    "write_boot_page": ("write", "boot page", calltable.BOOT_INFO),
    "write_request": ("write", "request", calltable.REQUEST_BASE),
    "jump_to_data": ("execute", "operation data", None),
    "jump_to_stack": ("execute", "stack", None),
    "jump_to_arena": ("execute", "arena", calltable.ARENA_BASE),
    "jump_to_stub": ("execute", "trap stubs", calltable.SYSTEM_BASE + calltable.PAGE_SIZE),
    "jump_to_null": ("execute", "page 0", 0),
    "read_page_zero": ("read", "page 0", 8),
    "write_page_zero": ("write", "page 0", 8),
    "read_system": ("read", "descriptor tables", calltable.SYSTEM_BASE),
    "write_page_tables": ("write", "system area", calltable.SYSTEM_BASE + 2 * calltable.PAGE_SIZE),
    "write_ring0_stack": ("write", "ring-0 stack", calltable.KERNEL_STACK_BASE),
    "below_arena": ("write", "guard page below the arena", calltable.ARENA_BASE - 8),
    "above_hot_arena": ("write", "guard gap above the arena's small pages", calltable.ARENA_BASE + calltable.ARENA_HOT),
    "above_memory": ("write", "guard gap above the arena", None),
    "far_away": ("write", "unmapped address space", 0x7000_0000_0000),
    "kernel_half": ("write", "unmapped address space", 0xFFFF_8000_0000_0000),
    "lost_stack": ("write", "unmapped address space", 2**64 - 8),
    "ring_trap_page": ("write", "trap doorbell", calltable.TRAP_BASE),
    "ring_absent_device": ("write", "absent device window", None),
    "execute_device": ("execute", "control device", calltable.CONTROL_BASE),
}

#: Exceptions: the vectors that processors and hosts answer with (13: general protection, 6: invalid opcode, ...).
EXCEPTIONS: dict[str, tuple[int, ...]] = {
    "non_canonical": (13,),
    "non_canonical_jump": (13,),
    "non_canonical_stack": (12,),
    "halt": (13,),
    "clear_interrupts": (13,),
    "port_in": (13,),
    "port_out": (13,),
    # Without EFER.SCE an invalid opcode; PVM hosts jump to LSTAR, which is 0, where nothing is.
    "system_call": (6, 14),
    "system_enter": (6, 13),
    "interrupt": (13, 6),
    "breakpoint": (3,),
    "single_step": (1,),
    "undefined": (6,),
    "divide": (0,),
    "write_msr": (13,),
    "read_msr": (13,),
    "write_cr3": (13,),
    "load_idt": (13,),
    "far_return": (13,),
    "invalidate": (13,),
    "simd_exception": (19,),
}

PROTOCOL = {
    "ready_again": "READY twice",
    "unknown_command": "unknown command",
    "control_block_in_system": "are not writable memory",
    "control_block_nowhere": "are not writable memory",
    "report_from_system": "are not memory",
    "batch_too_long": "message of 4294967295 bytes",
    "odd_doorbell": "where no register is",
    "wide_doorbell": "control device",
    "endless_text": "text of 18446744073709551615 bytes",
}

#: Limits: the job's timeout and budgets, and the limit that ends the run.
LIMITS: dict[str, tuple[float, dict[str, int], str, float]] = {
    "spin": (0.15, {}, "timeout", 0.15),
    "spin_on_exits": (0.15, {}, "timeout", 0.15),
    "message_flood": (20, {"max_messages": 1000}, "max-messages", 1000),
    "report_flood": (20, {"max_report": 1 << 20}, "max-report", 1 << 20),
    "read_flood": (20, {"max_read": 1 << 16}, "max-read", 1 << 16),
}

DMA = tuple(
    f"dma_{name}"
    for name in (
        *("text", "constants", "call_table", "boot_page", "request", "stubs", "page_tables", "ring0_stack"),
        *("page_zero", "doorbell", "wrap", "across_guard"),
    )
)

#: What some hosts refuse and others let pass without effect; either way nothing is left behind.
HOST_DEPENDENT: dict[str, tuple[int, ...]] = {
    "vm_call": (6, 13, 14),
    "soil_avx": (6,),
    "soil_fs_base": (6,),
    "soil_keys": (6,),
}

COMPLETE = {
    "wrong_cbor": 0,
    "garbage_status": -0x123456789A & 0xFFFFFFFF,
    "nonsense_ring": 42,
    "looped_ring": 42,
    "soil": 0,
    "soil_segments": 0,
    "innocent": 0,
}


#: Instructions that KVM emulates on a device window, as far as it knows them.
WINDOWS = tuple(re.findall(r"ON_WINDOW\((\w+), \"", (GUESTS / "windows.h").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DeviceSpec, ...]]:
    path: Path = tmp_path_factory.mktemp("disk") / "disk.img"
    path.write_bytes(bytes(range(256)) * 4096)
    fd = os.open(path, os.O_RDONLY)
    yield (DeviceSpec(fd, 1 << 20),)
    os.close(fd)


@pytest.fixture(scope="module")
def fresh(disk: tuple[DeviceSpec, ...]) -> MachineState:
    return fresh_state(job("innocent", disk))


class Bench:
    """One warm machine for all cases: what one leaves behind would show in the next."""

    def __init__(self, disk: tuple[DeviceSpec, ...], fresh: MachineState) -> None:
        self.disk = disk
        self.fresh = fresh
        self.machine: Machine | None = None
        self.events: list[Event] = []

    def run(self, name: str, *, timeout: float = 10.0, **limits: int) -> Outcome:
        work = job(name, self.disk, timeout=timeout, **limits)
        if self.machine is None:
            self.machine = Machine(work.elf, 1, work.limits.max_memory)
        self.events = []
        outcome = self.machine.run(work, self.events.append)
        if self.machine.reusable:
            assert state_of(self.machine).differences(self.fresh) == []
            clean = self.machine.run(job("innocent", self.disk), self.events.append)
            assert (clean.status, clean.failure) == (0, None)
        else:
            self.machine.close()
            self.machine = None
        return outcome

    def fail(self, name: str, *, timeout: float = 10.0, **limits: int) -> Failure:
        outcome = self.run(name, timeout=timeout, **limits)
        assert outcome.status is None
        assert outcome.failure is not None
        return outcome.failure


@pytest.fixture(scope="module")
def bench(disk: tuple[DeviceSpec, ...], fresh: MachineState) -> Iterator[Bench]:
    made = Bench(disk, fresh)
    yield made
    if made.machine is not None:
        made.machine.close()


@pytest.mark.parametrize("name", PAGE_FAULTS)
def test_page_fault(bench: Bench, name: str) -> None:
    access, region, address = PAGE_FAULTS[name]
    failure = bench.fail(name)
    assert (failure.kind, failure.vector) == (FailureKind.PAGE_FAULT, 14)
    assert (failure.access, failure.region) == (access, region)
    if address is not None:
        assert failure.address == address
    assert region in failure.message
    if access != "execute":
        assert failure.backtrace[0].function == ("recurse" if name == "stack_overflow" else name)
        assert (failure.backtrace[0].file or "").endswith(("hostile.c", "memory.h", "devices.h"))


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_exception(bench: Bench, name: str) -> None:
    failure = bench.fail(name)
    assert failure.kind in (FailureKind.EXCEPTION, FailureKind.PAGE_FAULT)
    assert failure.vector in EXCEPTIONS[name]
    assert failure.registers["rip"] == failure.backtrace[0].address
    # A jump to nowhere faults at the jump on some processors, at its target on others.
    if failure.kind == FailureKind.EXCEPTION and name != "non_canonical_jump":
        assert failure.backtrace[0].function == name


@pytest.mark.parametrize("name", PROTOCOL)
def test_protocol(bench: Bench, name: str) -> None:
    failure = bench.fail(name)
    assert failure.kind == FailureKind.PROTOCOL
    assert PROTOCOL[name] in failure.message


@pytest.mark.parametrize("name", LIMITS)
def test_limit(bench: Bench, name: str) -> None:
    timeout, budgets, limit, value = LIMITS[name]
    failure = bench.fail(name, timeout=timeout, **budgets)
    assert (failure.kind, failure.limit, failure.limit_value) == (FailureKind.LIMIT, limit, value)
    assert failure.backtrace


@pytest.mark.parametrize("name", DMA)
def test_device_refuses_protected_memory(bench: Bench, name: str) -> None:
    outcome = bench.run(name)
    # The device does not answer such a request; what the runtime makes of that is its business, a status is not.
    assert outcome.failure is not None or outcome.status != 0
    assert outcome.usage.read_bytes == 0


@pytest.mark.parametrize("name", COMPLETE)
def test_complete(bench: Bench, name: str) -> None:
    outcome = bench.run(name)
    assert (outcome.status, outcome.failure) == (COMPLETE[name], None)


@pytest.mark.parametrize("name", HOST_DEPENDENT)
def test_host_dependent_instruction(bench: Bench, name: str) -> None:
    outcome = bench.run(name)
    if outcome.failure is None:
        assert outcome.status == 0
    else:
        assert outcome.failure.vector in HOST_DEPENDENT[name]


@pytest.mark.parametrize("name", WINDOWS)
def test_emulated_on_a_window(bench: Bench, name: str) -> None:
    """Done as far as the host's KVM can do it, or ended as a fault of the guest; a machine that goes on is clean."""
    # Some hosts try `sidt` into a window again and again: the deadline ends it.
    endless = name == "window_descriptor_table"
    outcome = bench.run(name, timeout=0.2 if endless else 10.0)
    if outcome.failure is None:
        assert outcome.status == 0
    elif not endless or outcome.failure.limit != "timeout":
        assert outcome.failure.kind in (FailureKind.EXCEPTION, FailureKind.PAGE_FAULT, FailureKind.PANIC)
        assert outcome.failure.message.isprintable()


def test_a_window_is_no_buffer(bench: Bench) -> None:
    outcome = bench.run("window_as_buffer")
    assert outcome.usage.read_bytes == 0
    assert outcome.failure is not None or outcome.status != 0


def test_messages_before_the_limit_are_delivered(bench: Bench) -> None:
    bench.fail("message_flood", max_messages=1000)
    assert sum(isinstance(event, MessageEvent) for event in bench.events) <= 1000


def test_the_last_block_requests_are_shown(bench: Bench) -> None:
    failure = bench.fail("read_and_divide")
    assert failure.vector == 0
    assert failure.backtrace[0].function == "read_and_divide"
    assert "sector 128, 512 bytes" in failure.recent_requests[-1]


def test_log_flood_is_charged(bench: Bench, disk: tuple[DeviceSpec, ...]) -> None:
    from vmm.record import replace

    work = replace(job("log_flood", disk, max_messages=200), log_level=4)
    events: list[Event] = []
    with Machine(work.elf, 1, work.limits.max_memory) as machine:
        failure = machine.run(work, events.append).failure
    assert failure is not None
    assert (failure.kind, failure.limit) == (FailureKind.LIMIT, "max-messages")
    assert sum(isinstance(event, LogEvent) for event in events) == 200


def test_panic_text_cannot_reach_a_terminal(bench: Bench) -> None:
    failure = bench.fail("panic")
    assert failure.kind == FailureKind.PANIC
    assert "escape" in failure.message
    assert failure.message.isprintable()
    assert [frame.function for frame in failure.backtrace] == ["panic", "_start"]


def test_wrong_cbor_arrives_as_it_was_sent(bench: Bench) -> None:
    bench.run("wrong_cbor")
    assert [event.payload for event in bench.events if isinstance(event, MessageEvent)] == [b"\xff\xfe"]


def test_triple_fault_is_reported(disk: tuple[DeviceSpec, ...]) -> None:
    """Not even the host can make the shipped stubs fault, so the test takes the descriptor tables away."""
    work = job("undefined", disk)
    with Machine(work.elf, 1, work.limits.max_memory) as machine:
        sregs = machine.vcpu.special_registers()
        sregs.idt.limit = 0
        machine.vcpu.set_special_registers(sregs)
        failure = machine.run(work, lambda event: None).failure
        assert failure is not None
        assert failure.kind == FailureKind.TRIPLE_FAULT
        assert not machine.reusable


def test_every_case_has_a_verdict() -> None:
    source = (GUESTS / "hostile.c").read_text(encoding="utf-8")
    cases = set(re.findall(r"CASE\((\w+)\)", source)) - {"name"}
    assert cases == {
        *PAGE_FAULTS,
        *EXCEPTIONS,
        *PROTOCOL,
        *LIMITS,
        *DMA,
        *HOST_DEPENDENT,
        *COMPLETE,
        *WINDOWS,
        "window_as_buffer",
        "panic",
        "log_flood",
        "read_and_divide",
    }
    assert len(hostile_operation()) > 0
