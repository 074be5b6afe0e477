"""The packet layer of the GDB Remote Serial Protocol, without I/O.

Source: "Debugging with GDB", appendix E, "Overview" (framing, checksums, escapes), "Packet Acknowledgment" and
"Interrupts".
Nothing that arrives here raises anything but :class:`GdbProtocolError`, and a packet is bounded.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

#: Bytes that the body of a packet may have, in both directions; announced as PacketSize.
PACKET_SIZE = 0x4000

#: What arrives besides packets.
ACK: Final = "ack"
NAK: Final = "nak"
#: Ctrl-C: the byte 3 between packets.
INTERRUPT: Final = "interrupt"
#: A packet whose checksum or escapes are wrong.
DAMAGED: Final = "damaged"

_DOLLAR, _HASH, _ESCAPE = b"$#}"
_ESCAPED = b"$#}*"
_FLIP = 0x20
_HEX = frozenset(b"0123456789abcdefABCDEF")
_SIGNS = {ord("+"): ACK, ord("-"): NAK, 3: INTERRUPT}


class GdbProtocolError(Exception):
    """What the debugger sent cannot be answered.

    :param message: one sentence, plain ASCII, nothing of the debugger's in it but numbers.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Decoder:
    """Takes bytes as they come and answers what they say: bodies of packets, and the signs between them."""

    __slots__ = ("_body", "_digits", "_inside")

    def __init__(self) -> None:
        self._body = bytearray()
        #: What has come of the two digits behind ``#``; None before it.
        self._digits: bytearray | None = None
        self._inside = False

    def feed(self, data: bytes) -> list[bytes | str]:
        """What these bytes complete, in order: the body of a packet, or ACK, NAK, INTERRUPT, DAMAGED.

        :raises GdbProtocolError: a packet is longer than PACKET_SIZE.
        """
        found: list[bytes | str] = []
        for byte in data:
            if self._digits is not None:
                self._digits.append(byte)
                if len(self._digits) == 2:
                    found.append(self._finish(bytes(self._digits)))
            elif byte == _DOLLAR:
                # Also inside a packet, whose rest was lost then: it escapes this byte.
                self._body.clear()
                self._inside = True
            elif not self._inside:
                # Anything else between packets is noise.
                if byte in _SIGNS:
                    found.append(_SIGNS[byte])
            elif byte == _HASH:
                self._digits = bytearray()
            elif len(self._body) >= PACKET_SIZE:
                raise GdbProtocolError(f"the debugger sent a packet of more than {PACKET_SIZE} bytes")
            else:
                self._body.append(byte)
        return found

    def _finish(self, digits: bytes) -> bytes | str:
        raw = bytes(self._body)
        self._body.clear()
        self._digits = None
        self._inside = False
        if not _HEX.issuperset(digits) or int(digits, 16) != sum(raw) & 0xFF:
            return DAMAGED
        return _unescape(raw)


def _unescape(raw: bytes) -> bytes | str:
    if _ESCAPE not in raw:
        return raw
    first, *rest = raw.split(b"}")
    body = bytearray(first)
    rest.reverse()
    while rest:
        part = rest.pop()
        if not part:
            # An escaped brace is not written as one: two in a row, or one at the end, say nothing.
            return DAMAGED
        body.append(part[0] ^ _FLIP)
        body += part[1:]
    return bytes(body)


def frame(body: bytes) -> bytes:
    """The packet with this body."""
    if any(byte in body for byte in _ESCAPED):
        escaped = bytearray()
        for byte in body:
            escaped += bytes((_ESCAPE, byte ^ _FLIP)) if byte in _ESCAPED else bytes((byte,))
        body = bytes(escaped)
    return b"$%b#%02x" % (body, sum(body) & 0xFF)


def number(text: bytes) -> int:
    """A number as packets write it: hexadecimal digits and nothing else, at most 64 bits.

    :raises GdbProtocolError: something else.
    """
    if not 0 < len(text) <= 16 or not _HEX.issuperset(text):
        raise GdbProtocolError("a number was expected")
    return int(text, 16)


def unhex(text: bytes) -> bytes:
    """Bytes as packets write them: pairs of hexadecimal digits.

    :raises GdbProtocolError: something else.
    """
    if len(text) % 2 or not _HEX.issuperset(text):
        raise GdbProtocolError("pairs of hexadecimal digits were expected")
    return bytes.fromhex(text.decode("ascii"))


def address_and_length(text: bytes) -> tuple[int, int]:
    """``ADDRESS,LENGTH``.

    :raises GdbProtocolError: something else.
    """
    address, _, length = text.partition(b",")
    return number(address), number(length)
