"""The control device: batches, text, lengths, block status, budgets; and nonsense."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import calltable as ct
from tests.unit.devices.mock_driver import FakeMemory
from vmm.boundary import DeviceSpec, Event, Job, Limits, LogEvent, MessageEvent, ProgressEvent
from vmm.devices import CONTINUE, DONE, READY, Bus, LimitExceeded, ProtocolViolation, RunAborted

BLOCK = 0x10_0000
DATA = 0x11_0000


class Guest:
    """A guest as the control device sees it."""

    def __init__(self, devices: tuple[DeviceSpec, ...], limits: Limits, log_level: int, progress: bool) -> None:
        self.memory = FakeMemory()
        self.bus = Bus(len(devices), self.memory)
        self.events: list[Event] = []
        job = Job(b"", b"", devices, limits, log_level, progress)
        self.bus.begin_run(job, self.events.append)

    def ring(self, command: int, *arguments: int) -> tuple[int, int]:
        """Ring the doorbell: the signal and the result."""
        padded = [*arguments, 0, 0, 0, 0, 0, 0][:6]
        self.memory.put(BLOCK, struct.pack(ct.CONTROL_BLOCK_FORMAT, command, 0, -99, *padded))
        signal = self.bus.write(ct.CONTROL_BASE + ct.CONTROL_DOORBELL, BLOCK, 8)
        return signal, struct.unpack("<q", self.memory.get(BLOCK + 8, 8))[0]

    def batch(self, *messages: bytes, junk: bytes = b"") -> tuple[int, int]:
        """Put a batch into memory: address and length."""
        raw = b"".join(struct.pack("<I", len(message)) + message for message in messages) + junk
        self.memory.put(DATA, raw)
        return DATA, len(raw)


Make = Callable[..., Guest]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes guests with one file."""
    fds: list[int] = []

    def made(
        content: bytes = b"x" * 1000,
        *,
        limits: Limits | None = None,
        log: int = 0,
        progress: bool = False,
        **spec: object,
    ) -> Guest:
        fd = os.open(tmp_path / f"f{len(fds)}", os.O_RDWR | os.O_CREAT)
        fds.append(fd)
        os.pwrite(fd, content, 0)
        options: dict[str, object] = {"read_only": False, "resizable": True, **spec}
        device = DeviceSpec(fd, len(content), **options)  # type: ignore[arg-type]
        return Guest((device,), limits or Limits(), log, progress)

    yield made
    for fd in fds:
        os.close(fd)


def test_ready_and_done(make: Make) -> None:
    guest = make()
    assert guest.ring(ct.COMMAND_READY) == (READY, 0)
    assert guest.ring(ct.COMMAND_EMIT, *guest.batch(b"one", b"two")) == (CONTINUE, 0)
    assert guest.ring(ct.COMMAND_DONE, 7, *guest.batch(b"three")) == (DONE, 0)
    assert guest.bus.control.status == 7
    assert guest.events == [MessageEvent(b"one"), MessageEvent(b"two"), MessageEvent(b"three")]
    usage = guest.bus.usage(3, 4)
    assert (usage.messages, usage.report_bytes, usage.exits, usage.elapsed_ns) == (3, 11, 3, 4)


def test_a_doorbell_of_32_bits(make: Make) -> None:
    guest = make()
    guest.memory.put(BLOCK, struct.pack(ct.CONTROL_BLOCK_FORMAT, ct.COMMAND_READY, 0, 0, *[0] * 6))
    assert guest.bus.write(ct.CONTROL_BASE, BLOCK, 4) == READY


def test_abort_delivers_what_was_said_before(make: Make) -> None:
    guest = make()
    address, length = guest.batch(b"last words")
    guest.memory.put(DATA + 0x1000, b"panic: \xff\x1b")
    with pytest.raises(RunAborted) as caught:
        guest.ring(ct.COMMAND_ABORT, DATA + 0x1000, 9, 0x400123, address, length)
    assert (caught.value.message, caught.value.site) == (b"panic: \xff\x1b", 0x400123)
    assert guest.events == [MessageEvent(b"last words")]


def test_log_levels(make: Make) -> None:
    guest = make(log=2)
    guest.memory.put(DATA, b"hello")
    for level in (1, 2, 3, 4):
        assert guest.ring(ct.COMMAND_LOG, level, DATA, 5) == (CONTINUE, 0)
    assert guest.events == [LogEvent(1, b"hello"), LogEvent(2, b"hello")]


def test_progress_only_when_wanted(make: Make) -> None:
    for wanted in (False, True):
        guest = make(progress=wanted)
        guest.ring(ct.COMMAND_PROGRESS, 5, 2**64 - 1)
        assert guest.events == [ProgressEvent(5, 2**64 - 1)] * wanted


@pytest.mark.parametrize(
    ("messages", "junk"),
    [
        ((b"ok",), b"\x01"),
        ((b"ok",), b"\x05\0\0\0abcd"),
        ((b"ok", b""), b""),
        ((), b"\xff\xff\xff\xff"),
        ((b"x" * (ct.MESSAGE_MAX + 1),), b""),
    ],
)
def test_batches_that_make_no_sense(make: Make, messages: tuple[bytes, ...], junk: bytes) -> None:
    guest = make()
    with pytest.raises(ProtocolViolation):
        guest.ring(ct.COMMAND_EMIT, *guest.batch(*messages, junk=junk))
    assert len(guest.events) <= 1


@pytest.mark.parametrize(
    "arguments",
    [
        (0,),
        (11,),
        (0xFFFFFFFF,),
        (ct.COMMAND_EMIT, DATA, ct.REPORT_BUFFER + 1),
        (ct.COMMAND_EMIT, DATA, 2**64 - 1),
        (ct.COMMAND_EMIT, 0x50, 4),
        (ct.COMMAND_DONE, 0, 2**64 - 1, 4),
        (ct.COMMAND_ABORT, 0, 4, 0, 0, 0),
        (ct.COMMAND_ABORT, DATA, ct.CONTROL_TEXT_MAX + 1, 0, 0, 0),
        (ct.COMMAND_LOG, 0, DATA, 1),
        (ct.COMMAND_LOG, 5, DATA, 1),
        (ct.COMMAND_LOG, 1, DATA, ct.CONTROL_TEXT_MAX + 1),
        (ct.COMMAND_LOG, 1, 2**64 - 4, 8),
        (ct.COMMAND_BUDGET, 8),
    ],
)
def test_nonsense_ends_the_run(make: Make, arguments: tuple[int, ...]) -> None:
    guest = make(log=4)
    with pytest.raises(ProtocolViolation) as caught:
        guest.ring(*arguments)
    assert caught.value.message.isascii()
    assert guest.bus.control.status is None


@pytest.mark.parametrize("address", [0, 8, 0xFFFFF, 2**64 - 1, 2**64 - 64])
def test_a_control_block_outside_memory(make: Make, address: int) -> None:
    guest = make()
    with pytest.raises(ProtocolViolation):
        guest.bus.write(ct.CONTROL_BASE, address, 8)


def test_accesses_where_nothing_is(make: Make) -> None:
    bus = make().bus
    with pytest.raises(ProtocolViolation):
        bus.write(ct.CONTROL_BASE + 8, 0, 8)
    with pytest.raises(ProtocolViolation):
        bus.write(ct.CONTROL_BASE, BLOCK, 2)
    with pytest.raises(ProtocolViolation):
        bus.write(ct.VIRTIO_BASE + ct.VIRTIO_STRIDE, 0, 4)
    with pytest.raises(ProtocolViolation):
        bus.read(ct.VIRTIO_BASE - 1, 4)
    assert bus.read(ct.CONTROL_BASE, 8) == 0
    assert bus.read(ct.VIRTIO_BASE, 4) == 0x74726976


@pytest.mark.parametrize(
    ("limits", "name"), [(Limits(max_messages=2), "max-messages"), (Limits(max_report=8), "max-report")]
)
def test_limits_of_the_report(make: Make, limits: Limits, name: str) -> None:
    guest = make(limits=limits, log=4)
    with pytest.raises(LimitExceeded) as caught:
        guest.ring(ct.COMMAND_EMIT, *guest.batch(b"1111", b"2222", b"3333"))
    assert caught.value.limit == name
    assert len(guest.events) == 2
    guest = make(limits=limits, log=4)
    guest.memory.put(DATA, b"1234")
    for _ in range(2):
        guest.ring(ct.COMMAND_LOG, 1, DATA, 4)
    with pytest.raises(LimitExceeded):
        guest.ring(ct.COMMAND_LOG, 1, DATA, 4)


def test_set_length(make: Make) -> None:
    guest = make(max_length=5000)
    generation = guest.bus.read(ct.VIRTIO_BASE + 0xFC, 4)
    assert guest.ring(ct.COMMAND_SET_LENGTH, 0, 5000) == (CONTINUE, 0)
    assert guest.bus.device_lengths() == (5000,)
    assert guest.bus.read(ct.VIRTIO_BASE + 0x100, 4) == 10
    assert guest.bus.read(ct.VIRTIO_BASE + 0xFC, 4) != generation
    assert guest.ring(ct.COMMAND_SET_LENGTH, 0, 5001)[1] == -ct.ERROR_NO_SPACE
    assert guest.ring(ct.COMMAND_DEVICE_ERROR, 0)[1] == -ct.ERROR_NO_SPACE
    assert "5001 bytes" in str(guest.bus.device_errors()[0])
    assert guest.ring(ct.COMMAND_SET_LENGTH, 1, 5)[1] == -ct.ERROR_NO_DEVICE
    assert guest.ring(ct.COMMAND_SET_LENGTH, 2**64 - 1, 5)[1] == -ct.ERROR_NO_DEVICE
    assert make(read_only=True).ring(ct.COMMAND_SET_LENGTH, 0, 5)[1] == -ct.ERROR_READ_ONLY
    assert make(resizable=False).ring(ct.COMMAND_SET_LENGTH, 0, 5)[1] == -ct.ERROR_UNSUPPORTED


def test_a_length_of_as_many_sectors_changes_no_configuration(make: Make) -> None:
    guest = make(b"x" * 1000)
    generation = guest.bus.read(ct.VIRTIO_BASE + 0xFC, 4)
    for length in (1000, 1024, 513):
        assert guest.ring(ct.COMMAND_SET_LENGTH, 0, length) == (CONTINUE, 0)
    assert guest.bus.read(ct.VIRTIO_BASE + 0xFC, 4) == generation
    assert guest.ring(ct.COMMAND_SET_LENGTH, 0, 512) == (CONTINUE, 0)
    assert guest.bus.read(ct.VIRTIO_BASE + 0xFC, 4) != generation


def test_block_status(make: Make) -> None:
    guest = make()
    assert guest.ring(ct.COMMAND_BLOCK_STATUS, 0, 10, 900, DATA, 4) == (CONTINUE, 1)
    extent = struct.unpack(ct.EXTENT_FORMAT, guest.memory.get(DATA, ct.EXTENT_SIZE))
    assert extent == (10, 900, ct.EXTENT_DATA)
    # A capacity beyond anything is cut, not allocated.
    assert guest.ring(ct.COMMAND_BLOCK_STATUS, 0, 0, 1000, DATA, 2**64 - 1) == (CONTINUE, 1)
    for arguments, error in (
        ((0, 10, 991, DATA, 4), ct.ERROR_RANGE),
        ((0, 2**64 - 1, 2**64 - 1, DATA, 4), ct.ERROR_RANGE),
        ((0, 0, 10, DATA, 0), ct.ERROR_INVALID),
        ((0, 0, 10, 0x20, 4), ct.ERROR_INVALID),
        ((9, 0, 10, DATA, 4), ct.ERROR_NO_DEVICE),
    ):
        assert guest.ring(ct.COMMAND_BLOCK_STATUS, *arguments)[1] == -error


def test_budget(make: Make) -> None:
    guest = make(limits=Limits(max_read=100, max_write=1 << 70, max_messages=5))
    guest.ring(ct.COMMAND_EMIT, *guest.batch(b"m"))
    assert guest.ring(ct.COMMAND_BUDGET, DATA) == (CONTINUE, 0)
    left = struct.unpack(ct.BUDGET_FORMAT, guest.memory.get(DATA, ct.BUDGET_SIZE))
    assert left == (100, 2**64 - 1, 4, 0)


def test_device_error(make: Make) -> None:
    guest = make()
    assert guest.ring(ct.COMMAND_DEVICE_ERROR, 0)[1] == 0
    assert guest.ring(ct.COMMAND_DEVICE_ERROR, 3)[1] == -ct.ERROR_NO_DEVICE


def test_a_run_begins_clean(make: Make) -> None:
    guest = make(max_length=5000)
    guest.ring(ct.COMMAND_DONE, 1, *guest.batch(b"m"))
    guest.ring(ct.COMMAND_SET_LENGTH, 0, 5001)
    guest.bus.end_run()
    assert guest.bus.usage().messages == 0
    assert guest.bus.device_lengths() == (0,)
    assert guest.bus.boot_devices() == ((0, 0, 0, 0),)
    assert guest.bus.control.status is None
    assert guest.bus.recent_requests() == ()
    assert guest.bus.device_errors() == (None,)
    assert guest.bus.device_errnos() == (None,)
    with pytest.raises(ValueError, match="0 devices"):
        guest.bus.begin_run(Job(b"", b""), guest.events.append)


def test_the_number_of_devices_is_bounded() -> None:
    assert len(Bus(ct.MAX_DEVICES, FakeMemory()).blocks) == ct.MAX_DEVICES
    with pytest.raises(ValueError, match="block devices"):
        Bus(ct.MAX_DEVICES + 1, FakeMemory())
