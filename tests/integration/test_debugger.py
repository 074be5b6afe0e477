"""The debugger on real KVM, spoken to by a small client: single instructions, and whole hostile operations."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

import calltable
from tests.elf_writer import operation
from tests.gdb_client import PATIENCE, ConnectionClosedError, DebuggedRun
from tests.machines import MEMORY, hostile_operation, job, mini_runtime
from vmm.boundary import DeviceSpec, FailureKind, Job, Limits, MessageEvent, Outcome
from vmm.machine.machine import Machine
from vmm.machine.runner import MachineRunner

pytestmark = pytest.mark.kvm

ROOT = Path(__file__).resolve().parents[2]
BASE = calltable.OPERATION_BASE
TF = 1 << 8
#: Step until something else happens, without a packet for each.
STEP_ON = "vCont;r0,ffffffffffffffff"


def ignore(_: object) -> None:
    pass


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DeviceSpec, ...]]:
    path: Path = tmp_path_factory.mktemp("disk") / "disk.img"
    path.write_bytes(bytes(range(256)) * 4096)
    fd = os.open(path, os.O_RDONLY)
    yield (DeviceSpec(fd, 1 << 20),)
    os.close(fd)


@pytest.fixture(scope="module")
def functions() -> dict[str, int]:
    """Addresses in the hostile operation by name."""
    table: Any = ELFFile(io.BytesIO(hostile_operation())).get_section_by_name(".symtab")
    return {symbol.name: int(symbol["st_value"]) for symbol in table.iter_symbols()}


Start = Callable[..., DebuggedRun]


@pytest.fixture
def start() -> Iterator[Start]:
    """Debugs a few bytes of code on the smallest runtime, or a case of the hostile operation."""
    opened: list[Any] = []

    def start(
        what: bytes | str, devices: tuple[DeviceSpec, ...] = (), *, acks: bool = False, **more: Any
    ) -> DebuggedRun:
        if isinstance(what, bytes):
            elf = operation(what, data_size=4096)
            work = Job(elf, b"\xf6", limits=Limits(timeout=more.pop("timeout", 10.0)))
            machine = Machine(elf, 0, 0, runtime=mini_runtime())
        else:
            work = job(what, devices, **more)
            machine = Machine(work.elf, len(devices), MEMORY)
        opened.append(machine)
        run = DebuggedRun(machine.run, work, acks=acks)
        opened.append(run)
        return run

    yield start
    while opened:
        opened.pop().__exit__(None, None, None)


def test_stops_at_the_first_instruction_and_runs_to_the_end(start: Start) -> None:
    """mov eax, 42; ret"""
    run = start(b"\xb8\x2a\x00\x00\x00\xc3")
    client = run.client
    assert client.ask("?").startswith(b"T05")
    assert client.register("rip") == BASE
    assert client.memory(BASE, 6) == b"\xb8\x2a\x00\x00\x00\xc3"
    assert client.register("cs") & 3 == 3
    assert client.register("eflags") & TF == 0
    assert client.ask("c") == b"W2a"
    outcome = run.outcome()
    assert (outcome.status, outcome.failure) == (42, None)


def test_with_acknowledgments(start: Start) -> None:
    run = start(b"\xb8\x2a\x00\x00\x00\xc3", acks=True)
    assert run.client.step() == BASE + 5
    assert run.client.ask("c") == b"W2a"


def test_steps_and_changed_registers(start: Start) -> None:
    """mov eax, 42; mov ecx, eax; lea eax, [rcx + 1]; ret"""
    run = start(b"\xb8\x2a\x00\x00\x00\x89\xc1\x8d\x41\x01\xc3")
    client = run.client
    assert [client.step() for _ in range(2)] == [BASE + 5, BASE + 7]
    assert client.register("rcx") == 42
    assert client.set_register("rcx", 98) == b"OK"
    assert client.step() == BASE + 10
    assert client.register("rax") == 99
    assert client.register("eflags") & TF == 0
    everything = bytearray(bytes.fromhex(client.ask("g").decode()))
    assert everything[:8] == (99).to_bytes(8, "little")
    everything[0] = 100
    assert client.ask("G" + everything.hex()) == b"OK"
    assert client.ask("c") == b"W64"
    assert run.outcome().status == 100


def test_jump_elsewhere(start: Start) -> None:
    """ud2; mov eax, 7; ret"""
    run = start(b"\x0f\x0b\xb8\x07\x00\x00\x00\xc3")
    assert run.client.ask(f"c{BASE + 2:x}") == b"W07"


def test_vector_registers(start: Start) -> None:
    """movq rax, xmm3; movq xmm4, rax; nop; ret"""
    run = start(b"\x66\x48\x0f\x7e\xd8\x66\x48\x0f\x6e\xe0\x90\xc3")
    client = run.client
    assert client.set_register("xmm3", 0x0102030405060708_1112131415161718) == b"OK"
    client.step()
    assert client.register("rax") == 0x1112131415161718
    assert client.set_register("rax", 5) == b"OK"
    client.step()
    assert client.register("xmm4") == 5
    assert client.register("xmm3") == 0x0102030405060708_1112131415161718
    assert client.register("mxcsr") == 0x1F80
    assert client.ask("c") == b"W05"


def test_changed_text_is_what_runs(start: Start) -> None:
    """mov eax, 42; ret, of which the constant is changed"""
    run = start(b"\xb8\x2a\x00\x00\x00\xc3")
    client = run.client
    # Over a breakpoint that stays one.
    assert client.ask(f"Z0,{BASE + 5:x},1") == b"OK"
    assert client.set_memory(BASE + 1, b"\x07\x00\x00\x00\xc3") == b"OK"
    assert client.memory(BASE, 6) == b"\xb8\x07\x00\x00\x00\xc3"
    assert client.ask("c").startswith(b"T05")
    assert client.register("rip") == BASE + 5
    assert client.ask("c") == b"W07"


def test_memory_is_what_ring_3_sees(start: Start) -> None:
    client = start("innocent").client
    assert client.memory(calltable.CALL_TABLE, 8) == calltable.TABLE_MAGIC.to_bytes(8, "little")
    assert client.memory(calltable.REQUEST_BASE, 9) == b"\x68innocent"
    end = calltable.STACK_BASE + calltable.STACK_SIZE
    assert len(client.memory(end - 4, 64)) == 4
    assert client.set_memory(end - 4, b"1234") == b"OK"
    assert client.memory(end - 4, 4) == b"1234"
    assert client.set_memory(end - 4, b"12345") == b"E0e"
    for address in (
        *(0, calltable.CONTROL_BASE, calltable.TRAP_BASE, calltable.VIRTIO_BASE, calltable.SYSTEM_BASE),
        *(calltable.KERNEL_STACK_BASE, end, calltable.STACK_BASE - 1, (1 << 64) - 1),
    ):
        assert client.ask(f"m{address:x},1") == b"E0e", hex(address)
        assert client.set_memory(address, b"x") == b"E0e", hex(address)
        assert client.ask(f"Z0,{address:x},1") == b"E0e", hex(address)
    assert client.ask("c") == b"W00"


def test_a_breakpoint_where_nothing_can_be_executed(start: Start) -> None:
    """mov eax, 5; ret: returns to the stack, as a function does that gdb calls; nothing is written there."""
    run = start(b"\xb8\x05\x00\x00\x00\xc3")
    client = run.client
    client.ask("qSupported:swbreak+")
    stack = client.register("rsp")
    caller = client.memory(stack, 8)
    place = calltable.STACK_BASE + 0x800
    assert client.ask(f"Z0,{place:x},1") == b"OK"
    assert client.set_memory(stack, place.to_bytes(8, "little")) == b"OK"
    assert b"swbreak:;" in client.ask("c")
    assert client.register("rip") == place
    assert client.memory(place, 1) == b"\0"
    assert client.register("rax") == 5
    # From there it goes on to where the breakpoint is not the reason any more.
    assert client.set_register("rip", int.from_bytes(caller, "little")) == b"OK"
    assert client.ask("c") == b"W05"


def test_execution_goes_on_into_such_a_breakpoint(start: Start) -> None:
    run = start(b"\xb8\x05\x00\x00\x00\xc3")
    client = run.client
    place = calltable.STACK_BASE + 0x800
    client.ask(f"Z0,{place:x},1")
    client.set_register("rip", place)
    assert client.ask("c").startswith(b"T0b")
    assert client.ask("c") == b"X0b"
    failure = run.outcome().failure
    assert failure is not None
    assert (failure.kind, failure.address, failure.access) == (FailureKind.PAGE_FAULT, place, "execute")


def test_breakpoints_in_a_loop(start: Start) -> None:
    """mov ecx, 3; L: dec ecx; jnz L; mov eax, 9; ret"""
    run = start(b"\xb9\x03\x00\x00\x00\xff\xc9\x75\xfc\xb8\x09\x00\x00\x00\xc3")
    client = run.client
    client.ask("qSupported:swbreak+")
    for address in (BASE + 5, BASE + 7):
        assert client.ask(f"Z0,{address:x},1") == b"OK"
    seen = []
    while (stop := client.ask("c")).startswith(b"T"):
        assert b"swbreak:;" in stop
        seen.append((client.register("rip") - BASE, client.register("rcx")))
    assert seen == [(5, 3), (7, 2), (5, 2), (7, 1), (5, 1), (7, 0)]
    assert stop == b"W09"


def test_a_step_off_a_breakpoint_and_onto_one(start: Start) -> None:
    """nop; nop; nop; mov eax, 1; ret"""
    run = start(b"\x90\x90\x90\xb8\x01\x00\x00\x00\xc3")
    client = run.client
    for address in (BASE, BASE + 1):
        client.ask(f"Z0,{address:x},1")
    assert client.step() == BASE + 1
    assert client.step() == BASE + 2
    assert client.memory(BASE, 3) == b"\x90\x90\x90"
    assert client.ask(f"c{BASE:x}").startswith(b"T05"), "not the one that it starts from, but the next"
    assert client.register("rip") == BASE + 1
    assert client.ask(f"z0,{BASE + 1:x},1") == b"OK"
    assert client.ask(f"c{BASE + 1:x}") == b"W01"


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize("place", [1 << 63, 0xFFFF_8000_0000_0000, 0, calltable.SYSTEM_BASE + calltable.PAGE_SIZE])
def test_jump_to_nowhere(start: Start, place: int, interrupted: bool) -> None:
    """From a trap and from ring 3: whatever the processor makes of it, it ends with a verdict."""
    run = start(b"\xeb\xfe")
    client = run.client
    if interrupted:
        client.send("c")
        assert client.interrupt().startswith(b"T02")
    assert client.set_register("rip", place) == b"OK"
    client.send("c")
    try:
        assert client.packet()[:1] == b"T"
        client.ask("c")
    except ConnectionClosedError:
        pass
    failure = run.outcome().failure
    assert failure is not None
    assert failure.kind in (FailureKind.PAGE_FAULT, FailureKind.EXCEPTION, FailureKind.KVM)


def test_steps_in_a_range(start: Start) -> None:
    """mov ecx, 50; L: dec ecx; jnz L; mov eax, 9; ret"""
    run = start(b"\xb9\x32\x00\x00\x00\xff\xc9\x75\xfc\xb8\x09\x00\x00\x00\xc3")
    client = run.client
    assert client.ask(f"vCont;r{BASE:x},{BASE + 9:x}:1").startswith(b"T05")
    assert (client.register("rip"), client.register("rcx")) == (BASE + 9, 0)
    # A breakpoint inside the range is a stop before it is executed.
    client.ask(f"Z0,{BASE + 9:x},1")
    client.ask(f"c{BASE:x}")
    assert client.register("rip") == BASE + 9
    assert client.set_register("rip", BASE) == b"OK"
    client.ask(f"Z0,{BASE + 7:x},1")
    client.ask(f"vCont;r{BASE:x},{BASE + 9:x}:1")
    assert (client.register("rip"), client.register("rcx")) == (BASE + 7, 49)


# What a device serves -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "access",
    [
        b"\x8b\x04\x25" + calltable.CONTROL_BASE.to_bytes(4, "little"),  # mov eax, [CONTROL]
        b"\x48\x8b\x04\x25" + calltable.CONTROL_BASE.to_bytes(4, "little"),  # mov rax, [CONTROL]
    ],
)
@pytest.mark.parametrize("planted", [False, True])
def test_a_step_over_a_device_register_is_one_step(start: Start, access: bytes, planted: bool) -> None:
    """... ; mov ecx, 1; mov eax, 42; ret"""
    run = start(access + b"\xb9\x01\x00\x00\x00\xb8\x2a\x00\x00\x00\xc3")
    client = run.client
    if planted:
        client.ask(f"Z0,{BASE:x},1")
    places = [client.step() - BASE - len(access) for _ in range(3)]
    assert places == [0, 5, 10]
    assert client.register("eflags") & TF == 0
    assert client.ask("c") == b"W2a"


def test_a_step_over_a_doorbell_is_one_step(start: Start) -> None:
    """A BUDGET command, whose answer shows that the device served it, then two instructions."""
    block, answer = BASE + 0x10000, BASE + 0x10100
    code = b"\xc7\x04\x25" + block.to_bytes(4, "little") + calltable.COMMAND_BUDGET.to_bytes(4, "little")
    code += b"\x48\xc7\x04\x25" + (block + 16).to_bytes(4, "little") + answer.to_bytes(4, "little")
    ring = b"\x48\xc7\x04\x25" + calltable.CONTROL_BASE.to_bytes(4, "little") + block.to_bytes(4, "little")
    run = start(code + ring + b"\x90\xb8\x2a\x00\x00\x00\xc3")
    client = run.client
    for _ in range(2):
        place = client.step()
    assert place == BASE + len(code)
    assert client.memory(answer, calltable.BUDGET_SIZE) == bytes(calltable.BUDGET_SIZE)
    assert client.step() == place + len(ring)
    assert client.memory(answer, calltable.BUDGET_SIZE) != bytes(calltable.BUDGET_SIZE)
    assert client.step() == place + len(ring) + 1
    assert client.ask("c") == b"W2a"


def test_every_instruction_of_a_run_with_a_disk(
    start: Start, disk: tuple[DeviceSpec, ...], functions: dict[str, int]
) -> None:
    """Virtqueue and doorbells, stepped: ends with the same last requests as without a debugger."""
    run = start("read_and_divide", disk)
    run.client.ask(f"Z0,{functions['read_and_divide']:x},1")
    run.client.ask("c")
    assert run.client.ask(STEP_ON).startswith(b"T08")
    assert run.client.ask("c") == b"X08"
    failure = run.outcome().failure
    assert failure is not None
    assert "sector 128, 512 bytes" in failure.recent_requests[-1]


# What the guest must not see ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        b"\x9c\x58",  # pushfq; pop rax
        b"\x66\x9c\x31\xc0\x66\x58",  # pushf (16 bits); xor eax, eax; pop ax
    ],
)
@pytest.mark.parametrize("planted", [False, True])
def test_the_guest_does_not_see_that_it_is_stepped(start: Start, code: bytes, planted: bool) -> None:
    """...; shr eax, 8; and eax, 1; ret: TF as the guest sees it"""
    run = start(code + b"\xc1\xe8\x08\x83\xe0\x01\xc3")
    if planted:
        run.client.ask(f"Z0,{BASE:x},1")
        assert run.client.ask("c") == b"W00"
    else:
        assert run.client.ask(STEP_ON) == b"W00"


def test_a_step_over_the_return_from_an_interrupt(start: Start) -> None:
    """mov rax, rsp; push 0x2b; push rax; pushfq; push 0x33; lea rcx, [rip + 3]; push rcx; iretq; mov eax, 7; ret"""
    run = start(b"\x48\x89\xe0\x6a\x2b\x50\x9c\x6a\x33\x48\x8d\x0d\x03\x00\x00\x00\x51\x48\xcf\xb8\x07\x00\x00\x00\xc3")
    places = [run.client.step() - BASE for _ in range(8)]
    assert places == [3, 5, 6, 7, 9, 16, 17, 19]
    assert run.client.register("eflags") & TF == 0
    assert run.client.ask(STEP_ON) == b"W07"


#: pushfq; or dword [rsp], 0x100; popfq; nop; mov eax, 1; ret
SETS_TF = b"\x9c\x81\x0c\x24\x00\x01\x00\x00\x9d\x90\xb8\x01\x00\x00\x00\xc3"


def test_the_guests_own_trap_flag_is_shown_and_ends_the_run(start: Start) -> None:
    run = start(SETS_TF)
    client = run.client
    assert [client.step() - BASE for _ in range(3)] == [1, 8, 9]
    assert client.register("eflags") & TF, "the guest's own"
    stop = client.ask("s")
    assert stop.startswith(b"T05")
    assert client.register("rip") == BASE + 10
    assert "debug trap" in client.console
    # It has ended: nothing can be changed, and going on is the end.
    assert client.set_register("rax", 1) == b"E16"
    assert client.ask("c") == b"X05"
    failure = run.outcome().failure
    assert failure is not None
    assert (failure.vector, failure.registers["rip"]) == (1, BASE + 10)


def test_a_breakpoint_between_the_guests_trap_flag_and_its_trap(start: Start) -> None:
    run = start(SETS_TF)
    client = run.client
    client.ask(f"Z0,{BASE + 9:x},1")
    client.ask("c")
    assert client.register("rip") == BASE + 9
    assert client.register("eflags") & TF
    client.ask("c")
    assert client.ask("c") == b"X05"
    failure = run.outcome().failure
    assert failure is not None
    assert (failure.vector, failure.registers["rip"]) == (1, BASE + 10)


def test_a_trap_flag_that_the_user_takes_away(start: Start) -> None:
    run = start(SETS_TF)
    client = run.client
    for _ in range(3):
        client.step()
    assert client.set_register("eflags", client.register("eflags") & ~TF) == b"OK"
    assert client.ask("c") == b"W01"


@pytest.mark.parametrize("planted", [False, True])
@pytest.mark.parametrize("how", ["c", STEP_ON])
@pytest.mark.parametrize(("code", "vector"), [(b"\xcc", 3), (b"\xcd\x03", 3), (b"\xf1", 1)])
def test_the_guests_own_traps_end_the_run(start: Start, how: str, planted: bool, code: bytes, vector: int) -> None:
    """nop; int3 (or int 3, or int1); nop; ret, also with a breakpoint in its place"""
    code = b"\x90" + code + b"\x90\xc3"
    elf = operation(code, data_size=4096)
    with Machine(elf, 0, 0, runtime=mini_runtime()) as machine:
        plain = machine.run(Job(elf, b"\xf6"), ignore).failure
    assert plain is not None
    assert plain.vector == vector
    run = start(code)
    client = run.client
    if planted:
        client.ask(f"Z0,{BASE + 1:x},1")
        client.ask("c")
        assert client.register("rip") == BASE + 1
    assert client.ask(how).startswith(b"T05")
    # Hosts differ in where int1 leaves it.
    assert client.register("rip") == plain.registers["rip"]
    assert client.ask("c") == b"X05"
    failure = run.outcome().failure
    assert failure is not None
    assert (failure.kind, failure.vector, failure.registers) == (FailureKind.EXCEPTION, vector, plain.registers)


#: Cases of the hostile operation that end by themselves, within a few thousand instructions.
CASES = (
    *(
        "stack_overflow",
        "above_stack",
        "write_text",
        "write_call_table",
        "jump_to_data",
        "jump_to_stub",
        "jump_to_null",
    ),
    *("write_page_tables", "write_ring0_stack", "non_canonical", "non_canonical_jump", "lost_stack"),
    *("non_canonical_stack", "halt", "clear_interrupts", "port_in", "system_call", "system_enter", "interrupt"),
    *("breakpoint", "single_step", "undefined", "divide", "write_msr", "far_return", "simd_exception"),
    *(
        "ring_trap_page",
        "ring_absent_device",
        "ready_again",
        "unknown_command",
        "control_block_nowhere",
        "odd_doorbell",
    ),
    *("wide_doorbell", "execute_device", "endless_text", "read_and_divide", "garbage_status", "panic", "dma_text"),
    *("dma_ring0_stack", "soil_segments", "soil_avx", "soil_keys", "innocent"),
)


def verdict(outcome: Outcome) -> tuple[object, ...]:
    return outcome.status, outcome.failure, outcome.device_lengths, outcome.device_errors


@pytest.mark.parametrize("name", CASES)
def test_hostile_guests_end_as_without_a_debugger(
    start: Start, disk: tuple[DeviceSpec, ...], functions: dict[str, int], name: str
) -> None:
    """Registers, backtrace and all; continued, and stepped instruction by instruction."""
    work = job(name, disk)
    with Machine(work.elf, 1, MEMORY) as machine:
        plain = machine.run(work, ignore)
    for how in ("c", STEP_ON):
        run = start(name, disk)
        client = run.client
        assert client.ask(f"Z0,{functions[name]:x},1") == b"OK"
        assert client.ask("c").startswith(b"T05")
        assert client.register("rip") == functions[name]
        stop = client.ask(how)
        if plain.failure is None:
            assert stop == b"W%02x" % ((plain.status or 0) & 0xFF)
        else:
            assert stop[:1] == b"T"
            assert client.console == plain.failure.message + "\n"
            assert client.register("rip") == plain.failure.registers["rip"]
            assert client.ask("c") == b"X" + stop[1:3]
        assert verdict(run.outcome()) == verdict(plain)


@pytest.mark.parametrize(
    ("name", "signal"),
    [
        ("read_page_zero", 11),
        ("divide", 8),
        ("undefined", 4),
        ("breakpoint", 5),
        ("simd_exception", 8),
        ("panic", 6),
        ("unknown_command", 12),
        ("message_flood", 24),
    ],
)
def test_signals(start: Start, name: str, signal: int) -> None:
    run = start(name, max_messages=20)
    assert run.client.ask("c").startswith(b"T%02x" % signal)


# Ctrl-C, leaving, losing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["spin", "spin_on_exits"])
def test_control_c(start: Start, functions: dict[str, int], name: str) -> None:
    """Past the time that the run would have had without a debugger."""
    run = start(name, timeout=0.5)
    client = run.client
    client.send("c")
    time.sleep(0.7)
    assert client.interrupt().startswith(b"T02")
    place = client.register("rip")
    assert functions[name] <= place < functions[name] + 64
    assert functions[name] <= client.step() < functions[name] + 64
    # And once more, from there.
    client.send("c")
    assert client.interrupt().startswith(b"T02")
    # Out of the endless loop: return from the function with 3.
    frame = client.register("rbp")
    caller = int.from_bytes(client.memory(frame + 8, 8), "little")
    for register, value in (
        *(("rip", caller), ("rsp", frame + 16), ("rax", 3)),
        ("rbp", int.from_bytes(client.memory(frame, 8), "little")),
    ):
        assert client.set_register(register, value) == b"OK"
    assert client.ask("c") == b"W03"
    assert run.outcome().failure is None


def test_control_c_ends_a_long_range_of_steps(start: Start) -> None:
    """L: jmp L"""
    run = start(b"\xeb\xfe")
    run.client.send(f"vCont;r{BASE:x},{BASE + 2:x}")
    time.sleep(0.05)
    assert run.client.interrupt().startswith(b"T02")
    assert run.client.register("rip") == BASE


def test_control_c_that_comes_too_late_is_nothing(start: Start) -> None:
    """nop; nop; L: jmp L"""
    run = start(b"\x90\x90\xeb\xfe")
    run.connection.sendall(b"\x03")
    assert run.client.step() == BASE + 1
    run.connection.sendall(b"\x03")
    run.client.send("c")
    run.connection.settimeout(0.3)
    with pytest.raises(TimeoutError):
        run.client.packet()
    run.connection.settimeout(PATIENCE)
    assert run.client.interrupt().startswith(b"T02")


def test_detach_lets_the_run_end_by_itself(start: Start, functions: dict[str, int]) -> None:
    run = start("garbage_status")
    client = run.client
    client.ask(f"Z0,{functions['garbage_status']:x},1")
    client.step()
    assert client.ask("D;1") == b"OK"
    run.connection.close()
    assert run.outcome().failure is None
    assert run.outcome().status == -0x123456789A & 0xFFFFFFFF


def test_detach_brings_the_deadline_back(start: Start) -> None:
    run = start("spin", timeout=0.5)
    time.sleep(0.7)
    assert run.client.ask("D") == b"OK"
    failure = run.outcome().failure
    assert failure is not None
    assert (failure.limit, failure.limit_value) == ("timeout", 0.5)


def test_no_deadline_while_the_guest_stands_still(start: Start) -> None:
    run = start("innocent", timeout=0.5)
    time.sleep(0.7)
    assert run.client.ask("c") == b"W00"


def ended_by_the_debugger(outcome: Outcome, text: str) -> None:
    assert outcome.failure is not None
    assert outcome.failure.kind == FailureKind.DEBUGGER
    assert text in outcome.failure.message
    assert outcome.status is None


@pytest.mark.parametrize(("packet", "answer"), [("k", b"OK"), ("vKill;1", b"OK")])
def test_kill(start: Start, packet: str, answer: bytes) -> None:
    run = start("spin")
    assert run.client.ask(packet) == answer
    ended_by_the_debugger(run.outcome(), "the debugger ended the run")


@pytest.mark.parametrize("running", [False, True])
def test_a_lost_connection_ends_the_run(start: Start, running: bool) -> None:
    run = start("spin")
    if running:
        run.client.send("c")
        time.sleep(0.05)
    run.connection.close()
    ended_by_the_debugger(run.outcome(), "connection to the debugger was lost")


def test_nonsense_ends_the_run(start: Start) -> None:
    run = start("innocent")
    run.connection.sendall(b"$" + b"x" * 20000)
    ended_by_the_debugger(run.outcome(), "more than 16384 bytes")


@pytest.mark.parametrize("end", ["k", "D", "close"])
def test_what_failed_has_failed(start: Start, end: str) -> None:
    """However the debugger leaves a guest that has faulted: the run's failure is the fault."""
    run = start("divide")
    assert run.client.ask("c").startswith(b"T08")
    if end == "close":
        run.connection.close()
    else:
        assert run.client.ask(end) == b"OK"
    failure = run.outcome().failure
    assert failure is not None
    assert (failure.kind, failure.vector) == (FailureKind.EXCEPTION, 0)


def test_hanging_up_at_the_end_changes_nothing(start: Start) -> None:
    run = start("innocent")
    run.client.send("c")
    run.connection.close()
    # Whether it saw the end of the connection first or the end of the run.
    outcome = run.outcome()
    assert outcome.status == 0 or (outcome.failure is not None and outcome.failure.kind == FailureKind.DEBUGGER)


def test_the_connection_is_closed_after_the_end(start: Start) -> None:
    run = start("innocent")
    assert run.client.ask("c") == b"W00"
    run.outcome()
    with pytest.raises(ConnectionClosedError):
        run.client.packet()


def test_a_debugged_machine_is_not_used_again(functions: dict[str, int]) -> None:
    """Whatever was written into it, breakpoints and text: the next run is on another."""
    work = job("innocent")
    with MachineRunner() as runner:
        assert runner.run(work, ignore).status == 0
        with DebuggedRun(runner.run, work) as run:
            run.client.ask(f"Z0,{functions['innocent']:x},1")
            assert run.client.set_memory(functions["innocent"], b"\x0f\x0b") == b"OK"
            assert run.client.ask("k") == b"OK"
            ended_by_the_debugger(run.outcome(), "ended")
        assert runner.run(work, ignore).status == 0


#: A debugged run whose thread may not open, import or connect anything, as in a process that has lost all that.
ALONE = """
import sys, threading
from tests.gdb_client import DebuggedRun
from tests.machines import MEMORY, job
from vmm.machine.machine import Machine
import vmm.machine.debugger

seen, watched = [], set()
HARMLESS = ("sys._getframe", "object.", "builtins.id", "gc.", "code.", "exec", "compile")

def hook(event, arguments):
    if threading.get_ident() in watched and not event.startswith(HARMLESS):
        seen.append((event, arguments))

sys.addaudithook(hook)
work = job("innocent")
machine = Machine(work.elf, 0, MEMORY)

def run(job, on_event):
    watched.add(threading.get_ident())
    try:
        return machine.run(job, on_event)
    finally:
        watched.clear()

with DebuggedRun(run, work) as debugged:
    client = debugged.client
    client.ask("qSupported:swbreak+")
    client.ask("qXfer:features:read:target.xml:0,1000")
    client.ask("qXfer:memory-map:read::0,1000")
    place = client.register("rip")
    client.ask("Z0,%x,1" % (place + 1))
    assert client.ask("c").startswith(b"T05")
    client.step()
    client.set_register("xmm0", 1)
    client.set_memory(place, b"x")
    assert client.ask("c") == b"W00"
    assert debugged.outcome().status == 0
print(seen)
"""


def test_a_debugged_run_needs_nothing_but_its_connection() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_messages_arrive_as_without_a_debugger(start: Start) -> None:
    run = start("wrong_cbor")
    assert run.client.ask(STEP_ON) == b"W00"
    run.outcome()
    assert run.events == [MessageEvent(b"\xff\xfe")]
