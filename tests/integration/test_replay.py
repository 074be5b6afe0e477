"""Recorded runs repeat without their images: on real machines, from the command line and below it."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cbor2
import pytest
import zstandard
from pycddl import Schema, ValidationError

import vmm
from examples.build import build_c, build_zig
from tests.images import raw_writer
from tests.integration import command
from tests.integration.exerciser import MEMORY, Exerciser
from tests.machines import hostile_operation, job
from vmm.boundary import DeviceSpec, Event, FailureKind, Job, Limits, MessageEvent, Outcome, TraceEvent
from vmm.cbor import decode, encode
from vmm.cli.main import main
from vmm.devices.trace import CALLS
from vmm.errors import GuestFailedError, LimitReachedError, OperationLoadError
from vmm.machine.runner import MachineRunner
from vmm.record import replace
from vmm.replay.player import Player, Verdict
from vmm.replay.reader import BundleReader
from vmm.replay.recorder import Recorder
from vmm.replay.writer import BundleWriter

pytestmark = pytest.mark.kvm


@dataclass(frozen=True)
class Answer:
    status: int
    out: str
    err: str

    @property
    def last(self) -> str:
        return self.out.splitlines()[-1]


@pytest.fixture(scope="module")
def runner() -> Iterator[MachineRunner]:
    with MachineRunner() as made:
        yield made


Command = Callable[..., Answer]


@pytest.fixture
def pyvmm(runner: MachineRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command inside this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Answer:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(words, runner)
        return Answer(status, out.getvalue(), err.getvalue())

    return run


def items(path: Path | str) -> list[list[Any]]:
    """The items of a bundle that follow its header."""
    found: list[list[Any]] = []
    with BundleReader(str(path)) as reader:
        while reader.next_run() is not None:
            found.append(["run"])
            for event in reader.events():
                if isinstance(event, TraceEvent):
                    found.append(["trace", event.payload])
                elif isinstance(event, MessageEvent):
                    found.append(["message", event.payload])
            found.append(["end", reader.end])
    return found


def messages(path: Path | str) -> list[Any]:
    return [cbor2.loads(item[1]) for item in items(path) if item[0] == "message"]


def rewrite(path: Path | str, change: Callable[[list[list[Any]]], None]) -> None:
    """Change the items of a bundle, its header and run items included."""
    taken: list[list[Any]] = []
    with BundleReader(str(path)) as reader:
        from vmm.replay import reader as module

        real = module.BundleReader._item

        def item(self: BundleReader) -> tuple[str, list[Any]]:
            name, fields = real(self)
            taken.append([name, *fields])
            return name, fields

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module.BundleReader, "_item", item)
            while reader.next_run() is not None:
                for _ in reader.events():
                    pass
    change(taken)
    writer = BundleWriter(str(path), 1 << 30)
    for entry in taken:
        writer.item(entry)
    writer.commit()
    writer.close()


# --- the operations of the package ------------------------------------------------------------------------------------

IMAGES: dict[str, tuple[str, ...]] = {
    "raw": ("-f", "raw", "image", "10M"),
    "dynamic-vhd": ("-f", "vpc", "image", "10M"),
    "fixed-vhd": ("-f", "vpc", "-o", "subformat=fixed", "image", "10M"),
    "qcow2": ("-f", "qcow2", "image", "10G"),
    "preallocated-qcow2": ("-f", "qcow2", "-o", "preallocation=metadata,cluster_size=4k", "image", "64M"),
}
RUNS: dict[str, tuple[str, ...]] = {
    "info": ("info",),
    "info-json": ("info", "--output=json"),
    "check": ("check",),
    "measure-raw": ("measure",),
    "measure-qcow2": ("measure", "-O", "qcow2", "-o", "cluster_size=4k"),
    "measure-vpc": ("measure", "-O", "vpc"),
    "verbose": ("info", "-vv"),
}


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("run", RUNS)
def test_replay_without_the_image(pyvmm: Command, image: str, run: str) -> None:
    assert pyvmm("run", "create", *IMAGES[image]).status == 0
    plain = pyvmm("run", *RUNS[run], "image")
    recorded = pyvmm("run", *RUNS[run], "--record", "run.pyvmm", "image")
    assert recorded == plain
    os.unlink("image")
    answer = pyvmm("replay", "run.pyvmm")
    assert (answer.status, answer.err) == (0, "")
    assert answer.last.startswith("run.pyvmm: reproduced: status "), answer.last
    shown = [json.loads(line) for line in answer.out.splitlines()[:-1]]
    assert [[line["message"], line["fields"]] for line in shown] == json.loads(
        json.dumps(messages("run.pyvmm"), default=bytes.hex)
    )
    assert len(shown) >= 1
    assert os.path.getsize("run.pyvmm") < 32 << 10


CREATE: dict[str, tuple[str, ...]] = {
    **IMAGES,
    "terabyte": ("-f", "qcow2", "image", "1T"),
    "full": ("-f", "qcow2", "-o", "preallocation=full", "image", "5M"),
    "falloc": ("-f", "raw", "-o", "preallocation=falloc", "image", "5M"),
    "data-file": ("-f", "qcow2", "-o", "data_file=data,data_file_raw=on", "image", "5M"),
}


@pytest.mark.parametrize("image", CREATE)
def test_replay_of_create(pyvmm: Command, image: str) -> None:
    fixed = ("--unix-time", "1700000000", "--uuid", "00112233445566778899aabbccddeeff")
    assert pyvmm("run", "create", *fixed, *CREATE[image]).status == 0
    plain = Path("image").read_bytes()
    assert pyvmm("run", "create", *fixed, "--record", "run.pyvmm", *CREATE[image]).status == 0
    assert Path("image").read_bytes() == plain
    os.unlink("image")
    answer = pyvmm("replay", "run.pyvmm")
    assert (answer.status, answer.err) == (0, "")
    assert not os.path.exists("image")
    once = Path("run.pyvmm").read_bytes()
    assert pyvmm("run", "create", *fixed, "--record", "run.pyvmm", *CREATE[image]).status == 0
    assert Path("run.pyvmm").read_bytes() == once


def test_several_files_in_one_bundle(pyvmm: Command) -> None:
    for name in ("one", "two"):
        assert pyvmm("run", "create", "-f", "qcow2", name, "1M").status == 0
    recorded = pyvmm("run", "check", "--record", "run.pyvmm", "one", "missing", "two")
    assert recorded.status == 1
    answer = pyvmm("replay", "-q", "run.pyvmm")
    assert answer.status == 0
    assert len(answer.out.splitlines()) == 2


def test_json(pyvmm: Command) -> None:
    pyvmm("run", "create", "-f", "qcow2", "image", "1M")
    pyvmm("run", "info", "--record", "run.pyvmm", "image")
    answer = pyvmm("replay", "--output=json", "run.pyvmm")
    verdict = json.loads(answer.last)["replay"]
    assert verdict["verdict"] == "reproduced"
    assert verdict["exit-status"] == verdict["status"] == 0
    assert verdict["device-calls"] == verdict["recorded-device-calls"] > 3
    assert 0 < verdict["image-bytes"] < 1 << 20


def test_a_hundred_gigabytes_travel_as_kilobytes(pyvmm: Command) -> None:
    size = 100 << 30
    small = raw_writer.gpt(1 << 20, [raw_writer.Partition(b"p" * 16, 64, 100)])
    with open("image", "wb") as file:
        file.truncate(size)
        file.write(small[: 1 << 16])
        for place in range(1 << 30, size, 10 << 30):
            file.seek(place)
            file.write(os.urandom(4096))
    for words in (("info",), ("measure", "-O", "qcow2"), ("measure",)):
        recorded = pyvmm("run", *words, "--record", "run.pyvmm", "image")
        assert recorded.status == 0
        assert os.path.getsize("run.pyvmm") < 32 << 10
        assert pyvmm("replay", "run.pyvmm").status == 0


# --- operations of one's own ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("examples")
    return {"c": build_c(folder), "zig": build_zig(folder)}


@pytest.mark.parametrize("language", ["c", "zig"])
def test_an_operation_of_ones_own(pyvmm: Command, examples: dict[str, Path], language: str) -> None:
    elf = str(examples[language])
    content = os.urandom(70_000) + bytes(3 << 20) + b"end"
    Path("image").write_bytes(content)
    recorded = pyvmm("run", elf, "--record", "run.pyvmm", "image")
    os.unlink("image")
    missing = pyvmm("replay", "run.pyvmm")
    assert missing.status == 64
    assert "give its ELF with --op-elf" in missing.err
    answer = pyvmm("replay", "--op-elf", elf, "run.pyvmm")
    assert answer.status == 0
    assert answer.out.splitlines()[0] == recorded.out.rstrip("\n").replace('"image"', '"run.pyvmm"')
    assert f"bytes of the image: {len(content)}" in answer.last
    other = pyvmm("replay", "--op-elf", str(examples["zig" if language == "c" else "c"]), "run.pyvmm")
    assert other.status == 64
    assert other.err.count("SHA-256") == 1
    assert "is not the one that was recorded" in other.err


def test_another_runtime(pyvmm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    pyvmm("run", "create", "image", "1M")
    pyvmm("run", "info", "--record", "run.pyvmm", "image")
    monkeypatch.setattr("vmm.replay.player.load_runtime", lambda: b"another")
    answer = pyvmm("replay", "run.pyvmm")
    assert answer.status == 1
    assert "with another guest runtime: SHA-256 " in answer.err


# --- guests that fail, at the boundary --------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[DeviceSpec]:
    path = tmp_path / "disk"
    path.write_bytes(bytes(range(256)) * 4096)
    fd = os.open(path, os.O_RDWR)
    yield DeviceSpec(fd, 1 << 20)
    os.close(fd)


def record(runner: MachineRunner, path: Path, work: Job, on_event: Callable[[Event], None] | None = None) -> Outcome:
    recorder = Recorder(runner, str(path))
    try:
        outcome = recorder.run(work, on_event or (lambda _: None))
        assert recorder.commit()
        return outcome
    finally:
        recorder.close()


def replay(runner: MachineRunner, path: Path, elf: bytes, **options: Any) -> Verdict:
    (verdict,) = Player(runner, elf=elf, **options).replay(str(path))
    return verdict


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


def refuse(event: Event) -> None:
    """A caller that wants no messages."""
    if isinstance(event, MessageEvent):
        raise GuestFailedError("the guest emitted nonsense")


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


def exercise(exerciser: Exerciser, steps: list[dict[str, Any]], *devices: DeviceSpec) -> Job:
    request = cbor2.dumps({"steps": steps}, canonical=True)
    return Job(exerciser.elf, request, devices, Limits(max_memory=MEMORY))


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


def test_the_real_command(tmp_path: Path) -> None:
    assert command.run("run", "create", "-f", "vpc", "image", "1M", cwd=tmp_path).status == 0
    done = command.run("run", "measure", "--record", "run.pyvmm", "-O", "qcow2", "image", cwd=tmp_path)
    assert (done.status, done.err) == (0, "")
    (tmp_path / "image").unlink()
    done = command.run("replay", "-v", "run.pyvmm", cwd=tmp_path)
    assert (done.status, done.err) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["run.pyvmm"]


# --- the specification ------------------------------------------------------------------------------------------------

DOCUMENT = Path(__file__).resolve().parent.parent.parent / "docs" / "bundle.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")


CDDL = "".join(re.findall(r"^```cddl\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))


def validate(rule: str, encoded: bytes) -> None:
    """An item against one rule: pycddl panics where arrays of a choice differ in length."""
    Schema(f"start = {rule}\n{CDDL}").validate_cbor(encoded)


def test_bundles_are_as_specified(
    pyvmm: Command, runner: MachineRunner, exerciser: Exerciser, disk: DeviceSpec, tmp_path: Path
) -> None:
    writable = replace(disk, read_only=False, resizable=True, max_length=3 << 20)
    calls = [
        *("read", "write-zeroes", "discard", "flush", "block-status"),
        *("write", "set-length", "read", "set-length"),
    ]
    steps = [
        {"call": call, "offset": 4090, "length": 5 << 20 if number == 8 else 4096, "data": b"data"}
        for number, call in enumerate(calls)
    ]
    recorder = Recorder(runner, "run.pyvmm")
    recorder.run(exercise(exerciser, steps, writable), lambda _: None)
    for name in ("divide", "panic", "innocent", "dma_text", "wrong_cbor", "log_flood", "read_flood"):
        recorder.run(replace(job(name, (disk,), max_messages=5, max_read=1 << 16), log_level=4), lambda _: None)
    recorder.run(job("spin", (disk,), timeout=0.05), lambda _: None)
    with pytest.raises(GuestFailedError):
        recorder.run(job("wrong_cbor", (disk,)), refuse)
    recorder.commit()
    recorder.close()
    content = Path("run.pyvmm").read_bytes()
    assert content[:10].hex(" ") in TEXT.replace("| 0 to 7 | `", "").replace("0a`", "0a 00 01`")
    source = io.BytesIO(zstandard.ZstdDecompressor().decompressobj().decompress(content[10:]))
    kinds = set()
    while source.tell() < len(source.getvalue()):
        item = cbor2.CBORDecoder(source, read_size=1).decode()
        validate(f"{item[0]}-item", cbor2.dumps(item))
        kinds.add(item[0])
        if item[0] == "trace":
            kind = cbor2.loads(item[1])[0]
            kinds.add(kind)
            validate("data-piece" if kind == "data" else f"{kind}-call", item[1])
    assert kinds == {"header", "run", "trace", "message", "log", "end", "data", *CALLS}
    with pytest.raises(ValidationError):
        validate("flush-call", cbor2.dumps(["flush", 0, [1], None]))
    with pytest.raises(ValidationError):
        validate("end-item", cbor2.dumps(["end", {"outcome": None}]))


def test_the_example(pyvmm: Command) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    pyvmm("run", "create", "-f", "qcow2", "disk.qcow2", "1M")
    exec(compile(example, "docs/bundle.md", "exec"), {"vmm": vmm})


# --- bundles that were changed ----------------------------------------------------------------------------------------


def _trace(found: list[list[Any]], kind: str, number: int = 0) -> list[Any]:
    """The item of a bundle with the given call."""
    return [item for item in found if item[0] == "trace" and cbor2.loads(item[1])[0] == kind][number]


def _set(item: list[Any], place: tuple[int, ...], value: object) -> None:
    entry = cbor2.loads(item[1])
    inner = entry
    for index in place[:-1]:
        inner = inner[index]
    inner[place[-1]] = value
    item[1] = encode(entry)


def _data(found: list[list[Any]]) -> None:
    item = _trace(found, "data")
    content = bytearray(cbor2.loads(item[1])[3])
    content[30] ^= 1
    _set(item, (3,), bytes(content))


def _drop(kind: str) -> Callable[[list[list[Any]]], None]:
    return lambda found: found.remove(_trace(found, kind))


def _outcome(**changes: object) -> Callable[[list[list[Any]]], None]:
    return lambda found: found[-1][1]["outcome"].update(changes)


def _refusal(found: list[list[Any]]) -> None:
    found.insert(-1, ["message", b"\x80"])
    found[-1][1] = {"refused": {"code": "x", "message": "why"}}


CHANGES: dict[str, tuple[Callable[[list[list[Any]]], None], str]] = {
    "offset": (
        lambda found: _set(_trace(found, "read", 1), (2, 0), 77),
        "device call 4: recorded: read of device 0, offset 77, length ",
    ),
    "a missing call": (_drop("allocated"), "device call 2: recorded: read of device 0"),
    "a missing last call": (
        lambda found: found.remove(_trace(found, "read", -1)),
        "the recorded run had ended its calls; now came: read of device 0",
    ),
    "a call too many": (
        lambda found: found.insert(-1, ["trace", encode(["flush", 0, [], None])]),
        "recorded device calls",
    ),
    "other bytes": (_data, "device call 3: read of device 0, offset 0, length 512 answers other bytes"),
    "another sum": (
        lambda found: _set(_trace(found, "read"), (4,), 5),
        "device call 3: read of device 0, offset 0, length 512 answers other bytes",
    ),
    "an error": (lambda found: _set(_trace(found, "read"), (3,), "no"), "device call 3: the record is damaged"),
    "nonsense": (lambda found: found.insert(1, ["trace", encode(["x", {}])]), "device call 1: the record is damaged"),
    "a message": (
        lambda found: next(i for i in found if i[0] == "message").__setitem__(1, b"\x82echeck\xa0"),
        "message 1 differs at its byte 7: recorded a0, now b0",
    ),
    "a message too many": (
        lambda found: found.insert(-1, ["message", b"\xa0"]),
        "1 of 2 recorded messages and log lines did not come",
    ),
    "no message": (
        lambda found: found.remove(next(item for item in found if item[0] == "message")),
        "message 1 came after all that were recorded",
    ),
    "status": (_outcome(status=3), "status: recorded 3, now 0"),
    "length": (_outcome(**{"device-lengths": [5]}), "device-lengths.0: recorded 5, now "),
    "device error": (_outcome(**{"device-errors": ["bad"]}), "device-errors.0: recorded bad, now None"),
    "failure": (
        _outcome(status=None, failure={"kind": "panic", "message": "no"}),
        "status: recorded None, now 0",
    ),
    "the request": (
        lambda found: found[0][1].update(request=encode({"format": "raw"})),
        "message 1 differs at its byte 2: recorded 63",
    ),
    "a refusal": (
        _refusal,
        "the report of the recorded run was refused (why), this one's was not",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_bundle_is_not_reproduced(pyvmm: Command, name: str) -> None:
    change, said = CHANGES[name]
    assert pyvmm("run", "create", "-f", "qcow2", "image", "1G").status == 0
    assert pyvmm("run", "check", "--record", "run.pyvmm", "image").status == 0
    rewrite("run.pyvmm", change)
    answer = pyvmm("replay", "run.pyvmm")
    assert answer.status == 1
    assert answer.last.startswith("run.pyvmm: not reproduced: "), answer
    assert said in answer.last
    verdict = json.loads(pyvmm("replay", "--output=json", "run.pyvmm").last)["replay"]
    assert (verdict["verdict"], verdict["exit-status"]) == ("not-reproduced", 1)
    assert said in verdict["difference"]


def test_registers_are_compared(runner: MachineRunner, disk: DeviceSpec, tmp_path: Path) -> None:
    bundle = tmp_path / "run.pyvmm"
    record(runner, bundle, job("divide", (disk,)))
    rewrite(bundle, lambda found: found[-1][1]["outcome"]["failure"]["registers"].update(rax=0xABC))
    verdict = replay(runner, bundle, hostile_operation())
    assert verdict.verdict == Verdict.DIFFERENT
    assert str(verdict.difference).startswith("failure.registers.rax: recorded 0xabc, now 0x")
    assert verdict.failure is not None
    assert verdict.failure.kind == FailureKind.EXCEPTION


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (["data", 1, 0, b"x"], "a device that the run does not have"),
        (["data", 0, 1 << 20, b"x"], "data lie outside the"),
        (["data", 0, 0, 1 << 40], "data lie outside the"),
        (["data", 0, -1, b"x"], "data lie outside the"),
        (["data", 0, b"x"], "data are no device, offset and bytes"),
        ([], "a trace is no array that begins with its kind"),
    ],
)
def test_hostile_data(pyvmm: Command, entry: list[Any], said: str) -> None:
    pyvmm("run", "create", "-f", "qcow2", "image", "1M")
    pyvmm("run", "check", "--record", "run.pyvmm", "image")
    rewrite("run.pyvmm", lambda found: found.insert(2, ["trace", encode(entry)]))
    answer = pyvmm("replay", "--output=json", "run.pyvmm")
    assert answer.status == 1
    error = json.loads(answer.out)["error"]
    assert (error["code"], error["item"]) == ("bundle", 4)
    assert said in error["message"]


# --- limits, and files that must not be replaced ----------------------------------------------------------------------


def test_max_record(pyvmm: Command) -> None:
    pyvmm("run", "create", "-f", "qcow2", "image", "1G")
    answer = pyvmm("run", "check", "--max-record", "1k", "--record", "run.pyvmm", "--output=json", "image")
    assert answer.status == 75
    error = json.loads(answer.out)["error"]
    assert (error["limit"], error["value"]) == ("max-record", 1024)
    assert "nothing is recorded in 'run.pyvmm'" in answer.err
    assert sorted(os.listdir()) == ["image"]
    pyvmm("run", "check", "--record", "run.pyvmm", "image")
    answer = pyvmm("replay", "--max-record", "1k", "run.pyvmm")
    assert answer.status == 75
    assert "max-record is 1024" in answer.err
    assert pyvmm("run", "check", "--max-record", "1k", "image").status == 64


def test_a_bundle_may_not_ask_for_more_than_is_allowed(runner: MachineRunner, disk: DeviceSpec, tmp_path: Path) -> None:
    bundle = tmp_path / "run.pyvmm"
    work = job("innocent", (disk,), max_messages=5_000_000)
    record(runner, bundle, work)
    with pytest.raises(LimitReachedError, match="max-messages 5000000, more than the 1000000"):
        replay(runner, bundle, work.elf)
    assert replay(runner, bundle, work.elf, limits=Limits(max_messages=5_000_000)).verdict == Verdict.REPRODUCED


def test_the_record_never_replaces_a_file_of_the_run(pyvmm: Command) -> None:
    pyvmm("run", "create", "-f", "qcow2", "image", "1M")
    before = Path("image").read_bytes()
    os.link("image", "hard")
    os.symlink("image", "soft")
    for words in (
        ("check", "--record", "image", "image"),
        ("check", "--record", "./image", "image"),
        ("check", "--record", "hard", "image"),
        ("check", "-L", "--record", "image", "soft"),
        ("create", "--record", "new", "new", "1M"),
        ("create", "-f", "qcow2", "-o", "data_file=data", "--record", "data", "new", "1M"),
    ):
        answer = pyvmm("run", *words)
        assert answer.status == 64, words
        assert "The record would replace a file of the run" in answer.err
    assert Path("image").read_bytes() == before
    assert sorted(os.listdir()) == ["hard", "image", "soft"]


def test_a_run_that_never_began_is_no_record(pyvmm: Command) -> None:
    pyvmm("run", "create", "image", "1M")
    answer = pyvmm("run", "info", "--record", "run.pyvmm", "missing")
    assert answer.status == 1
    assert "nothing is recorded in 'run.pyvmm'" in answer.err
    Path("no.elf").write_bytes(b"\x7fELF")
    assert pyvmm("run", "info", "--op-elf", "no.elf", "--record", "run.pyvmm", "image").status == 64
    assert sorted(os.listdir()) == ["image", "no.elf"]
    assert pyvmm("run", "info", "--record", "no/such/folder", "image").status == 1


def test_words(pyvmm: Command) -> None:
    assert pyvmm("replay").status == 64
    assert pyvmm("replay", "a", "b").status == 64
    assert pyvmm("replay", "--zork").status == 64
    assert pyvmm("replay", "missing").status == 1
    assert "--op-elf PATH" in pyvmm("replay", "--help").out


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
