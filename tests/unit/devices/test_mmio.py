"""Registers, feature negotiation and the status machine of virtio-mmio."""

from __future__ import annotations

import struct

import pytest

from tests.unit.devices.conftest import Make
from tests.unit.devices.mock_driver import (
    ACKNOWLEDGE,
    ALL,
    BLK_F_FLUSH,
    BLK_F_RO,
    CONFIG,
    CONFIG_GENERATION,
    DEVICE_FEATURES,
    DEVICE_FEATURES_SEL,
    DEVICE_ID,
    DRIVER,
    DRIVER_FEATURES,
    DRIVER_FEATURES_SEL,
    DRIVER_OK,
    F_VERSION_1,
    FAILED,
    FEATURES_OK,
    INTERRUPT_ACK,
    INTERRUPT_STATUS,
    MAGIC_VALUE,
    NEEDS_RESET,
    QUEUE_DESC,
    QUEUE_DEVICE,
    QUEUE_DRIVER,
    QUEUE_NOTIFY,
    QUEUE_NUM,
    QUEUE_NUM_MAX,
    QUEUE_READY,
    QUEUE_SEL,
    SHM_BASE_HIGH,
    SHM_BASE_LOW,
    SHM_LEN_HIGH,
    SHM_LEN_LOW,
    STATUS,
    VENDOR_ID,
    VERSION,
    Driver,
)


def test_identification_registers(make: Make) -> None:
    driver = make(bytes(1024))
    assert driver.reg(MAGIC_VALUE).to_bytes(4, "little") == b"virt"
    assert driver.reg(VERSION) == 2
    assert driver.reg(DEVICE_ID) == 2
    assert driver.reg(VENDOR_ID) != 0
    for register in (MAGIC_VALUE, VERSION, DEVICE_ID, VENDOR_ID):
        before = driver.reg(register)
        driver.set(register, 0)
        assert driver.reg(register) == before


@pytest.mark.parametrize("size", [1, 2, 8])
def test_control_registers_want_32_bits(make: Make, size: int) -> None:
    driver = make(bytes(1024))
    assert driver.device.read(MAGIC_VALUE, size) == 0
    driver.device.write(STATUS, ACKNOWLEDGE, size)
    assert driver.reg(STATUS) == 0
    assert driver.device.read(MAGIC_VALUE + 2, 4) == 0


def test_write_only_registers_read_as_zero_and_gaps_are_inert(make: Make) -> None:
    driver = make(bytes(1024))
    known = {MAGIC_VALUE, VERSION, DEVICE_ID, VENDOR_ID, DEVICE_FEATURES, QUEUE_NUM_MAX}
    known |= {SHM_LEN_LOW, SHM_LEN_HIGH, SHM_BASE_LOW, SHM_BASE_HIGH}
    for offset in range(0, CONFIG, 4):
        if offset not in known:
            assert driver.reg(offset) == 0, hex(offset)


def test_shared_memory_is_absent(make: Make) -> None:
    driver = make(bytes(1024))
    for register in (SHM_LEN_LOW, SHM_LEN_HIGH, SHM_BASE_LOW, SHM_BASE_HIGH):
        assert driver.reg(register) == 0xFFFFFFFF


def test_features_come_in_two_words_and_no_more(make: Make) -> None:
    driver = make(bytes(1024))
    offered = driver.offered()
    assert offered & F_VERSION_1
    assert offered & BLK_F_FLUSH
    assert not offered & BLK_F_RO
    for select in (2, 3, 0xFFFFFFFF):
        driver.set(DEVICE_FEATURES_SEL, select)
        assert driver.reg(DEVICE_FEATURES) == 0
    assert make(bytes(512), read_only=True).offered() & BLK_F_RO


@pytest.mark.parametrize("features", [0, ALL & ~F_VERSION_1 & ~BLK_F_RO, F_VERSION_1 | 1 << 60, F_VERSION_1 | 1 << 34])
def test_features_are_refused(make: Make, features: int) -> None:
    driver = make(bytes(1024))
    driver.reset()
    driver.set(STATUS, ACKNOWLEDGE | DRIVER)
    assert not driver.choose(features)
    # A driver may try again with less.
    assert driver.choose(F_VERSION_1)


def test_features_are_settled_by_features_ok(make: Make) -> None:
    driver = make(bytes(1024))
    driver.reset()
    driver.set(STATUS, ACKNOWLEDGE | DRIVER)
    assert driver.choose(F_VERSION_1)
    driver.set(DRIVER_FEATURES_SEL, 0)
    driver.set(DRIVER_FEATURES, BLK_F_FLUSH)
    assert not driver.device.has(BLK_F_FLUSH)
    assert driver.device.has(F_VERSION_1)


@pytest.mark.parametrize("word", [2, 3, 4, 0xFFFFFFFF])
def test_features_beyond_the_second_word_are_refused_too(make: Make, word: int) -> None:
    driver = make(bytes(1024))
    driver.reset()
    driver.set(STATUS, ACKNOWLEDGE | DRIVER)
    driver.set(DRIVER_FEATURES_SEL, word)
    driver.set(DRIVER_FEATURES, 1)
    assert not driver.choose(F_VERSION_1)
    if word < 4:
        driver.set(DRIVER_FEATURES_SEL, word)
        driver.set(DRIVER_FEATURES, 0)
        assert driver.choose(F_VERSION_1)
    driver.start()
    assert driver.read(0, 512) == bytes(512)


def test_features_behind_all_words_stay_refused_and_take_no_room(make: Make) -> None:
    driver = make(bytes(1024))
    for word in range(4, 5000):
        driver.set(DRIVER_FEATURES_SEL, word)
        driver.set(DRIVER_FEATURES, 0xFFFFFFFF)
        driver.set(DRIVER_FEATURES, 0)
    assert driver.device.driver_features.bit_length() <= 160
    assert not driver.choose(F_VERSION_1)


def test_status_bits_are_only_cleared_by_reset(make: Make) -> None:
    driver = make(bytes(1024))
    driver.start()
    driver.set(STATUS, ACKNOWLEDGE)
    assert driver.reg(STATUS) == ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK
    driver.set(STATUS, 0)
    assert driver.reg(STATUS) == 0
    assert driver.reg(QUEUE_READY) == 0
    assert driver.device.driver_features == 0


def test_driver_ok_without_features_ok_needs_a_reset(make: Make) -> None:
    driver = make(bytes(1024))
    driver.set(STATUS, ACKNOWLEDGE | DRIVER)
    driver.set(STATUS, ACKNOWLEDGE | DRIVER | DRIVER_OK)
    assert driver.reg(STATUS) == ACKNOWLEDGE | DRIVER | NEEDS_RESET
    driver.start()
    assert driver.read(0, 512) == bytes(512)


def test_a_failed_device_serves_nothing_until_reset(make: Make) -> None:
    driver = make(b"x" * 1024)
    driver.start()
    driver.set(STATUS, FAILED)
    assert driver.reg(STATUS) & FAILED
    assert driver.request(0, 0, room=[512])[0] == 0xEE
    driver.start()
    assert driver.read(0, 512) == b"x" * 512


def test_the_driver_cannot_set_needs_reset(make: Make) -> None:
    driver = make(bytes(1024))
    driver.set(STATUS, NEEDS_RESET | ACKNOWLEDGE)
    assert driver.reg(STATUS) == ACKNOWLEDGE


def test_nothing_is_consumed_before_driver_ok(make: Make) -> None:
    driver = make(b"x" * 1024)
    driver.reset()
    driver.set(STATUS, ACKNOWLEDGE | DRIVER)
    assert driver.choose(F_VERSION_1)
    assert driver.set_up_queue()
    assert driver.request(0, 0, room=[512])[0] == 0xEE
    driver.set(STATUS, driver.reg(STATUS) | DRIVER_OK)
    driver.set(QUEUE_NOTIFY, 0)
    # The buffer made available before is served now.
    assert len(driver.used()) == 1


def test_other_queues_do_not_exist(make: Make) -> None:
    driver = make(bytes(1024))
    driver.start()
    assert driver.reg(QUEUE_NUM_MAX) >= 16
    for number in (1, 0xFFFFFFFF):
        driver.set(QUEUE_SEL, number)
        assert driver.reg(QUEUE_NUM_MAX) == 0
        driver.set(QUEUE_NUM, 8)
        driver.set(QUEUE_READY, 1)
        assert driver.reg(QUEUE_READY) == 0
        driver.set(QUEUE_NOTIFY, number)
    assert not driver.reg(STATUS) & NEEDS_RESET


@pytest.mark.parametrize("size", [0, 3, 65, 128, 0x8000, 0xFFFFFFFF])
def test_queue_sizes_that_are_refused(make: Make, size: int) -> None:
    driver = make(bytes(1024))
    driver.reset()
    driver.set(STATUS, ACKNOWLEDGE | DRIVER)
    assert driver.choose(F_VERSION_1)
    driver.set(QUEUE_NUM, size)
    for register, address in ((QUEUE_DESC, 0x100000), (QUEUE_DRIVER, 0x104000), (QUEUE_DEVICE, 0x108000)):
        driver.set(register, address)
    driver.set(QUEUE_READY, 1)
    assert driver.reg(QUEUE_READY) == 0
    assert driver.reg(STATUS) & NEEDS_RESET


@pytest.mark.parametrize(
    ("register", "address"),
    [
        (QUEUE_DESC, 0x100008),
        (QUEUE_DRIVER, 0x104001),
        (QUEUE_DEVICE, 0x108002),
        (QUEUE_DESC, 0),
        (QUEUE_DRIVER, 0x1FFFFE),
        (QUEUE_DEVICE, 0xFFFFFFFC),
    ],
)
def test_queue_addresses_that_are_refused(make: Make, register: int, address: int) -> None:
    driver = make(bytes(1024))
    driver.reset()
    driver.set(STATUS, ACKNOWLEDGE | DRIVER)
    assert driver.choose(F_VERSION_1)
    driver.set(QUEUE_NUM, 16)
    for normal, start in ((QUEUE_DESC, 0x100000), (QUEUE_DRIVER, 0x104000), (QUEUE_DEVICE, 0x108000)):
        driver.set(normal, start)
    driver.set(register, address)
    driver.set(QUEUE_READY, 1)
    assert driver.reg(QUEUE_READY) == 0
    assert driver.reg(STATUS) & NEEDS_RESET


def test_a_ready_queue_keeps_its_addresses(make: Make) -> None:
    driver = make(b"x" * 1024)
    driver.start()
    for register in (QUEUE_DESC, QUEUE_DESC + 4, QUEUE_DRIVER, QUEUE_DEVICE, QUEUE_NUM):
        driver.set(register, 0)
    assert driver.read(0, 512) == b"x" * 512


def test_interrupts_are_flagged_and_acknowledged(make: Make) -> None:
    driver = make(bytes(1024))
    driver.start()
    assert driver.reg(INTERRUPT_STATUS) == 0
    driver.read(0, 512)
    assert driver.reg(INTERRUPT_STATUS) == 1
    driver.set(INTERRUPT_ACK, 1)
    assert driver.reg(INTERRUPT_STATUS) == 0
    # VIRTQ_AVAIL_F_NO_INTERRUPT.
    driver.memory.put(driver.ring_addresses[1], b"\x01\x00")
    driver.read(0, 512)
    assert driver.reg(INTERRUPT_STATUS) == 0


def test_needs_reset_is_announced_as_a_configuration_change(make: Make) -> None:
    driver = make(bytes(1024))
    driver.start()
    driver.make_available(999)
    driver.notify()
    assert driver.reg(STATUS) & NEEDS_RESET
    assert driver.reg(INTERRUPT_STATUS) == 2


def _config(driver: Driver, format_: str, offset: int) -> int:
    size = struct.calcsize(format_)
    return driver.device.read(CONFIG + offset, size)


@pytest.mark.parametrize(("length", "sectors"), [(0, 0), (1, 1), (511, 1), (512, 1), (513, 2), (1 << 16, 128)])
def test_configuration_space(make: Make, length: int, sectors: int) -> None:
    driver = make(bytes(length))
    assert driver.reg(CONFIG) | driver.reg(CONFIG + 4) << 32 == sectors
    assert _config(driver, "<I", 12) == driver.reg(QUEUE_NUM_MAX) - 2
    assert _config(driver, "<I", 20) == 512
    assert _config(driver, "<H", 34) == 1
    assert _config(driver, "<I", 40) >= 1
    assert _config(driver, "<I", 52) >= 1
    assert _config(driver, "<B", 56) == 1
    assert driver.device.read(CONFIG + 1, 4) == 0
    assert driver.device.read(CONFIG, 8) == 0
    assert driver.device.read(0xFFC, 4) == 0
    driver.device.write(CONFIG, 99, 4)
    assert driver.reg(CONFIG) == sectors


def test_configuration_generation_changes_with_the_configuration(make: Make) -> None:
    driver = make(bytes(1024))
    driver.start()
    before = driver.reg(CONFIG_GENERATION)
    driver.device.config_changed()
    assert driver.reg(CONFIG_GENERATION) != before
    assert driver.reg(INTERRUPT_STATUS) == 2
    after = driver.reg(CONFIG_GENERATION)
    driver.reset()
    assert driver.reg(CONFIG_GENERATION) == after


def test_state_and_restore(make: Make) -> None:
    driver = make(b"a" * 1024)
    driver.start()
    driver.read(0, 512)
    state = driver.device.state()
    memory = bytes(driver.memory.bytes)
    index = driver.available_index, driver.used_index
    driver.read(1, 512)
    driver.make_available(77)
    driver.notify()
    assert driver.reg(STATUS) & NEEDS_RESET
    driver.device.restore(state)
    driver.memory.bytes[:] = memory
    driver.available_index, driver.used_index = index
    assert driver.device.state() == state
    assert driver.read(1, 512) == b"a" * 512
