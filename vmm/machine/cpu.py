"""What the processor is told before the first instruction: descriptor tables, trap stubs, control registers, CPUID.

Sources: Intel SDM volume 3 (descriptors 3.4.5, IDT gates 6.14.1, TSS 8.7, control registers 2.5), AMD64 APM volume 2.
"""

from __future__ import annotations

from struct import Struct

from calltable import TRAP_BASE
from vmm.machine.layout import (
    DESCRIPTORS,
    DOUBLE_FAULT_STACK,
    KERNEL_STACK_TOP,
    STUBS,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Selectors, numbered as in Linux: hosts that run ring 3 on the bare processor need no translation then.
KERNEL_CODE = 0x10
KERNEL_DATA = 0x18
USER_DATA = 0x2B
USER_CODE = 0x33
TASK = 0x40

#: Segment types (SDM 3.4.5.1 and 3.5): accessed bits set, the task busy, so that nothing is ever written back.
_CODE, _DATA, _BUSY_TSS64 = 0xB, 0x3, 0xB

#: Where things lie in the page of descriptor tables.
_GDT, _IDT, _TSS = DESCRIPTORS, DESCRIPTORS + 0x100, DESCRIPTORS + 0x400
_GDT_ENTRIES = 10
VECTORS = 32
_TSS_SIZE = 104

#: Vectors for which the processor pushes an error code (SDM 6.15).
WITH_ERROR_CODE = frozenset((8, 10, 11, 12, 13, 14, 17, 21, 29, 30))
DOUBLE_FAULT = 8
DEBUG = 1
BREAKPOINT = 3
STUB_SIZE = 32

CR0 = 0x8001_0033  # PG, WP, NE, ET, MP, PE
CR4 = 0x0000_0624  # OSXMMEXCPT, OSFXSR, PAE, TSD: no rdtsc in ring 3
EFER = 0x0000_0D00  # NXE, LMA, LME; no SCE: syscall is undefined

#: Reserved bit 1 only: interrupts are off, I/O privilege level 0.
RFLAGS = 0x2

_ENTRY = Struct("<Q")
_GATE = Struct("<HHBBHIxxxx")


def _segment_descriptor(kind: int, dpl: int, long_code: bool) -> int:
    """A code or data descriptor with base 0 and limit 4 GiB."""
    access = 0x90 | dpl << 5 | kind
    flags = 0xA if long_code else 0xC
    return 0x000F_0000_0000_FFFF | access << 40 | flags << 52


def descriptor_page() -> bytes:
    """The page of GDT, IDT and TSS."""
    page = bytearray(0x1000)
    gdt = DESCRIPTORS - _GDT
    for selector, kind, dpl, long_code in (
        (KERNEL_CODE, _CODE, 0, True),
        (KERNEL_DATA, _DATA, 0, False),
        (USER_DATA, _DATA, 3, False),
        (USER_CODE, _CODE, 3, True),
    ):
        _ENTRY.pack_into(page, gdt + (selector & ~7), _segment_descriptor(kind, dpl, long_code))
    low = (
        (_TSS_SIZE - 1) | (_TSS & 0xFF_FFFF) << 16 | (0x80 | _BUSY_TSS64) << 40 | (_TSS >> 24 & 0xFF) << 56
    )  # present, system, not granular
    _ENTRY.pack_into(page, gdt + TASK, low)
    _ENTRY.pack_into(page, gdt + TASK + 8, _TSS >> 32)
    for vector in range(VECTORS):
        stub = STUBS + vector * STUB_SIZE
        # Always a stack of the table's: the one in use may be the guest's even in ring 0, after a `syscall` on hosts
        # that do not enforce EFER.SCE.
        stack = 2 if vector == DOUBLE_FAULT else 1
        # Ring 3 may raise a breakpoint with an instruction, and no other vector.
        gate = 0x8E | (3 << 5 if vector == BREAKPOINT else 0)
        _GATE.pack_into(
            page, _IDT - DESCRIPTORS + vector * 16, stub & 0xFFFF, KERNEL_CODE, stack, gate, stub >> 16 & 0xFFFF, 0
        )
    tss = _TSS - DESCRIPTORS
    _ENTRY.pack_into(page, tss + 4, KERNEL_STACK_TOP)
    _ENTRY.pack_into(page, tss + 36, KERNEL_STACK_TOP)
    _ENTRY.pack_into(page, tss + 44, DOUBLE_FAULT_STACK)
    # The I/O permission map starts past the limit: no port is allowed.
    page[tss + 102 : tss + 104] = _TSS_SIZE.to_bytes(2, "little")
    return bytes(page)


def stub_page() -> bytes:
    """A trap stub for each vector: make the frame uniform, tell the host, and go back if the host says so."""
    page = bytearray(b"\xcc" * 0x1000)
    for vector in range(VECTORS):
        code = b"" if vector in WITH_ERROR_CODE else b"\x6a\x00"  # push 0
        code += b"\xc7\x04\x25" + TRAP_BASE.to_bytes(4, "little") + vector.to_bytes(4, "little")  # mov dword [TRAP], n
        code += b"\x48\x83\xc4\x08\x48\xcf"  # add rsp, 8; iretq
        page[vector * STUB_SIZE : vector * STUB_SIZE + len(code)] = code
    return bytes(page)


def set_special_registers(sregs: Any, root: int, *, ring: int = 3) -> None:
    """Fill ``struct kvm_sregs`` for 64-bit mode; what is not named keeps KVM's values.

    :param root: guest-physical address of the top page table.
    :param ring: 3; 0 only to measure what that costs.
    """
    code, data = (USER_CODE, USER_DATA) if ring == 3 else (KERNEL_CODE, KERNEL_DATA)
    _fill(sregs.cs, code, _CODE, ring, long_code=True)
    for segment in (sregs.ss, sregs.ds, sregs.es, sregs.fs, sregs.gs):
        _fill(segment, data, _DATA, ring, long_code=False)
    task = sregs.tr
    task.base, task.limit, task.selector, task.type = _TSS, _TSS_SIZE - 1, TASK, _BUSY_TSS64
    task.present, task.dpl, task.db, task.s, task.l, task.g, task.avl, task.unusable = 1, 0, 0, 0, 0, 0, 0, 0
    table = sregs.ldt
    table.base, table.limit, table.selector, table.present, table.unusable = 0, 0, 0, 0, 1
    sregs.gdt.base, sregs.gdt.limit = _GDT, _GDT_ENTRIES * 8 - 1
    sregs.idt.base, sregs.idt.limit = _IDT, VECTORS * 16 - 1
    sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.cr8, sregs.efer = CR0, 0, root, CR4, 0, EFER


def _fill(segment: Any, selector: int, kind: int, dpl: int, *, long_code: bool) -> None:
    segment.base, segment.limit, segment.selector, segment.type = 0, 0xFFFF_FFFF, selector, kind
    segment.present, segment.dpl, segment.s, segment.g = 1, dpl, 1, 1
    segment.db, segment.l, segment.avl, segment.unusable = not long_code, long_code, 0, 0


def _text(text: bytes) -> tuple[int, ...]:
    return tuple(int.from_bytes(text[index : index + 4], "little") for index in range(0, len(text), 4))


_VENDOR = _text(b"PyVmmMachine")

#: The x86-64 baseline: fpu tsc msr pae cx8 cmov fxsr sse sse2 (leaf 1), syscall nx lm (extended leaf 1).  No AVX, no
#: RDRAND, no RDSEED, no hypervisor leaves.  (function, index or -1, eax, ebx, ecx, edx)
_FEATURES = 1 << 0 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 15 | 1 << 24 | 1 << 25 | 1 << 26
_EXTENDED = 1 << 11 | 1 << 20 | 1 << 29
#: 39 bits of physical address reach past MAX_MEMORY; 48 bits of linear address.
ADDRESS_BITS = 39
CPUID: tuple[tuple[int, int, int, int, int, int], ...] = (
    (0, -1, 1, _VENDOR[0], _VENDOR[2], _VENDOR[1]),
    (1, -1, 0x0000_0600, 0, 0, _FEATURES),
    (0x8000_0000, -1, 0x8000_0008, 0, 0, 0),
    (0x8000_0001, -1, 0, 0, 0, _EXTENDED),
    (0x8000_0008, -1, 48 << 8 | ADDRESS_BITS, 0, 0, 0),
)
