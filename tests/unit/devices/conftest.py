"""A device over a real file, and a driver for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.devices.mock_driver import Driver, FakeMemory
from vmm.boundary import DeviceSpec, Limits
from vmm.devices.backend import FileBackend
from vmm.devices.block import BlockDevice
from vmm.devices.budget import Meter

#: A driver over a file with this content; keywords go to DeviceSpec.
Make = Callable[..., Driver]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes drivers; the device is not started yet."""
    opened: list[int] = []

    def made(content: bytes = b"", *, limits: Limits | None = None, **spec: object) -> Driver:
        path = tmp_path / f"file{len(opened)}"
        path.write_bytes(content)
        fd = os.open(path, os.O_RDWR)
        opened.append(fd)
        memory = FakeMemory()
        meter = Meter()
        meter.begin(limits or Limits())
        device = BlockDevice(memory, meter)
        options: dict[str, object] = {"read_only": False, **spec}
        device.attach(FileBackend(DeviceSpec(fd, len(content), **options)))  # type: ignore[arg-type]
        return Driver(device, memory)

    yield made
    for fd in opened:
        os.close(fd)


def file_of(driver: Driver) -> bytes:
    """What the file holds now."""
    assert isinstance(driver.device, BlockDevice)
    assert driver.device.backend is not None
    fd = driver.device.backend.fd
    return os.pread(fd, os.fstat(fd).st_size, 0)
