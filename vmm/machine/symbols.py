"""Which source line a code address came from, by the DWARF of the guest's ELF (pyelftools).

Imported when a run has failed, and only then.  Debugging information is as untrusted as the ELF it comes from: nothing
it holds ends more than the search.
"""

from __future__ import annotations

import io
from bisect import bisect_right

from calltable import OPERATION_BASE, OPERATION_SIZE, RUNTIME_BASE, RUNTIME_SIZE
from vmm.boundary import Frame
from vmm.machine import guests

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Bytes of line number programs that are decoded (a byte costs up to 5 us), and of symbol table.
MAX_LINES = 512 << 10
MAX_SYMBOLS = 512 << 10
#: Decoded ELFs kept, for campaigns in which guests fail often.
_KEPT = 4
_cache: dict[bytes, _Symbols] = {}


class _Symbols:
    """What one ELF says about its addresses: (start, end, ...) in order of start."""

    __slots__ = ("functions", "lines")

    def __init__(self, elf: bytes) -> None:
        self.functions: list[tuple[int, int, str]] = []
        self.lines: list[tuple[int, int, str, int]] = []
        from elftools.elf.elffile import ELFFile

        try:
            file: Any = ELFFile(io.BytesIO(elf))
            self.functions = sorted(_functions(file))
            self.lines = sorted(_lines(file))
        except Exception:  # hostile or merely unusual: pyelftools raises whatever the bytes lead it to
            return

    def frame(self, address: int, lookup: int) -> Frame:
        """The frame of ``address``, described by what lies at ``lookup``."""
        function = path = line = None
        at = bisect_right(self.functions, (lookup, 1 << 64)) - 1
        if at >= 0 and lookup < self.functions[at][1]:
            function = self.functions[at][2]
        at = bisect_right(self.lines, (lookup, 1 << 64)) - 1
        if at >= 0 and lookup < self.lines[at][1]:
            _, _, path, line = self.lines[at]
        return Frame(address, function, path, line)


def symbolise(frames: tuple[Frame, ...], operation: bytes) -> tuple[Frame, ...]:
    """The frames with function, file and line where they are known.

    Addresses of callers point behind the call, so that all but the first are looked up one byte earlier.

    :param operation: the operation's ELF; its debugging information is beside the shipped file, or in the ELF itself.
    """
    found = []
    for index, frame in enumerate(frames):
        if OPERATION_BASE <= frame.address < OPERATION_BASE + OPERATION_SIZE:
            known = _symbols(operation).frame(frame.address, frame.address - (index > 0))
        elif RUNTIME_BASE <= frame.address < RUNTIME_BASE + RUNTIME_SIZE:
            known = _symbols(guests.runtime()).frame(frame.address, frame.address - (index > 0))
        else:
            known = frame
        found.append(known)
    return tuple(found)


def _symbols(elf: bytes) -> _Symbols:
    known = _cache.get(elf)
    if known is None:
        if len(_cache) >= _KEPT:
            del _cache[next(iter(_cache))]
        known = _cache[elf] = _Symbols(guests.debug_of(elf))
    return known


def _functions(file: Any) -> list[tuple[int, int, str]]:
    table = file.get_section_by_name(".symtab")
    if table is None or table.data_size > MAX_SYMBOLS:
        return []
    return [
        (symbol["st_value"], symbol["st_value"] + max(symbol["st_size"], 1), symbol.name)
        for symbol in table.iter_symbols()
        if symbol["st_info"]["type"] == "STT_FUNC"
    ]


def _lines(file: Any) -> list[tuple[int, int, str, int]]:
    section = file.get_section_by_name(".debug_line")
    if section is None or section.data_size > MAX_LINES or not file.has_dwarf_info():
        return []
    dwarf = file.get_dwarf_info()
    found = []
    for unit in dwarf.iter_CUs():
        program = dwarf.line_program_for_CU(unit)
        if program is None:
            continue
        previous = None
        for entry in program.get_entries():
            state = entry.state
            if state is None:
                continue
            if previous is not None and previous.address < state.address:
                found.append((previous.address, state.address, _file_name(program, previous.file), previous.line))
            previous = None if state.end_sequence else state
    return found


def _file_name(program: Any, number: int) -> str:
    header = program.header
    first = 0 if header["version"] >= 5 else 1
    entry = header["file_entry"][number - first]
    name = entry.name.decode("utf-8", "replace")
    directories = header["include_directory"]
    index = entry.dir_index - first
    if 0 < index < len(directories) and not name.startswith("/"):
        folder = directories[index]
        folder = folder.decode("utf-8", "replace") if isinstance(folder, bytes) else str(folder)
        if not folder.startswith("/"):
            name = f"{folder}/{name}"
    return str(name)
