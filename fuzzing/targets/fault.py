"""Whatever registers and stack a guest leaves behind, the report of its fault is made, of MAX_FRAMES frames at most,
and shows nothing raw.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import calltable as ct
from fuzzing.codec import Sink, Source
from fuzzing.oracle import check_text
from fuzzing.targets import Target
from vmm.boundary import FailureKind
from vmm.cli.failures import error_dict, error_text
from vmm.cli.jsontext import pretty
from vmm.machine import faults
from vmm.machine.layout import STACK_TOP, fixed_regions
from vmm.operations.session import failure_error

_REGISTERS = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags"),
)
_BASES = (ct.STACK_BASE, STACK_TOP - 0x100, STACK_TOP, ct.KERNEL_STACK_BASE, ct.OPERATION_BASE, ct.RUNTIME_BASE, 0)


class _Memory:
    """The stacks, and zeroes everywhere else in RAM."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, bytes]] = []

    def get(self, address: int, length: int) -> bytes:
        if not ct.RAM_BASE <= address < 1 << 40:
            return b""
        out = bytearray(length)
        for start, data in self.parts:
            for place, byte in enumerate(data):
                if address <= start + place < address + length:
                    out[start + place - address] = byte
        return bytes(out)


def _address(source: Source) -> int:
    choice = source.byte()
    return source.number() if choice >= len(_BASES) else _BASES[choice] + source.u16()


def run(data: bytes) -> None:
    """See above."""
    source = Source(data)
    kind, vector = source.byte(), source.number()
    registers = dict.fromkeys(_REGISTERS, 0)
    for name in ("rip", "rsp", "rbp"):
        registers[name] = _address(source)
    for name in _REGISTERS[: source.byte() % len(_REGISTERS)]:
        registers.setdefault(name, source.number())
    cr2, text = source.number(), source.take(source.byte())
    memory: Any = _Memory()
    while source and len(memory.parts) < 40:
        start = _address(source)
        memory.parts.append((start, struct.pack("<QQ", _address(source), _address(source))))
    vcpu: Any = SimpleNamespace(registers=lambda: dict(registers), special_registers=lambda: SimpleNamespace(cr2=cr2))
    if kind % 3 == 0:
        failure = faults.from_trap(vector, vcpu, memory, fixed_regions(kind >> 4, 0))
    elif kind % 3 == 1:
        failure = faults.from_abort(text, vector, vcpu, memory)
    else:
        failure = faults.from_stop(FailureKind.PROTOCOL, "stopped", vcpu, memory)
    assert len(failure.backtrace) <= faults.MAX_FRAMES + 1
    check_text(failure.message, also="")
    error = failure_error(failure, ("image",))
    check_text(error_text(error, "image"))
    shown = pretty(error_dict(error))
    assert shown.isascii()
    check_text(shown)


def seeds() -> Iterable[bytes]:
    """A page fault with a chain of frames, a panic, a stop."""
    for kind in range(3):
        sink = Sink().byte(kind).number(14).byte(4).u16(0x10).byte(3).u16(0).byte(0).u16(0x100).byte(2).number(1, 2)
        sink.number(0xDEAD000).byte(4).raw(b"\x1b\xff\xc3a")
        # The chain of frame pointers, and what the processor pushed.
        for place in range(3):
            sink.byte(0).u16(0x100 + 16 * place).byte(0).u16(0x110 + 16 * place).byte(4).u16(0x20 + place)
        sink.byte(3).u16(0).byte(6).u16(6).byte(4).u16(0x30)
        yield bytes(sink.data)


TARGET = Target("fault", run, seeds, max_length=1024)
