"""CBOR (RFC 8949) as it crosses the boundary: encoding requests, decoding hostile reports, by ``cbor2``.

The contract (``calltable/messages.cddl``) allows unsigned and negative integers of 64 bits, byte and text strings,
arrays, maps with text keys, true, false and null.  What a report may not hold is refused while it is decoded: tags of
any kind, before what a tag stands for is built, indefinite lengths, duplicate keys, depth, trailing bytes; then floats,
undefined and the like by their type.
"""

from __future__ import annotations

import sys
from io import BytesIO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from io import RawIOBase
    from typing import IO

    from cbor2 import CBORDecodeError, CBORDecoder, dumps

    #: What decodes to what.
    Value = int | bytes | str | bool | None | list["Value"] | dict[str, "Value"]

if not TYPE_CHECKING:

    def _core():
        """The compiled part of cbor2, as ``cbor2`` itself imports it.

        Not through the package: what it imports for its annotations takes as long as starting an interpreter.
        """
        name = "cbor2._cbor2"
        if name not in sys.modules:
            finder = sys.modules["_frozen_importlib_external"].PathFinder
            package = finder.find_spec("cbor2")
            spec = package and finder.find_spec(name, package.submodule_search_locations)
            if not spec:
                import cbor2  # built in another way: then it takes its time

                return cbor2
            sys.modules[name] = sys.modules["_frozen_importlib"]._load(spec)
        return sys.modules[name]

    _cbor2 = _core()
    CBORDecodeError, CBORDecoder, dumps = _cbor2.CBORDecodeError, _cbor2.CBORDecoder, _cbor2.dumps

#: Containers inside containers; the deepest message of the contract needs 6.
MAX_DEPTH = 16

_INT_MIN = -(1 << 64)
_INT_MAX = (1 << 64) - 1


class DecodeError(ValueError):
    """The input is not one item of the subset; the text says why."""


class _NoTags(dict[int, "Callable[..., object]"]):
    """A decoder for each semantic tag, those that cbor2 brings included: none is wanted."""

    def __missing__(self, tag: int) -> Callable[..., object]:
        raise DecodeError(f"tag {tag}")


_NO_TAGS = _NoTags()


def _wrong(value: object, room: int = _INT_MAX) -> str | None:
    """What in a value the subset does not have; None when it has everything.

    :param room: containers inside containers that are allowed.
    """
    kind = type(value)
    if kind is int:
        inside = _INT_MIN <= value <= _INT_MAX  # type: ignore[operator]  # mypy does not narrow by identity of types
        return None if inside else "an integer that does not fit 64 bits"
    if kind is str or kind is bytes or kind is bool or value is None:
        return None
    if isinstance(value, (list, tuple, dict)) and room == 0:
        # cbor2 counts a container when it decodes the first item in it, and so lets an empty one pass.
        return "maximum container nesting depth exceeded by an empty container"
    if isinstance(value, (list, tuple)):
        # Long arrays are of numbers, and looked through in C.
        if set(map(type, value)) == {int} and min(value) >= _INT_MIN and max(value) <= _INT_MAX:
            return None
        return next((wrong for item in value if (wrong := _wrong(item, room - 1))), None)
    if isinstance(value, dict):
        for key, item in value.items():
            if type(key) is not str:
                return "a key that is not text"
            if wrong := _wrong(item, room - 1):
                return wrong
        return None
    return f"a value of type {kind.__name__}"


def encode(value: object) -> bytes:
    """Encode deterministically (RFC 8949 section 4.2.1: shortest forms, map keys in bytewise order).

    :raises TypeError: the subset does not have this; an integer outside -2^64 .. 2^64-1 among others.
    :raises UnicodeEncodeError: text that is not UTF-8.
    """
    if wrong := _wrong(value):
        raise TypeError(f"{wrong} cannot be put into a request")
    return dumps(value, canonical=True)


class SequenceDecoder:
    """Decodes the items of a CBOR sequence (RFC 8742), one after another.

    :param source: ``read(n)`` answers at most ``n`` bytes; exactly the bytes of the items are taken from it.
    :param max_depth: containers inside containers.
    """

    __slots__ = ("_decoder", "_max_depth")

    def __init__(self, source: IO[bytes] | RawIOBase, max_depth: int = MAX_DEPTH) -> None:
        self._max_depth = max_depth
        # Exact reads, so that the position afterwards is the end of the item.
        self._decoder = CBORDecoder(
            source,  # type: ignore[arg-type]  # IO[bytes] has more methods than a decoder needs
            read_size=1,
            semantic_decoders=_NO_TAGS,
            max_depth=max_depth,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
        )

    def item(self) -> Value:
        """The next item.

        :raises DecodeError: there is none, or it is not of the subset.
        """
        try:
            value: Value = self._decoder.decode()
        except CBORDecodeError as error:
            cause = error.__cause__
            raise DecodeError(str(cause if isinstance(cause, DecodeError) else error)) from None
        if wrong := _wrong(value, self._max_depth):
            raise DecodeError(wrong)
        return value


def decode(data: bytes, max_depth: int = MAX_DEPTH) -> Value:
    """Decode exactly one item.

    :raises DecodeError: anything else, whatever the bytes are.
    """
    source = BytesIO(data)
    value = SequenceDecoder(source, max_depth).item()
    if source.tell() != len(data):
        raise DecodeError(f"{len(data) - source.tell()} bytes after the item, at byte {source.tell()}")
    return value
