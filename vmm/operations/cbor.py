"""The subset of CBOR (RFC 8949) that crosses the boundary: encoding requests, decoding hostile reports.

The contract (``calltable/messages.cddl``) allows unsigned and negative integers, byte and text strings, arrays, maps
with text keys, true, false and null.  Everything else is refused where its first byte is seen: tags of any kind,
indefinite lengths, floats, undefined, duplicate keys, trailing bytes.  That is less than any general decoder can be
told to refuse, and it costs a plain run no import; the tests compare it with ``cbor2`` on everything it accepts.

Nothing is allocated on the word of a length: a string must lie in the input, and an array or map of N entries needs
at least N (2N) more bytes of input, so memory stays proportional to the input.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    #: What decodes to what.
    Value = int | bytes | str | bool | None | list["Value"] | dict[str, "Value"]

#: Containers inside containers; the deepest message of the contract needs 6.
MAX_DEPTH = 16

_UINT = 0
_NEGATIVE = 1
_BYTES = 2
_TEXT = 3
_ARRAY = 4
_MAP = 5
_TAG = 6
_INDEFINITE = 31


class DecodeError(ValueError):
    """The input is not one item of the subset; the text says at which byte and why."""


def _head(major: int, value: int) -> bytes:
    """Initial byte and argument, shortest form (RFC 8949 section 4.2.1)."""
    if value < 24:
        return bytes((major << 5 | value,))
    for info, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if value < 1 << 8 * size:
            return bytes((major << 5 | info,)) + value.to_bytes(size, "big")
    raise ValueError(f"{value} does not fit 64 bits")


def encode(value: object) -> bytes:
    """Encode deterministically (RFC 8949 section 4.2.1: shortest forms, map keys in bytewise order).

    :raises TypeError: a type that the subset does not have.
    :raises ValueError: an integer outside -2^64 .. 2^64-1.
    """
    if value is None:
        return b"\xf6"
    if value is True:
        return b"\xf5"
    if value is False:
        return b"\xf4"
    if isinstance(value, int):
        return _head(_UINT, value) if value >= 0 else _head(_NEGATIVE, -1 - value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _head(_BYTES, len(value)) + bytes(value)
    if isinstance(value, str):
        encoded = value.encode("utf-8")
        return _head(_TEXT, len(encoded)) + encoded
    if isinstance(value, (list, tuple)):
        return _encode_array(value)
    if isinstance(value, dict):
        return _encode_map(value)
    raise TypeError(f"{type(value).__name__} cannot be put into a request")


def _encode_array(items: Sequence[object]) -> bytes:
    return _head(_ARRAY, len(items)) + b"".join(encode(item) for item in items)


def _encode_map(items: Mapping[object, object]) -> bytes:
    if not all(isinstance(key, str) for key in items):
        raise TypeError("keys are text")
    pairs = sorted((encode(key), encode(item)) for key, item in items.items())
    return _head(_MAP, len(pairs)) + b"".join(key + item for key, item in pairs)


def decode(data: bytes, max_depth: int = MAX_DEPTH) -> Value:
    """Decode exactly one item.

    :raises DecodeError: anything else, whatever the bytes are.
    """
    value, end = _item(data, 0, max_depth)
    if end != len(data):
        raise DecodeError(f"{len(data) - end} bytes after the item, at byte {end}")
    return value


def _argument(data: bytes, at: int, info: int) -> tuple[int, int]:
    """The argument of the head whose initial byte ends at ``at``, and where it ends."""
    if info < 24:
        return info, at
    if info > 27:
        what = "an indefinite length" if info == _INDEFINITE else "a reserved length"
        raise DecodeError(f"{what} at byte {at - 1}")
    end = at + (1 << (info - 24))
    if end > len(data):
        raise DecodeError(f"cut short at byte {len(data)}")
    return int.from_bytes(data[at:end], "big"), end


def _item(data: bytes, at: int, depth: int) -> tuple[Value, int]:
    if at >= len(data):
        raise DecodeError(f"cut short at byte {at}")
    initial = data[at]
    major = initial >> 5
    if major > _MAP:
        return _simple(initial, at), at + 1
    argument, start = _argument(data, at + 1, initial & 31)
    if major == _UINT:
        return argument, start
    if major == _NEGATIVE:
        return -1 - argument, start
    left = len(data) - start
    if major <= _TEXT:
        if argument > left:
            raise DecodeError(f"a string of {argument} bytes at byte {at}, {left} are left")
        piece = data[start : start + argument]
        if major == _BYTES:
            return piece, start + argument
        try:
            return piece.decode("utf-8"), start + argument
        except UnicodeDecodeError:
            raise DecodeError(f"text at byte {at} is not UTF-8") from None
    if depth <= 0:
        raise DecodeError(f"nested too deeply at byte {at}")
    if argument * (major - _ARRAY + 1) > left:
        raise DecodeError(f"a container of {argument} entries at byte {at}, {left} bytes are left")
    if major == _ARRAY:
        items: list[Value] = []
        for _ in range(argument):
            value, start = _item(data, start, depth - 1)
            items.append(value)
        return items, start
    return _map(data, start, argument, depth)


def _map(data: bytes, start: int, count: int, depth: int) -> tuple[Value, int]:
    entries: dict[str, Value] = {}
    for _ in range(count):
        key_at = start
        key, start = _item(data, start, 0)
        if not isinstance(key, str):
            raise DecodeError(f"a key at byte {key_at} is not text")
        if key in entries:
            raise DecodeError(f"a key at byte {key_at} is there twice")
        entries[key], start = _item(data, start, depth - 1)
    return entries, start


def _simple(initial: int, at: int) -> Value:
    if initial >> 5 == _TAG:
        raise DecodeError(f"a tag at byte {at}")
    if initial == 0xF4:
        return False
    if initial == 0xF5:
        return True
    if initial == 0xF6:
        return None
    raise DecodeError(f"a float, undefined or another simple value at byte {at}")
