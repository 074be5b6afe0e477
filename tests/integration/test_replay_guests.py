"""Guests that fail, runs that are ended, files that fail or change: recorded, and repeated."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.exerciser import Exerciser
from tests.integration.recording import Command, exercise, items, record, refuse, replay, rewrite
from tests.machines import hostile_operation, job
from vmm.boundary import DeviceSpec, Event, Job, Limits, MessageEvent, Outcome, TraceEvent
from vmm.cbor import decode
from vmm.errors import GuestFailedError, LimitReachedError, OperationLoadError
from vmm.machine.runner import MachineRunner
from vmm.record import replace
from vmm.replay.player import Verdict
from vmm.replay.recorder import Recorder

pytestmark = pytest.mark.kvm


# --- guests that fail, at the boundary --------------------------------------------------------------------------------


FAILING: dict[str, dict[str, int]] = {
    **{name: {} for name in ("panic", "stack_overflow", "write_text", "jump_to_null", "read_page_zero", "divide")},
    **{name: {} for name in ("undefined", "breakpoint", "non_canonical", "halt", "read_and_divide", "ready_again")},
    **{name: {} for name in ("unknown_command", "endless_text", "batch_too_long", "report_from_system")},
    **{name: {} for name in ("odd_doorbell", "dma_text", "dma_ring0_stack")},
    "message_flood": {"max_messages": 1000},
    "report_flood": {"max_report": 1 << 20},
    "read_flood": {"max_read": 1 << 16},
}
COMPLETING = (
    *("nonsense_ring", "looped_ring", "wrong_cbor", "garbage_status", "innocent", "soil"),
    *("dma_page_zero", "dma_wrap"),
)


@pytest.mark.parametrize("name", [*FAILING, *COMPLETING])
def test_hostile_guests(runner: MachineRunner, disk: DeviceSpec, tmp_path: Path, name: str) -> None:
    bundle = tmp_path / "run.pyvmm"
    work = job(name, (disk,), **FAILING.get(name, {}))
    seen: list[Event] = []
    outcome = record(runner, bundle, work, seen.append)
    assert (outcome.failure is not None) == (name in FAILING)
    os.ftruncate(disk.fd, 0)
    again: list[bytes] = []
    verdict = replay(runner, bundle, work.elf, on_message=again.append)
    assert (verdict.verdict, verdict.difference) == (Verdict.REPRODUCED, None)
    assert (verdict.status, verdict.failure) == (outcome.status, outcome.failure)
    assert again == [event.payload for event in seen if isinstance(event, MessageEvent)]


def test_the_log_is_compared(runner: MachineRunner, disk: DeviceSpec, tmp_path: Path) -> None:
    bundle = tmp_path / "run.pyvmm"
    work = replace(job("log_flood", (disk,), max_messages=50), log_level=1)
    record(runner, bundle, work)
    lines: list[tuple[int, bytes]] = []
    verdict = replay(runner, bundle, work.elf, on_log=lambda *line: lines.append(line))
    assert (verdict.verdict, len(lines)) == (Verdict.REPRODUCED, 50)

    def change(found: list[list[Any]]) -> None:
        next(item for item in found if item[0] == "log")[2] = b"something else"

    rewrite(bundle, change)
    verdict = replay(runner, bundle, work.elf)
    assert verdict.verdict == Verdict.DIFFERENT
    assert str(verdict.difference).startswith("a line of the log (event 1) differs at its byte 0")


@pytest.mark.parametrize("name", ["spin", "spin_on_exits"])
def test_a_timeout_cannot_be_repeated(runner: MachineRunner, disk: DeviceSpec, tmp_path: Path, name: str) -> None:
    bundle = tmp_path / "run.pyvmm"
    work = job(name, (disk,), timeout=0.1)
    outcome = record(runner, bundle, work)
    assert outcome.failure is not None
    verdict = replay(runner, bundle, work.elf)
    assert verdict.verdict == Verdict.TIMEOUT
    assert "the clock ended the recorded run" in str(verdict.difference)
    assert "2 of 2 device calls were as recorded" in str(verdict.difference)


def test_a_replay_that_gets_past_a_timeout(pyvmm: Command) -> None:
    """The recorded run was ended early; what it did until then is as recorded, and no more is claimed."""
    pyvmm("run", "create", "-f", "qcow2", "image", "1M")
    pyvmm("run", "check", "--record", "run.pyvmm", "image")

    def cut(found: list[list[Any]]) -> None:
        del found[6:-1]
        timeout = {"kind": "limit", "message": "the run took longer than 0.1 s", "limit": "timeout"}
        found[-1][1]["outcome"].update(status=None, failure=timeout)

    rewrite("run.pyvmm", cut)
    answer = pyvmm("replay", "run.pyvmm")
    assert answer.status == 75
    assert "not comparable: the clock ended the recorded run" in answer.last
    verdict = json.loads(pyvmm("replay", "--output=json", "run.pyvmm").last)["replay"]
    assert (verdict["verdict"], verdict["exit-status"]) == ("ended-by-time", 75)


def test_a_replay_that_takes_too_long(runner: MachineRunner, disk: DeviceSpec, tmp_path: Path) -> None:
    bundle = tmp_path / "run.pyvmm"
    work = job("read_flood", (disk,), max_read=16 << 20)
    record(runner, bundle, work)
    verdict = replay(runner, bundle, work.elf, timeout=0.001)
    assert verdict.verdict == Verdict.TIMEOUT
    assert "the clock ended the replay (--timeout)" in str(verdict.difference)


def test_a_report_that_was_refused(runner: MachineRunner, disk: DeviceSpec, tmp_path: Path) -> None:
    bundle = tmp_path / "run.pyvmm"
    work = job("wrong_cbor", (disk,))

    recorder = Recorder(runner, str(bundle))
    with pytest.raises(GuestFailedError):
        recorder.run(work, refuse)
    assert recorder.commit()
    recorder.close()
    verdict = replay(runner, bundle, work.elf)
    assert (verdict.verdict, verdict.refusal) == (Verdict.REPRODUCED, "the guest emitted nonsense")
    assert (verdict.status, verdict.failure, verdict.messages) == (None, None, 1)


def test_a_guest_that_breaks_the_contract_of_the_command(pyvmm: Command, examples: dict[str, Path]) -> None:
    """A refused report from the command line: the bundle is there although the run ended with status 70."""
    elf = str(examples["c"])
    pyvmm("run", "create", "image", "1M")
    recorded = pyvmm("run", "check", "--op-elf", elf, "--record", "run.pyvmm", "image")
    assert recorded.status == 70
    answer = pyvmm("replay", "--op-elf", elf, "run.pyvmm")
    assert answer.status == 0
    assert "reproduced: its report is refused (the guest emitted " in answer.last


# --- files that fail or change ----------------------------------------------------------------------------------------


def test_an_io_error_is_repeated(pyvmm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    pyvmm("run", "create", "-f", "qcow2", "image", "1G")
    real = os.preadv

    def failing(fd: int, views: list[memoryview], at: int) -> int:
        if at >= 65536:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, views, at)

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", failing)
        recorded = pyvmm("run", "check", "--output=json", "--record", "run.pyvmm", "image")
    assert recorded.status == 1
    assert "Input/output error" in recorded.out
    answer = pyvmm("replay", "run.pyvmm")
    assert (answer.status, answer.err) == (0, "")
    outcome = items("run.pyvmm")[-1][1]["outcome"]
    assert "Input/output error" in outcome["device-errors"][0]


def test_a_file_that_shrinks_is_repeated(runner: MachineRunner, disk: DeviceSpec, tmp_path: Path) -> None:
    bundle = tmp_path / "run.pyvmm"
    os.ftruncate(disk.fd, 4096)
    outcome = record(runner, bundle, job("read_flood", (disk,), max_read=1 << 20))
    os.ftruncate(disk.fd, 0)
    verdict = replay(runner, bundle, hostile_operation())
    assert (verdict.verdict, verdict.difference) == (Verdict.REPRODUCED, None)
    assert verdict.failure == outcome.failure


def test_no_space_is_repeated(pyvmm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev

    def full(fd: int, views: list[memoryview], at: int) -> int:
        if at >= 65536:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, views, at)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        recorded = pyvmm("run", "create", "-f", "qcow2", "--record", "run.pyvmm", "image", "1G")
    assert recorded.status == 1
    assert not os.path.exists("image")
    assert pyvmm("replay", "run.pyvmm").status == 0


class Changing:
    """A runner whose image changes after the first read."""

    def __init__(self, runner: MachineRunner, fd: int) -> None:
        self.runner = runner
        self.fd = fd

    def run(self, work: Job, on_event: Callable[[Event], None]) -> Outcome:
        reads = 0

        def take(event: Event) -> None:
            nonlocal reads
            on_event(event)
            if isinstance(event, TraceEvent):
                item = decode(event.payload)
                assert isinstance(item, list)
                reads += item[0] == "read"
                if item[0] == "read" and reads == 1:
                    os.pwrite(self.fd, b"changed", 100)

        return self.runner.run(work, take)

    def close(self) -> None:
        raise AssertionError("a recorder does not own its runner")


def test_an_image_that_changes_meanwhile(
    runner: MachineRunner, exerciser: Exerciser, disk: DeviceSpec, tmp_path: Path
) -> None:
    bundle = tmp_path / "run.pyvmm"
    read = {"call": "read", "offset": 0, "length": 512}
    recorder = Recorder(Changing(runner, disk.fd), str(bundle))
    recorder.run(exercise(exerciser, [read, read], disk), lambda _: None)
    assert recorder.commit()
    recorder.close()
    verdict = replay(runner, bundle, exerciser.elf)
    assert verdict.verdict == Verdict.DIFFERENT
    assert str(verdict.difference).startswith(
        "device call 4: read of device 0, offset 0, length 512 answers other bytes"
    )
    assert "the image was changed while it was recorded" in str(verdict.difference)


def test_everything_that_a_guest_can_ask_of_a_device(
    runner: MachineRunner, exerciser: Exerciser, disk: DeviceSpec, tmp_path: Path
) -> None:
    bundle = tmp_path / "run.pyvmm"
    writable = replace(disk, read_only=False, resizable=True, max_length=3 << 20)
    steps: list[dict[str, Any]] = [
        {"call": "read", "offset": 4090, "length": 10},
        {"call": "write", "offset": 4000, "data": b"w" * 1000},
        {"call": "read", "offset": 3900, "length": 1200},
        {"call": "write-zeroes", "offset": 8192, "length": 65536},
        {"call": "read", "offset": 8000, "length": 400},
        {"call": "discard", "offset": 131072, "length": 65536},
        {"call": "read", "offset": 131000, "length": 512},
        {"call": "block-status", "offset": 0, "length": 1 << 20},
        {"call": "set-length", "length": 2 << 20},
        {"call": "read", "offset": (1 << 20) - 5, "length": 20},
        {"call": "write", "offset": (2 << 20) - 7, "data": b"tail"},
        {"call": "set-length", "length": 5 << 20},
        {"call": "set-length", "length": 100_000},
        {"call": "set-length", "length": 200_000},
        {"call": "read", "offset": 99_900, "length": 200},
        {"call": "flush"},
        {"call": "info"},
        {"call": "read", "device": 1, "length": 100},
        {"call": "write", "device": 1, "data": b"no"},
    ]
    other = replace(disk, length=70_000)
    seen: list[Event] = []
    outcome = record(runner, bundle, exercise(exerciser, steps, writable, other), seen.append)
    assert (outcome.status, outcome.device_lengths) == (0, (200_000, 70_000))
    verdict = replay(runner, bundle, exerciser.elf)
    assert (verdict.verdict, verdict.difference) == (Verdict.REPRODUCED, None)
    assert verdict.messages == len(steps)


def test_a_bundle_may_not_ask_for_more_than_is_allowed(runner: MachineRunner, disk: DeviceSpec, tmp_path: Path) -> None:
    bundle = tmp_path / "run.pyvmm"
    work = job("innocent", (disk,), max_messages=5_000_000)
    record(runner, bundle, work)
    with pytest.raises(LimitReachedError, match="max-messages 5000000, more than the 1000000"):
        replay(runner, bundle, work.elf)
    assert replay(runner, bundle, work.elf, limits=Limits(max_messages=5_000_000)).verdict == Verdict.REPRODUCED


def test_an_elf_that_cannot_be_loaded_leaves_the_record_usable(runner: MachineRunner, tmp_path: Path) -> None:
    recorder = Recorder(runner, str(tmp_path / "run.pyvmm"))
    work = job("innocent")
    with pytest.raises(OperationLoadError):
        recorder.run(replace(work, elf=b"no"), lambda _: None)
    recorder.run(work, lambda _: None)
    assert recorder.commit()
    recorder.close()
    assert replay(runner, tmp_path / "run.pyvmm", work.elf).verdict == Verdict.REPRODUCED


def test_an_interrupted_run_is_no_record(runner: MachineRunner, disk: DeviceSpec, tmp_path: Path) -> None:
    def interrupt(event: Event) -> None:
        raise KeyboardInterrupt

    recorder = Recorder(runner, str(tmp_path / "run.pyvmm"))
    with pytest.raises(KeyboardInterrupt):
        recorder.run(job("wrong_cbor", (disk,)), interrupt)
    assert not recorder.commit()
    recorder.close()
    assert sorted(os.listdir(tmp_path)) == ["disk"]
