"""A guest that misbehaves as an input says, on the bus of a machine without a machine.

It does what :class:`vmm.machine.machine.Machine` does around the bus (runs, READY, DONE, snapshot and reset) and checks
after every access what has to hold whatever the guest does.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import calltable as ct
from fuzzing.codec import Source
from fuzzing.files import KINDS, File, System
from fuzzing.memory import BASES, Memory
from fuzzing.oracle import check_sentence
from vmm.boundary import Event, Job, Limits, LogEvent, MessageEvent, ProgressEvent
from vmm.devices import CONTINUE, DONE, READY, Bus, LimitExceeded, ProtocolViolation, RunAborted
from vmm.devices.errors import DeviceEvent, FileFailed

#: Runs of one input; the event that ends the last one ends the input.
RUNS_MAX = 4
#: Bus accesses of one input.
ACCESSES_MAX = 600
#: Looks at the clock after which a run has taken too long.
LOOKS_MAX = 3000

DOORBELL = ct.CONTROL_BASE + ct.CONTROL_DOORBELL
_READS = (4 << 20, 1 << 16, 3000, 0)
_WRITES = (256 << 10, 1 << 12, 600, 0)
_MESSAGES = (64, 5, 1, 0)
_REPORTS = (64 << 10, 1000, 10, 0)


class DeadlinePassed(DeviceEvent):
    """Stands for the machine's own."""


class Ended(Exception):  # noqa: N818  (not an error)
    """The input has had its share."""


class Guest:
    """The guest of one input, and the host's side of its machine.

    :param source: its head says which devices, limits and wishes the machine has.
    """

    def __init__(self, source: Source, memory: Memory, system: System) -> None:
        self.source = source
        self.memory = memory
        self.system = system
        self.accesses = 0
        self._runs = 0
        self._looks = 0
        self.events: list[Event] = []
        self._snapshot: object = None
        head = source.byte()
        self.log_level = head & 7
        self.progress = bool(head & 8)
        budget = source.byte()
        self.limits = Limits(
            max_read=_READS[budget & 3],
            max_write=_WRITES[budget >> 2 & 3],
            max_messages=_MESSAGES[budget >> 4 & 3],
            max_report=_REPORTS[budget >> 6],
        )
        self.files: list[File] = []
        for _ in range(head >> 4 & 3):
            kind = source.byte()
            self.files.append(File(kind % KINDS, source.number()))
        system.files = {file.fd: file for file in self.files}
        self.bus = Bus(len(self.files), memory)
        self.begin()

    def address(self) -> int:
        """A guest address of the input."""
        base = self.source.byte()
        if base % (len(BASES) + 1) == len(BASES):
            return self.source.number()
        return BASES[base % (len(BASES) + 1)] + self.source.u16()

    # Runs, as the machine makes them.

    def begin(self) -> None:
        """A run begins."""
        self._runs += 1
        if self._runs > RUNS_MAX:
            raise Ended
        lengths = [file.told if file.disturbed or not file.resizable else file.size() for file in self.files]
        specs = tuple(file.spec(length) for file, length in zip(self.files, lengths, strict=True))
        self.events.clear()
        self._looks = 0
        self.system.begin()
        self.bus.begin_run(
            Job(b"", b"", specs, self.limits, self.log_level, self.progress), self.events.append, self._look
        )
        self.system.breathe()
        self._boot_devices()

    def end(self) -> None:
        """A run is over: everything that an outcome is made of, then the reset."""
        self.inspect()
        self.bus.end_run()
        assert self.bus.usage().messages == 0
        if self._snapshot is not None:
            self.bus.restore(self._snapshot)
            assert self.bus.state() == self._snapshot
        else:
            self.bus = Bus(len(self.files), self.memory)
        assert self._snapshot is not None or self.bus.recent_requests() == ()

    def _look(self) -> None:
        self.system.breathe()
        self._looks += 1
        if self._looks > LOOKS_MAX:
            raise DeadlinePassed

    # Accesses.

    def write(self, address: int, value: int, size: int) -> None:
        """An MMIO write exit."""
        signal = self._access(lambda: self.bus.write(address, value & ((1 << 8 * size) - 1), size))
        if signal is None or signal == CONTINUE:
            return
        assert signal in (READY, DONE)
        if signal == READY and self._snapshot is None:
            self._snapshot = self.bus.state()
            return
        if signal == DONE:
            status = self.bus.control.status
            assert status is not None
            assert 0 <= status < 1 << 32
        self.end()
        self.begin()

    def read(self, address: int, size: int) -> int:
        """An MMIO read exit."""
        value = self._access(lambda: self.bus.read(address, size))
        assert value is None or 0 <= value < 1 << 8 * size
        return value or 0

    def _access(self, call: Callable[[], int]) -> int | None:
        """One access; None when it ended the run, and another has begun."""
        self.accesses += 1
        if self.accesses > ACCESSES_MAX:
            raise Ended
        self.system.breathe()
        over = False
        result = None
        try:
            result = call()
            assert type(result) is int
        except DeviceEvent as event:
            self._check_event(event)
            over = True
        self.memory.settle()
        self._check_budgets()
        if over:
            self.end()
            self.begin()
        return result

    def _check_event(self, event: DeviceEvent) -> None:
        if isinstance(event, ProtocolViolation):
            check_sentence(event.message)
        elif isinstance(event, LimitExceeded):
            limits = {
                "max-read": self.limits.max_read,
                "max-write": self.limits.max_write,
                "max-messages": self.limits.max_messages,
                "max-output": self.limits.max_output,
                "max-report": self.limits.max_report,
            }
            assert limits[event.limit] == event.value
        elif isinstance(event, RunAborted):
            assert len(event.message) <= ct.CONTROL_TEXT_MAX
            assert 0 <= event.site < 1 << 64
        else:
            assert isinstance(event, DeadlinePassed)

    def _check_budgets(self) -> None:
        usage, limits = self.bus.usage(), self.limits
        assert self.system.read_bytes <= usage.read_bytes <= limits.max_read
        assert self.system.write_bytes <= usage.write_bytes <= limits.max_write
        messages = logs = size = 0
        for event in self.events:
            if isinstance(event, MessageEvent):
                messages += 1
                size += len(event.payload)
                assert 0 < len(event.payload) <= ct.MESSAGE_MAX
            elif isinstance(event, LogEvent):
                logs += 1
                size += len(event.text)
                assert 1 <= event.level <= self.log_level
            else:
                assert isinstance(event, ProgressEvent)
                assert self.progress
        assert messages == usage.messages <= limits.max_messages
        assert logs <= limits.max_messages
        assert size == usage.report_bytes <= limits.max_report

    def inspect(self) -> None:
        """What the host asks the bus for, besides accesses."""
        for line in self.bus.recent_requests():
            check_sentence(line)
        for reason in self.bus.device_errors():
            if reason is not None:
                check_sentence(reason)
        for length in self.bus.device_lengths():
            assert 0 <= length < 1 << 63
        self.system.breathe()
        for length, flags, size, allocated in self._boot_devices():
            assert struct.pack("<QIIQ", length, flags, size, allocated)

    def _boot_devices(self) -> tuple[tuple[int, int, int, int], ...]:
        """What the boot page would say; nothing where the system says nothing of a file, which ends a real run here."""
        try:
            return self.bus.boot_devices()
        except FileFailed:
            return ()

    # The control device.

    def ring(self, command: int, arguments: list[int], block: int = ct.STACK_BASE + ct.STACK_SIZE - 0x400) -> None:
        """Put a control block into memory and ring."""
        self.memory.poke(block, struct.pack(ct.CONTROL_BLOCK_FORMAT, command & 0xFFFF_FFFF, 0, -99, *arguments, 0))
        expected = self._expected_messages(command, arguments)
        before = len(self.events)
        run, bus = self._runs, self.bus
        self.write(DOORBELL, block, 8)
        if run != self._runs or bus is not self.bus:
            return
        if expected is not None:
            assert [event for event in self.events[before:] if isinstance(event, MessageEvent)] == expected
        (result,) = struct.unpack("<q", self.memory.peek(block + 8, 8) or bytes(8))
        if command == ct.COMMAND_BLOCK_STATUS:
            array = arguments[3]
            if not array < block + 64 <= array + 64 + max(result, 0) * ct.EXTENT_SIZE:
                self._check_extents(result, arguments)
        elif command == ct.COMMAND_SET_LENGTH and result == 0:
            assert self.bus.device_lengths()[arguments[0]] == arguments[1]

    def _expected_messages(self, command: int, arguments: list[int]) -> list[MessageEvent] | None:
        """What a batch holds, when all of it can be read; an independent reader."""
        if command != ct.COMMAND_EMIT or self.memory.surprise is not None:
            return None
        address, length = arguments[:2]
        batch = self.memory.peek(address, length) if length <= ct.REPORT_BUFFER else b""
        found = []
        while len(batch) >= 4:
            size = int.from_bytes(batch[:4], "little")
            found.append(MessageEvent(batch[4 : 4 + size]))
            batch = batch[4 + size :]
        return found

    def _check_extents(self, count: int, arguments: list[int]) -> None:
        """Extents are in order, without gaps, inside what was asked, and no two neighbours are alike."""
        device, start, length, array, capacity = arguments
        if count < 0:
            assert count >= -16
            return
        assert count <= min(capacity, 1024)
        assert device < len(self.files)
        position, before = start, -1
        raw = self.memory.peek(array, count * ct.EXTENT_SIZE)
        for offset, size, flags, *_ in struct.iter_unpack(ct.EXTENT_FORMAT, raw):
            assert offset == position
            assert 0 < size <= start + length - offset
            assert flags != before
            position, before = offset + size, flags
        assert position <= start + length
        assert count == min(capacity, 1024) or position == start + length

    def check(self) -> None:
        """Look at everything once more."""
        self.inspect()
        self.memory.check()
        for file in self.files:
            file.check()

    def close(self) -> None:
        """Give the files up."""
        for file in self.files:
            file.close()
