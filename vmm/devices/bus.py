"""The bus: which device an address belongs to.  See :mod:`vmm.devices` for how the run loop uses it."""

from __future__ import annotations

import calltable as ct
from vmm.boundary import Usage
from vmm.devices.backend import FileBackend
from vmm.devices.block import BlockDevice
from vmm.devices.budget import Meter
from vmm.devices.control import CONTINUE, DONE, READY, ControlDevice
from vmm.devices.errors import BackendError, FileFailed, ProtocolViolation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.boundary import Event, Job
    from vmm.devices.memory import GuestMemory
    from vmm.devices.script import Script

__all__ = ["CONTINUE", "DONE", "READY", "Bus"]

_STRIDE_SHIFT = ct.VIRTIO_STRIDE.bit_length() - 1
#: What is a file's fault rather than the guest's.
_FILE_ERRORS = (ct.ERROR_IO, ct.ERROR_NO_SPACE)
_DOORBELL = ct.CONTROL_BASE + ct.CONTROL_DOORBELL


def _nothing() -> None:
    pass


def _boot_device(block: BlockDevice) -> tuple[int, int, int, int]:
    backend = block.backend
    if backend is None:
        return (0, 0, 0, 0)
    try:
        return (backend.length, backend.flags(), backend.block_size, backend.allocated())
    except BackendError as error:
        raise FileFailed(block.index, error) from None


class Bus:
    """All devices of one machine.

    :param device_count: block devices, 0 to MAX_DEVICES.
    :raises ValueError: more than that.
    """

    def __init__(self, device_count: int, memory: GuestMemory) -> None:
        if not 0 <= device_count <= ct.MAX_DEVICES:
            raise ValueError(f"{device_count} block devices; 0 to {ct.MAX_DEVICES} are possible")
        self.meter = Meter()
        self.blocks = tuple(BlockDevice(memory, self.meter, index) for index in range(device_count))
        self.control = ControlDevice(memory, self.meter, self.blocks)
        self._script: Script | None = None

    def begin_run(self, job: Job, on_event: Callable[[Event], None], check: Callable[[], None] = _nothing) -> None:
        """Put the job's files behind the devices and zero the counters.

        :param check: called during long transfers; may raise to end the run.
        :raises ValueError: the job has another number of devices than the machine.
        """
        if len(job.devices) != len(self.blocks):
            raise ValueError(f"a job with {len(job.devices)} devices on a machine with {len(self.blocks)}")
        self.meter.begin(job.limits)
        self.control.begin(on_event, job.log_level, job.progress)
        # Only runs that are recorded or replayed pay for these imports; who has lost the file system by now has
        # imported them before.
        backends: Sequence[FileBackend]
        most = job.limits.max_output
        if job.replay is not None:
            from vmm.devices.script import Script

            self._script = Script(job.replay)
            backends = self._script.backends(job.devices, check, most)
        elif job.record:
            from vmm.devices.trace import recording_backends

            backends = recording_backends(job.devices, check, on_event, most)
        else:
            backends = [FileBackend(spec, check, most) for spec in job.devices]
        for block, backend in zip(self.blocks, backends, strict=True):
            block.attach(backend)

    def finish_replay(self, on_event: Callable[[Event], None]) -> None:
        """At the end of a run that replays a trace: say how much of it was used.  Nothing for other runs."""
        if self._script is not None:
            on_event(self._script.end())

    def end_run(self) -> None:
        """Forget files and callbacks; counters, lengths and requests of the run are gone with them."""
        self._script = None
        self.meter.begin(None)
        self.control.begin()
        for block in self.blocks:
            block.attach(None)

    def write(self, address: int, value: int, size: int) -> int:
        """A write of ``size`` bytes by the guest: CONTINUE, READY or DONE.

        :raises vmm.devices.errors.DeviceEvent: the run is over; see :mod:`vmm.devices`.
        """
        if address == _DOORBELL and size >= 4:
            return self.control.ring(value)
        index = (address - ct.VIRTIO_BASE) >> _STRIDE_SHIFT
        if 0 <= index < len(self.blocks):
            self.blocks[index].write(address & (ct.VIRTIO_STRIDE - 1), value, size)
            return CONTINUE
        raise ProtocolViolation(f"a write of {size} bytes to {address:#x}, where no register is")

    def read(self, address: int, size: int) -> int:
        """A read of ``size`` bytes by the guest.

        :raises ProtocolViolation: there is no device.
        """
        index = (address - ct.VIRTIO_BASE) >> _STRIDE_SHIFT
        if 0 <= index < len(self.blocks):
            return self.blocks[index].read(address & (ct.VIRTIO_STRIDE - 1), size)
        if ct.CONTROL_BASE <= address < ct.CONTROL_BASE + ct.PAGE_SIZE:
            return 0
        raise ProtocolViolation(f"a read of {size} bytes from {address:#x}, where no register is")

    def boot_devices(self) -> tuple[tuple[int, int, int, int], ...]:
        """For the boot page: length, flags, block size and allocated bytes of each device.

        :raises FileFailed: a file cannot be looked at.
        """
        return tuple(map(_boot_device, self.blocks))

    def device_lengths(self) -> tuple[int, ...]:
        """Length in bytes of each device now."""
        return tuple(block.length for block in self.blocks)

    def usage(self, exits: int = 0, elapsed_ns: int = 0) -> Usage:
        """What the run has used so far; exits and time are the run loop's to count."""
        meter = self.meter
        return Usage(
            exits=exits,
            read_bytes=meter.read_bytes,
            write_bytes=meter.write_bytes,
            messages=meter.messages,
            report_bytes=meter.report_bytes,
            elapsed_ns=elapsed_ns,
        )

    def recent_requests(self) -> tuple[str, ...]:
        """The last block requests of each device, newest last, one line each."""
        return tuple(line for block in self.blocks for line in block.recent())

    def device_errors(self) -> tuple[str | None, ...]:
        """Why the file of each device last failed, None where it did not: the host's side of an `io` error message."""
        errors = (block.last_error for block in self.blocks)
        return tuple(error.message if error and error.code in _FILE_ERRORS else None for error in errors)

    def device_errnos(self) -> tuple[int | None, ...]:
        """The system's number for each of :meth:`device_errors`, None where there is none."""
        errors = (block.last_error for block in self.blocks)
        return tuple(error.errno if error and error.code in _FILE_ERRORS else None for error in errors)

    def state(self) -> object:
        """What the guest's drivers know of the devices, for :meth:`restore`.  No files, no counters."""
        return tuple(block.state() for block in self.blocks)

    def restore(self, state: object) -> None:
        """Back to an earlier :meth:`state` of this bus."""
        assert isinstance(state, tuple)
        for block, saved in zip(self.blocks, state, strict=True):
            block.restore(saved)
