"""The packet layer: whatever comes, in whatever pieces, it answers or refuses."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.machine.gdb_protocol import (
    ACK,
    DAMAGED,
    INTERRUPT,
    NAK,
    PACKET_SIZE,
    Decoder,
    GdbProtocolError,
    address_and_length,
    frame,
    number,
    unhex,
)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(places)]


@given(st.lists(st.binary(max_size=64), max_size=5), st.lists(st.integers(0, 1000), max_size=8))
def test_round_trip_in_any_pieces(bodies: list[bytes], cuts: list[int]) -> None:
    decoder = Decoder()
    found: list[bytes | str] = []
    for piece in pieces(b"".join(map(frame, bodies)), cuts):
        found += decoder.feed(piece)
    assert found == bodies


@given(st.binary(max_size=300), st.lists(st.integers(0, 1000), max_size=5))
def test_pieces_make_no_difference(data: bytes, cuts: list[int]) -> None:
    whole = Decoder().feed(data)
    decoder = Decoder()
    assert [item for piece in pieces(data, cuts) for item in decoder.feed(piece)] == whole


@given(st.binary(max_size=300))
def test_after_anything_a_packet_gets_through(data: bytes) -> None:
    decoder = Decoder()
    decoder.feed(data)
    # Two digits of a checksum may be outstanding.
    assert decoder.feed(b"##00" + frame(b"qC"))[-1] == b"qC"


def test_a_packet_as_the_manual_writes_it() -> None:
    assert frame(b"OK") == b"$OK#9a"
    assert frame(b"") == b"$#00"
    assert frame(b"a#b$c}d*") == b"$a}\x03b}\x04c}]d}\n#%02x" % (sum(b"a}\x03b}\x04c}]d}\n") & 0xFF)


def test_signs_between_packets() -> None:
    assert Decoder().feed(b"+x-\x03\0+$OK#9A") == [ACK, NAK, INTERRUPT, ACK, b"OK"]


def test_bytes_inside_a_packet_are_no_signs() -> None:
    assert Decoder().feed(frame(b"X0,3:+-\x03")) == [b"X0,3:+-\x03"]


@pytest.mark.parametrize(
    "data", [b"$OK#9b", b"$OK#9", b"$OK#zz", b"$OK# 9", b"$a}#de", b"$}}]#57", b"$OK#+1", b"$OK#\xef\xbc\x999"]
)
def test_damaged_packets(data: bytes) -> None:
    found = Decoder().feed(data)
    assert found[:1] in ([DAMAGED], [])
    assert b"OK" not in found


def test_a_new_packet_inside_one_that_was_cut_off() -> None:
    assert Decoder().feed(b"$m1000,2$OK#9a") == [b"OK"]


def test_the_longest_packet() -> None:
    longest = b"x" * PACKET_SIZE
    assert Decoder().feed(frame(longest)) == [longest]
    decoder = Decoder()
    with pytest.raises(GdbProtocolError, match=f"more than {PACKET_SIZE} bytes"):
        decoder.feed(frame(longest + b"x"))


@pytest.mark.parametrize("text", [b"", b"-1", b"0x10", b"1_0", b" 1", b"1 ", b"g", b"10000000000000000", "१".encode()])
def test_numbers_are_hexadecimal_digits(text: bytes) -> None:
    with pytest.raises(GdbProtocolError):
        number(text)


@pytest.mark.parametrize("text", [b"0", b"1 2 ", b"0x", b"zz", b"1"])
def test_bytes_are_pairs_of_digits(text: bytes) -> None:
    with pytest.raises(GdbProtocolError):
        unhex(text)


@given(st.integers(0, (1 << 64) - 1), st.integers(0, 1 << 32), st.binary(max_size=40))
def test_numbers_and_bytes_are_read_back(address: int, length: int, data: bytes) -> None:
    assert address_and_length(b"%x,%X" % (address, length)) == (address, length)
    assert unhex(data.hex().encode()) == data
