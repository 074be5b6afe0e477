"""The connection to gdb: acknowledgments, Ctrl-C, floods, and an end at any moment."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from vmm.machine.faults import DebuggerGone
from vmm.machine.gdb_link import GdbLink
from vmm.machine.gdb_protocol import PACKET_SIZE, frame


@pytest.fixture
def pair() -> Iterator[tuple[GdbLink, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    yield GdbLink(ours.fileno()), theirs
    ours.close()
    theirs.close()


Pair = tuple[GdbLink, socket.socket]


def look_often(link: GdbLink) -> None:
    for _ in range(100):
        link.look()


def test_packets_are_acknowledged_until_they_are_not(pair: Pair) -> None:
    link, gdb = pair
    gdb.sendall(frame(b"qC"))
    assert link.receive() == b"qC"
    assert gdb.recv(10) == b"+"
    link.no_acks = True
    gdb.sendall(frame(b"g"))
    assert link.receive() == b"g"
    link.send(b"OK")
    assert gdb.recv(10) == b"$OK#9a"


def test_a_damaged_packet_is_asked_for_again(pair: Pair) -> None:
    link, gdb = pair
    gdb.sendall(b"$qC#00" + frame(b"qC"))
    assert link.receive() == b"qC"
    assert gdb.recv(10) == b"-+"


def test_a_damaged_packet_without_acknowledgments_is_the_end(pair: Pair) -> None:
    link, gdb = pair
    link.no_acks = True
    gdb.sendall(b"$qC#00")
    with pytest.raises(DebuggerGone, match="wrong checksum"):
        link.receive()


def test_an_answer_is_repeated_once_however_often_it_is_asked_for(pair: Pair) -> None:
    link, gdb = pair
    link.send(b"OK")
    assert gdb.recv(100) == b"$OK#9a"
    gdb.sendall(b"-" * 50 + frame(b"?"))
    assert link.receive() == b"?"
    assert gdb.recv(100) == b"$OK#9a+"


def test_looking_does_not_wait(pair: Pair) -> None:
    link, gdb = pair
    assert not link.look()
    gdb.sendall(b"+")
    assert not link.look()
    gdb.sendall(b"\x03")
    assert link.look()


def test_a_packet_behind_it_voids_control_c(pair: Pair) -> None:
    """gdb has seen that the guest stopped before that."""
    link, gdb = pair
    gdb.sendall(b"\x03" + frame(b"c"))
    assert not link.look()
    assert link.receive() == b"c"
    gdb.sendall(frame(b"c") + b"\x03")
    assert link.receive() == b"c"
    assert link.interrupted


def test_looking_keeps_packets(pair: Pair) -> None:
    link, gdb = pair
    gdb.sendall(frame(b"g") + frame(b"qC") + b"\x03")
    assert link.look()
    assert [link.receive(), link.receive()] == [b"g", b"qC"]


def test_a_lost_connection(pair: Pair) -> None:
    link, gdb = pair
    gdb.sendall(b"$half")
    gdb.close()
    with pytest.raises(DebuggerGone, match="was lost"):
        link.receive()
    with pytest.raises(DebuggerGone, match="was lost"):
        link.look()
    with pytest.raises(DebuggerGone, match="was lost: Broken pipe"):
        link.send(b"OK")


@pytest.mark.parametrize("flood", [b"$" + b"x" * (2 * PACKET_SIZE), frame(b"qC") * 100])
def test_floods_end(pair: Pair, flood: bytes) -> None:
    link, gdb = pair
    gdb.sendall(flood)
    with pytest.raises(DebuggerGone, match="debugger sen"):
        look_often(link)


def test_a_long_answer_arrives_whole(pair: Pair) -> None:
    link, gdb = pair
    link.send(b"0" * PACKET_SIZE)
    data = b""
    while not data.endswith(b"#00"):
        data += gdb.recv(4096)
    assert len(data) == PACKET_SIZE + 4
