"""Seeds of the targets that play on the bus: recorded accesses of real guests, and one program for each large step."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

import calltable as ct
from fuzzing.codec import Sink
from fuzzing.memory import BASES, Memory
from fuzzing.opcodes import KINDS, REGISTERS, SIZES, STEPS, Player, Step
from fuzzing.seeds import runs
from vmm.boundary import Job
from vmm.devices import block as virtio_blk
from vmm.devices.memory import GuestMemory
from vmm.machine.machine import Machine

#: Bytes that a step puts into memory at most; more are nothing that a device reads as more than data.
_POKED_MAX = 1024
_RECORDED_MAX = 6000
_CONTROL_WINDOW = range(ct.CONTROL_BASE, ct.CONTROL_BASE + ct.PAGE_SIZE)
#: Where the data of the operation's own ELF lie in the harness's memory.
_MOVED_TO = ct.ARENA_BASE + 0x18000


class Recorder:
    """Writes what a guest does as steps of an input.

    :param steps: the steps that the target has.
    :param own: addresses of the operation's data.
    """

    def __init__(self, job: Job, steps: tuple[Step, ...], real: GuestMemory, own: range) -> None:
        self._steps = steps
        self._real = real
        self._own = own
        self._shadow = Memory()
        self._written: list[tuple[int, int]] = []
        self.sink = Sink()
        self.sink.byte((job.log_level & 7) | (8 if job.progress else 0) | len(job.devices) << 4, 0)
        for device in job.devices:
            self.sink.byte(0 if device.read_only else 2).number(device.length)

    def view(self, address: int, length: int, *, writable: bool) -> memoryview:
        """As guest memory; what a device reads there is put into the input before the access."""
        view = self._real.view(address, length, writable=writable)
        if not writable or length <= 64:
            self._poke(address, bytes(view))
        if writable:
            self._written.append((address, length))
        return view

    def _move(self, address: int) -> int:
        return address - self._own.start + _MOVED_TO if address in self._own else address

    def _poke(self, address: int, data: bytes) -> None:
        data = data[:_POKED_MAX]
        words = (int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8))
        data = b"".join(struct.pack("<Q", self._move(word)) for word in words)[: len(data)]
        address = self._move(address)
        if self._shadow.peek(address, len(data)) != data and Player.poke in self._steps:
            self._shadow.poke(address, data)
            if data.strip(b"\0"):
                self._step(Player.poke)
                self._address(address).block(data.rstrip(b"\0"))

    def _step(self, step: Step) -> Sink:
        return self.sink.byte(self._steps.index(step))

    def _address(self, address: int) -> Sink:
        for place, base in enumerate(BASES):
            if 0 <= address - base < 1 << 16:
                return self.sink.byte(place).u16(address - base)
        return self.sink.byte(len(BASES)).number(address)

    def write(self, address: int, value: int, size: int, perform: Callable[[int, int, int], int]) -> int:
        """A write access of the guest."""
        before, self.sink = self.sink, Sink()
        try:
            return perform(address, value, size)
        finally:
            pokes, self.sink = self.sink, before
            self.sink.raw(bytes(pokes.data))
            self._write(address, self._move(value), size)
            for start, length in self._written:
                with suppress(Exception):
                    self._shadow.poke(self._move(start), bytes(self._real.view(start, length, writable=False)))
            self._written.clear()

    def _write(self, address: int, value: int, size: int) -> None:
        device, offset = divmod(address - ct.VIRTIO_BASE, ct.VIRTIO_STRIDE)
        if device in range(4) and size == 4 and offset in REGISTERS and Player.write_register in self._steps:
            self._step(Player.write_register).byte(device, REGISTERS.index(offset)).number(value)
        elif address in _CONTROL_WINDOW or Player.write_register in self._steps:
            self._step(Player.write_anywhere).byte(SIZES.index(size))
            self._address(address).number(value)

    def read(self, address: int, size: int) -> None:
        """A read access of the guest."""
        device, offset = divmod(address - ct.VIRTIO_BASE, ct.VIRTIO_STRIDE)
        if device in range(4) and offset in REGISTERS and Player.read_register in self._steps:
            self._step(Player.read_register).byte(device, REGISTERS.index(offset), SIZES.index(size))


def _record(job: Job, steps: tuple[Step, ...]) -> bytes:
    with Machine(job.elf, len(job.devices), job.limits.max_memory, warm=False) as machine:
        bus = machine.bus
        data = next((r for r in machine.regions if r.name == "operation data"), None)
        own = range(data.start, data.end) if data is not None else range(0)
        recorder = Recorder(job, steps, machine.memory, own)
        for block in bus.blocks:
            block.memory = recorder
        bus.control._memory = recorder
        write, read = bus.write, bus.read

        def recorded_read(address: int, size: int) -> int:
            recorder.read(address, size)
            return read(address, size)

        bus.write = lambda address, value, size: recorder.write(address, value, size, write)  # type: ignore[method-assign]
        bus.read = recorded_read  # type: ignore[method-assign]
        machine.run(job, lambda event: None)
        return bytes(recorder.sink.data[:_RECORDED_MAX])


def _recorded(steps: tuple[Step, ...]) -> Iterator[bytes]:
    for named in (runs.operations, runs.hostile):
        for _, job in named():
            yield _record(job, steps)


def _head(kind: int = 2, length: int = 100_000, budget: int = 0) -> Sink:
    """One device; all is wanted; a snapshot is taken."""
    return Sink().byte(4 | 8 | 1 << 4, budget, kind).number(length)


def _programs(steps: tuple[Step, ...]) -> Iterator[bytes]:
    """A request of each kind and style, on a device of each kind."""
    start = bytes([steps.index(Player.start), 0, 4, 0])
    request = steps.index(Player.request)
    for place, kind in enumerate(KINDS):
        for device in range(8):
            sink = _head(device).raw(start)
            for style in (0, 1, 2, 4, 8, 9):
                sink.byte(request, 0, style, place).number(3)
                if style & 8:
                    sink.byte(0, 2).number(0, 4).byte(1).number(8, 100).byte(0)
                else:
                    sink.byte(2).number(512, 1024)
            if kind == virtio_blk.T_OUT:
                sink.byte(request, 0, 16, 0).number(1).byte(1).number(512).byte(request, 0, 0, 0).number(1).byte(0)
            yield bytes(sink.data)
    # The end of a file whose length is no whole number of sectors, and of one that is shorter than it was.
    for device in range(8):
        sink = _head(device, 5000).raw(start)
        for place in range(2):
            sink.byte(request, 0, 0, place).number(9).byte(2).number(100, 412)
            sink.byte(request, 0, 32, place).number(8).byte(2).number(512, 1)
        sink.byte(steps.index(Player.control)).number(ct.COMMAND_SET_LENGTH, 0, 9000, 0, 0, 0)
        sink.byte(request, 0, 0, 1).number(16).byte(1).number(512)
        yield bytes(sink.data)
    # The system moves nothing, or changes its mind about holes.
    for call, place, after in ((0, 0, 0), (1, 1, 0), (2, 2, 0), (2, 2, 2), (3, 3, 0)):
        sink = _head().raw(start).byte(steps.index(Player.fault), call, 0, 0).u16(0)
        sink.byte(request, 0, 0, place).number(1).byte(1).number(1024)
        sink.byte(steps.index(Player.fault), call, after, 1).u16(0)
        sink.byte(steps.index(Player.control)).number(ct.COMMAND_SET_LENGTH, 0, 9000, 0, 0, 0)
        sink.byte(steps.index(Player.control)).number(ct.COMMAND_BLOCK_STATUS, 0, 0, 9000, ct.ARENA_BASE, 10)
        yield bytes(sink.data)
    for call in range(7):
        sink = _head().raw(start)
        for place in range(len(KINDS)):
            sink.byte(steps.index(Player.fault), call, 0, place % 9).u16(100)
            sink.byte(request, 0, 8 if place in (2, 3) else 0, place).number(0)
            sink.byte(0, 1).number(0, 64).byte(0) if place in (2, 3) else sink.byte(1).number(4096)
        yield bytes(sink.data)


def _commands(steps: tuple[Step, ...]) -> Iterator[bytes]:
    """Each control command, in order and with nonsense."""
    control = steps.index(Player.control)
    for command, arguments in (
        (ct.COMMAND_READY, (0,)),
        (ct.COMMAND_PROGRESS, (1, 2)),
        (ct.COMMAND_SET_LENGTH, (0, 5000)),
        (ct.COMMAND_SET_LENGTH, (0, (1 << 63) + 1)),
        (ct.COMMAND_BLOCK_STATUS, (0, 0, 100_000, ct.ARENA_BASE, 10)),
        (ct.COMMAND_BLOCK_STATUS, (0, 3, 99_997, ct.ARENA_BASE, 1)),
        (ct.COMMAND_BUDGET, (ct.ARENA_BASE,)),
        (ct.COMMAND_DEVICE_ERROR, (0,)),
        (ct.COMMAND_LOG, (1, ct.ARENA_BASE, 5)),
        (77, (0,)),
    ):
        yield bytes(_head().byte(control).number(command, *(*arguments, 0, 0, 0, 0, 0)[:5]).data)
    for which in range(4):
        for budget in (0, 0x55, 0xAA, 0xFF):
            sink = _head(budget=budget).byte(steps.index(Player.batch), which | 4, 3)
            sink.block(b"one").block(b"t").block(b"three" * 100).byte(which)
            yield bytes(sink.data)
    repeated = _head()
    for _ in range(3):
        repeated.byte(control).number(ct.COMMAND_READY, 0, 0, 0, 0, 0).byte(steps.index(Player.end_run))
    yield bytes(repeated.data)


def device() -> Iterable[bytes]:
    """Of the target ``device``."""
    yield from _programs(STEPS)
    yield from _commands(STEPS)
    yield from _recorded(STEPS)


def control(steps: tuple[Step, ...]) -> Iterable[bytes]:
    """Of the target ``control``."""
    yield from _commands(steps)
    yield from _recorded(steps)
