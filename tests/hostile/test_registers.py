"""Every register of a device window, in every width, with every kind of value, from ring 3 on the real machine.

What comes back is judged by the reference model.  Offsets are those of VIRTIO 1.2, table 4.1, and all between them.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator

import pytest

import calltable as ct
from tests.hostile.steps import ONES, Bench, Steps
from tests.hostile.virtio import (
    Access,
    Facts,
    MachineMemory,
    facts,
    handshake,
    new_model,
    put_accesses,
    replay,
    window,
)
from tests.unit.devices import reference_model as model
from vmm.boundary import DeviceSpec, FailureKind

pytestmark = pytest.mark.kvm

CONTENT = bytes(range(256)) * 16
SIZES = (1, 2, 4, 8)
#: Accesses of one run: a step has 32 bytes, the request 64 KiB.
MOST = 1800
STATES = ("reset", "features", "live")
PEEK: list[Access] = [
    ("r", offset, 4, 0) for offset in (model.STATUS, model.INTERRUPT_STATUS, model.QUEUE_READY, model.CONFIG)
]


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryFile() as file:
        file.write(CONTENT)
        file.flush()
        made = Bench((DeviceSpec(file.fileno(), len(CONTENT), read_only=False),), bare=True)
        yield made
        made.close()


@pytest.fixture(scope="module")
def known(bench: Bench) -> Facts:
    return facts(bench)


def judge(bench: Bench, known: Facts, accesses: list[Access], state: str) -> None:
    """Run accesses from a state on, in as many runs as it takes, and have each judged."""
    begin = handshake(known, state)
    for start in range(0, len(accesses), MOST):
        part = begin + accesses[start : start + MOST] + PEEK
        steps = Steps()
        put_accesses(steps, part)
        ran = bench.run(steps)
        assert ran.failed == ""
        memory = MachineMemory(bench.ready().regions, ct.ARENA_BASE, bytes(ct.ARENA_HOT))
        replay(new_model(known, memory, CONTENT, read_only=False), part, ran.results)
    bench.check_clean()


@pytest.mark.parametrize("state", STATES)
def test_every_read(bench: Bench, known: Facts, state: str) -> None:
    offsets = [*range(0x200), *range(ct.VIRTIO_STRIDE - 16, ct.VIRTIO_STRIDE)]
    accesses: list[Access] = [
        ("r", offset, size, 0) for offset in offsets for size in SIZES if offset + size <= ct.VIRTIO_STRIDE
    ]
    judge(bench, known, accesses, state)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("value", [0, 1, ONES, "random"])
def test_every_write(bench: Bench, known: Facts, state: str, value: int | str) -> None:
    dice = random.Random(f"{state} {value}")
    accesses: list[Access] = []
    for size in (*SIZES, 16):
        for offset in range(0x200):
            written = value if isinstance(value, int) else dice.getrandbits(64)
            accesses.append(("w", offset, size, written))
            if size == 4 and offset % 4 == 0:
                # After each that may do something, what it did.
                accesses += PEEK
    judge(bench, known, accesses, state)


def test_a_walk_of_thousands(bench: Bench, known: Facts) -> None:
    """Registers that matter, in an order that nobody thought of."""
    dice = random.Random(2)
    registers = (
        *(model.STATUS, model.QUEUE_READY, model.QUEUE_NUM, model.QUEUE_SEL, model.QUEUE_NOTIFY, model.INTERRUPT_ACK),
        *(model.DRIVER_FEATURES, model.DRIVER_FEATURES_SEL, model.DEVICE_FEATURES_SEL, model.DEVICE_FEATURES),
        *(model.QUEUE_DESC, model.QUEUE_DRIVER, model.QUEUE_DEVICE, 0x0C0),
    )
    likely = (0, 1, 2, 3, 4, 8, 11, 15, 16, 64, 128, ct.ARENA_BASE, ct.ARENA_BASE + 0x400, 0xFFFF_FFFF)
    accesses: list[Access] = []
    for _ in range(1500):
        accesses.append(("w", dice.choice(registers), 4, dice.choice(likely)))
        accesses += PEEK[:3]
    judge(bench, known, accesses, "reset")


@pytest.mark.parametrize("status", [1, 4, 8, 12, 64, 128, 0xFF, 0x100, 0xFFFF_FFFF])
def test_status_jumps(bench: Bench, known: Facts, status: int) -> None:
    """Steps left out, backwards, bits that are the device's (2.1)."""
    accesses: list[Access] = []
    for after in (0, 1, 3, 11, 15, status, 4, 1, 0):
        accesses += [("w", model.STATUS, 4, status), *PEEK, ("w", model.STATUS, 4, after), *PEEK]
    judge(bench, known, accesses, "reset")


@pytest.mark.parametrize("bit", [0, 1, 4, 7, 10, 11, 12, 15, 16, 24, 29, 33, 34, 36, 40, 41, 63, 64, 95, 127, 128])
def test_features_never_offered(bench: Bench, known: Facts, bit: int) -> None:
    assert not known.offered >> bit & 1
    accesses = handshake(known)
    place = next(i for i, access in enumerate(accesses) if access[1:] == (model.STATUS, 4, 11))
    more: list[Access] = [("w", model.DRIVER_FEATURES_SEL, 4, bit // 32)]
    word = known.offered >> bit // 32 * 32 & model.MASK | 1 << bit % 32
    more.append(("w", model.DRIVER_FEATURES, 4, word))
    accesses[place:place] = more
    steps = Steps()
    put_accesses(steps, [*accesses, ("r", model.STATUS, 4, 0)])
    (status,) = bench.run(steps).results
    assert not status & (model.FEATURES_OK | model.DRIVER_OK)
    judge(bench, known, [*accesses, *PEEK], "reset")


def test_queue_reset_is_not_there(bench: Bench, known: Facts) -> None:
    """RING_RESET is not offered (4.2.2: QueueReset, 0x0c0)."""
    judge(bench, known, [("w", 0x0C0, 4, 1), ("r", 0x0C0, 4, 0), *PEEK], "live")


def test_across_the_end_of_a_window(bench: Bench) -> None:
    """Behind the last device is nothing: the part that reaches there faults, and nothing of it reaches a register."""
    for size in (2, 4, 8):
        for back in range(1, size):
            address = window(ct.VIRTIO_STRIDE - back)
            for steps in (Steps().read(address, size), Steps().write(address, ONES, size)):
                failure = bench.run(steps).outcome.failure
                assert failure is not None
                assert failure.kind in (FailureKind.PAGE_FAULT, FailureKind.EXCEPTION)
    bench.check_clean()


@pytest.mark.parametrize("device", [1, 2, ct.MAX_DEVICES - 1])
def test_windows_of_devices_that_are_not_there(bench: Bench, device: int) -> None:
    for steps in (Steps().read(window(0, device)), Steps().write(window(model.STATUS, device), 0)):
        failure = bench.run(steps).outcome.failure
        assert failure is not None
        assert (failure.kind, failure.region) == (FailureKind.PAGE_FAULT, "absent device window")
    bench.check_clean()
