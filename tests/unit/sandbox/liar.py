"""A worker that lies: a process in the place of the real one, which says what a broken or conquered worker could say.

It reads its settings and says that its jail is closed; it reads a job, and then does what its name says.  Without a
name it says what the request of the job tells it, byte for byte.  Then it waits: whoever is still there when the broker
has done with it was not killed.
"""

from __future__ import annotations

import _socket
import os
import time

from vmm.cbor import decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PROGRAM = "import sys; sys.path[:0] = {{paths!r}}; from tests.unit.sandbox.liar import main; main({name!r})"
_CHANNEL = 3
DONE = ["o", 0, None, [0] * 6, [], [], []]


def _raw(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data


def _items(*items: object) -> bytes:
    return _raw(encode(list(items)))


def _forever(data: bytes) -> Callable[[Any], None]:
    def flood(channel: Any) -> None:
        while True:
            channel.sendall(data * 100)

    return flood


def _drip(channel: Any) -> None:
    for byte in _raw(encode([DONE]) + bytes(1000)):
        channel.send(bytes((byte,)))
        time.sleep(0.02)


def _descriptors(channel: Any) -> None:
    for _ in range(300):
        fd = os.open("/dev/null", os.O_RDONLY)
        rights = fd.to_bytes(4, "little") * 3
        channel.sendmsg([_items(["p", 1, 1])], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
        os.close(fd)
    channel.sendall(_items(DONE))


def _half_a_frame_and_end(channel: Any) -> None:
    channel.sendall(_items(DONE)[:-3])
    os._exit(3)


def _half_a_frame_and_death(channel: Any) -> None:
    channel.sendall(_items(DONE)[:-3])
    os.kill(os.getpid(), 9)


#: What takes more than bytes.
DEEDS: dict[str, Callable[[Any], None]] = {
    "silence": lambda _: None,
    "a flood of progress": _forever(_items(["p", 1, 2])),
    "a flood of nothing": _forever(_items()),
    "a byte now and then": _drip,
    "descriptors": _descriptors,
    "half a frame and its end": _half_a_frame_and_end,
    "half a frame and its death": _half_a_frame_and_death,
    "it hangs up": lambda channel: channel.shutdown(_socket.SHUT_WR),
}


def _report(layers: list[str]) -> bytes:
    return _items(["j", [[name, True, ""] for name in layers], 1])


#: What is said of the jail.
REPORTS: dict[str, Callable[[list[str]], bytes]] = {
    "no layers": lambda _: _report([]),
    "a layer too few": lambda layers: _report(layers[1:]),
    "a layer that does not exist": lambda _: _items(["j", [["moat", True, ""]], 1]),
    "a layer that may hold": lambda _: _items(["j", [["seccomp", 1, ""]], 1]),
    "two reports": lambda layers: _raw(encode([["j", [], 1], ["j", [], 1]])),
    "no report": lambda _: _items(DONE),
    "an error": lambda _: _items(["e", "kvm", "no", {}]),
    "a thousand layers": lambda _: _items(["j", [["seccomp", True, ""]] * 1000, 1]),
    "garbage": lambda _: b"garbage, garbage, garbage",
}


def _receive(channel: Any) -> dict[str, Any] | None:
    """The next frame; the descriptors with it are dropped."""
    data = b""
    while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "little"):
        more = channel.recv(1 << 20)
        if not more:
            return None
        data += more
    message = decode(data[4:])
    assert isinstance(message, dict)
    return message


def main(name: str) -> None:
    """Lie."""
    channel = _socket.socket(fileno=_CHANNEL)
    settings = _receive(channel)
    assert settings is not None
    try:
        channel.sendall(REPORTS.get(name, _report)(settings["layers"]))
        while name != "deaf" and name not in REPORTS:
            message = _receive(channel)
            if message is None:
                break
            if name:
                DEEDS[name](channel)
            else:
                channel.sendall(message["request"])
    except OSError:
        pass
    time.sleep(1000)
