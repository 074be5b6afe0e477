"""The decoder accepts exactly what a decoder written from RFC 8949 accepts, answers the same, and raises nothing but
DecodeError; what it accepted encodes again to the same value, and in no more bytes.
"""

from __future__ import annotations

from collections.abc import Iterable

import cbor2

from fuzzing.reference import Refused
from fuzzing.reference import decode as reference
from fuzzing.targets import Target
from vmm.cbor import DecodeError, decode, encode


def _same(one: object, other: object) -> bool:
    """Equal, and of the same types all the way down: 1 and True are not the same."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    return one == other


def run(data: bytes) -> None:
    """See above."""
    try:
        expected, refused = reference(data), False
    except Refused:
        expected, refused = None, True
    try:
        value = decode(data)
    except DecodeError as error:
        assert refused, f"refused ({error}): {data.hex()}"
        return
    assert not refused, f"accepted: {data.hex()}"
    assert _same(value, expected)
    assert _same(value, cbor2.loads(data))
    encoded = encode(value)
    assert decode(encoded) == value
    assert len(encoded) <= len(data)
    assert encode(decode(encoded)) == encoded


def seeds() -> Iterable[bytes]:
    """The examples of RFC 8949 appendix A by kind, and messages of real runs."""
    from fuzzing.seeds import reports

    values: list[object] = [
        0,
        23,
        24,
        255,
        256,
        65536,
        2**32,
        2**64 - 1,
        -1,
        -25,
        -(2**64),
        True,
        None,
        b"\x01",
        "IETF",
    ]
    values += ["\u00fc\u6c34\U00010151", [1, [2, 3], []], {"a": 1, "b": [2, {"c": 3}]}, 1.5, 2**70, {1: 2}, {1, 2}]
    yield from (cbor2.dumps(value) for value in values)
    yield from (b"\x9f\x01\xff", b"\xbf\x61a\x01\xff", b"\xa2\x61a\x01\x61a\x02", b"\xf7", b"\xf8\xff", b"\xc1\x01")
    yield from (b"\x18\x01", b"\x1b" + bytes(8), b"\x81" * 16 + b"\x01", b"\x81" * 17 + b"\x01", b"\x7b" + b"\xff" * 8)
    yield from reports.payloads()


TARGET = Target("cbor", run, seeds, max_length=1024)
