"""Which source line a code address came from, by the DWARF of the guest's ELF (pyelftools).

Imported when a run has failed, and only then.  Debugging information is as untrusted as the ELF it comes from: nothing
it holds ends more than the search, and the search in an ELF that did not come with the package ends by the clock: a few
bytes can make a reader of DWARF work for hours.
"""

from __future__ import annotations

import io
import sys
from bisect import bisect_right
from contextlib import contextmanager, nullcontext
from time import monotonic_ns

from calltable import OPERATION_BASE, OPERATION_SIZE, RUNTIME_BASE, RUNTIME_SIZE
from vmm.boundary import Frame
from vmm.machine import guests

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

#: Bytes of line number programs that are decoded (a byte costs up to 5 us), and of symbol table.
MAX_LINES = 512 << 10
MAX_SYMBOLS = 512 << 10
#: Characters of a name that are kept: thousands of lines may share a file whose name has half a megabyte.
MAX_NAME = 1024
#: Bytes of all debugging information: each section is copied whole, whatever the file holds of it.
MAX_DEBUG = 64 << 20
#: Nanoseconds for an ELF that did not come with the package; a shipped one takes about a second.
PATIENCE_NS = 5_000_000_000
#: Decoded ELFs kept, for campaigns in which guests fail often.
_KEPT = 4
_cache: dict[bytes, _Symbols] = {}


class _TooLongError(Exception):
    """The time for a search is over."""


@contextmanager
def _patience(nanoseconds: int) -> Iterator[None]:
    """Raise _TooLongError out of whatever Python code runs inside for longer than this.

    A profile function sees every call: the reader is a library's, so there is no other place to look at the clock.
    """
    end = monotonic_ns() + nanoseconds
    before = sys.getprofile()

    def look(*_: object) -> None:
        if monotonic_ns() >= end:
            raise _TooLongError

    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(before)


class _Symbols:
    """What one ELF says about its addresses: (start, end, ...) in order of start.

    :param shipped: it came with the package, and may take its time.
    """

    __slots__ = ("functions", "lines")

    def __init__(self, elf: bytes, *, shipped: bool) -> None:
        self.functions: list[tuple[int, int, str]] = []
        self.lines: list[tuple[int, int, str, int]] = []
        from elftools.elf.elffile import ELFFile

        try:
            with nullcontext() if shipped else _patience(PATIENCE_NS):
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


def symbolise(
    frames: tuple[Frame, ...],
    operation: bytes,
    runtime: bytes | None = None,
    debug_of: Callable[[bytes], bytes] = guests.debug_of,
) -> tuple[Frame, ...]:
    """The frames with function, file and line where they are known.

    Addresses of callers point behind the call, so that all but the first are looked up one byte earlier.

    :param operation: the operation's ELF; its debugging information is beside the shipped file, or in the ELF itself.
    :param runtime: the runtime's ELF; None: the package's.
    :param debug_of: finds the ELF with debugging information that belongs to an ELF.
    """
    found = []
    for index, frame in enumerate(frames):
        if OPERATION_BASE <= frame.address < OPERATION_BASE + OPERATION_SIZE:
            known = _symbols(operation, debug_of).frame(frame.address, frame.address - (index > 0))
        elif RUNTIME_BASE <= frame.address < RUNTIME_BASE + RUNTIME_SIZE:
            known = _symbols(runtime or guests.runtime(), debug_of).frame(frame.address, frame.address - (index > 0))
        else:
            known = frame
        found.append(known)
    return tuple(found)


def _symbols(elf: bytes, debug_of: Callable[[bytes], bytes]) -> _Symbols:
    known = _cache.get(elf)
    if known is None:
        if len(_cache) >= _KEPT:
            del _cache[next(iter(_cache))]
        debug = debug_of(elf)
        known = _cache[elf] = _Symbols(debug, shipped=debug is not elf)
    return known


def _functions(file: Any) -> list[tuple[int, int, str]]:
    table = file.get_section_by_name(".symtab")
    if table is None or table.data_size > MAX_SYMBOLS:
        return []
    return [
        (symbol["st_value"], symbol["st_value"] + max(symbol["st_size"], 1), symbol.name[:MAX_NAME])
        for symbol in table.iter_symbols()
        if symbol["st_info"]["type"] == "STT_FUNC"
    ]


def _lines(file: Any) -> list[tuple[int, int, str, int]]:
    section = file.get_section_by_name(".debug_line")
    if section is None or section.data_size > MAX_LINES or not file.has_dwarf_info():
        return []
    parts = list(file.iter_sections())
    if any(part.compressed for part in parts) or file.has_section(".zdebug_info"):
        # A few bytes that unfold to more memory than there is; nobody compresses a guest.
        return []
    if sum(part.data_size for part in parts if part.name.startswith((".debug", ".eh_frame"))) > MAX_DEBUG:
        # The same without compression: sections that lie over one another, or that the file does not hold (SHT_NOBITS),
        # which a reader makes up from zeroes.
        return []
    dwarf = file.get_dwarf_info(relocate_dwarf_sections=False, follow_links=False)
    found = []
    for unit in dwarf.iter_CUs():
        program = dwarf.line_program_for_CU(unit)
        if program is None:
            continue
        previous = None
        names: dict[int, str] = {}
        for entry in program.get_entries():
            state = entry.state
            if state is None:
                continue
            if previous is not None and previous.address < state.address:
                if previous.file not in names:
                    names[previous.file] = _file_name(program, previous.file)
                found.append((previous.address, state.address, names[previous.file], previous.line))
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
    return str(name)[:MAX_NAME]
