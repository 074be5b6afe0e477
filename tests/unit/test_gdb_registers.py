"""The registers as gdb counts them: order, sizes, and what may be changed."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.machine.gdb_registers import FLAGS, FXSAVE_SIZE, NUMBERS, REGISTERS, TARGET_XML, RegisterFile

GENERAL = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)), "rip", "rflags"]


def register_file() -> RegisterFile:
    fpu = bytearray((index * 7 + 1) & 0xFF for index in range(FXSAVE_SIZE))
    fpu[0:5] = b"\x7f\x03\x00\x28\x00"  # control word, status word with top 5, nothing in any register
    return RegisterFile(
        {name: 0x1111 * (index + 1) for index, name in enumerate(GENERAL)},
        dict.fromkeys(("cs", "ss", "ds", "es", "fs", "gs"), 0x2B),
        {"fs_base": 1 << 40, "gs_base": 0},
        bytes(fpu),
    )


def test_the_description_says_the_same_as_the_table() -> None:
    tree = ET.fromstring(TARGET_XML)
    assert tree.findtext("architecture") == "i386:x86-64"
    described = [(reg.get("name"), int(reg.get("bitsize") or 0)) for reg in tree.iter("reg")]
    assert described == [(register.name, register.bits) for register in REGISTERS]
    known = {"int", "int64", "int32", "code_ptr", "data_ptr", "i387_ext"}
    made = {element.get("id") for element in tree.iter() if element.get("id")}
    assert {reg.get("type") for reg in tree.iter("reg")} <= known | made


def test_the_order_is_that_of_the_64_bit_architecture() -> None:
    """gdb's numbers for amd64 (amd64-tdep.h): what a client without XML support assumes."""
    expected = {"rax": 0, "rsp": 7, "r8": 8, "rip": 16, "eflags": 17, "cs": 18, "st0": 24, "fctrl": 32, "xmm0": 40}
    assert {name: NUMBERS[name] for name in expected} == expected
    assert NUMBERS["mxcsr"] == 56
    assert len(register_file().all()) == sum(register.bits for register in REGISTERS) // 8


@given(st.integers(0, 16), st.binary(min_size=8, max_size=8))
def test_general_registers(number: int, data: bytes) -> None:
    registers = register_file()
    assert registers.write(number, data)
    assert registers.read(number) == data
    assert registers.general[REGISTERS[number].name] == int.from_bytes(data, "little")
    assert not registers.fpu_changed


@pytest.mark.parametrize("name", [f"xmm{n}" for n in (0, 7, 15)])
def test_vector_registers(name: str) -> None:
    registers = register_file()
    before = bytes(registers.fpu)
    assert registers.write(NUMBERS[name], bytes(range(16)))
    assert registers.read(NUMBERS[name]) == bytes(range(16))
    assert registers.fpu_changed
    at = 160 + 16 * int(name[3:])
    assert registers.fpu == before[:at] + bytes(range(16)) + before[at + 16 :]


@given(st.binary(min_size=4, max_size=4))
def test_flags_that_ring_3_may_not_change_stay(data: bytes) -> None:
    registers = register_file()
    before = registers.general["rflags"]
    assert registers.write(NUMBERS["eflags"], data)
    assert registers.general["rflags"] & ~FLAGS == before & ~FLAGS
    assert registers.general["rflags"] & FLAGS == int.from_bytes(data, "little") & FLAGS


def test_neither_privilege_nor_interrupts_can_be_set() -> None:
    assert FLAGS & (3 << 12 | 1 << 9 | 1 << 17 | 1 << 19 | 1 << 20) == 0
    assert FLAGS & 1 << 8, "TF can"


@pytest.mark.parametrize("name", ["cs", "ss", "gs", "fs_base"])
def test_segments_can_be_written_as_they_are_only(name: str) -> None:
    registers = register_file()
    number = NUMBERS[name]
    assert registers.write(number, registers.read(number))
    assert not registers.write(number, bytes(REGISTERS[number].bits // 8 - 1) + b"\x01")


def test_reserved_bits_of_mxcsr() -> None:
    registers = register_file()
    assert not registers.write(NUMBERS["mxcsr"], b"\x80\x1f\x01\x00")
    assert registers.write(NUMBERS["mxcsr"], b"\x80\x1f\x00\x00")


@given(st.binary(max_size=12), st.integers(0, len(REGISTERS) - 1))
def test_the_wrong_size_changes_nothing(data: bytes, number: int) -> None:
    registers = register_file()
    before = registers.all()
    if len(data) != REGISTERS[number].bits // 8:
        assert not registers.write(number, data)
        assert registers.all() == before


def test_all_at_once() -> None:
    registers = register_file()
    data = bytearray(registers.all())
    data[:8] = b"new rax!"
    assert registers.set_all(bytes(data))
    assert registers.read(0) == b"new rax!"
    # One that cannot be changed, and nothing is.
    data[8:16] = b"new rbx!"
    at = sum(register.bits // 8 for register in REGISTERS[: NUMBERS["cs"]])
    data[at] ^= 1
    before = registers.all()
    assert not registers.set_all(bytes(data))
    assert not registers.set_all(bytes(data[:-1]))
    assert registers.all() == before


@pytest.mark.parametrize(
    ("value", "tag"),
    [
        (bytes(10), 1),
        (bytes(7) + b"\x80\xff\x3f", 0),
        (bytes(7) + b"\x80\xff\x7f", 2),
        (b"\x01" + bytes(9), 2),
        (bytes(8) + b"\xff\x3f", 2),
    ],
)
def test_the_tag_word(value: bytes, tag: int) -> None:
    """Zero, one, infinity, a denormal, an unnormal; the top of the stack is physical register 5."""
    registers = register_file()
    assert registers.read(NUMBERS["ftag"]) == b"\xff\xff\0\0"
    assert registers.write(NUMBERS["st0"], value)
    assert registers.write(NUMBERS["ftag"], (0xFFFF & ~(3 << 10)).to_bytes(4, "little"))
    assert registers.fpu[4] == 1 << 5
    assert registers.read(NUMBERS["ftag"]) == (0xFFFF & ~(3 << 10) | tag << 10).to_bytes(4, "little")


def test_registers_that_do_not_exist() -> None:
    with pytest.raises(IndexError):
        register_file().read(len(REGISTERS))
    with pytest.raises(IndexError):
        register_file().write(len(REGISTERS), b"")
