"""A small client of the GDB Remote Serial Protocol, and a run that it controls."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from vmm.boundary import Event, Job, Outcome
from vmm.machine.gdb_protocol import INTERRUPT, NAK, Decoder, frame
from vmm.machine.gdb_registers import NUMBERS, REGISTERS
from vmm.record import replace

#: Longest wait for an answer, in seconds: what takes longer is a hang.
PATIENCE = 20.0


class ConnectionClosedError(Exception):
    """The other side hung up."""


class GdbClient:
    """gdb's side of a connection."""

    def __init__(self, connection: socket.socket, *, acks: bool = False) -> None:
        self.connection = connection
        connection.settimeout(PATIENCE)
        self.acks = True
        self._decoder = Decoder()
        self._items: list[bytes | str] = []
        #: What `O` packets said.
        self.console = ""
        if not acks:
            assert self.ask("QStartNoAckMode") == b"OK"
            self.acks = False

    def item(self) -> bytes | str:
        """The next packet or sign."""
        while not self._items:
            try:
                data = self.connection.recv(4096)
            except ConnectionResetError:
                data = b""
            if not data:
                raise ConnectionClosedError
            self._items += self._decoder.feed(data)
        return self._items.pop(0)

    def send(self, body: str | bytes) -> None:
        """Send a packet, without waiting for its answer."""
        self.connection.sendall(frame(body.encode() if isinstance(body, str) else body))

    def packet(self) -> bytes:
        """The next packet; those for the console are kept apart."""
        while True:
            item = self.item()
            if isinstance(item, str):
                assert item != NAK
                continue
            if self.acks:
                try:
                    self.connection.sendall(b"+")
                except BrokenPipeError:
                    # After the last packet nobody waits for it.
                    pass
            if item.startswith(b"O") and item != b"OK":
                self.console += bytes.fromhex(item[1:].decode()).decode()
                continue
            return item

    def ask(self, body: str | bytes) -> bytes:
        """Send a packet; its answer, or the stop that it leads to."""
        self.send(body)
        return self.packet()

    def interrupt(self) -> bytes:
        """Ctrl-C, and the stop that it leads to."""
        assert INTERRUPT == "interrupt"
        self.connection.sendall(b"\x03")
        return self.packet()

    def register(self, name: str) -> int:
        return int.from_bytes(bytes.fromhex(self.ask(f"p{NUMBERS[name]:x}").decode()), "little")

    def set_register(self, name: str, value: int) -> bytes:
        size = REGISTERS[NUMBERS[name]].bits // 8
        return self.ask(f"P{NUMBERS[name]:x}={value.to_bytes(size, 'little').hex()}")

    def memory(self, address: int, length: int) -> bytes:
        return bytes.fromhex(self.ask(f"m{address:x},{length:x}").decode())

    def set_memory(self, address: int, data: bytes) -> bytes:
        return self.ask(f"M{address:x},{len(data):x}:{data.hex()}")

    def step(self) -> int:
        """Step one instruction; where it led."""
        stop = self.ask("s")
        assert stop.startswith(b"T05"), stop
        return self.register("rip")


class DebuggedRun:
    """A job that runs in a thread of its own, with a client at the other end of its debugger's connection."""

    def __init__(self, run: Callable[[Job, Callable[[Event], None]], Outcome], job: Job, *, acks: bool = False) -> None:
        self.events: list[Event] = []
        self._outcome: Outcome | BaseException | None = None
        ours, theirs = socket.socketpair()
        self._theirs = theirs
        self._thread = threading.Thread(
            target=self._work, args=(run, replace(job, debugger=theirs.fileno())), daemon=True
        )
        self._thread.start()
        self.connection = ours
        try:
            self.client = GdbClient(ours, acks=acks)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def _work(self, run: Callable[[Job, Callable[[Event], None]], Outcome], job: Job) -> None:
        try:
            self._outcome = run(job, self.events.append)
        except BaseException as error:
            self._outcome = error
        finally:
            # So that a client that waits for something learns that there is nobody any more.
            self._theirs.shutdown(socket.SHUT_RDWR)

    def outcome(self) -> Outcome:
        """How the run ended; waits for it."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the run hangs"
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        assert self._outcome is not None
        return self._outcome

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the run hangs"
        self._theirs.close()
