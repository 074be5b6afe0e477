"""The ELF files that the machine runs: parsed and validated before a byte of them is loaded.

ELF is hostile input here (``--op-elf``).  Accepted: static ELF64 for x86-64 (System V ABI, generic ABI chapters 4
and 5), segments within the window that the memory map gives, on pages of their own, none writable and executable.
"""

from __future__ import annotations

from struct import Struct

from calltable import PAGE_SIZE, TABLE_MAJOR, TABLE_MINOR, TABLE_NOTE_NAME, TABLE_NOTE_TYPE
from vmm.errors import OperationLoadError
from vmm.record import dataclass

#: Program headers beyond this many are no program of ours.
MAX_HEADERS = 64
_ELF64_LITTLE_ENDIAN_V1 = b"\x7fELF\x02\x01\x01"
_EXECUTABLE = 2
_X86_64 = 62
_HEADER = Struct("<16xHHIQQQIHHH")
_PROGRAM_HEADER = Struct("<IIQQQQQQ")
_NOTE = Struct("<III")
_CONTRACT = Struct("<HHI")

_LOAD, _DYNAMIC, _INTERPRETER, _NOTES, _TLS = 1, 2, 3, 4, 7
_X, _W = 1, 2


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the image: ``data`` at ``address``, zeroes up to ``size`` bytes."""

    address: int
    size: int
    data: bytes
    write: bool
    execute: bool

    @property
    def page_start(self) -> int:
        """Address of its first page."""
        return self.address & -PAGE_SIZE

    @property
    def page_end(self) -> int:
        """Address after its last page."""
        return -(-(self.address + self.size) & -PAGE_SIZE)

    @property
    def kind(self) -> str:
        """What it is called in reports."""
        return "text" if self.execute else "data" if self.write else "constants"


@dataclass(frozen=True, slots=True)
class Contract:
    """The versions of the call table that an operation states: the major, and the lowest minor that it needs."""

    major: int
    minor: int


@dataclass(frozen=True, slots=True)
class Image:
    """A validated program."""

    entry: int
    segments: tuple[Segment, ...]
    contract: Contract | None


def _refuse(what: str, reason: str) -> OperationLoadError:
    return OperationLoadError(f"{what}: {reason}")


def parse(elf: bytes, start: int, size: int, what: str) -> Image:
    """Parse and validate a file.

    :param start: first address of its window.
    :param size: bytes of its window.
    :param what: what the file is called in the error, "operation" for instance.
    :raises OperationLoadError: this is not a program that the machine runs; the message says why.
    """
    if len(elf) < _HEADER.size or elf[:7] != _ELF64_LITTLE_ENDIAN_V1:
        raise _refuse(what, "not an ELF file of 64 bits, little endian")
    kind, machine, _, entry, table, _, _, _, entry_size, count = _HEADER.unpack_from(elf)
    if machine != _X86_64:
        raise _refuse(what, f"not for x86-64 (machine {machine})")
    if kind != _EXECUTABLE:
        raise _refuse(what, f"not a static executable at fixed addresses (ELF type {kind}); link with -static, no PIE")
    if entry_size != _PROGRAM_HEADER.size or not 1 <= count <= MAX_HEADERS:
        raise _refuse(what, f"{count} program headers of {entry_size} bytes")
    if table + count * entry_size > len(elf):
        raise _refuse(what, "the program headers are not inside the file")

    segments: list[Segment] = []
    contract: Contract | None = None
    for index in range(count):
        header = _PROGRAM_HEADER.unpack_from(elf, table + index * entry_size)
        if header[0] == _LOAD:
            if header[6]:
                segments.append(_segment(elf, header, index, start, size, what))
        elif header[0] in (_DYNAMIC, _INTERPRETER, _TLS):
            if header[6]:
                raise _refuse(what, "needs a loader or thread-local storage; link statically, without them")
        elif header[0] == _NOTES and contract is None:
            contract = _find_contract(elf, header, what)
    segments.sort(key=lambda segment: segment.address)
    end = 0
    for segment in segments:
        if segment.page_start < end:
            raise _refuse(what, f"two segments share the page at {segment.page_start:#x}; align them to {PAGE_SIZE}")
        end = segment.page_end
    if not any(s.execute and s.address <= entry < s.address + s.size for s in segments):
        raise _refuse(what, f"the entry {entry:#x} is not in an executable segment")
    return Image(entry, tuple(segments), contract)


def _segment(elf: bytes, header: tuple[int, ...], index: int, start: int, size: int, what: str) -> Segment:
    _, flags, offset, address, _, file_size, memory_size, _ = header
    if file_size > memory_size:
        raise _refuse(what, f"segment {index} has more bytes in the file than in memory")
    if offset + file_size > len(elf):
        raise _refuse(what, f"segment {index} ends at byte {offset + file_size}, the file has {len(elf)}")
    if address < start or address + memory_size > start + size:
        raise _refuse(
            what,
            f"segment {index} ({address:#x} to {address + memory_size:#x}) is not inside "
            f"{start:#x} to {start + size:#x}; link with --image-base={start:#x}",
        )
    if flags & _W and flags & _X:
        raise _refuse(what, f"segment {index} is writable and executable")
    return Segment(address, memory_size, elf[offset : offset + file_size], bool(flags & _W), bool(flags & _X))


def _find_contract(elf: bytes, header: tuple[int, ...], what: str) -> Contract | None:
    """The contract among the notes of a PT_NOTE segment (generic ABI, chapter 5, "Note Section")."""
    _, _, offset, _, _, size, _, alignment = header
    if offset + size > len(elf):
        raise _refuse(what, "a note is not inside the file")
    unit = 8 if alignment == 8 else 4
    end = offset + size
    while offset + _NOTE.size <= end:
        name_size, description_size, kind = _NOTE.unpack_from(elf, offset)
        name = offset + _NOTE.size
        description = name + -(-name_size // unit) * unit
        if description + description_size > end:
            raise _refuse(what, "a note is longer than its segment")
        if kind == TABLE_NOTE_TYPE and elf[name : name + name_size] == TABLE_NOTE_NAME.encode() + b"\0":
            if description_size < _CONTRACT.size:
                raise _refuse(what, "its contract note is too short")
            major, minor, _ = _CONTRACT.unpack_from(elf, description)
            return Contract(major, minor)
        offset = description + -(-description_size // unit) * unit
    return None


def check_contract(contract: Contract | None, what: str) -> None:
    """Whether this machine's call table serves an operation.

    :raises OperationLoadError: it states no version, another major, or a newer minor; the message names both versions.
    """
    offered = f"{TABLE_MAJOR}.{TABLE_MINOR}"
    if contract is None:
        raise _refuse(
            what, f'has no note "{TABLE_NOTE_NAME}" that states its call table version; this machine has {offered}'
        )
    if contract.major != TABLE_MAJOR or contract.minor > TABLE_MINOR:
        needed = f"{contract.major}.{contract.minor}"
        raise OperationLoadError(
            f"{what}: needs call table version {needed}, this machine has {offered}", needs=needed, has=offered
        )
