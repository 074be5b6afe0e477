"""Why KVM cannot be used: each reason has its own message, and nothing stays open."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from vmm.errors import EXIT_UNAVAILABLE, KvmUnavailableError
from vmm.kvm import Kvm, device
from vmm.kvm.binding import lib
from vmm.machine.doctor import examine


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def refused(path: str) -> KvmUnavailableError:
    before = len(open_descriptors())
    with pytest.raises(KvmUnavailableError) as caught:
        Kvm(path)
    assert len(open_descriptors()) == before
    assert caught.value.exit_status == EXIT_UNAVAILABLE
    assert caught.value.as_dict()["path"] == path
    return caught.value


def test_missing(tmp_path: Path) -> None:
    error = refused(str(tmp_path / "kvm"))
    assert "is missing" in error.message
    assert "modprobe" in error.message
    assert error.details["errno"] == "ENOENT"  # as files have it


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "usermod -aG kvm"),
        (errno.EPERM, "--device /dev/kvm"),
        (errno.ENODEV, "modprobe"),
        (errno.ENXIO, "modprobe"),
        (errno.EBUSY, "another hypervisor"),
        (errno.EMFILE, os.strerror(errno.EMFILE)),
    ],
)
def test_refusal_of_open(monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    def fail(path: str, flags: int) -> int:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr("vmm.kvm.device.os.open", fail)
    with pytest.raises(KvmUnavailableError) as caught:
        Kvm()
    assert words in caught.value.message


def test_another_file(tmp_path: Path) -> None:
    path = tmp_path / "kvm"
    path.write_bytes(b"no device")
    assert "is not the KVM device" in refused(str(path)).message


def test_another_device() -> None:
    assert "is not the KVM device" in refused("/dev/null").message


class FakeLibrary:
    """Answers like a KVM of another make."""

    def __init__(self, version: int, missing: int | None) -> None:
        self.version = version
        self.missing = missing

    def __getattr__(self, name: str) -> int:
        return int(getattr(lib, name))

    def pyvmm_ioctl_value(self, fd: int, request: int, value: int) -> int:
        if request == lib.KVM_GET_API_VERSION:
            return self.version
        if request == lib.KVM_CHECK_EXTENSION:
            return int(value != self.missing)
        return 4096


def test_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "lib", FakeLibrary(11, None))
    error = refused("/dev/null")
    assert "version 11" in error.message
    assert "version 12" in error.message


@pytest.mark.parametrize("name", device.CAPABILITIES)
def test_a_capability_is_missing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(device, "lib", FakeLibrary(12, device.CAPABILITIES[name][0]))
    error = refused("/dev/null")
    assert name in error.message
    assert error.details["capability"] == name


def test_doctor_reports_what_is_missing(tmp_path: Path) -> None:
    report = examine(str(tmp_path / "kvm"))
    assert not report.usable
    assert report.exit_status == EXIT_UNAVAILABLE
    error = report.as_dict()["error"]
    assert isinstance(error, dict)
    assert error["code"] == "kvm-unavailable"
    assert "cannot run here" in report.verdict()
