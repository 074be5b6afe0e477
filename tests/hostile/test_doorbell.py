"""The control doorbell: every command with every argument at the edges of everything, and the block itself there.

Without KVM: the devices over the memory of a real machine, so that every case is tried; and a part of it from ring 3.
What has to come of each case is worked out from calltable/definition/machine.toml and the rights of the regions.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator, Sequence

import pytest

import calltable as ct
from tests.hostile.steps import ONES, Bench, Steps
from tests.hostile.virtio import MachineMemory
from vmm.boundary import DeviceSpec, Event, FailureKind, Job, Limits
from vmm.devices import CONTINUE, DONE, READY, LimitExceeded, ProtocolViolation, RunAborted
from vmm.devices.bus import Bus
from vmm.machine.layout import Region, fixed_regions
from vmm.machine.memory import RAM_SIZE, GuestMemory

CONTENT = bytes(range(256)) * 20
COLD = ct.LARGE_PAGE_SIZE
TEXT = Region("operation text", ct.OPERATION_BASE, ct.OPERATION_BASE + 0x3000, execute=True)
OWN = Region("operation data", ct.OPERATION_BASE + 0x3000, ct.OPERATION_BASE + 0x5000, write=True)
REGIONS = [*fixed_regions(2, COLD), TEXT, OWN]
BLOCK, ROOM = ct.ARENA_BASE, ct.ARENA_BASE + 0x1000
COMMANDS = {name: number for name, number in vars(ct).items() if name.startswith("COMMAND_")}

#: What came of a ring: a signal with the result, or why the run is over.
Verdict = tuple[str, int]
PROTOCOL: Verdict = ("protocol", 0)


def edges(regions: Sequence[Region]) -> list[int]:
    """0, 1, all ones and the like, and both sides of every edge."""
    found = {0, 1, 2, 3, 8, 23, 24, 25, 64, 2**31, 2**32 - 1, 2**32, 2**47, 2**63 - 1, 2**63, ONES - 7, ONES}
    found |= {ct.CONTROL_TEXT_MAX, ct.CONTROL_TEXT_MAX + 1, ct.REPORT_BUFFER, ct.REPORT_BUFFER + 1, len(CONTENT)}
    for region in regions:
        for edge in (region.start, region.end):
            found |= {edge - 65, edge - 64, edge - 25, edge - 24, edge - 8, edge - 1, edge, edge + 1}
    return sorted(value for value in found if value <= ONES)


EDGES = edges(REGIONS)


class Doorbell:
    """The devices of a machine with two disks, and nobody in the guest."""

    def __init__(self) -> None:
        self.memory = GuestMemory(COLD)
        self.memory.allow(REGIONS)
        self.rights = MachineMemory(REGIONS, 0, b"")
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  (closed below)
        self.file.write(CONTENT)
        self.file.flush()
        self.bus = Bus(2, self.memory)
        fixed = DeviceSpec(self.file.fileno(), len(CONTENT))
        grows = DeviceSpec(self.file.fileno(), len(CONTENT), False, True, len(CONTENT))
        self.events: list[Event] = []
        self.bus.begin_run(Job(b"", b"", (fixed, grows), Limits(), 2, True), self.events.append)

    def close(self) -> None:
        self.bus.end_run()
        self.file.close()
        self.memory.close()

    def ring(self, command: int, arguments: Sequence[int], block: int = BLOCK) -> Verdict:
        """Ring and see."""
        data = struct.pack(ct.CONTROL_BLOCK_FORMAT, command, 0, 77, *[*arguments, 0, 0, 0, 0, 0, 0][:6])
        if self.rights.holds(block, len(data), True):
            self.memory.put(block, data)
        try:
            signal = self.bus.write(ct.CONTROL_BASE, block, 8)
        except ProtocolViolation:
            return PROTOCOL
        except RunAborted:
            return "aborted", 0
        except LimitExceeded:
            return "limit", 0
        result = struct.unpack("<q", self.memory.get(block + 8, 8))[0]
        return {CONTINUE: "go on", READY: "ready", DONE: "done"}[signal], result

    # What has to come of it.

    def _batch(self, address: int, length: int) -> bool:
        """Whether a batch is one: memory is all zero, so that any but an empty one has a message without bytes."""
        return length == 0

    def _text(self, address: int, length: int) -> bool:
        return length <= ct.CONTROL_TEXT_MAX and self.rights.holds(address, length, False)

    def expected(self, command: int, a: Sequence[int]) -> Verdict:
        a = [*a, 0, 0, 0, 0, 0, 0][:6]
        good: Verdict = ("go on", 0)
        if command == ct.COMMAND_READY:
            return "ready", 0
        if command == ct.COMMAND_DONE:
            return ("done", 0) if self._batch(a[1], a[2]) else PROTOCOL
        if command == ct.COMMAND_ABORT:
            return ("aborted", 0) if self._text(a[0], a[1]) and self._batch(a[3], a[4]) else PROTOCOL
        if command == ct.COMMAND_LOG:
            return good if 1 <= a[0] <= 4 and self._text(a[1], a[2]) else PROTOCOL
        if command == ct.COMMAND_PROGRESS:
            return good
        if command == ct.COMMAND_EMIT:
            return good if self._batch(a[0], a[1]) else PROTOCOL
        if command == ct.COMMAND_BLOCK_STATUS:
            return self._status(*a[:5])
        if command == ct.COMMAND_SET_LENGTH:
            return "go on", self._resize(a[0], a[1])
        if command == ct.COMMAND_BUDGET:
            return good if self.rights.holds(a[0], ct.BUDGET_SIZE, True) else PROTOCOL
        if command == ct.COMMAND_DEVICE_ERROR:
            return ("go on", -ct.ERROR_NO_DEVICE) if a[0] > 1 else ("either", 0)
        return PROTOCOL

    def _status(self, device: int, offset: int, length: int, address: int, capacity: int) -> Verdict:
        if device > 1:
            return "go on", -ct.ERROR_NO_DEVICE
        if capacity == 0:
            return "go on", -ct.ERROR_INVALID
        if offset + length > len(CONTENT):
            return "go on", -ct.ERROR_RANGE
        if not self.rights.holds(address, min(capacity, 1024) * ct.EXTENT_SIZE, True):
            return "go on", -ct.ERROR_INVALID
        return "go on", 1 if length else 0

    def _resize(self, device: int, length: int) -> int:
        if device > 1:
            return -ct.ERROR_NO_DEVICE
        if device == 0:
            return -ct.ERROR_READ_ONLY
        return 0 if length <= len(CONTENT) else -ct.ERROR_NO_SPACE

    def judge(self, command: int, arguments: Sequence[int]) -> Verdict:
        """Ring, compare, and put back what may have changed."""
        found, wanted = self.ring(command, arguments), self.expected(command, arguments)
        assert found == wanted or wanted[0] == "either", (command, [hex(a) for a in arguments], found, wanted)
        self.file.truncate(len(CONTENT))
        for block in self.bus.blocks:
            assert block.backend is not None
            block.backend.length = len(CONTENT)
        self.memory.put(ROOM, bytes(ct.EXTENT_SIZE))
        if wanted[0] == "go on" and command in (ct.COMMAND_BUDGET, ct.COMMAND_BLOCK_STATUS):
            address = arguments[3] if command == ct.COMMAND_BLOCK_STATUS else arguments[0]
            if self.rights.holds(address, 32, True):
                self.memory.put(address, bytes(32))
        return wanted


@pytest.fixture(scope="module")
def doorbell() -> Iterator[Doorbell]:
    made = Doorbell()
    yield made
    made.close()


#: Arguments that are right, for each command.
RIGHT: dict[str, tuple[int, ...]] = {
    "COMMAND_READY": (),
    "COMMAND_DONE": (0, ROOM, 0),
    "COMMAND_ABORT": (ROOM, 8, 0, ROOM, 0),
    "COMMAND_LOG": (1, ROOM, 8),
    "COMMAND_PROGRESS": (1, 2),
    "COMMAND_EMIT": (ROOM, 0),
    "COMMAND_BLOCK_STATUS": (1, 0, len(CONTENT), ROOM, 1),
    "COMMAND_SET_LENGTH": (1, len(CONTENT)),
    "COMMAND_BUDGET": (ROOM,),
    "COMMAND_DEVICE_ERROR": (0,),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_at_every_edge(doorbell: Doorbell, name: str) -> None:
    verdicts = set()
    for place in range(6):
        for value in EDGES:
            arguments = [*RIGHT[name], 0, 0, 0, 0, 0, 0][:6]
            arguments[place] = value
            verdicts.add(doorbell.judge(COMMANDS[name], arguments))
    assert len(verdicts) > 1 or name in ("COMMAND_READY", "COMMAND_PROGRESS")


@pytest.mark.parametrize(
    ("name", "address", "length"),
    [("COMMAND_LOG", 1, 2), ("COMMAND_ABORT", 0, 1), ("COMMAND_EMIT", 0, 1), ("COMMAND_BLOCK_STATUS", 3, 4)],
)
def test_every_pair_of_address_and_length(doorbell: Doorbell, name: str, address: int, length: int) -> None:
    for where in EDGES:
        for size in (0, 1, 2, 7, 8, 9, 24, 63, 64, 65, 1024, ct.CONTROL_TEXT_MAX, ct.REPORT_BUFFER, 2**32 - 1, ONES):
            arguments = [*RIGHT[name], 0, 0, 0, 0, 0, 0][:6]
            arguments[address], arguments[length] = where, size
            doorbell.judge(COMMANDS[name], arguments)


def test_every_command_number(doorbell: Doorbell) -> None:
    known = set(COMMANDS.values())
    for command in (*range(64), 255, 256, 2**16, 2**31, 2**32 - 1):
        if command not in known:
            assert doorbell.ring(command, (ROOM, 0, 0, 0, 0, 0)) == PROTOCOL


def test_the_block_at_every_edge(doorbell: Doorbell) -> None:
    seen = set()
    for where in EDGES:
        verdict = doorbell.ring(ct.COMMAND_PROGRESS, (1, 2), where)
        fits = doorbell.rights.holds(where, struct.calcsize(ct.CONTROL_BLOCK_FORMAT), True)
        assert verdict == (("go on", 0) if fits else PROTOCOL), hex(where)
        seen.add(verdict)
        if fits:
            doorbell.memory.put(where, bytes(64))
    assert len(seen) == 2


def test_an_answer_over_its_own_block(doorbell: Doorbell) -> None:
    """What the device writes for the command and the result share their bytes; the result wins, and no more is lost."""
    for shift in range(-64, 64, 8):
        assert doorbell.ring(ct.COMMAND_BUDGET, (BLOCK + 0x100 + shift,), BLOCK + 0x100) == ("go on", 0)
        arguments = (1, 0, len(CONTENT), BLOCK + 0x100 + shift, 1)
        assert doorbell.ring(ct.COMMAND_BLOCK_STATUS, arguments, BLOCK + 0x100) == ("go on", 1)


def test_nothing_else_was_written(doorbell: Doorbell) -> None:
    """After all that: outside of what ring 3 may write, memory is as it was, which is empty."""
    data = bytearray(doorbell.memory.all[:RAM_SIZE])
    for region in REGIONS:
        if region.write and region.user and not region.device and not region.large:
            data[region.start - ct.RAM_BASE : region.end - ct.RAM_BASE] = bytes(region.end - region.start)
    assert not any(data)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryFile() as file:
        file.write(CONTENT)
        file.flush()
        made = Bench((DeviceSpec(file.fileno(), len(CONTENT)),) * 2)
        yield made
        made.close()


@pytest.mark.kvm
class TestFromRing3:
    @pytest.mark.parametrize("name", COMMANDS)
    def test_arguments_at_edges(self, bench: Bench, name: str) -> None:
        kinds = set()
        for place in range(max(1, len(RIGHT[name]))):
            for value in (0, 1, 25, 2**32 - 1, 2**63, ONES, ct.CONTROL_BASE, ct.SYSTEM_BASE, ct.RUNTIME_BASE):
                arguments = [*RIGHT[name], 0][: max(1, len(RIGHT[name]))]
                arguments[place] = value
                outcome = bench.run(Steps().ring(COMMANDS[name], *arguments)).outcome
                kinds.add(None if outcome.failure is None else outcome.failure.kind)
        assert kinds <= {None, FailureKind.PROTOCOL, FailureKind.PANIC}
        bench.check_clean()

    @pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
    @pytest.mark.parametrize("offset", [0, 1, 4, 8, 2048, ct.PAGE_SIZE - 16])
    def test_the_page_of_the_doorbell(self, bench: Bench, size: int, offset: int) -> None:
        for value in (0, 1, ONES, ct.SYSTEM_BASE, ct.CONTROL_BASE):
            failure = bench.run(Steps().write(ct.CONTROL_BASE + offset, value, size)).outcome.failure
            assert failure is not None
            assert failure.kind == FailureKind.PROTOCOL
        if size < 16:
            assert bench.run(Steps().read(ct.CONTROL_BASE + offset, size)).results == [0]
        bench.check_clean()
