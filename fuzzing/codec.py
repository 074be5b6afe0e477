"""How a target reads decisions from an input, and how a seed writes them: short, and hard to get out of step.

A number takes one byte when it is small, a power of two, or one of those that code gets wrong; a mutation of that
byte is then another such number.  Past the end of the input everything is 0.
"""

from __future__ import annotations

#: Numbers around which comparisons, masks and sums go wrong.  Exactly 64; their places are part of every corpus file.
INTERESTING = (
    *(255, 257, 511, 513, 1023, 1025, 4095, 4097, 0x6FFF, 0x7000, 0x7001, 0x7FFF, 0x8001, 0xFFFE, 0xFFFF, 0x10001),
    *(0xFF_FFFF, 0xFFF_FFFF, 0x7FFF_FFFE, 0x7FFF_FFFF, 0x8000_0001, 0xFFFF_0000, 0xFFFF_FE00, 0xFFFF_FFF0),
    *(0xFFFF_FFFE, 0xFFFF_FFFF, 0x1_0000_0001, 0xFF_FFFF_FFFF, (1 << 44) - 1, (1 << 46) + 1, (1 << 47) - 1),
    *((1 << 53) + 1, (1 << 54) - 1, (1 << 54) + 1, (1 << 55) - 1, (1 << 62) - 1, (1 << 62) + 1),
    *((1 << 63) - 513, (1 << 63) - 512, (1 << 63) - 511, (1 << 63) - 2, (1 << 63) - 1, (1 << 63) + 1),
    *((1 << 64) - 4097, (1 << 64) - 4096, (1 << 64) - 513, (1 << 64) - 512, (1 << 64) - 511),
    *((1 << 64) - 16, (1 << 64) - 8, (1 << 64) - 4, (1 << 64) - 3, (1 << 64) - 2, (1 << 64) - 1),
    *(130, 200, 384, 640, 1000, 1536, 2560, 3072, 5000, 100_000),
)
_PLACES = {value: place for place, value in enumerate(INTERESTING)}
_SMALL = 0x80
_TABLE = 0x80
_LITERAL = 0xC0
_POWER = 0xC8


class Source:
    """Reads an input from its start."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Whether anything is left."""
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        """The next bytes, fewer at the end."""
        part = self._data[self._at : self._at + count]
        self._at += len(part)
        return part

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))

    def byte(self) -> int:
        """0 to 255."""
        part = self.take(1)
        return part[0] if part else 0

    def u16(self) -> int:
        """Two bytes, little endian."""
        return int.from_bytes(self.take(2), "little")

    def number(self) -> int:
        """0 to 2^64-1."""
        first = self.byte()
        if first < _SMALL:
            return first
        if first < _LITERAL:
            return INTERESTING[first - _TABLE]
        if first < _POWER:
            return int.from_bytes(self.take(first - _LITERAL + 1), "little")
        return 1 << (first - _LITERAL)

    def block(self) -> bytes:
        """A length of two bytes and that many bytes."""
        return self.take(self.u16())


class Sink:
    """Writes what :class:`Source` reads."""

    __slots__ = ("data",)

    def __init__(self) -> None:
        self.data = bytearray()

    def byte(self, *values: int) -> Sink:
        """One byte each."""
        self.data += bytes(values)
        return self

    def u16(self, value: int) -> Sink:
        """Two bytes."""
        self.data += value.to_bytes(2, "little")
        return self

    def number(self, *values: int) -> Sink:
        """Each as short as it goes."""
        for value in values:
            if value < _SMALL:
                self.data.append(value)
            elif value in _PLACES:
                self.data.append(_TABLE + _PLACES[value])
            elif value.bit_count() == 1 and value >= 1 << (_POWER - _LITERAL):
                self.data.append(_LITERAL + value.bit_length() - 1)
            else:
                size = (value.bit_length() + 7) // 8
                self.data.append(_LITERAL + size - 1)
                self.data += value.to_bytes(size, "little")
        return self

    def raw(self, data: bytes) -> Sink:
        """As they are."""
        self.data += data
        return self

    def block(self, data: bytes) -> Sink:
        """With their length; at most 65535 bytes."""
        return self.u16(len(data)).raw(data)
