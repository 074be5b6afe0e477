"""The requests of virtio-blk."""

from __future__ import annotations

import os
import struct

import pytest

from tests.unit.devices.conftest import Make, file_of
from tests.unit.devices.mock_driver import (
    ALL,
    BLK_F_DISCARD,
    BLK_F_FLUSH,
    BLK_F_WRITE_ZEROES,
    DISCARD,
    FLUSH,
    GET_ID,
    IN,
    IOERR,
    NEEDS_RESET,
    OK,
    OUT,
    STATUS,
    UNSUPP,
    WRITE_ZEROES,
    Driver,
)
from vmm.boundary import Limits
from vmm.devices.block import BlockDevice
from vmm.devices.errors import LimitExceeded

PATTERN = bytes(range(256)) * 16


def _range(sector: int, count: int, flags: int = 0) -> bytes:
    return struct.pack("<QII", sector, count, flags)


def _device(driver: Driver) -> BlockDevice:
    assert isinstance(driver.device, BlockDevice)
    return driver.device


@pytest.mark.parametrize("indirect", [False, True])
def test_read_and_write(make: Make, indirect: bool) -> None:
    driver = make(PATTERN)
    driver.start()
    driver.indirect = indirect
    assert driver.read(0, 4096) == PATTERN
    assert driver.read(3, 1024) == PATTERN[1536:2560]
    driver.write(2, b"z" * 1024)
    assert file_of(driver) == PATTERN[:1024] + b"z" * 1024 + PATTERN[2048:]
    assert driver.read(1, 1536) == PATTERN[512:1024] + b"z" * 1024


def test_scattered_data(make: Make) -> None:
    driver = make(PATTERN)
    driver.start()
    sizes = [1, 2, 509, 1024, 0, 512]
    status, data, used = driver.request(IN, 1, room=sizes)
    assert (status, data, used) == (OK, PATTERN[512:2560], 2049)
    parts = [b"a" * 100, b"b" * 400, b"c" * 12]
    assert driver.request(OUT, 7, data=parts)[0] == OK
    assert file_of(driver)[3584:] == b"".join(parts)


@pytest.mark.parametrize("length", [1, 511, 513, 1000, 1535])
def test_the_tail_of_an_odd_file_reads_as_zero_and_cannot_be_written(make: Make, length: int) -> None:
    driver = make(PATTERN[:length])
    driver.start()
    sectors = (length + 511) // 512
    assert driver.read(0, sectors * 512) == PATTERN[:length].ljust(sectors * 512, b"\0")
    driver.write(0, b"w" * sectors * 512)
    assert file_of(driver) == b"w" * length
    assert driver.request(IN, sectors, room=[512])[0] == IOERR


def test_a_tail_over_several_buffers(make: Make) -> None:
    driver = make(b"x" * 700)
    driver.start()
    status, data, _ = driver.request(IN, 0, room=[600, 50, 40, 30, 304])
    assert status == OK
    assert data == b"x" * 700 + bytes(324)


@pytest.mark.parametrize(
    ("kind", "sector", "data", "room"),
    [
        (IN, 8, None, [512]),
        (IN, 7, None, [1024]),
        (IN, 2**64 - 1, None, [512]),
        (IN, 2**55, None, [512]),
        (IN, 0, None, [511]),
        (IN, 0, [b"x" * 512], [512]),
        (OUT, 8, [b"x" * 512], None),
        (OUT, 0, [b"x" * 513], None),
        (OUT, 0, [b"x" * 512], [512]),
        (DISCARD, 0, [_range(0, 9)], None),
        (DISCARD, 0, [_range(2**64 - 1, 1)], None),
        (DISCARD, 0, [_range(0, 1)[:15]], None),
        (DISCARD, 0, None, None),
        (DISCARD, 0, [_range(0, 1) * 33], None),
        (WRITE_ZEROES, 0, [_range(0, 0xFFFFFFFF)], None),
        (WRITE_ZEROES, 0, [_range(0, 1), _range(8, 1)], None),
    ],
)
def test_bad_requests_end_in_ioerr_and_change_nothing(
    make: Make, kind: int, sector: int, data: list[bytes] | None, room: list[int] | None
) -> None:
    driver = make(PATTERN)
    driver.start()
    status, got, used = driver.request(kind, sector, data=data, room=room)
    assert status == IOERR
    assert got == b"\xee" * len(got)
    # Of the data nothing is known to be written; without data the status is the first byte.
    assert used == (0 if got else 1)
    assert file_of(driver) == PATTERN
    assert not driver.reg(STATUS) & NEEDS_RESET
    assert "io-error" in _device(driver).recent()[0]
    assert driver.read(0, 512) == PATTERN[:512]


@pytest.mark.parametrize("kind", [2, 3, 5, 10, 14, 0x80000000, 0xFFFFFFFF])
def test_unknown_requests_are_unsupported(make: Make, kind: int) -> None:
    driver = make(PATTERN)
    driver.start()
    assert driver.request(kind, 0, room=[512])[0] == UNSUPP
    assert driver.request(kind, 0, data=[b"x"])[0] == UNSUPP
    assert file_of(driver) == PATTERN


@pytest.mark.parametrize(
    ("kind", "feature"), [(FLUSH, BLK_F_FLUSH), (DISCARD, BLK_F_DISCARD), (WRITE_ZEROES, BLK_F_WRITE_ZEROES)]
)
def test_requests_of_features_that_were_not_negotiated(make: Make, kind: int, feature: int) -> None:
    driver = make(PATTERN)
    driver.start(ALL & ~feature)
    data = None if kind == FLUSH else [_range(0, 1)]
    assert driver.request(kind, 0, data=data)[0] == UNSUPP
    driver.start(ALL)
    assert driver.request(kind, 0, data=data)[0] == OK


def test_a_read_only_device(make: Make) -> None:
    driver = make(PATTERN, read_only=True)
    driver.start()
    assert driver.read(0, 4096) == PATTERN
    for kind, data in ((OUT, b"x" * 512), (DISCARD, _range(0, 1)), (WRITE_ZEROES, _range(0, 1))):
        assert driver.request(kind, 0, data=[data])[0] == IOERR
    assert driver.request(FLUSH, 0)[0] == OK
    assert file_of(driver) == PATTERN


def test_get_id(make: Make) -> None:
    driver = make(PATTERN)
    driver.start()
    status, data, used = driver.request(GET_ID, 0, room=[20])
    assert (status, used) == (OK, 21)
    assert data == b"pyvmm-0".ljust(20, b"\0")
    assert driver.request(GET_ID, 0, room=[3, 17])[1] == data
    assert driver.request(GET_ID, 0, room=[5])[1] == b"pyvmm"
    status, data, used = driver.request(GET_ID, 0, room=[30])
    assert (status, used) == (OK, 20)
    assert data[20:] == b"\xee" * 10


@pytest.mark.parametrize("unmap", [0, 1])
def test_write_zeroes(make: Make, unmap: int) -> None:
    driver = make(PATTERN + b"tail")
    driver.start()
    assert driver.request(WRITE_ZEROES, 0, data=[_range(1, 2, unmap), _range(8, 1, unmap)])[0] == OK
    assert file_of(driver) == PATTERN[:512] + bytes(1024) + PATTERN[1536:] + bytes(4)
    assert driver.request(WRITE_ZEROES, 0, data=[_range(1, 2, 2)])[0] == UNSUPP


@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
def test_an_unknown_flag_is_unsupported_whatever_else_is_wrong(make: Make, kind: int) -> None:
    driver = make(PATTERN)
    driver.start()
    for ranges in (_range(999, 1) + _range(0, 1, 2), _range(0, 1, 0x80000000) + _range(2**64 - 1, 1)):
        assert driver.request(kind, 0, data=[ranges])[0] == UNSUPP
    assert file_of(driver) == PATTERN


def test_discard_keeps_the_length(make: Make) -> None:
    driver = make(PATTERN * 4)
    driver.start()
    assert driver.request(DISCARD, 0, data=[_range(8, 24)])[0] == OK
    after = file_of(driver)
    assert len(after) == len(PATTERN) * 4
    assert after[:4096] == PATTERN
    assert driver.request(DISCARD, 0, data=[_range(0, 1, 1)])[0] == UNSUPP


def test_a_file_that_shrank(make: Make) -> None:
    driver = make(PATTERN)
    driver.start()
    device = _device(driver)
    assert device.backend is not None
    os.ftruncate(device.backend.fd, 1000)
    assert driver.read(0, 512) == PATTERN[:512]
    assert driver.request(IN, 1, room=[512])[0] == IOERR
    assert device.last_error is not None
    assert "now ends" in device.last_error.message
    assert any("now ends" in line for line in device.recent())


def test_a_system_error_has_its_errno(make: Make) -> None:
    driver = make(PATTERN)
    driver.start()
    device = _device(driver)
    assert device.backend is not None
    device.backend.fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert driver.request(IN, 0, room=[512])[0] == IOERR
    finally:
        os.close(device.backend.fd)
    assert device.last_error is not None
    assert device.last_error.errno


def test_no_file(make: Make) -> None:
    driver = make(PATTERN)
    _device(driver).attach(None)
    driver.start()
    assert driver.request(IN, 0, room=[512])[0] == IOERR
    assert driver.reg(0x100) == 0


def test_the_budget_of_bytes_read(make: Make) -> None:
    driver = make(PATTERN, limits=Limits(max_read=2048))
    driver.start()
    driver.read(0, 1024)
    driver.read(0, 1024)
    with pytest.raises(LimitExceeded) as caught:
        driver.read(0, 512)
    assert (caught.value.limit, caught.value.value) == ("max-read", 2048)


def test_the_budget_of_bytes_written(make: Make) -> None:
    driver = make(PATTERN, limits=Limits(max_write=1024))
    driver.start()
    driver.write(0, b"w" * 1024)
    with pytest.raises(LimitExceeded) as caught:
        driver.write(0, b"v" * 512)
    assert caught.value.limit == "max-write"
    assert file_of(driver) == b"w" * 1024 + PATTERN[1024:]


def test_answered_requests_of_a_batch_are_used_when_a_budget_ends_it(make: Make) -> None:
    driver = make(PATTERN, limits=Limits(max_read=512))
    driver.start()
    driver.indirect = True
    for _ in range(2):
        header = driver.buffer(16, struct.pack("<IIQ", IN, 0, 0))
        driver.add([(header, 16, False), (driver.buffer(512), 512, True), (driver.buffer(1), 1, True)])
    with pytest.raises(LimitExceeded):
        driver.notify()
    assert len(driver.used()) == 1


def test_the_deadline_is_looked_at_between_the_requests_of_a_batch(make: Make) -> None:
    driver = make(b"x" * 4096)
    driver.start()
    device = driver.device
    assert isinstance(device, BlockDevice)
    assert device.backend is not None

    def late() -> None:
        raise TimeoutError

    device.backend.check = late
    for sector in range(3):
        header, status = driver.buffer(16, struct.pack("<IIQ", IN, 0, sector)), driver.buffer(1)
        driver.add([(header, 16, False), (driver.buffer(512), 512, True), (status, 1, True)])
    with pytest.raises(TimeoutError):
        driver.notify()
    assert len(driver.used()) == 1


def test_the_last_requests_are_remembered(make: Make) -> None:
    driver = make(PATTERN)
    driver.start()
    for number in range(20):
        driver.read(number % 8, 512)
    lines = _device(driver).recent()
    assert len(lines) == 16
    assert lines[-1] == "device 0: in sector 3, 512 bytes: ok"


def test_another_file_without_another_handshake(make: Make) -> None:
    one, other = make(b"1" * 512), make(b"2" * 1024, read_only=True)
    one.start()
    assert one.read(0, 512) == b"1" * 512
    _device(one).attach(_device(other).backend)
    assert one.read(1, 512) == b"2" * 512
    assert one.request(OUT, 0, data=[b"x" * 512])[0] == IOERR
