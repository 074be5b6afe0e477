"""The doctor on a host that has KVM."""

from __future__ import annotations

import json

import pytest

from vmm.errors import KvmError
from vmm.kvm import Kvm
from vmm.machine import doctor

pytestmark = pytest.mark.kvm


def test_a_usable_host() -> None:
    report = doctor.examine()
    assert report.usable
    assert report.exit_status == 0
    assert report.api_version == 12
    assert all(value > 0 for value in report.capabilities.values())
    assert report.speed is not None
    assert report.speed.ring3_per_second > 0
    assert report.speed.ring0_per_second > 0
    assert report.speed.exit_ns > 0
    assert json.loads(json.dumps(report.as_dict()))["usable"] is True
    assert report.verdict() == "machines run here"


def test_a_guest_that_does_not_ring_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_CODE_TAIL", b"\x0f\x0b")
    report = doctor.examine()
    assert not report.usable
    assert report.exit_status == 69
    assert "five instructions" in str(report.problem)


def test_a_guest_that_hangs_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_CODE_TAIL", b"\xeb\xfe")
    monkeypatch.setattr(doctor, "_PATIENCE_NS", 100_000_000)
    with Kvm() as kvm, pytest.raises(KvmError, match="did not end"):
        doctor._measure(kvm)
