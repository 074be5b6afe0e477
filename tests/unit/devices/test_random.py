"""Whatever a driver does, the device neither crashes nor hangs; and what was written is what is read."""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.devices.mock_driver import IN, OK, OUT, STATUS, WRITE_ZEROES, Driver, FakeMemory
from vmm.boundary import DeviceSpec, Limits
from vmm.devices import LimitExceeded, ProtocolViolation, RunAborted
from vmm.devices.backend import FileBackend
from vmm.devices.block import BlockDevice
from vmm.devices.budget import Meter
from vmm.devices.bus import Bus

LENGTH = 5000


@contextmanager
def _driver(content: bytes) -> Iterator[Driver]:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        memory = FakeMemory()
        meter = Meter()
        meter.begin(Limits())
        device = BlockDevice(memory, meter)
        device.attach(FileBackend(DeviceSpec(file.fileno(), len(content), read_only=False)))
        driver = Driver(device, memory)
        driver.start()
        yield driver


#: Addresses that matter: in the queue, in the heap, at the ends of memory and of the number range.
_addresses = st.one_of(
    st.integers(0x100000, 0x100200),
    st.integers(0x120000, 0x120400),
    st.sampled_from([0, 0xFFFFF, 0x1FFFFF, 0x200000, 2**32 - 1, 2**63, 2**64 - 1]),
)
_lengths = st.one_of(st.integers(0, 40), st.sampled_from([512, 513, 1024, 0x100000, 0xFFFFFFFF, 0xFFFFFFF0]))
_descriptors = st.tuples(_addresses, _lengths, st.integers(0, 15), st.integers(0, 20))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(_descriptors, min_size=1, max_size=16),
    st.lists(_descriptors, max_size=8),
    st.lists(st.integers(0, 20), max_size=20),
    st.integers(0, 0xFFFF),
    st.integers(0, 20),
    st.booleans(),
)
def test_random_rings(
    direct: list[tuple[int, int, int, int]],
    table: list[tuple[int, int, int, int]],
    heads: list[int],
    jump: int,
    kind: int,
    honest: bool,
) -> None:
    with _driver(b"f" * LENGTH) as driver:
        driver.memory.put(0x120000, struct.pack("<IIQ", kind, 0, 1) * 8)
        for index, descriptor in enumerate(direct):
            driver.put_descriptor(index, descriptor)
        for index, descriptor in enumerate(table):
            driver.put_descriptor(index, descriptor, 0x120100)
        for head in heads:
            driver.make_available(head)
        if not honest:
            driver.available_index = jump
        for _ in range(3):
            driver.notify()
        device = driver.device
        assert isinstance(device, BlockDevice)
        # Guest memory outside the buffers is nobody's business here; the file keeps its length.
        assert device.backend is not None
        assert os.fstat(device.backend.fd).st_size == LENGTH
        assert bool(driver.reg(STATUS) & 64) == (device.fault is not None)
        assert all(line.isascii() for line in device.recent())
        driver.start()
        assert len(driver.read(0, 512)) == 512


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 0x1FF), st.integers(0, 2**32), st.sampled_from([1, 2, 4, 8])), max_size=60))
def test_random_register_writes(writes: list[tuple[int, int, int]]) -> None:
    with _driver(b"f" * LENGTH) as driver:
        for offset, value, size in writes:
            driver.device.write(offset, value & ((1 << (8 * size)) - 1), size)
            driver.device.read(offset, size)
        driver.start()
        assert driver.read(0, 512) == b"f" * 512


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64), st.integers(0x100000, 0x100100), st.sampled_from([4, 8]))
def test_random_control_blocks(block: bytes, address: int, size: int) -> None:
    memory = FakeMemory(size=0x100)
    memory.put(0x100000, block)
    bus = Bus(1, memory)
    bus.meter.begin(Limits())
    try:
        assert bus.write(0x100000, address, size) in (0, 1, 2)
    except (ProtocolViolation, RunAborted, LimitExceeded):
        pass


_operations = st.lists(
    st.tuples(st.sampled_from([IN, OUT, WRITE_ZEROES]), st.integers(0, 10), st.integers(1, 4), st.binary(min_size=1)),
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(_operations, st.integers(1, LENGTH), st.lists(st.integers(1, 700), max_size=3), st.booleans())
def test_data_written_is_data_read(
    operations: list[tuple[int, int, int, bytes]], length: int, cuts: list[int], indirect: bool
) -> None:
    """Against a bytearray as the model."""
    model = bytearray(os.urandom(length))
    capacity = (length + 511) // 512
    with _driver(bytes(model)) as driver:
        driver.indirect = indirect
        for kind, sector, count, seed in operations:
            start, size = sector * 512, count * 512
            fits = sector + count <= capacity
            pieces, rest = [], size
            for cut in cuts:
                pieces.append(min(cut, rest))
                rest -= pieces[-1]
            pieces.append(rest)
            if kind == IN:
                status, data, _ = driver.request(IN, sector, room=pieces)
                if fits:
                    assert data == bytes(model[start : start + size]).ljust(size, b"\0")
            elif kind == OUT:
                data = (seed * size)[:size]
                parts, at = [], 0
                for piece in pieces:
                    parts.append(data[at : at + piece])
                    at += piece
                status, _, _ = driver.request(OUT, sector, data=parts)
                if fits:
                    end = min(start + size, length)
                    model[start:end] = data[: end - start]
            else:
                status, _, _ = driver.request(WRITE_ZEROES, 0, data=[struct.pack("<QII", sector, count, seed[0] & 1)])
                if fits:
                    end = min(start + size, length)
                    model[start:end] = bytes(end - start)
            assert (status == OK) == fits
        device = driver.device
        assert isinstance(device, BlockDevice)
        assert device.backend is not None
        assert os.pread(device.backend.fd, 2 * LENGTH, 0) == model


def test_the_model_can_fail() -> None:
    """The comparison above is one that notices a wrong byte."""
    with _driver(b"a" * 512) as driver, pytest.raises(AssertionError):
        assert driver.read(0, 512) == b"a" * 511 + b"b"
