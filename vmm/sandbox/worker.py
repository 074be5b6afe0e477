"""The worker: the process that owns the machine, from its first instruction to its end.

It starts with nothing but a channel to the broker, loads what it will need, closes the jail, says what became of it,
and then runs one job after another.  After the jail is closed it can load nothing, open nothing and name nothing; what
comes in is bytes and open descriptors.
"""

from __future__ import annotations

import _socket
import os
import sys
from struct import Struct
from time import monotonic_ns

from calltable import MAX_DEVICES
from vmm.boundary import Frame, LogEvent, limit_outcome
from vmm.cbor import decode
from vmm.errors import VmmError
from vmm.kvm.binding import lib
from vmm.machine import guests
from vmm.machine.faults import escape
from vmm.machine.runner import MachineRunner
from vmm.sandbox import wire
from vmm.sandbox.jail import Jail
from vmm.sandbox.layers import JailReport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from vmm.boundary import Event
    from vmm.sandbox.settings import JailSettings

#: Where the channel is (``_binding_source.c``).
CHANNEL = 3
#: Status of a worker that met an error of its own.
FAILED = 1
_DESCRIPTOR = Struct("i")
_READ = 256 << 10
#: Descriptors that can come with one frame: the devices and a debugger.
_MOST = MAX_DEVICES + 1


class Channel:
    """The worker's end: whole frames in, with the descriptors that came with them; batches of items out."""

    def __init__(self, descriptor: int) -> None:
        self._socket = _socket.socket(fileno=descriptor)
        self._buffer = bytearray()
        self._items: list[object] = []
        self._size = 0

    def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next frame; None when the broker is gone."""
        descriptors: list[int] = []
        buffer = self._buffer
        need = wire.LENGTH.size
        while True:
            if len(buffer) >= need:
                if need > wire.LENGTH.size:
                    message = decode(bytes(buffer[wire.LENGTH.size : need]))
                    del buffer[:need]
                    assert isinstance(message, dict)
                    return message, descriptors
                need += wire.LENGTH.unpack_from(buffer)[0]
                continue
            data, ancillary, _, _ = self._socket.recvmsg(_READ, _socket.CMSG_SPACE(_MOST * _DESCRIPTOR.size))
            if not data:
                return None
            buffer += data
            for level, kind, payload in ancillary:
                if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                    whole = len(payload) - len(payload) % _DESCRIPTOR.size
                    descriptors += [fd for (fd,) in _DESCRIPTOR.iter_unpack(payload[:whole])]

    def put(self, item: list[object], size: int = 256) -> None:
        """Send an item, some time before :meth:`flush` returns."""
        self._items.append(item)
        self._size += size
        if self._size >= wire.FLUSH_AT:
            self.flush()

    def flush(self) -> None:
        """Send what has been put."""
        items, self._items, self._size = self._items, [], 0
        if items:
            self._socket.sendall(wire.frame(items))


def main() -> None:
    """Serve the broker until it is gone."""
    channel = Channel(CHANNEL)
    # The descriptor is the socket's now; nothing else may close it.
    worker = Worker(channel)
    try:
        while worker.serve():
            pass
    except (BrokenPipeError, ConnectionResetError):
        pass
    except BaseException:
        # Without a traceback: showing one opens the source, which the jail answers with SIGSYS.
        os._exit(FAILED)
    os._exit(0)


class Worker:
    """What the worker knows between two frames."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._operations: dict[int, bytes] = {}
        self._runner: MachineRunner | None = None
        self._settings: JailSettings | None = None

    def serve(self) -> bool:
        """Answer one frame; false when there is no more."""
        received = self._channel.receive()
        if received is None:
            return False
        message, descriptors = received
        if self._settings is None:
            self._close_jail(message, descriptors)
        else:
            try:
                self._answer(message, descriptors)
            finally:
                for fd in descriptors:
                    _close(fd)
        self._channel.flush()
        return True

    def _close_jail(self, message: Mapping[str, Any], descriptors: list[int]) -> None:
        start = monotonic_ns()
        settings = self._settings = wire.settings_of(message)
        _load(settings)
        self._prepare(settings, descriptors, message["kvm-path"])
        layers = Jail(settings, message["namespaces"], message["user"]).close()
        # Nothing can be loaded from here on; what tries anyway is to get an exception and not a signal.
        sys.meta_path.clear()
        self._channel.put(wire.report_item(JailReport(layers, close_ns=monotonic_ns() - start)))

    def _prepare(self, settings: JailSettings, descriptors: list[int], kvm_path: str) -> None:
        """The runner, when a descriptor of KVM came, and what it will need."""
        if not descriptors:
            return
        guests.runtime()
        # The handler of the deadline's signal, while it can be installed.
        lib.pyvmm_timer_signal()
        kept = settings.machines - 1
        self._runner = MachineRunner(
            warm=kept > 0, kvm=(descriptors[0], kvm_path), pool_size=kept, symbolise=_leave_frames
        )

    def _answer(self, message: Mapping[str, Any], descriptors: list[int]) -> None:
        channel = self._channel
        try:
            if "symbolise" in message:
                channel.put(wire.addresses_item(_symbolise(message)))
                return
            number = message["number"]
            if message["elf"] is not None:
                self._operations[number] = message["elf"]
            job = wire.job_of(message, self._operations[number], descriptors)
            assert self._runner is not None
            outcome = self._runner.run(job, self._on_event)
        except VmmError as error:
            channel.put(wire.problem_item(error.code, error.message, error.details))
        except MemoryError:
            assert self._settings is not None
            channel.put(wire.outcome_item(limit_outcome("max-host-memory", self._settings.memory)))
        except (BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:
            text = f"{type(error).__name__}: {escape(str(error).encode('utf-8', 'replace'))[:1000]}"
            channel.put(wire.problem_item("internal", text, {}))
        else:
            channel.put(wire.outcome_item(outcome))

    def _on_event(self, event: Event) -> None:
        payload = event.text if isinstance(event, LogEvent) else getattr(event, "payload", b"")
        self._channel.put(wire.event_item(event), len(payload) + 16)
        if not payload or isinstance(event, LogEvent):
            # Somebody may be watching.
            self._channel.flush()


def _close(descriptor: int) -> None:
    """Close a descriptor of a job.  What a file system says only then, it says too late for the run: see fsync(2)."""
    try:
        os.close(descriptor)
    except OSError:
        pass


def _leave_frames(frames: tuple[Frame, ...], _: bytes) -> tuple[Frame, ...]:
    """Symbols are looked up in another worker: their reader is large and reads what a stranger wrote."""
    return frames


def _load(settings: JailSettings) -> None:
    """Whatever will be imported, or looked up by name, after the jail is closed."""
    b"\x1b\xff".decode("utf-8", "backslashreplace").encode("unicode_escape")
    if "record" in settings.features:
        import vmm.devices.trace
    if "replay" in settings.features:
        import vmm.devices.script
    if "debugger" in settings.features:
        import vmm.machine.debugger
    if "symbols" in settings.features:
        import elftools.elf.elffile  # noqa: F401  (symbols imports it when it is used)

        from vmm.machine import symbols  # noqa: F401
    if settings.verify_network:
        import vmm.sandbox.inspection  # noqa: F401


def _symbolise(message: Mapping[str, Any]) -> tuple[Frame, ...]:
    from vmm.machine import symbols

    operation, runtime = message["elf"], message["runtime"]
    # What has no debugging information beside it is looked up as it is, and as a stranger's.
    debug = {operation: message["debug"] or operation, runtime: message["runtime-debug"] or runtime}
    frames = tuple(Frame(*fields) for fields in message["symbolise"])
    return symbols.symbolise(frames, operation, runtime, lambda elf: debug[elf])
