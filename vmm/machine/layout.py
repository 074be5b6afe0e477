"""The memory map as regions with names and rights; addresses come from the contract (``calltable``)."""

from __future__ import annotations

from calltable import (
    ARENA_BASE,
    ARENA_HOT,
    BOOT_INFO,
    COLD_BASE,
    CONTROL_BASE,
    KERNEL_STACK_BASE,
    KERNEL_STACK_SIZE,
    LARGE_PAGE_SIZE,
    MAX_DEVICES,
    OPERATION_BASE,
    OPERATION_SIZE,
    PAGE_SIZE,
    QUEUE_STRIDE,
    QUEUES_BASE,
    RAM_BASE,
    REQUEST_BASE,
    REQUEST_SIZE,
    RUNTIME_BASE,
    RUNTIME_SIZE,
    STACK_BASE,
    STACK_SIZE,
    SYSTEM_BASE,
    SYSTEM_SIZE,
    TRAP_BASE,
    VIRTIO_BASE,
    VIRTIO_STRIDE,
)
from vmm.record import dataclass

#: Ring-0 pages at the start of the system area: descriptor tables, then trap stubs; page tables follow, unmapped.
DESCRIPTORS = SYSTEM_BASE
STUBS = SYSTEM_BASE + PAGE_SIZE
PAGE_TABLES = SYSTEM_BASE + 2 * PAGE_SIZE
SYSTEM_END = SYSTEM_BASE + SYSTEM_SIZE

#: End of what lies below the cold arena.
RAM_END = COLD_BASE
STACK_TOP = STACK_BASE + STACK_SIZE
#: The interrupt stack of the double fault is the lower half of the page.
KERNEL_STACK_TOP = KERNEL_STACK_BASE + KERNEL_STACK_SIZE
DOUBLE_FAULT_STACK = KERNEL_STACK_BASE + KERNEL_STACK_SIZE // 2


@dataclass(frozen=True, slots=True)
class Region:
    """Pages with one set of rights: [start, end), page aligned, present in the page tables."""

    name: str
    start: int
    end: int
    write: bool = False
    execute: bool = False
    #: Ring 3 may touch it.
    user: bool = True
    #: A device window: no memory behind it.
    device: bool = False
    #: Mapped with 2 MiB pages.
    large: bool = False


#: Region of the arena behind the hot part, if there is one.
COLD_NAME = "cold arena"


def fixed_regions(device_count: int, cold_size: int) -> list[Region]:
    """Every region but those of the two ELF files.

    :param device_count: block devices, 0 to MAX_DEVICES.
    :param cold_size: bytes of the cold arena, a multiple of 2 MiB, may be 0.
    """
    if not 0 <= device_count <= MAX_DEVICES:
        raise ValueError(f"a machine has 0 to {MAX_DEVICES} devices, not {device_count}")
    if cold_size % LARGE_PAGE_SIZE:
        raise ValueError("memory comes in multiples of 2 MiB")
    regions = [
        Region("control device", CONTROL_BASE, CONTROL_BASE + PAGE_SIZE, write=True, device=True),
        Region("trap doorbell", TRAP_BASE, TRAP_BASE + PAGE_SIZE, write=True, user=False, device=True),
        Region("descriptor tables", DESCRIPTORS, DESCRIPTORS + PAGE_SIZE, user=False),
        Region("trap stubs", STUBS, STUBS + PAGE_SIZE, execute=True, user=False),
        Region("boot page", BOOT_INFO, BOOT_INFO + PAGE_SIZE),
        Region("request", REQUEST_BASE, REQUEST_BASE + REQUEST_SIZE),
        Region("stack", STACK_BASE, STACK_TOP, write=True),
        Region("ring-0 stack", KERNEL_STACK_BASE, KERNEL_STACK_TOP, write=True, user=False),
        Region("arena", ARENA_BASE, ARENA_BASE + ARENA_HOT, write=True),
    ]
    if device_count:
        windows = VIRTIO_BASE + device_count * VIRTIO_STRIDE
        regions.append(Region("device windows", VIRTIO_BASE, windows, write=True, device=True))
        regions.append(Region("queues", QUEUES_BASE, QUEUES_BASE + device_count * QUEUE_STRIDE, write=True))
    if cold_size:
        regions.append(Region(COLD_NAME, COLD_BASE, COLD_BASE + cold_size, write=True, large=True))
    return regions


_ABSENT = (
    ("page 0", 0, PAGE_SIZE),
    ("absent device window", VIRTIO_BASE, VIRTIO_BASE + MAX_DEVICES * VIRTIO_STRIDE),
    ("system area", SYSTEM_BASE, SYSTEM_END),
    ("runtime window, outside its segments", RUNTIME_BASE, RUNTIME_BASE + RUNTIME_SIZE),
    ("operation window, outside its segments", OPERATION_BASE, OPERATION_BASE + OPERATION_SIZE),
    ("guard page below the stack", STACK_BASE - PAGE_SIZE, STACK_BASE),
    ("guard page above the stack", STACK_TOP, STACK_TOP + PAGE_SIZE),
    ("guard page below the arena", ARENA_BASE - PAGE_SIZE, ARENA_BASE),
    ("guard gap above the arena's small pages", ARENA_BASE + ARENA_HOT, COLD_BASE),
    ("absent part of RAM", RAM_BASE, RAM_END),
)


def describe(address: int, regions: list[Region]) -> str:
    """What lies at a guest address, for the report of a fault."""
    for region in regions:
        if region.start <= address < region.end:
            return region.name
    for name, start, end in _ABSENT:
        if start <= address < end:
            return name
    last = max(region.end for region in regions)
    if last <= address < last + LARGE_PAGE_SIZE:
        return "guard gap above the arena"
    if 1 << 47 <= address < (1 << 64) - (1 << 47):
        return "non-canonical address"
    return "unmapped address space"
