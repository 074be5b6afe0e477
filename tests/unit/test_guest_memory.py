"""Which bytes of guest memory a device may touch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import calltable as ct
from vmm.devices.errors import MemoryAccessError
from vmm.errors import KvmError
from vmm.machine.layout import Region, fixed_regions
from vmm.machine.memory import GuestMemory

COLD = 4 << 20
BASE = ct.OPERATION_BASE
REGIONS = [
    *fixed_regions(2, COLD),
    Region("operation text", BASE, BASE + 0x2000, execute=True),
    Region("operation constants", BASE + 0x2000, BASE + 0x3000),
    Region("operation data", BASE + 0x3000, BASE + 0x5000, write=True),
]


@pytest.fixture(scope="module")
def memory() -> Iterator[GuestMemory]:
    made = GuestMemory(COLD)
    made.allow(REGIONS)
    yield made
    made.close()


def expected(address: int, length: int, writable: bool) -> bool:
    """By looking at every page."""
    if length == 0:
        return True
    for page in range(address // ct.PAGE_SIZE, (address + length - 1) // ct.PAGE_SIZE + 1):
        at = page * ct.PAGE_SIZE
        owners = [region for region in REGIONS if region.start <= at < region.end]
        if not owners or owners[0].device or not owners[0].user or (writable and not owners[0].write):
            return False
    return True


EDGES = sorted({edge for region in REGIONS for edge in (region.start, region.end)})
ADDRESSES = st.builds(lambda edge, off: max(0, edge + off), st.sampled_from(EDGES), st.integers(-9000, 9000))


@settings(max_examples=500, deadline=None)
@given(ADDRESSES | st.integers(0, 2**64 - 1), st.integers(0, 64) | st.integers(0, 20000), st.booleans())
def test_only_what_ring_3_may_touch(memory: GuestMemory, address: int, length: int, writable: bool) -> None:
    if expected(address, length, writable):
        view = memory.view(address, length, writable=writable)
        assert (view.format, view.ndim, view.nbytes) == ("B", 1, length)
    else:
        with pytest.raises(MemoryAccessError):
            memory.view(address, length, writable=writable)


@pytest.mark.parametrize("region", REGIONS, ids=lambda region: region.name)
def test_every_region(memory: GuestMemory, region: Region) -> None:
    for address in (region.start, region.end - 8):
        for writable in (False, True):
            if region.user and not region.device and (region.write or not writable):
                assert len(memory.view(address, 8, writable=writable)) == 8
            else:
                with pytest.raises(MemoryAccessError):
                    memory.view(address, 8, writable=writable)


@pytest.mark.parametrize("length", [2**64, 2**64 - 1, 2**63, 1 << 40])
def test_enormous_lengths(memory: GuestMemory, length: int) -> None:
    for writable in (False, True):
        with pytest.raises(MemoryAccessError):
            memory.view(ct.ARENA_BASE, length, writable=writable)


def test_a_view_is_the_memory_itself(memory: GuestMemory) -> None:
    memory.view(ct.ARENA_BASE + 16, 4, writable=True)[:] = b"data"
    assert memory.get(ct.ARENA_BASE + 16, 4) == b"data"
    memory.put(BASE, b"text")
    assert bytes(memory.view(BASE, 4, writable=False)) == b"text"


def test_cold_arena_is_dropped_and_nothing_else(memory: GuestMemory) -> None:
    for at in (ct.COLD_BASE, ct.COLD_BASE + COLD - 8, ct.ARENA_BASE + ct.ARENA_HOT - 8):
        memory.view(at, 8, writable=True)[:] = b"\xaa" * 8
    memory.drop_cold()
    assert memory.get(ct.COLD_BASE, COLD) == bytes(COLD)
    assert memory.get(ct.ARENA_BASE + ct.ARENA_HOT - 8, 8) == b"\xaa" * 8


def test_guest_memory_is_aligned_for_large_pages(memory: GuestMemory) -> None:
    from vmm.kvm.binding import address_of

    assert (address_of(memory.map) + memory.offset) % ct.LARGE_PAGE_SIZE == ct.RAM_BASE % ct.LARGE_PAGE_SIZE


def test_memory_without_a_cold_arena() -> None:
    made = GuestMemory(0)
    made.allow(fixed_regions(0, 0))
    made.drop_cold()
    with pytest.raises(MemoryAccessError):
        made.view(ct.COLD_BASE, 1, writable=True)
    made.close()
    made.close()


def test_more_memory_than_addresses() -> None:
    with pytest.raises(KvmError, match="address space"):
        GuestMemory(1 << 60)


def test_close_with_a_view_in_use() -> None:
    made = GuestMemory(0)
    made.allow(fixed_regions(0, 0))
    view = made.view(ct.STACK_BASE, 8, writable=True)
    made.close()
    view[:] = b"not gone"
