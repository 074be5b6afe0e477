"""The virtqueue: order, wrapping, batches, framing; and rings that a driver may not write."""

from __future__ import annotations

import struct

import pytest

from tests.unit.devices.conftest import Make
from tests.unit.devices.mock_driver import (
    ALL,
    F_INDIRECT,
    IN,
    INDIRECT,
    NEEDS_RESET,
    NEXT,
    OK,
    STATUS,
    WRITE,
    Driver,
)
from vmm.boundary import Limits
from vmm.devices.block import BlockDevice
from vmm.devices.errors import LimitExceeded

SECTORS = b"".join(bytes([number]) * 512 for number in range(64))


@pytest.mark.parametrize("indirect", [False, True])
def test_indices_wrap(make: Make, indirect: bool) -> None:
    driver = make(SECTORS)
    driver.start()
    driver.indirect = indirect
    # Begin just below 2^16, as after many requests.
    start = 0xFFF0
    driver.device.queues[0].last_available = driver.device.queues[0].used_index = start
    driver.available_index = driver.used_index = start
    _, available, used = driver.ring_addresses
    for ring in (available, used):
        driver.memory.put(ring + 2, struct.pack("<H", start))
    for number in range(40):
        assert driver.read(number, 512) == SECTORS[number * 512 : number * 512 + 512]
    assert driver.available_index == start + 40 - 0x10000
    assert not driver.reg(STATUS) & NEEDS_RESET


@pytest.mark.parametrize("size", [1, 2, 4, 64])
def test_queue_sizes(make: Make, size: int) -> None:
    driver = make(SECTORS)
    driver.size = size
    driver.start()
    driver.indirect = True
    for number in range(10):
        if size < 4:
            # Header, data and status are three descriptors: too many for the queue.
            assert driver.request(IN, number, room=[512])[0] == 0xEE
            assert driver.reg(STATUS) & NEEDS_RESET
            return
        assert driver.read(number, 512) == SECTORS[number * 512 : number * 512 + 512]


def _pieces(driver: Driver, sectors: list[int]) -> list[tuple[int, int, int]]:
    """Put reads into the ring without telling the device: (head, data address, status address)."""
    out = []
    for sector in sectors:
        header = driver.buffer(16, struct.pack("<IIQ", IN, 0, sector))
        data = driver.buffer(512)
        status = driver.buffer(1)
        out.append((driver.add([(header, 16, False), (data, 512, True), (status, 1, True)]), data, status))
    return out


def test_one_notification_serves_a_whole_batch_in_order(make: Make) -> None:
    driver = make(SECTORS)
    driver.start()
    driver.indirect = True
    sectors = [9, 3, 63, 0, 0, 17, 40, 5, 1, 2, 4, 6, 7, 8, 10, 11]
    requests = _pieces(driver, sectors)
    driver.notify()
    assert driver.used() == [(head, 513) for head, _, _ in requests]
    for sector, (_, data, status) in zip(sectors, requests, strict=True):
        assert driver.memory.get(data, 512) == bytes([sector]) * 512
        assert driver.memory.get(status, 1) == bytes([OK])


def test_a_notification_without_work_changes_nothing(make: Make) -> None:
    driver = make(SECTORS)
    driver.start()
    driver.notify()
    assert driver.used() == []
    assert not driver.reg(STATUS) & NEEDS_RESET


def test_what_came_before_a_broken_chain_is_answered(make: Make) -> None:
    driver = make(SECTORS)
    driver.start()
    (head, data, _) = _pieces(driver, [5])[0]
    driver.make_available(500)
    driver.notify()
    assert driver.used() == [(head, 513)]
    assert driver.memory.get(data, 512) == bytes([5]) * 512
    assert driver.reg(STATUS) & NEEDS_RESET
    # Nothing more until the reset.
    _pieces(driver, [6])
    driver.notify()
    assert driver.used() == []


@pytest.mark.parametrize("cuts", [[1, 15], [7, 9], [4, 4, 4, 4], [0, 16], [15, 0, 1]])
def test_framing_of_the_header_means_nothing(make: Make, cuts: list[int]) -> None:
    driver = make(SECTORS)
    driver.start()
    raw = struct.pack("<IIQ", IN, 0, 33)
    buffers = []
    for size in cuts:
        buffers.append((driver.buffer(size, raw[:size]), size, False))
        raw = raw[size:]
    # Data and status in one buffer, after an odd and an empty one.
    first, second = driver.buffer(100), driver.buffer(413)
    driver.add([*buffers, (first, 100, True), (first, 0, True), (second, 413, True)])
    driver.notify()
    assert len(driver.used()) == 1
    got = driver.memory.get(first, 100) + driver.memory.get(second, 413)
    assert got == bytes([33]) * 512 + bytes([OK])


def test_header_and_data_in_one_buffer(make: Make) -> None:
    driver = make(bytes(1024))
    driver.start()
    whole = driver.buffer(528, struct.pack("<IIQ", 1, 0, 1) + b"w" * 512)
    status = driver.buffer(1)
    driver.add([(whole, 528, False), (status, 1, True)])
    driver.notify()
    assert len(driver.used()) == 1
    assert driver.memory.get(status, 1) == bytes([OK])
    assert driver.read(1, 512) == b"w" * 512


def test_direct_descriptors_before_an_indirect_table(make: Make) -> None:
    driver = make(SECTORS)
    driver.start()
    header = driver.buffer(16, struct.pack("<IIQ", IN, 0, 7))
    data, status, table = driver.buffer(512), driver.buffer(1), driver.buffer(32)
    driver.put_descriptor(0, (data, 512, WRITE | NEXT, 1), table)
    driver.put_descriptor(1, (status, 1, WRITE, 0), table)
    driver.put_descriptor(0, (header, 16, NEXT, 1))
    # The write flag of a descriptor that refers to a table means nothing (section 2.7.5.3.2).
    driver.put_descriptor(1, (table, 32, INDIRECT | WRITE, 0))
    driver.make_available(0)
    driver.notify()
    assert driver.memory.get(data, 512) == bytes([7]) * 512


def test_an_indirect_table_may_have_descriptors_that_no_chain_uses(make: Make) -> None:
    """The chain may not be longer than the queue (section 2.7.5.3.1); nothing is said of the table."""
    driver = make(SECTORS)
    driver.start()
    header = driver.buffer(16, struct.pack("<IIQ", IN, 0, 7))
    data, status, table = driver.buffer(512), driver.buffer(1), driver.buffer(16 * 100)
    for index, entry in ((0, (header, 16, NEXT, 50)), (50, (data, 512, WRITE | NEXT, 99)), (99, (status, 1, WRITE, 0))):
        driver.put_descriptor(index, entry, table)
    driver.put_descriptor(0, (table, 1600, INDIRECT, 0))
    driver.make_available(0)
    driver.notify()
    assert driver.memory.get(data, 512) == bytes([7]) * 512


def _hostile(driver: Driver, name: str) -> None:
    """Write one chain, or one ring, that breaks the standard."""
    header = driver.buffer(16, struct.pack("<IIQ", IN, 0, 0))
    data, status, table = driver.buffer(512), driver.buffer(1), driver.buffer(16 * 64)
    put = driver.put_descriptor
    far = 0x7FFF_0000_0000
    chains: dict[str, list[tuple[int, int, int, int]]] = {
        "linked to itself": [(header, 16, NEXT, 0)],
        "writable and linked to itself": [(header, 16, NEXT, 1), (data, 1, WRITE | NEXT, 1)],
        "a loop of two": [(header, 16, NEXT, 1), (data, 512, WRITE | NEXT, 0)],
        "next outside the table": [(header, 16, NEXT, 16)],
        "next far outside": [(header, 16, NEXT, 0xFFFF)],
        "readable after writable": [(data, 512, WRITE | NEXT, 1), (header, 16, NEXT, 2), (status, 1, WRITE, 0)],
        "no status byte": [(header, 16, 0, 0)],
        "empty status": [(header, 16, NEXT, 1), (status, 0, WRITE, 0)],
        "short header": [(header, 15, NEXT, 1), (status, 1, WRITE, 0)],
        "no header": [(status, 1, WRITE, 0)],
        "all empty": [(header, 0, 0, 0)],
        "header outside memory": [(far, 16, NEXT, 1), (status, 1, WRITE, 0)],
        "data outside memory": [(header, 16, NEXT, 1), (far, 512, WRITE | NEXT, 2), (status, 1, WRITE, 0)],
        "data past the end": [(header, 16, NEXT, 1), (0x1FFF00, 512, WRITE | NEXT, 2), (status, 1, WRITE, 0)],
        "status outside memory": [(header, 16, NEXT, 1), (far, 1, WRITE, 0)],
        "length 2^32-1": [(header, 16, NEXT, 1), (data, 0xFFFFFFFF, WRITE | NEXT, 2), (status, 1, WRITE, 0)],
        "length 2^32-4096": [(header, 16, NEXT, 1), (data, 0xFFFFF000, WRITE | NEXT, 2), (status, 1, WRITE, 0)],
        "address wraps": [(header, 16, NEXT, 1), (2**64 - 1, 512, WRITE | NEXT, 2), (status, 1, WRITE, 0)],
        "more than 2^32 bytes": [(header, 16, NEXT, 1), *[(data, 0xFFFFFFFF, WRITE | NEXT, 2), (data, 9, WRITE, 0)]],
        "indirect and next": [(table, 16, INDIRECT | NEXT, 1), (status, 1, WRITE, 0)],
        "indirect table of no entries": [(table, 0, INDIRECT, 0)],
        "indirect table of odd length": [(table, 17, INDIRECT, 0)],
        "more than the queue in an indirect table": [(table, 16 * 17, INDIRECT, 0)],
        "indirect table of 2^32-16 bytes": [(table, 0xFFFFFFF0, INDIRECT, 0)],
        "indirect table outside memory": [(far, 16, INDIRECT, 0)],
        "indirect in indirect": [(table, 16, INDIRECT, 0)],
        "loop in the table": [(table, 32, INDIRECT, 0)],
        "next outside the indirect table": [(table, 48, INDIRECT, 0)],
    }
    tables: dict[str, list[tuple[int, int, int, int]]] = {
        "indirect in indirect": [(table, 16, INDIRECT, 0)],
        "more than the queue in an indirect table": [(header, 16, NEXT, place + 1) for place in range(17)],
        "loop in the table": [(header, 16, NEXT, 1), (header, 16, NEXT, 0)],
        "next outside the indirect table": [(header, 16, NEXT, 3)],
    }
    if name == "head outside the table":
        driver.make_available(driver.size)
    elif name == "available index jumps":
        driver.available_index = driver.size + 1
    elif name == "available index goes back":
        driver.available_index = 0xFFFF
    else:
        for index, descriptor in enumerate(chains[name]):
            put(index, descriptor)
        for index, descriptor in enumerate(tables.get(name, [])):
            put(index, descriptor, table)
        driver.make_available(0)


#: What the device says is wrong with each.
HOSTILE = {
    "linked to itself": "more than 16 descriptors",
    "writable and linked to itself": "more than 16 descriptors",
    "a loop of two": "readable and follows",
    "next outside the table": "descriptor 16 of a table of 16",
    "next far outside": "descriptor 65535",
    "readable after writable": "descriptor 1 is readable",
    "no status byte": "without a status byte",
    "empty status": "without a status byte",
    "short header": "header of 15 bytes",
    "no header": "header of 0 bytes",
    "all empty": "without a status byte",
    "header outside memory": "16 bytes at 0x7fff00000000",
    "data outside memory": "not writable memory",
    "data past the end": "512 bytes at 0x1fff00",
    "status outside memory": "1 bytes at 0x7fff00000000",
    "length 2^32-1": "more than 4294967296 bytes",
    "length 2^32-4096": "4294963200 bytes at",
    "address wraps": "0xffffffffffffffff",
    "more than 2^32 bytes": "more than 4294967296 bytes",
    "indirect and next": "has a next one",
    "indirect table of no entries": "table of 0 bytes",
    "indirect table of odd length": "table of 17 bytes",
    "more than the queue in an indirect table": "more than 16 descriptors",
    "indirect table of 2^32-16 bytes": "4294967280 bytes at",
    "indirect table outside memory": "16 bytes at 0x7fff00000000",
    "indirect in indirect": "of an indirect table is indirect",
    "loop in the table": "more than 16 descriptors",
    "next outside the indirect table": "descriptor 3 of a table of 3",
    "head outside the table": "descriptor 16 of a table of 16",
    "available index jumps": "17 ahead",
    "available index goes back": "65535 ahead",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_rings(make: Make, name: str) -> None:
    driver = make(SECTORS)
    driver.start()
    _hostile(driver, name)
    driver.notify()
    assert driver.reg(STATUS) & NEEDS_RESET, name
    assert driver.used() == []
    device = driver.device
    assert isinstance(device, BlockDevice)
    assert device.fault
    assert HOSTILE[name] in device.fault
    assert device.fault in device.recent()[-1]
    # A reset and a new start bring the device back.
    driver.memory.put(driver.queue, bytes(0x1000))
    driver.start()
    assert driver.device.fault is None
    assert driver.read(1, 512) == bytes([1]) * 512


def test_indirect_without_the_feature(make: Make) -> None:
    driver = make(SECTORS)
    driver.start(ALL & ~F_INDIRECT)
    driver.indirect = True
    assert driver.request(IN, 0, room=[512])[0] == 0xEE
    assert driver.reg(STATUS) & NEEDS_RESET


def test_rings_that_vanish_while_in_use(make: Make) -> None:
    driver = make(SECTORS)
    driver.start()
    driver.device.queues[0].device = 0x1FFFFC
    assert driver.request(IN, 0, room=[512])[0] == OK
    assert driver.reg(STATUS) & NEEDS_RESET


def test_a_vanished_ring_does_not_hide_what_ends_the_run(make: Make) -> None:
    driver = make(SECTORS, limits=Limits(max_read=512))
    driver.start()
    driver.indirect = True
    _pieces(driver, [1, 2])
    driver.device.queues[0].device = 0x1FFFFC
    with pytest.raises(LimitExceeded):
        driver.notify()
    assert driver.reg(STATUS) & NEEDS_RESET


def test_data_over_the_rings_hurts_only_the_driver(make: Make) -> None:
    driver = make(b"\xff" * 4096)
    driver.start()
    header = driver.buffer(16, struct.pack("<IIQ", IN, 0, 0))
    # The device writes the file's content over descriptor table and rings, then the next notification.
    status = driver.buffer(1)
    driver.add([(header, 16, False), (driver.queue, 512, True), (status, 1, True)])
    driver.notify()
    driver.set(0x050, 0)
    assert driver.reg(STATUS) & NEEDS_RESET


def test_read_only_memory_is_not_written(make: Make) -> None:
    driver = make(SECTORS)
    driver.memory.read_only = 0
    driver.start()
    guarded = bytes(driver.memory.bytes)
    driver.memory.read_only = len(guarded)
    assert driver.request(IN, 0, room=[512])[0] == 0xEE
    assert driver.reg(STATUS) & NEEDS_RESET
