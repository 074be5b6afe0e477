"""Which source line a code address came from, by the DWARF of the guest's ELF (pyelftools).

Imported when a run has failed, and only then.  Debugging information is as untrusted as the ELF it comes from: nothing
it holds ends more than the search.
"""

from __future__ import annotations

import io

from calltable import OPERATION_BASE, OPERATION_SIZE, RUNTIME_BASE, RUNTIME_SIZE
from vmm.boundary import Frame
from vmm.machine import guests

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Files beyond this size are not searched.
MAX_FILE = 64 << 20


def symbolise(frames: tuple[Frame, ...], operation: bytes) -> tuple[Frame, ...]:
    """The frames with function, file and line where they are known.

    Addresses of callers point behind the call, so that all but the first are looked up one byte earlier.

    :param operation: the operation's ELF; its debugging information is beside the shipped file, or in the ELF itself.
    """
    found: dict[int, Frame] = {}
    for base, size, of_operation in ((OPERATION_BASE, OPERATION_SIZE, True), (RUNTIME_BASE, RUNTIME_SIZE, False)):
        wanted = {}
        for index, frame in enumerate(frames):
            if base <= frame.address < base + size:
                wanted[index] = frame.address - (1 if index else 0)
        if wanted:
            data = guests.debug_of(operation if of_operation else guests.runtime())
            if len(data) <= MAX_FILE:
                found |= _search(data, wanted)
    return tuple(
        Frame(frame.address, known.function, known.file, known.line) if (known := found.get(index)) else frame
        for index, frame in enumerate(frames)
    )


def _search(elf: bytes, wanted: dict[int, int]) -> dict[int, Frame]:
    """index -> Frame for the addresses that the ELF knows."""
    from elftools.elf.elffile import ELFFile

    try:
        file: Any = ELFFile(io.BytesIO(elf))
        functions = _functions(file, wanted)
        lines = _lines(file, wanted) if file.has_dwarf_info() else {}
    except Exception:  # hostile or merely unusual: pyelftools raises whatever the bytes lead it to
        return {}
    result = {}
    for index, address in wanted.items():
        function = functions.get(index)
        path, line = lines.get(index, (None, None))
        if function or path:
            result[index] = Frame(address, function, path, line)
    return result


def _functions(file: Any, wanted: dict[int, int]) -> dict[int, str]:
    """By the symbol table: the function that an address lies in."""
    table = file.get_section_by_name(".symtab")
    if table is None:
        return {}
    found = {}
    for symbol in table.iter_symbols():
        entry = symbol["st_info"]
        if entry["type"] != "STT_FUNC":
            continue
        start, size = symbol["st_value"], symbol["st_size"]
        for index, address in wanted.items():
            if start <= address < start + max(size, 1):
                found[index] = symbol.name
    return found


def _lines(file: Any, wanted: dict[int, int]) -> dict[int, tuple[str, int]]:
    """By the line number programs: file and line of each address."""
    dwarf = file.get_dwarf_info()
    found: dict[int, tuple[str, int]] = {}
    for unit in dwarf.iter_CUs():
        program = dwarf.line_program_for_CU(unit)
        if program is None:
            continue
        previous = None
        for entry in program.get_entries():
            state = entry.state
            if state is None:
                continue
            if previous is not None:
                for index, address in wanted.items():
                    if previous.address <= address < state.address:
                        found[index] = (_file_name(program, previous.file), previous.line)
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
