"""Whatever an ELF file holds, the loader answers segments inside their window or OperationLoadError, and the search for
source lines ends by its clock with frames that can be shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic_ns

import calltable as ct
from fuzzing.oracle import check_text
from fuzzing.targets import Target
from vmm.boundary import Failure, FailureKind, Frame
from vmm.cli.failures import error_text
from vmm.errors import OperationLoadError, VmmError
from vmm.machine import elf, symbols
from vmm.machine.layout import Region, describe
from vmm.operations.session import failure_error

#: Instead of the seconds that a user has.
PATIENCE_NS = 20_000_000
#: How far past its clock the search may be, on a machine that does other things too.
_LATE_NS = 5_000_000_000


def _check_image(image: elf.Image, data: bytes, start: int, size: int) -> None:
    end = start
    for segment in image.segments:
        assert end <= segment.page_start <= segment.address
        assert segment.address + segment.size <= segment.page_end <= start + size
        assert segment.size > 0
        assert len(segment.data) <= segment.size
        assert segment.data in data
        assert not (segment.write and segment.execute)
        end = segment.page_end
    assert any(s.execute and s.address <= image.entry < s.address + s.size for s in image.segments)


def _load(data: bytes, start: int, size: int) -> None:
    try:
        image = elf.parse(data, start, size, "operation")
        _check_image(image, data, start, size)
        elf.check_contract(image.contract, "operation")
        assert image.contract is not None
        assert image.contract.major == ct.TABLE_MAJOR
        assert image.contract.minor <= ct.TABLE_MINOR
    except OperationLoadError as error:
        check_text(error.message, also="")


def _symbolise(data: bytes) -> None:
    begin = monotonic_ns()
    found = symbols._Symbols(data, shipped=False)
    assert monotonic_ns() - begin < PATIENCE_NS + _LATE_NS
    places = {ct.OPERATION_BASE, ct.OPERATION_BASE + 0x1000, 0, (1 << 64) - 1}
    places.update(start for start, *_ in (found.functions[:4] + found.lines[:4]))
    frames = tuple(found.frame(place, place) for place in sorted(places))
    for frame in frames:
        assert type(frame) is Frame
        assert frame.function is None or type(frame.function) is str
        assert frame.file is None or type(frame.file) is str
        assert frame.line is None or type(frame.line) is int
    error: VmmError = failure_error(Failure(FailureKind.PANIC, "panic", backtrace=frames))
    check_text(error_text(error))


def run(data: bytes) -> None:
    """See above."""
    _load(data, ct.OPERATION_BASE, ct.OPERATION_SIZE)
    _load(data, ct.RUNTIME_BASE, ct.RUNTIME_SIZE)
    saved = symbols.PATIENCE_NS
    symbols.PATIENCE_NS = PATIENCE_NS
    try:
        _symbolise(data)
    finally:
        symbols.PATIENCE_NS = saved
    # Regions of a parsed file are described in the reports of faults.
    assert describe(int.from_bytes(data[:8], "little"), [Region("text", ct.OPERATION_BASE, ct.OPERATION_BASE + 4096)])


def seeds() -> Iterable[bytes]:
    """Small files by hand, and a compiled one with debugging information."""
    from fuzzing.seeds import elves

    return elves.elf()


TARGET = Target("elf", run, seeds, max_length=4096, dictionary=(b".debug_line", b".symtab"))
