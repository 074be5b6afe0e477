"""The shipped guests hold no instruction whose answer depends on the host.

Hosts that run ring 3 on the bare processor enforce neither CR4.TSD nor the CPUID model, so the guests themselves must
not ask: no clock, no randomness, no CPU features, no way out but the doorbells.
"""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from capstone import CS_ARCH_X86, CS_MODE_64, Cs
from elftools.elf.elffile import ELFFile

from tests.hostile.build import ROOT, compile_c
from vmm.machine import guests

FORBIDDEN = frozenset(
    (
        *("rdtsc", "rdtscp", "rdpmc", "rdrand", "rdseed", "rdpid", "cpuid", "xgetbv", "syscall"),
        *("sysenter", "sysexit", "sysret", "int", "int1", "in", "insb", "insd", "insw"),
        *("out", "outsb", "outsd", "outsw", "hlt", "cli", "sti", "wrmsr", "rdmsr"),
        *("xbegin", "rdfsbase", "rdgsbase", "wrfsbase", "wrgsbase", "wrpkru", "rdpkru", "sgdt", "sidt"),
        *("sldt", "str", "smsw", "vmcall", "vmmcall"),
    )
)

SHIPPED = sorted((ROOT / "vmm" / "_guest").glob("*.elf"))


def text_segments(elf: bytes) -> list[tuple[int, bytes]]:
    file = ELFFile(io.BytesIO(elf))
    return [(s["p_vaddr"], s.data()) for s in file.iter_segments() if s["p_type"] == "PT_LOAD" and s["p_flags"] & 1]


def instructions(elf: bytes) -> tuple[int, list[str]]:
    """How many there are, and the forbidden ones with their addresses."""
    decoder = Cs(CS_ARCH_X86, CS_MODE_64)
    decoder.skipdata = True
    count = 0
    found = []
    for address, text in text_segments(elf):
        for at, size, mnemonic, _ in decoder.disasm_lite(text, address):
            count += size
            if mnemonic.split()[-1] in FORBIDDEN:
                found.append(f"{at:#x} {mnemonic}")
    return count, found


def test_guests_are_built() -> None:
    names = {path.stem for path in SHIPPED}
    assert {"runtime", "info", "measure", "check", "map", "create"} <= names


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_guest_is_deterministic(path: Path) -> None:
    decoded, found = instructions(path.read_bytes())
    assert decoded == sum(len(text) for _, text in text_segments(path.read_bytes()))
    assert found == []


def test_the_disassembly_finds_them() -> None:
    """In a guest that holds them, the same search finds them."""
    from tests.hostile.build import GUESTS

    _, found = instructions(compile_c(GUESTS / "hostile.c"))
    assert {line.split()[1] for line in found} >= {"hlt", "cli", "in", "out", "syscall", "sysenter", "int", "rdmsr"}


def test_the_runtime_is_the_one_that_is_checked() -> None:
    assert guests.runtime() in [path.read_bytes() for path in SHIPPED]
