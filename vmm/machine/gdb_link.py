"""The connection to gdb: packets over a descriptor that somebody else opened.

Reads, writes and polls, and nothing else: the process that does this may be allowed no more.
"""

from __future__ import annotations

import os
import select

from vmm.machine.faults import DebuggerGone
from vmm.machine.gdb_protocol import DAMAGED, INTERRUPT, NAK, Decoder, GdbProtocolError, frame

_CHUNK = 0x1000
#: Packets that may wait.  gdb sends one and waits for its answer; a flood is not gdb.
_WAITING = 64


class GdbLink:
    """An open, connected stream to gdb.

    :param descriptor: stays the caller's.
    """

    __slots__ = ("_decoder", "_descriptor", "_last", "_packets", "_poll", "interrupted", "no_acks")

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._decoder = Decoder()
        self._packets: list[bytes] = []
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self._last = b""
        #: No acknowledgments any more, in both directions.
        self.no_acks = False
        #: Ctrl-C came, and no packet since: one that the guest's stop has overtaken means nothing any more.
        self.interrupted = False

    def receive(self) -> bytes:
        """The body of the next packet, waiting for it as long as it takes.

        :raises DebuggerGone: the connection is lost, or what comes is not the protocol.
        """
        while not self._packets:
            self._read()
        return self._packets.pop(0)

    def look(self) -> bool:
        """Whether Ctrl-C has come, without waiting.

        :raises DebuggerGone: as :meth:`receive`.
        """
        if self._poll.poll(0):
            self._read()
        return self.interrupted

    def send(self, body: bytes) -> None:
        """Send a packet.

        :raises DebuggerGone: the connection is lost.
        """
        self._last = frame(body)
        self._write(self._last)

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, _CHUNK)
        except OSError as error:
            raise DebuggerGone(f"the connection to the debugger was lost: {error.strerror}") from None
        if not data:
            raise DebuggerGone("the connection to the debugger was lost")
        try:
            items = self._decoder.feed(data)
            if NAK in items and not self.no_acks:
                # Once, however often it was said: nobody waits for more than one packet.
                self._write(self._last)
            for item in items:
                self._take(item)
        except GdbProtocolError as error:
            raise DebuggerGone(error.message) from None

    def _take(self, item: bytes | str) -> None:
        if isinstance(item, bytes):
            if not self.no_acks:
                self._write(b"+")
            if len(self._packets) >= _WAITING:
                raise GdbProtocolError("the debugger sends packets without waiting for answers")
            self._packets.append(item)
            self.interrupted = False
        elif item == INTERRUPT:
            self.interrupted = True
        elif item == DAMAGED:
            if self.no_acks:
                raise GdbProtocolError("the debugger sent a packet with a wrong checksum")
            self._write(b"-")

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except OSError as error:
                raise DebuggerGone(f"the connection to the debugger was lost: {error.strerror}") from None
