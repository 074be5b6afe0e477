"""The control device: the guest runtime's way to the run loop, other than the virtqueues.

One doorbell.  What is written to it is the address of a ControlBlock (calltable/definition/machine.toml); the answer
is put into its ``result``.  Everything in it is hostile: an address or a batch that makes no sense ends the run.
"""

from __future__ import annotations

from struct import Struct, pack_into

import calltable as ct
from vmm.boundary import LogEvent, MessageEvent, ProgressEvent
from vmm.devices.errors import BackendError, FileFailed, MemoryAccessError, ProtocolViolation, RunAborted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.boundary import Event
    from vmm.devices.block import BlockDevice
    from vmm.devices.budget import Meter
    from vmm.devices.memory import GuestMemory

#: What a doorbell means for the run loop.
CONTINUE = 0
READY = 1
DONE = 2

#: Extents answered at once, whatever the guest has room for.
EXTENTS_MAX = 1024
#: Levels of LOG: 1 error to 4 debug.
_LEVELS = range(1, 5)

_BLOCK = Struct(ct.CONTROL_BLOCK_FORMAT)
_RESULT = Struct("<q")
_RESULT_OFFSET = 8
_LENGTH = Struct("<I")


def _ignore(_: Event) -> None:
    pass


class ControlDevice:
    """The control device of one machine.

    :param blocks: the block devices, by number, for BLOCK_STATUS, SET_LENGTH and DEVICE_ERROR.
    """

    def __init__(self, memory: GuestMemory, meter: Meter, blocks: Sequence[BlockDevice]) -> None:
        self._memory = memory
        self._meter = meter
        self._blocks = blocks
        #: After DONE: what the operation answered, 0 to 2^32-1.
        self.status: int | None = None
        self._on_event: Callable[[Event], None] = _ignore
        self._log_level = 0
        self._progress = False

    def begin(self, on_event: Callable[[Event], None] = _ignore, log_level: int = 0, progress: bool = False) -> None:
        """Before each run: where events go, and which are wanted."""
        self.status = None
        self._on_event = on_event
        self._log_level = log_level
        self._progress = progress

    def ring(self, address: int) -> int:
        """The doorbell was rung with the address of a ControlBlock: CONTINUE, READY or DONE.

        :raises ProtocolViolation: nonsense.
        :raises RunAborted: the guest panicked.
        :raises LimitExceeded: too many messages.
        """
        try:
            view = self._memory.view(address, _BLOCK.size, writable=True)
            command, _, _, a0, a1, a2, a3, a4, _ = _BLOCK.unpack(view)
            signal, result = self._perform(command, a0, a1, a2, a3, a4)
        except MemoryAccessError as error:
            raise ProtocolViolation(f"control device: {error}") from None
        _RESULT.pack_into(view, _RESULT_OFFSET, result)
        return signal

    def _perform(self, command: int, a0: int, a1: int, a2: int, a3: int, a4: int) -> tuple[int, int]:
        if command == ct.COMMAND_DONE:
            self._settle()
            self._deliver(a1, a2)
            self.status = a0 & 0xFFFF_FFFF
            return DONE, 0
        if command == ct.COMMAND_EMIT:
            self._deliver(a0, a1)
        elif command == ct.COMMAND_READY:
            return READY, 0
        elif command == ct.COMMAND_ABORT:
            # The text first: it lies there whatever the batch is.
            text = self._text(a0, a1)
            self._deliver(a3, a4)
            raise RunAborted(text, a2)
        elif command == ct.COMMAND_LOG:
            self._log(a0, a1, a2)
        elif command == ct.COMMAND_PROGRESS:
            if self._progress:
                self._on_event(ProgressEvent(a0, a1))
        elif command == ct.COMMAND_BLOCK_STATUS:
            return CONTINUE, self._block_status(a0, a1, a2, a3, a4)
        elif command == ct.COMMAND_SET_LENGTH:
            return CONTINUE, self._set_length(a0, a1)
        elif command == ct.COMMAND_BUDGET:
            self._budget(a0)
        elif command == ct.COMMAND_DEVICE_ERROR:
            return CONTINUE, self._device_error(a0)
        else:
            raise ProtocolViolation(f"control device: unknown command {command}")
        return CONTINUE, 0

    def _settle(self) -> None:
        """The run is over: every file has the length that its device has.

        :raises FileFailed: one cannot be made so.
        """
        for block in self._blocks:
            if block.backend is not None:
                try:
                    block.backend.settle()
                except BackendError as error:
                    raise FileFailed(block.index, error) from None

    def _text(self, address: int, length: int) -> bytes:
        if length > ct.CONTROL_TEXT_MAX:
            raise ProtocolViolation(f"control device: a text of {length} bytes, {ct.CONTROL_TEXT_MAX} are allowed")
        return bytes(self._memory.view(address, length, writable=False))

    def _deliver(self, address: int, length: int) -> None:
        """The messages of a batch, each charged before it is delivered."""
        if length > ct.REPORT_BUFFER:
            raise ProtocolViolation(f"control device: a batch of {length} bytes, {ct.REPORT_BUFFER} are allowed")
        # A copy: what events hold must not change when the guest goes on.
        batch = bytes(self._memory.view(address, length, writable=False))
        position = 0
        while position < length:
            if length - position < _LENGTH.size:
                raise ProtocolViolation("control device: a batch that ends inside a length")
            size = _LENGTH.unpack_from(batch, position)[0]
            position += _LENGTH.size
            if not 0 < size <= ct.MESSAGE_MAX:
                raise ProtocolViolation(f"control device: a message of {size} bytes, 1 to {ct.MESSAGE_MAX} are allowed")
            if size > length - position:
                raise ProtocolViolation("control device: a batch that ends inside a message")
            self._meter.message(size)
            self._on_event(MessageEvent(batch[position : position + size]))
            position += size

    def _log(self, level: int, address: int, length: int) -> None:
        if level not in _LEVELS:
            raise ProtocolViolation(f"control device: log level {level}")
        text = self._text(address, length)
        if level <= self._log_level:
            self._meter.log(len(text))
            self._on_event(LogEvent(level, text))

    def _block(self, index: int) -> BlockDevice | None:
        return self._blocks[index] if index < len(self._blocks) else None

    def _block_status(self, index: int, offset: int, length: int, address: int, capacity: int) -> int:
        block = self._block(index)
        if block is None or block.backend is None:
            return -ct.ERROR_NO_DEVICE
        if capacity == 0:
            return -ct.ERROR_INVALID
        if offset + length > block.length:
            return -ct.ERROR_RANGE
        count = min(capacity, EXTENTS_MAX)
        try:
            view = self._memory.view(address, count * ct.EXTENT_SIZE, writable=True)
        except MemoryAccessError:
            return -ct.ERROR_INVALID
        extents = block.backend.block_status(offset, length, count)
        for place, extent in enumerate(extents):
            pack_into(ct.EXTENT_FORMAT, view, place * ct.EXTENT_SIZE, *extent)
        return len(extents)

    def _set_length(self, index: int, length: int) -> int:
        block = self._block(index)
        if block is None or block.backend is None:
            return -ct.ERROR_NO_DEVICE
        capacity = block.capacity
        try:
            block.backend.set_length(length)
        except BackendError as error:
            block.last_error = error
            return -error.code
        if block.capacity != capacity:
            block.config_changed()
        return 0

    def _device_error(self, index: int) -> int:
        block = self._block(index)
        if block is None:
            return -ct.ERROR_NO_DEVICE
        return -block.last_error.code if block.last_error is not None else 0

    def _budget(self, address: int) -> None:
        meter = self._meter
        view = self._memory.view(address, ct.BUDGET_SIZE, writable=True)
        left = (
            meter.max_read - meter.read_bytes,
            meter.max_write - meter.write_bytes,
            meter.max_messages - meter.messages,
        )
        # Limits may be larger than what a field holds.  The arena is the runtime's to fill in.
        pack_into(ct.BUDGET_FORMAT, view, 0, *(min(max(count, 0), (1 << 64) - 1) for count in left), 0)
