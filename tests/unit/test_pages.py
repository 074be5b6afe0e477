"""Page tables, read back by a walker of the test's own."""

from __future__ import annotations

import itertools
import mmap
import struct

import pytest

import calltable
from vmm.errors import UsageError
from vmm.machine import cpu
from vmm.machine.layout import RAM_END, Region, describe, fixed_regions
from vmm.machine.pages import PageTables

RAM = calltable.RAM_BASE
SIZE = RAM_END - RAM


class Translation:
    """What the tables say about an address (Intel SDM volume 3, table 4-15 and following)."""

    def __init__(self, physical: int, write: bool, user: bool, execute: bool, large: bool) -> None:
        self.physical, self.write, self.user, self.execute, self.large = physical, write, user, execute, large


def walk(memory: bytes | mmap.mmap, root: int, address: int) -> Translation | None:
    table, write, user, execute = root, True, True, True
    for shift in (39, 30, 21, 12):
        entry = struct.unpack_from("<Q", memory, table - RAM + (address >> shift & 511) * 8)[0]
        if not entry & 1:
            return None
        assert entry & 0x20, "the processor would write the accessed bit"
        write, user, execute = write and entry >> 1 & 1 == 1, user and entry >> 2 & 1 == 1, execute and not entry >> 63
        target = entry & 0x000F_FFFF_FFFF_F000
        if shift == 12 or entry & 0x80:
            assert shift in (12, 21)
            assert not write or entry & 0x40, "the processor would write the dirty bit"
            return Translation(target + (address & (1 << shift) - 1), write, user, execute, shift == 21)
        table = target
    raise AssertionError("unreachable")


@pytest.fixture
def machine() -> tuple[mmap.mmap, int, list[Region]]:
    memory = mmap.mmap(-1, SIZE)
    base = calltable.OPERATION_BASE
    regions = [
        *fixed_regions(2, 64 << 20),
        Region("operation text", base, base + 0x3000, execute=True),
        Region("operation data", base + 0x3000, base + 0x5000, write=True),
    ]
    view = memoryview(memory)
    tables = PageTables(view, RAM)
    tables.map(regions)
    tables.release()
    view.release()
    return memory, tables.root, regions


def addresses(regions: list[Region]) -> list[int]:
    """The edges of every region, outside and inside, and some middles."""
    found = {0, 8, 0xFFFF_F000, 1 << 38, (1 << 47) - 1}
    for region in regions:
        found |= {region.start - 1, region.start, region.start + 0x1234, region.end - 1, region.end}
    return sorted(found)


def test_every_page_is_what_its_region_says(machine: tuple[mmap.mmap, int, list[Region]]) -> None:
    memory, root, regions = machine
    for address in addresses(regions):
        owner = next((region for region in regions if region.start <= address < region.end), None)
        found = walk(memory, root, address)
        if owner is None:
            assert found is None, hex(address)
            continue
        assert found is not None, hex(address)
        assert found.physical == address
        assert (found.write, found.user, found.execute) == (owner.write, owner.user, owner.execute), owner.name
        assert found.large == owner.large


def test_nothing_is_writable_and_executable(machine: tuple[mmap.mmap, int, list[Region]]) -> None:
    memory, root, _ = machine
    present = 0
    for address in range(0, (64 << 20) + calltable.COLD_BASE + (4 << 20), calltable.PAGE_SIZE):
        found = walk(memory, root, address)
        if found is not None:
            present += 1
            assert not (found.write and found.execute), hex(address)
    assert present > 16384


@pytest.mark.parametrize(
    "address",
    [
        0,
        calltable.STACK_BASE - 1,
        calltable.STACK_BASE + calltable.STACK_SIZE,
        calltable.ARENA_BASE - 1,
        calltable.ARENA_BASE + calltable.ARENA_HOT,
        calltable.COLD_BASE - 1,
        calltable.COLD_BASE + (64 << 20),
        calltable.VIRTIO_BASE + 2 * calltable.VIRTIO_STRIDE,
        calltable.QUEUES_BASE + 2 * calltable.QUEUE_STRIDE,
        calltable.KERNEL_STACK_BASE - 1,
    ],
)
def test_guards_are_absent(machine: tuple[mmap.mmap, int, list[Region]], address: int) -> None:
    memory, root, _ = machine
    assert walk(memory, root, address) is None


def test_page_tables_are_not_mapped(machine: tuple[mmap.mmap, int, list[Region]]) -> None:
    memory, root, _ = machine
    assert walk(memory, root, root) is None


def test_writable_text_is_refused() -> None:
    tables = PageTables(memoryview(bytearray(SIZE)), RAM)
    with pytest.raises(ValueError, match="writable and executable"):
        tables.map([Region("both", RAM, RAM + 0x1000, write=True, execute=True)])


def test_largest_memory_has_room_for_its_tables() -> None:
    tables = PageTables(memoryview(bytearray(SIZE)), RAM)
    tables.map(fixed_regions(calltable.MAX_DEVICES, calltable.MAX_MEMORY))
    assert tables.end <= calltable.SYSTEM_BASE + calltable.SYSTEM_SIZE


def test_more_tables_than_room_are_refused() -> None:
    tables = PageTables(memoryview(bytearray(SIZE)), RAM)
    with pytest.raises(UsageError):
        tables.map(fixed_regions(0, 4 * calltable.MAX_MEMORY))


def test_regions_do_not_overlap() -> None:
    regions = sorted(fixed_regions(calltable.MAX_DEVICES, 64 << 20), key=lambda region: region.start)
    for one, other in itertools.pairwise(regions):
        assert one.end <= other.start, (one.name, other.name)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (0, "page 0"),
        (calltable.STACK_BASE - 8, "guard page below the stack"),
        (calltable.STACK_BASE, "stack"),
        (calltable.SYSTEM_BASE + 0x9000, "system area"),
        (calltable.COLD_BASE + (64 << 20), "guard gap above the arena"),
        (1 << 46, "unmapped address space"),
        (1 << 63, "non-canonical address"),
    ],
)
def test_addresses_have_names(address: int, words: str) -> None:
    assert describe(address, fixed_regions(1, 64 << 20)) == words


def test_descriptor_page_has_one_stub_for_each_vector() -> None:
    page = cpu.descriptor_page()
    stubs = cpu.stub_page()
    for vector in range(cpu.VECTORS):
        low, selector, ist, kind, middle, high = struct.unpack_from("<HHBBHI", page, 0x100 + vector * 16)
        stub = low | middle << 16 | high << 32
        assert selector == cpu.KERNEL_CODE
        assert ist in (1, 2)
        assert kind == (0xEE if vector == 3 else 0x8E)
        code = stubs[stub - calltable.SYSTEM_BASE - calltable.PAGE_SIZE :][:32]
        pushes = code.startswith(b"\x6a\x00")
        assert pushes != (vector in (8, 10, 11, 12, 13, 14, 17, 21, 29, 30))
        assert code[2 * pushes :].startswith(
            b"\xc7\x04\x25" + calltable.TRAP_BASE.to_bytes(4, "little") + vector.to_bytes(4, "little")
        )
