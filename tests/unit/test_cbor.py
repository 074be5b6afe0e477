"""The decoder of hostile reports: everything that the contract has, or one error."""

from __future__ import annotations

import tracemalloc
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.cbor import MAX_DEPTH, DecodeError, decode, encode

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 64), (1 << 64) - 1)
    | st.binary(max_size=40)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5), max_leaves=20
)


def depth(value: object) -> int:
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 0


@given(VALUES.filter(lambda value: depth(value) <= MAX_DEPTH))
def test_round_trip(value: Any) -> None:
    encoded = encode(value)
    assert decode(encoded) == value
    assert cbor2.loads(encoded) == value


@given(st.dictionaries(TEXT, st.integers(0, 3), max_size=8))
def test_keys_are_in_the_order_of_rfc_8949(value: dict[str, int]) -> None:
    keys = sorted(value, key=encode)
    assert encode(value) == encode(dict.fromkeys(keys))[:1] + b"".join(encode(k) + encode(value[k]) for k in keys)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_else(data: bytes) -> None:
    try:
        value = decode(data)
    except DecodeError:
        return
    assert cbor2.loads(data) == value


@given(VALUES, st.data())
def test_damaged_encodings_raise_nothing_else(value: Any, data: st.DataObject) -> None:
    encoded = bytearray(encode(value))
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = decode(bytes(encoded))
    except DecodeError:
        return
    assert cbor2.loads(bytes(encoded)) == found


@pytest.mark.parametrize(
    ("data", "text"),
    [
        pytest.param(b"", "end of stream", id="nothing"),
        pytest.param(b"\x19\x01", "end of stream", id="head-cut"),
        pytest.param(b"\x01\x01", "after the item", id="trailing"),
        pytest.param(b"\xc0\x60", "tag 0", id="date-tag"),
        pytest.param(b"\xc2\x41\x01", "tag 2", id="bignum-tag"),
        pytest.param(b"\xd8\x1c\x80", "tag 28", id="shareable-tag"),
        pytest.param(b"\xd9\xd9\xf7\x01", "tag 55799", id="self-described-tag"),
        pytest.param(b"\x9f\xff", "indefinite", id="indefinite-array"),
        pytest.param(b"\xbf\xff", "indefinite", id="indefinite-map"),
        pytest.param(b"\x7f\x61a\xff", "indefinite", id="indefinite-text"),
        pytest.param(b"\x5f\xff", "indefinite", id="indefinite-bytes"),
        pytest.param(b"\x1c", "subtype", id="reserved-length"),
        pytest.param(b"\xf9\x00\x00", "float", id="half-float"),
        pytest.param(b"\xfb" + bytes(8), "float", id="double"),
        pytest.param(b"\xf7", "Undefined", id="undefined"),
        pytest.param(b"\xe0", "SimpleValue", id="simple-0"),
        pytest.param(b"\xff", "break code", id="break"),
        pytest.param(b"\xa2\x61a\x01\x61a\x02", "[Dd]uplicate", id="duplicate-key"),
        pytest.param(b"\xa1\x01\x02", "key", id="integer-key"),
        pytest.param(b"\xa1\x80\x02", "key", id="array-key"),
        pytest.param(b"\x61\xff", "text string", id="not-utf-8"),
        pytest.param(b"\x63\xed\xa0\x80", "text string", id="surrogate"),
        pytest.param(b"\x7a\xff\xff\xff\xff", "end of stream", id="4-gib-text"),
        pytest.param(b"\x5b" + b"\xff" * 8, "end of stream", id="2-to-64-bytes"),
        pytest.param(b"\x9b" + b"\xff" * 8, "end of stream", id="2-to-64-items"),
        pytest.param(b"\xbb" + b"\x7f" * 8, "end of stream", id="2-to-63-pairs"),
        pytest.param(b"\xa1\x61a", "end of stream", id="half-a-pair"),
        pytest.param(b"\x81" * 1000 + b"\x01", "depth", id="depth-bomb"),
        pytest.param(b"\xa1\x61a" * 1000 + b"\x01", "depth", id="map-depth-bomb"),
    ],
)
def test_refused(data: bytes, text: str) -> None:
    with pytest.raises(DecodeError, match=text):
        decode(data)


def test_depth_limit_is_exact() -> None:
    assert decode(b"\x81" * MAX_DEPTH + b"\x01") is not None
    for innermost in (b"\x01", b"\x80", b"\xa0"):
        with pytest.raises(DecodeError, match="depth"):
            decode(b"\x81" * (MAX_DEPTH + (innermost == b"\x01")) + innermost)
    assert decode(b"\x81" * (MAX_DEPTH - 1) + b"\x80") is not None


def test_lengths_allocate_nothing() -> None:
    bombs = [b"\x9a\x00\xff\xff\xff" + b"\x01" * 100, b"\x7a\xff\xff\xff\xff" + b"a" * 100]
    tracemalloc.start()
    try:
        for bomb in bombs:
            with pytest.raises(DecodeError):
                decode(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("value", [1.5, object(), {1: 2}, {"a": {3}}])
def test_encode_refuses_other_types(value: object) -> None:
    with pytest.raises(TypeError):
        encode(value)


def test_encode_refuses_large_integers() -> None:
    with pytest.raises(TypeError, match="64 bits"):
        encode(1 << 64)
