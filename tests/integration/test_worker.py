"""A look at the live worker from outside, while a guest computes in it: as root, and as an ordinary user.

What the worker says of itself is in its report; here the kernel is asked (proc(5)).
"""

from __future__ import annotations

import json
import os
import stat as modes
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.workers import Spinning, stat
from tests.machines import hostile_operation
from tests.ordinary_user import ROOT, USER, ordinary
from vmm.boundary import KVM_DEVICE, DeviceSpec
from vmm.sandbox.jail import MAX_DESCRIPTORS, MAX_SIGNALS, NOBODY
from vmm.sandbox.layers import LAYERS
from vmm.sandbox.namespaces import namespaces

pytestmark = pytest.mark.kvm

#: What was seen of a worker, as plain data: so that another user can look and this one judge.
Seen = dict[str, object]


def look(folder: Path) -> Seen:
    """Everything that the tests ask for, of a worker that has an image to read and one to write."""
    image, output = folder / "image", folder / "output"
    image.write_bytes(bytes(4096))
    output.write_bytes(bytes(4096))
    stray = os.open(image, os.O_RDONLY)
    os.set_inheritable(stray, True)
    os.environ["PYVMM_TEST_SECRET"] = "secret"
    reading, writing = os.open(image, os.O_RDONLY), os.open(output, os.O_RDWR)
    devices = (DeviceSpec(reading, 4096), DeviceSpec(writing, 4096, read_only=False))
    try:
        with Spinning(devices) as run:
            return _seen(run.pid, image, output, [(layer.name, layer.holds) for layer in run.reports[0].layers])
    finally:
        del os.environ["PYVMM_TEST_SECRET"]
        for fd in (stray, reading, writing):
            os.close(fd)


def _seen(pid: int, image: Path, output: Path, layers: list[tuple[str, bool]]) -> Seen:
    proc = Path(f"/proc/{pid}")
    return {
        "layers": layers,
        "me": os.geteuid(),
        "pid": pid,
        "status": dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines()),
        "limits": (proc / "limits").read_text(),
        "namespaces": {name: os.readlink(proc / "ns" / name) for name in os.listdir(proc / "ns")},
        "mounts": (proc / "mountinfo").read_text().splitlines(),
        "cwd": os.readlink(proc / "cwd"),
        "root": _names(proc / "root"),
        "descriptors": {name: _descriptor(proc / "fd" / name, image, output) for name in os.listdir(proc / "fd")},
        "environment": (proc / "environ").read_bytes().decode(),
        "command": (proc / "cmdline").read_bytes().decode(),
        "user-data": str(image.parent),
        "owner": (proc / "mem").stat().st_uid,
        "session": stat(pid)[2:4],
        "terminal": stat(pid)[4],
        "maps": (proc / "maps").read_text().splitlines(),
    }


def _names(folder: Path) -> list[str] | str:
    try:
        return os.listdir(folder)
    except PermissionError:
        return "closed"


def _descriptor(link: Path, image: Path, output: Path) -> str:
    """What a descriptor is, and how it is open."""
    found = link.stat()
    flags = (link.parent.parent / "fdinfo" / link.name).read_text().split("flags:")[1].split()[0]
    access = ("r", "w", "rw")[int(flags, 8) & 3]
    for name, path in (("image", image), ("output", output)):
        if os.path.samestat(found, path.stat()):
            return f"{name} {access}"
    if modes.S_ISCHR(found.st_mode):
        devices = {os.stat(path).st_rdev: path for path in (os.devnull, KVM_DEVICE)}
        return devices.get(found.st_rdev, "a device")
    return os.readlink(link).split("[")[0]


@pytest.fixture(scope="module", params=["root", "user"] if os.geteuid() == 0 else ["user"])
def seen(request: pytest.FixtureRequest) -> Iterator[Seen]:
    with tempfile.TemporaryDirectory() as folder:
        if request.param == "root" or os.geteuid() != 0:
            yield look(Path(folder))
            return
        os.chown(folder, USER, USER)
        hostile_operation()
        command = ordinary(sys.executable, "-m", "tests.integration.test_worker", folder)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout)


def of(seen: Seen, name: str) -> dict[str, str]:
    found = seen[name]
    assert isinstance(found, dict)
    return found


def test_every_layer_holds(seen: Seen) -> None:
    assert [tuple(layer) for layer in seen["layers"]] == [(name, True) for name in LAYERS]  # type: ignore[attr-defined]


def test_filter_and_privileges(seen: Seen) -> None:
    status = of(seen, "status")
    assert status["Seccomp"].strip() == "2"
    assert status["Seccomp_filters"].strip() == "1"
    assert status["NoNewPrivs"].strip() == "1"
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name


def test_identity(seen: Seen) -> None:
    status = of(seen, "status")
    who = NOBODY if seen["me"] == 0 else seen["me"]
    assert status["Uid"].split() == [str(who)] * 4
    if seen["me"] == 0:
        assert status["Gid"].split() == [str(NOBODY)] * 4
        assert status["Groups"].split() == []
        # Files of a process that is not dumpable are root's.
        assert seen["owner"] == 0


def test_namespaces(seen: Seen) -> None:
    theirs = of(seen, "namespaces")
    own = set(namespaces().values())
    assert not own & {theirs[name] for name in ("user", "mnt", "pid", "ipc", "uts", "cgroup", "net")}
    # It is the first process of its namespace, and the only one.
    assert of(seen, "status")["NSpid"].split() == [str(seen["pid"]), "1"]


def test_an_empty_root(seen: Seen) -> None:
    assert seen["root"] == [] or (seen["me"] != 0 and seen["root"] == "closed")
    assert seen["cwd"] == "/"
    mounts = seen["mounts"]
    assert isinstance(mounts, list)
    assert len(mounts) == 1
    fields = str(mounts[0]).split()
    assert fields[4] == "/"
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(fields[5].split(","))
    assert "pyvmm" in fields


def test_descriptors(seen: Seen) -> None:
    found = of(seen, "descriptors")
    assert [found.pop(number) for number in "0123"] == [os.devnull, os.devnull, os.devnull, "socket:"]
    assert sorted(found.values()) == sorted(
        [KVM_DEVICE, "anon_inode:kvm-vm", "anon_inode:kvm-vcpu:0", "image r", "output rw"]
    )


def test_limits(seen: Seen) -> None:
    limits = {}
    for line in str(seen["limits"]).splitlines()[1:]:
        limits[line[:26].strip()] = line[26:].split()[:2]
    assert limits["Max core file size"] == ["0", "0"]
    assert limits["Max open files"] == [str(MAX_DESCRIPTORS)] * 2
    assert limits["Max pending signals"] == [str(MAX_SIGNALS)] * 2
    assert limits["Max locked memory"] == ["0", "0"]
    assert limits["Max msgqueue size"] == ["0", "0"]
    for name in ("Max address space", "Max processes", "Max file size"):
        soft, hard = limits[name]
        assert soft == hard != "unlimited", name


def test_nothing_of_the_user(seen: Seen) -> None:
    assert "secret" not in str(seen["environment"])
    assert {entry.split("=")[0] for entry in str(seen["environment"]).split("\0") if entry} <= {"LD_LIBRARY_PATH"}
    assert str(seen["user-data"]) not in str(seen["command"])


def test_a_session_of_its_own(seen: Seen) -> None:
    assert seen["session"] == [str(seen["pid"])] * 2
    assert seen["terminal"] == "0"


def test_no_memory_is_writable_and_executable(seen: Seen) -> None:
    maps = seen["maps"]
    assert isinstance(maps, list)
    assert [line for line in maps if {"w", "x"} <= set(line.split()[1])] == []


if __name__ == "__main__":
    json.dump(look(Path(sys.argv[1])), sys.stdout)
