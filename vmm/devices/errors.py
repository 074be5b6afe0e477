"""What ends a run from inside a device, and what a device says about a guest that breaks the rules.

None of these reaches a user: the run loop turns them into a :class:`vmm.boundary.Failure`.
"""

from __future__ import annotations


class DeviceEvent(Exception):  # noqa: N818  (not every one is an error)
    """Base: something that ends the run."""


class RunAborted(DeviceEvent):
    """The guest ended itself with a panic.

    :param message: what it said, at most CONTROL_TEXT_MAX bytes: hostile input.
    :param site: the code address it blames, 0 when it does not know.
    """

    def __init__(self, message: bytes, site: int) -> None:
        super().__init__(message, site)
        self.message = message
        self.site = site


class LimitExceeded(DeviceEvent):
    """A budget is used up.

    :param limit: ``max-read``, ``max-write``, ``max-messages``, ``max-report`` or ``max-output``.
    :param value: what was allowed.
    """

    def __init__(self, limit: str, value: int) -> None:
        super().__init__(limit, value)
        self.limit = limit
        self.value = value


class FileFailed(DeviceEvent):
    """The file of a device cannot even be looked at, so that the run cannot begin, or not be left as the run wants it.

    :param device: number of the device.
    :param error: what the system said.
    """

    def __init__(self, device: int, error: BackendError) -> None:
        super().__init__(device, error)
        self.device = device
        self.error = error


class ProtocolViolation(DeviceEvent):
    """The guest broke the contract of the control device, or touched a device window where nothing is.

    :param message: one sentence, plain ASCII, nothing of the guest's in it but numbers.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ReplayDiverged(DeviceEvent):
    """The guest asked a device for something else than in the run that was recorded, or the record cannot answer it.

    :param message: one sentence: which call it was, what was recorded and what came.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class MemoryAccessError(Exception):
    """A device was pointed at guest memory that it may not touch.  Raised by ``GuestMemory.view`` only.

    :param address: guest-physical address of the first byte.
    :param length: bytes.
    """

    def __init__(self, address: int, length: int, writable: bool = False) -> None:
        super().__init__(address, length, writable)
        self.address = address
        self.length = length
        self.writable = writable

    def __str__(self) -> str:
        kind = "writable memory" if self.writable else "memory"
        return f"{self.length} bytes at {self.address:#x} are not {kind} of the guest"


class QueueError(Exception):
    """A virtqueue that breaks VIRTIO 1.2 section 2.7; the device then needs a reset.

    :param message: one sentence, plain ASCII.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BackendError(Exception):
    """A file could not do what was asked of it.

    :param code: an ERROR_* number of the call table.
    :param message: one sentence without the file's name.
    :param errno: the system's number, when there is one.
    :param done: bytes that were read or written before it failed.
    """

    def __init__(self, code: int, message: str, errno: int | None = None, done: int = 0) -> None:
        super().__init__(code, message, errno, done)
        self.code = code
        self.message = message
        self.errno = errno
        self.done = done
