"""The Python API on a runner that plays canned guests."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import vmm
from calltable.messages import Check, Info, Measure
from tests.unit.fake import FakeRunner
from vmm.cbor import decode, encode
from vmm.operations import session as session_module

MEASURE = Measure(required=1, fully_allocated=2, target="qcow2", virtual_size=3, format="raw")


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "load_operation", lambda name: name.encode())
    monkeypatch.chdir(tmp_path)
    Path("image").write_bytes(b"x" * 512)


def test_paths_of_every_kind() -> None:
    runner = FakeRunner(MEASURE)
    with vmm.Machine(runner=runner) as machine:
        for path in ("image", b"image", Path("image")):
            assert machine.measure(path).filename == "image"
    assert runner.closed


def test_run_by_name() -> None:
    with vmm.Machine(runner=FakeRunner(MEASURE)) as machine:
        assert machine.run("measure", "image", target="qcow2") == machine.measure("image", target="qcow2")
        with pytest.raises(vmm.UsageError, match="no operation 'frob'"):
            machine.run("frob", "image")
        with pytest.raises(vmm.UsageError, match="Invalid parameter 'frob'"):
            machine.run("measure", "image", frob=1)
    with vmm.Machine(runner=FakeRunner(Info(format="raw", virtual_size=1, file_length=1, dirty_flag=False))) as machine:
        assert machine.run("info", "image").format == "raw"


def test_options_and_limits_reach_the_job() -> None:
    runner = FakeRunner(MEASURE)
    with vmm.Machine(runner=runner, timeout=3, limits=vmm.Limits(timeout=9, max_read=5), log_level=2) as machine:
        machine.measure("image", target="qcow2", cluster_size=4096, extended_l2=True)
    (job,) = runner.jobs
    assert (job.limits.timeout, job.limits.max_read, job.log_level) == (3, 5, 2)
    assert decode(job.request) == {"target": "qcow2", "options": {"cluster-size": 4096, "extended-l2": True}}


def test_operation_of_ones_own() -> None:
    Path("own.elf").write_bytes(b"own")
    runner = FakeRunner(encode(["x", {"a": 1}]), status=4)
    with vmm.Machine(runner=runner) as machine:
        answer = machine.run("./own.elf", "image", "image", depth="2")
    assert answer == vmm.ForeignAnswer(4, (vmm.ForeignMessage("x", {"a": 1}),))
    assert len(runner.jobs[0].devices) == 2
    assert decode(runner.jobs[0].request) == {"operation": "./own.elf", "options": {"depth": "2"}}


def test_reports_are_frozen_dataclasses() -> None:
    with vmm.Machine(runner=FakeRunner(MEASURE)) as machine:
        report = machine.measure("image")
    with pytest.raises(AttributeError, match="frozen"):
        report.required = 7  # type: ignore[misc]
    assert dataclasses.asdict(report)["required"] == 1
    assert dataclasses.replace(report, required=9).required == 9
    assert {field.name for field in dataclasses.fields(vmm.CheckReport)} == {"filename", "result", "findings"}
    check = Check(format="raw", file_length=1, check_errors=0, corruptions=0, leaks=0, findings_omitted=0)
    assert hash(vmm.CheckReport("a", check)) == hash(vmm.CheckReport("a", check))


def test_errors_are_one_tree() -> None:
    for name in vmm.__all__:
        value = getattr(vmm, name)
        if isinstance(value, type) and issubclass(value, Exception):
            assert issubclass(value, vmm.VmmError)
