"""Runs through a runner that plays canned events: requests, typed reports, every way to fail."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vmm
from calltable.messages import (
    Check,
    CheckFinding,
    Create,
    CreateOption,
    Error,
    Info,
    InfoBitmap,
    InfoLuks,
    InfoLuksSlot,
    InfoSnapshot,
    Measure,
    References,
)
from tests.unit.fake import FakeRunner, payload
from vmm.boundary import Failure, FailureKind, Job, Limits, LogEvent, MessageEvent, ProgressEvent
from vmm.cbor import decode, encode
from vmm.errors import DebuggerError
from vmm.operations import session as session_module
from vmm.operations.check import check
from vmm.operations.create import SEED_TIME, create
from vmm.operations.foreign import load_elf, run_foreign
from vmm.operations.info import info
from vmm.operations.measure import measure
from vmm.operations.names import combine_path
from vmm.operations.session import Session, is_path

MEASURE = Measure(required=1, fully_allocated=2, target="qcow2", virtual_size=3, format="raw")
INFO = Info(format="raw", virtual_size=512, file_length=512, dirty_flag=False)
CREATE = Create(format="raw", virtual_size=512, file_length=4, options=(CreateOption(name="size", value="512"),))
CHECK = Check(format="qcow2", file_length=512, check_errors=0, corruptions=0, leaks=0, findings_omitted=0)


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "image"
    path.write_bytes(b"x" * 1000)
    return str(path)


@pytest.fixture(autouse=True)
def operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """No guest is needed here."""
    monkeypatch.setattr(session_module, "load_operation", lambda name: name.encode())


def test_measure(image: str) -> None:
    runner = FakeRunner(MEASURE)
    report = measure(Session(runner), image, target="qcow2", options={"cluster_size": "4k"})
    assert (report.filename, report.required, report.fully_allocated, report.bitmaps) == (image, 1, 2, None)
    assert (report.target, report.virtual_size, report.format, report.exit_status) == ("qcow2", 3, "raw", 0)
    (job,) = runner.jobs
    assert job.elf == b"measure"
    assert decode(job.request) == {"target": "qcow2", "options": {"cluster-size": 4096}}
    (device,) = job.devices
    assert (device.length, device.read_only) == (1000, True)


def test_a_debugger_is_waited_for_before_each_run(image: str) -> None:
    runner = FakeRunner(MEASURE)
    waited: list[int] = []

    def wait(operation: str | None) -> int:
        assert operation == "measure"
        waited.append(len(runner.jobs))
        return 40 + len(waited)

    session = Session(runner, await_debugger=wait)
    measure(session, image)
    measure(session, size=512)
    # Not for a file that cannot be opened, nor a request that makes no sense.
    with pytest.raises(vmm.FileError):
        measure(session, image + "x")
    with pytest.raises(vmm.UsageError):
        measure(session, image, options={"nonsense": "x"})
    assert waited == [0, 1]
    assert [job.debugger for job in runner.jobs] == [41, 42]
    measure(Session(runner), image)
    assert runner.jobs[-1].debugger is None


def test_what_resolves_references_runs_unseen(image: str) -> None:
    """With the package's own ELF whatever --op-elf says, no debugger, no progress; then comes the operation."""
    runner = FakeRunner()

    def answer(_: Job) -> None:
        message = MEASURE if len(runner.jobs) > 1 else References(format="raw")
        runner.events = [MessageEvent(payload(message))]

    runner.act = answer
    session = Session(runner, elf=b"mine", await_debugger=lambda _: 41, on_progress=lambda *_: None)
    assert measure(session, image, chain=True).required == 1
    first, second = runner.jobs
    assert (first.elf, first.debugger, first.progress) == (b"references", None, False)
    assert decode(first.request) == {}
    assert (second.elf, second.debugger, second.progress) == (b"mine", 41, True)
    assert decode(second.request) == {"target": "raw", "files": []}


def test_a_passphrase_takes_the_operation_that_unlocks(image: str) -> None:
    """And the debugger its symbols; without one `info` runs, and ``--op-elf`` stands for both."""
    runner = FakeRunner(Info(format="raw", virtual_size=512, file_length=512, dirty_flag=False))
    waited: list[str | None] = []

    def wait(operation: str | None) -> int:
        waited.append(operation)
        return 41

    session = Session(runner, await_debugger=wait)
    info(session, image, luks_passphrase=b"secret")
    info(session, image)
    info(Session(runner, elf=b"mine"), image, luks_passphrase=b"secret")
    assert [job.elf for job in runner.jobs] == [b"unlock", b"info", b"mine"]
    assert ["passphrase" in decode(job.request) for job in runner.jobs] == [True, False, True]  # type: ignore[operator]
    assert waited == ["unlock", "info"]


def test_measure_by_size() -> None:
    runner = FakeRunner(MEASURE)
    assert measure(Session(runner), size="1M").filename is None
    assert runner.jobs[0].devices == ()
    assert decode(runner.jobs[0].request) == {"target": "raw", "size": 1 << 20}


@pytest.mark.parametrize(
    "arguments",
    [{}, {"path": "x", "size": 1}, {"size": 1, "format": "raw"}, {"size": -1}, {"size": "1", "options": {"x": "y"}}],
)
def test_measure_usage(arguments: dict[str, object]) -> None:
    runner = FakeRunner(MEASURE)
    with pytest.raises(vmm.UsageError):
        measure(Session(runner), **arguments)  # type: ignore[arg-type]
    assert runner.jobs == []


def test_info_collects_lists(image: str) -> None:
    snapshot = InfoSnapshot(id="1", name="s", vm_state_size=0, date_sec=1, date_nsec=2, vm_clock_sec=3, vm_clock_nsec=4)
    report = info(Session(FakeRunner(snapshot, snapshot, INFO)), image)
    assert report.snapshots == (snapshot, snapshot)
    assert (report.format, report.virtual_size, report.bitmaps) == ("raw", 512, ())
    assert report.actual_size == os.stat(image).st_blocks * 512


@pytest.mark.parametrize(
    ("base", "name", "full"),
    [
        ("a.qcow2", "b", "b"),
        ("/x/a.qcow2", "b", "/x/b"),
        ("x/a.qcow2", "../b", "x/../b"),
        ("x/a.qcow2", "/b", "/b"),
        ("x/a.qcow2", "nbd:h:1", "nbd:h:1"),
        ("x/a.qcow2", "json:{}", "json:{}"),
        ("x/a.qcow2", "d/e:f", "x/d/e:f"),
    ],
)
def test_combine_path(base: str, name: str, full: str) -> None:
    assert combine_path(base, name) == full


def finding(kind: str, count: int = 1) -> CheckFinding:
    return CheckFinding(kind=kind, message="m", count=count)


@pytest.mark.parametrize(
    ("counters", "findings", "status"),
    [
        ({}, [], 0),
        ({"leaks": 2}, [finding("leak", 2)], 3),
        ({"leaks": 1, "corruptions": 1}, [finding("leak"), finding("corruption")], 2),
        ({"corruptions": 1, "check_errors": 1}, [finding("corruption"), finding("check-error")], 1),
        ({}, [finding("note")], 0),
        ({"leaks": 5, "findings_omitted": 3}, [finding("leak")], 3),
    ],
)
def test_check(image: str, counters: dict[str, int], findings: list[CheckFinding], status: int) -> None:
    fields = CHECK.as_fields() | {key.replace("_", "-"): value for key, value in counters.items()}
    runner = FakeRunner(*findings, Check.from_fields(fields), status=status)
    report = check(Session(runner), image)
    assert report.exit_status == status
    assert report.findings == tuple(findings)
    assert report.clean is (status == 0)


def test_check_that_contradicts_itself(image: str) -> None:
    with pytest.raises(vmm.GuestFailedError, match="counted 0 for leak and reported 1"):
        check(Session(FakeRunner(finding("leak"), CHECK)), image)


def write(data: bytes) -> Callable[[Job], None]:
    def act(job: Job) -> None:
        for device in job.devices:
            os.pwrite(device.fd, data, 0)

    return act


def test_create(tmp_path: Path) -> None:
    runner = FakeRunner(CREATE)
    runner.act = write(b"made")
    target = tmp_path / "new"
    report = create(Session(runner), str(target), "raw", size="1k", seed="s", unix_time=7, uuid=bytes(16))
    assert target.read_bytes() == b"made"
    assert report.options == (("size", "512"),)
    request = requested(runner.jobs[0])
    assert len(request.pop("entropy")) == 32
    assert request == {"format": "raw", "size": 1024, "unix-time": 7, "uuid": bytes(16), "name": b"new"}


def requested(job: Job) -> dict[str, Any]:
    """The request of a run."""
    request = decode(job.request)
    assert isinstance(request, dict)
    return request


def test_create_makes_everything_of_a_seed(tmp_path: Path) -> None:
    runner = FakeRunner(CREATE)
    for seed in ("a", "a", "b", "", None):
        create(Session(runner), str(tmp_path / "new"), "vpc", size=1, seed=seed, force=True)
    requests = [requested(job) for job in runner.jobs]
    assert requests[0] == requests[1]
    assert all(request["unix-time"] == SEED_TIME for request in requests[:4])
    for part in ("uuid", "entropy"):
        assert len({request[part] for request in requests[1:]}) == 4
    uuid = requests[0]["uuid"]
    assert (uuid[6] >> 4, uuid[8] >> 6) == (4, 2)


@pytest.mark.parametrize("names", [{}, {"data_file": "data"}])
def test_create_keeps_what_exists(tmp_path: Path, names: dict[str, str]) -> None:
    target = tmp_path / names.get("data_file", "out")
    target.write_bytes(b"old")
    options = {name: str(tmp_path / file) for name, file in names.items()}
    with pytest.raises(vmm.FileError, match="it exists and is kept") as caught:
        create(Session(FakeRunner(CREATE)), str(tmp_path / "out"), "qcow2", size=1, options=options)
    assert caught.value.details["errno"] == "EEXIST"
    assert target.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == [target.name]
    create(Session(FakeRunner(CREATE)), str(tmp_path / "out"), "qcow2", size=1, options=options, force=True)
    assert target.read_bytes() == b""


def test_create_keeps_what_appears_meanwhile(tmp_path: Path) -> None:
    runner = FakeRunner(CREATE)
    runner.act = lambda _: (tmp_path / "out").write_bytes(b"theirs")  # type: ignore[assignment]
    with pytest.raises(vmm.FileError, match="it exists and is kept"):
        create(Session(runner), str(tmp_path / "out"), size=1)
    assert (tmp_path / "out").read_bytes() == b"theirs"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


BACKED = {"backing_file": "base", "backing_fmt": "raw"}


def test_create_opens_the_backing_file_beside_the_image(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    base = tmp_path / "sub" / "base"
    base.write_bytes(bytes(1000))
    os.utime(base, (1, 1_700_000_000))
    runner = FakeRunner(CREATE)
    create(Session(runner), str(tmp_path / "sub" / "new"), "qcow2", options=BACKED)
    request = requested(runner.jobs[0])
    assert (request["backing-device"], request["backing-time"]) == (1, 1_700_000_000)
    assert "size" not in request
    output, backing = runner.jobs[0].devices
    assert (output.read_only, backing.read_only, backing.length) == (False, True, 1000)


def test_create_does_not_open_an_unsafe_backing_file(tmp_path: Path) -> None:
    runner = FakeRunner(CREATE)
    for number, name in enumerate(("missing", "nbd://host/export", "json:{}")):
        options = {**BACKED, "backing_file": name}
        create(Session(runner), str(tmp_path / str(number)), "qcow2", size=1, options=options, backing_unsafe=True)
    for job in runner.jobs:
        assert "backing-device" not in requested(job)
        assert len(job.devices) == 1


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("missing", vmm.FileError, "No such file or directory; Could not open backing image 'missing'"),
        ("folder", vmm.FileError, "it is a directory"),
        ("link", vmm.FileError, "it is a symbolic link"),
        ("nbd://host/export", vmm.UsageError, "names a protocol"),
        ("json:{}", vmm.UsageError, "names a protocol"),
        ("./new", vmm.UsageError, "same filename"),
        ("a\0b", vmm.FileError, "null byte"),
    ],
)
def test_create_without_its_backing_file(name: str, error: type[vmm.VmmError], text: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    runner = FakeRunner(CREATE)
    with pytest.raises(error, match=text):
        create(Session(runner), str(tmp_path / "new"), "qcow2", options={**BACKED, "backing_file": name})
    assert runner.jobs == []
    assert not (tmp_path / "new").exists()


def test_create_says_when_the_backing_file_was_refused(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(bytes(512))
    refusal = Error(code="corrupt", message="qcow2: image is not in qcow2 format", device=1)
    for device, more in ((1, f"; Could not open backing image '{tmp_path / 'base'}'."), (0, "")):
        runner = FakeRunner(Error(code=refusal.code, message=refusal.message, device=device), status=1)
        with pytest.raises(vmm.RefusedError) as caught:
            create(Session(runner), str(tmp_path / "new"), "qcow2", options=BACKED)
        assert str(caught.value) == caught.value.message == refusal.message + more
        assert list(tmp_path.iterdir()) == [tmp_path / "base"]


def test_create_gives_time_and_identity(tmp_path: Path) -> None:
    runner = FakeRunner(CREATE)
    for name in "ab":
        create(Session(runner), str(tmp_path / name), "vpc", size=1)
    first, second = (decode(job.request) for job in runner.jobs)
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert first["uuid"] != second["uuid"]
    assert isinstance(first["unix-time"], int)
    assert first["unix-time"] > 1 << 30


def test_create_with_data_file(tmp_path: Path) -> None:
    runner = FakeRunner(CREATE)
    runner.act = write(b"both")
    data = tmp_path / "data"
    create(Session(runner), str(tmp_path / "new"), "qcow2", size=1, options={"data_file": str(data)})
    assert len(runner.jobs[0].devices) == 2
    assert data.read_bytes() == b"both"


@pytest.mark.parametrize("bad", ["a\0b", "\ud800"])
def test_create_with_names_that_are_no_paths(tmp_path: Path, bad: str) -> None:
    good = str(tmp_path / "good")
    for path, data in ((bad, good), (good, bad)):
        runner = FakeRunner(CREATE)
        with pytest.raises(vmm.VmmError):
            create(Session(runner), path, "qcow2", size=1, options={"data_file": data})
        assert runner.jobs == []
        assert list(tmp_path.iterdir()) == []


def test_create_with_a_data_file_that_is_the_image(tmp_path: Path) -> None:
    runner = FakeRunner(CREATE)
    image = tmp_path / "new"
    (tmp_path / "link").symlink_to("new")
    for data in (image, tmp_path / "." / "new", tmp_path / "link"):
        with pytest.raises(vmm.UsageError, match="same file"):
            create(Session(runner), str(image), "qcow2", size=1, options={"data_file": str(data)})
    assert runner.jobs == []


def test_create_refuses_a_time_that_no_format_has(tmp_path: Path) -> None:
    with pytest.raises(vmm.UsageError, match="does not fit 64 bits"):
        create(Session(FakeRunner(CREATE)), str(tmp_path / "new"), "vpc", size=1, unix_time=1 << 70)


@pytest.mark.parametrize("level", [-1, 5])
def test_log_levels_that_do_not_exist(level: int) -> None:
    with pytest.raises(vmm.UsageError, match="log level"):
        Session(FakeRunner(), log_level=level)


def test_create_allocates_on_request(tmp_path: Path) -> None:
    def act(job: Job) -> None:
        os.truncate(job.devices[0].fd, 1 << 20)

    for mode, least in (("off", 0), ("falloc", 1 << 20)):
        runner = FakeRunner(CREATE)
        runner.act = act
        create(Session(runner), str(tmp_path / mode), size=1 << 20, options={"preallocation": mode})
        found = (tmp_path / mode).stat()
        assert found.st_size == 1 << 20
        assert found.st_blocks * 512 >= least
    assert (tmp_path / "off").stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize(
    ("runner", "error"),
    [
        (FakeRunner(Error(code="unsupported", message="no"), status=1), vmm.RefusedError),
        (FakeRunner(CREATE, status=9), vmm.GuestFailedError),
        (FakeRunner(), vmm.GuestFailedError),
        (FakeRunner(failure=Failure(FailureKind.PANIC, "boom")), vmm.GuestFailedError),
    ],
)
def test_create_that_fails_leaves_what_was_there(tmp_path: Path, runner: FakeRunner, error: type[Exception]) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"old")
    runner.act = write(b"half")
    with pytest.raises(error):
        create(Session(runner), str(target), size=1, force=True)
    with pytest.raises(error):
        create(Session(runner), str(tmp_path / "new"), "qcow2", size=1, options={"data_file": str(tmp_path / "data")})
    assert target.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_create_size_twice(tmp_path: Path) -> None:
    with pytest.raises(vmm.UsageError, match="only once"):
        create(Session(FakeRunner(CREATE)), str(tmp_path / "x"), size=1, options={"size": "2"})


def failed(kind: FailureKind, **facts: object) -> FakeRunner:
    return FakeRunner(failure=Failure(kind, "what \x1b[2J happened", **facts))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("runner", "error", "status"),
    [
        (failed(FailureKind.PANIC), vmm.GuestFailedError, 70),
        (failed(FailureKind.PAGE_FAULT), vmm.GuestFailedError, 70),
        (failed(FailureKind.EXCEPTION), vmm.GuestFailedError, 70),
        (failed(FailureKind.TRIPLE_FAULT), vmm.GuestFailedError, 70),
        (failed(FailureKind.PROTOCOL), vmm.GuestFailedError, 70),
        (failed(FailureKind.LIMIT, limit="timeout", limit_value=0.5), vmm.LimitReachedError, 75),
        (failed(FailureKind.LIMIT, limit="max-read", limit_value=4096.0), vmm.LimitReachedError, 75),
        (failed(FailureKind.IO, device=0, errno=5), vmm.FileError, 1),
        (failed(FailureKind.DEBUGGER), DebuggerError, 130),
        (failed(FailureKind.KVM), vmm.KvmError, 69),
    ],
)
def test_failures(image: str, runner: FakeRunner, error: type[vmm.VmmError], status: int) -> None:
    with pytest.raises(error) as caught:
        info(Session(runner), image)
    assert caught.value.exit_status == status
    assert caught.value.failure == runner.failure
    # Errors about files name them, like those of opening one.
    name = f"{image}: " if error is vmm.FileError else ""
    assert caught.value.message == f"{name}what \\x1b[2J happened"
    assert caught.value.details["file"] == image
    assert caught.value.details.get("errno") == ("EIO" if error is vmm.FileError else None)


@pytest.mark.parametrize(
    ("runner", "text"),
    [
        (FakeRunner(), "did not answer and ended with status 0"),
        (FakeRunner(INFO, status=1), "emitted info and ended with status 1"),
        (FakeRunner(INFO, INFO), "emitted info after info"),
        (FakeRunner(INFO, Error(code="io", message="late")), "emitted error after info"),
        (FakeRunner(MEASURE), "emitted measure, which is no message of this operation"),
        (FakeRunner(b"\xff"), "cannot be decoded"),
        (FakeRunner(encode(["info", {}])), "against the contract"),
    ],
)
def test_guests_that_break_the_contract(image: str, runner: FakeRunner, text: str) -> None:
    with pytest.raises(vmm.GuestFailedError, match=text):
        info(Session(runner), image)


def test_too_many_messages(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "MAX_KEPT", 10)
    note = finding("note")
    with pytest.raises(vmm.GuestFailedError, match="more than 10 messages"):
        check(Session(FakeRunner(*[note] * 11, CHECK)), image)
    assert len(check(Session(FakeRunner(*[note] * 10, CHECK)), image).findings) == 10


def test_too_many_items_in_the_arrays_of_messages(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "MAX_KEPT", 10)
    bitmap = InfoBitmap(name="b", granularity=1, flags=("auto",) * 5)
    with pytest.raises(vmm.GuestFailedError, match="more than 10 items"):
        info(Session(FakeRunner(*[bitmap] * 3, INFO)), image)
    assert len(info(Session(FakeRunner(*[bitmap] * 2, INFO)), image).bitmaps) == 2


def test_items_of_nested_messages_count() -> None:
    slot = InfoLuksSlot(active=False, key_offset=0)
    luks = InfoLuks(
        cipher_alg="", cipher_mode="", hash_alg="", payload_offset=0, master_key_iters=0, uuid="", slots=(slot,) * 3
    )
    assert luks.items() == 3
    assert Info(format="luks", virtual_size=0, file_length=0, dirty_flag=False, luks=luks).items() == 3
    assert CREATE.items() == 1


def test_refusal(image: str) -> None:
    error = Error(code="out-of-bounds", message="L1 \x07table", format="qcow2", offset=70254592, limit=65536)
    with pytest.raises(vmm.RefusedError) as caught:
        info(Session(FakeRunner(error, status=1)), image)
    assert caught.value.as_dict() == {
        "code": "refused",
        "message": "L1 \\x07table",
        "guest-code": "out-of-bounds",
        "file": image,
        "format": "qcow2",
        "offset": 70254592,
        "limit": 65536,
    }


def test_no_checks(image: str) -> None:
    runner = FakeRunner(Error(code="no-checks", message="This image format does not support checks"), status=1)
    with pytest.raises(vmm.NoChecksError) as caught:
        check(Session(runner), image)
    assert caught.value.exit_status == 63


def test_log_progress_and_limits(image: str) -> None:
    lines: list[tuple[int, str]] = []
    steps: list[tuple[int, int]] = []
    runner = FakeRunner(LogEvent(2, b"a\x1b\xff"), ProgressEvent(1, 2), MEASURE)
    session = Session(
        runner,
        limits=Limits(timeout=3),
        log_level=4,
        on_log=lambda level, text: lines.append((level, text)),
        on_progress=lambda done, total: steps.append((done, total)),
        elf=b"another",
    )
    measure(session, image, target="qcow2")
    assert lines == [(2, "a\\x1b\\xff")]
    assert steps == [(1, 2)]
    (job,) = runner.jobs
    assert (job.elf, job.limits.timeout, job.log_level, job.progress) == (b"another", 3, 4, True)
    measure(Session(runner), image, target="qcow2")
    assert (runner.jobs[1].log_level, runner.jobs[1].progress) == (0, False)


def test_request_that_is_not_utf_8(image: str) -> None:
    with pytest.raises(vmm.UsageError, match="not UTF-8"):
        info(Session(FakeRunner(INFO)), image, format="\udcff")


@pytest.mark.parametrize(
    ("word", "answer"), [("./count", True), ("/x", True), ("count.elf", True), ("info", False), ("elf", False)]
)
def test_what_names_an_elf(word: str, answer: bool) -> None:
    assert is_path(word) is answer


def test_foreign(image: str, tmp_path: Path) -> None:
    elf = tmp_path / "op.elf"
    elf.write_bytes(b"ELF of some kind")
    got: list[tuple[str, object]] = []
    runner = FakeRunner(encode(["count", {"zeroes": 7, "list": [1, {"a": None}]}]), status=5)
    report = run_foreign(
        Session(runner),
        load_elf(str(elf)),
        "op.elf",
        [image],
        lambda name, fields: got.append((name, fields)),
        options={"a": "1", "b": None},
    )
    assert got == [("count", {"zeroes": 7, "list": [1, {"a": None}]})]
    assert (report.status, report.exit_status, report.messages) == (5, 1, 1)
    (job,) = runner.jobs
    assert job.elf == b"ELF of some kind"
    assert decode(job.request) == {"operation": "op.elf", "options": {"a": "1", "b": True}}
    with pytest.raises(vmm.RefusedError, match="so"):
        run_foreign(Session(FakeRunner(Error(code="mine", message="so"))), b"", "x", [image], lambda *_: None)


def test_load_elf_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.elf").touch()
    with pytest.raises(vmm.FileError, match="is empty"):
        load_elf(str(tmp_path / "empty.elf"))
    with pytest.raises(vmm.FileError, match="No such file"):
        load_elf(str(tmp_path / "missing.elf"))
    monkeypatch.setattr("vmm.operations.foreign.MAX_ELF", 3)
    (tmp_path / "large.elf").write_bytes(b"1234")
    with pytest.raises(vmm.OperationLoadError, match="4 bytes, at most 3"):
        load_elf(str(tmp_path / "large.elf"))


def test_empty_image(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    with pytest.raises(vmm.FileError, match="is empty"):
        check(Session(FakeRunner(CHECK)), str(path))
    assert measure(Session(FakeRunner(MEASURE)), str(path), format="raw").required == 1


def said(code: str) -> FakeRunner:
    """A guest that refuses because of what went wrong on the host's side."""
    return FakeRunner(Error(code=code, message="said"), status=1)


def test_a_file_that_failed_is_no_refusal(image: str) -> None:
    runner = said("io")
    runner.device_errors, runner.device_errnos = ("reading at byte 7 failed: x\x1b[2J",), (errno.EIO,)
    with pytest.raises(vmm.FileError) as caught:
        info(Session(runner), image)
    assert caught.value.message == f"{image}: said: reading at byte 7 failed: x\\x1b[2J"
    assert caught.value.details == {"file": image, "errno": "EIO", "guest-code": "io"}
    runner.device_errnos = ()
    with pytest.raises(vmm.FileError) as caught:
        info(Session(runner), image)
    assert "errno" not in caught.value.details


def test_what_failed_for_the_guest_alone_is_a_refusal(image: str) -> None:
    for runner in (said("io"), said("corrupt")):
        runner.device_errors = (None,) if runner.events == said("io").events else ("reading failed",)
        with pytest.raises(vmm.RefusedError, match=r"^said$"):
            info(Session(runner), image)


def test_memory_is_a_limit(image: str) -> None:
    with pytest.raises(vmm.LimitReachedError) as caught:
        info(Session(said("no-memory"), limits=Limits(max_memory=4 << 20)), image)
    assert caught.value.message == "the run passed its limit: --max-memory is 4194304: said"
    assert caught.value.exit_status == 75
    expected = {"guest-code": "no-memory", "file": image, "limit": "max-memory", "value": 4 << 20}
    assert caught.value.details == expected
