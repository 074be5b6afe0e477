"""What a worker could say in the place of an honest answer: bytes, by name."""

from __future__ import annotations

from vmm.boundary import Outcome, Usage
from vmm.cbor import encode
from vmm.sandbox import wire

#: Text that a terminal would act on.
ESCAPES = "\x1b]0;owned\x07\x1b[2J\u202e\n"

_NONE = [0] * 6
DONE = ["o", 0, None, _NONE, [], [], []]


def _failure(**fields: object) -> list[object]:
    return ["o", None, {"kind": "panic", "message": "m", **fields}, _NONE, [], [], []]


def _raw(data: bytes) -> bytes:
    return wire.LENGTH.pack(len(data)) + data


def _items(*items: object) -> bytes:
    return _raw(encode(list(items)))


def _nested(depth: int) -> bytes:
    return _raw(b"\x81" * depth + b"\x80")


#: What is sent in the place of an answer to a job.
ANSWERS: dict[str, bytes] = {
    "nothing is wrong": _items(DONE),
    "text in the place of a frame": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "an empty frame": wire.LENGTH.pack(0),
    "a frame of 4 GiB": wire.LENGTH.pack(0xFFFFFFFF) + b"x" * 1000,
    "a frame that is a little too long": wire.LENGTH.pack(wire.MAX_FRAME + 1),
    "no CBOR": _raw(b"\xff\xff\xff"),
    "half an item": _raw(b"\x82\x01"),
    "two items": _raw(encode([DONE]) + encode([DONE])),
    "10,000 deep": _nested(10_000),
    "20 deep": _nested(20),
    "a million lists": _raw(b"\x9a" + (wire.MAX_FRAME - 5).to_bytes(4, "big") + b"\x80" * (wire.MAX_FRAME - 5)),
    "a string of 2^63 bytes": _raw(b"\x81\x82\x61m\x5b" + (1 << 63).to_bytes(8, "big")),
    "a list of 2^63 items": _raw(b"\x9b" + (1 << 63).to_bytes(8, "big")),
    "a tag": _raw(b"\x81\xc2\x41\x01"),
    "an indefinite length": _raw(b"\x9f\xff"),
    "a duplicate key": _raw(b"\x81\x84\x61e\x61c\x61m\xa2\x61a\x01\x61a\x02"),
    "a fraction": _raw(b"\x81\x83\x61p\xf9\x3c\x00\x01"),
    "a lone surrogate": _raw(b"\x81\x84\x61e\x61c\x63\xed\xa0\x80\xa0"),
    "no list": _raw(encode({"m": b""})),
    "an item that is no list": _items(7),
    "an empty item": _items([]),
    "an unknown item": _items(["z", 1]),
    "an item that is too long": _items(["m", b"", 1]),
    "a message that is text": _items(["m", "text"]),
    "a message that is too long": _items(["m", bytes(1 << 20)]),
    "negative progress": _items(["p", -1, 1]),
    "a truth in the place of a number": _items(["p", True, 1]),
    "a level of 2^64": _items(["l", -(1 << 64), b""]),
    "a trace that nobody asked for": _items(["t", b"x"]),
    "a second report of the jail": _items(["j", [], 0]),
    "addresses": _items(["a", []]),
    "an answer and more": _items(DONE, ["p", 1, 1]),
    "two answers": _items(DONE, DONE),
    "status and failure": _items(["o", 0, {"kind": "panic", "message": "m"}, _NONE, [], [], []]),
    "neither status nor failure": _items(["o", None, None, _NONE, [], [], []]),
    "a status of 2^32": _items(["o", 1 << 32, None, _NONE, [], [], []]),
    "a negative status": _items(["o", -1, None, _NONE, [], [], []]),
    "an unknown failure": _items(_failure(kind="escaped")),
    "an unknown field of a failure": _items(_failure(exit_status=0)),
    "a failure without a message": _items(_failure(message=None)),
    "a failure of a million frames": _items(_failure(backtrace=[[0, None, None, None]] * 100)),
    "a long text": _items(_failure(message="m" * (wire.MAX_TEXT + 1))),
    "more registers than there are": _items(_failure(registers={f"r{number}": 0 for number in range(100)})),
    "usage of other things": _items(["o", 0, None, [0] * 5, [], [], []]),
    "lengths of other devices": _items(["o", 0, None, _NONE, [1], [], []]),
    "errors of other devices": _items(["o", 0, None, _NONE, [], ["no"], []]),
    "lengths of a million devices": _items(["o", 0, None, _NONE, [1] * 100_000, [], []]),
    "an error of its own": _items(["e", "internal", "it broke", {}]),
    "an error of an unknown kind": _items(["e", "refused", "no", {}]),
    "an error with a list of details": _items(["e", "kvm", "no", {"x": []}]),
    "an error with a thousand details": _items(["e", "kvm", "no", {f"{number}": 1 for number in range(1000)}]),
    "an error of KVM's": _items(
        ["e", "kvm", f"KVM {ESCAPES}", {"code": "fine", f"a{ESCAPES}": ESCAPES, "errno": "EIO"}]
    ),
    "escapes": _items(
        _failure(
            **dict.fromkeys(("message", "access", "region", "limit"), ESCAPES),
            registers={ESCAPES: 1},
            backtrace=[[1, ESCAPES, ESCAPES, 1]],
            recent_requests=[ESCAPES],
        )
    ),
    "three messages": _items(*[["m", b"\x80"]] * 3),
    "a hundred bytes": _items(["m", bytes(100)]),
    "three lines": _items(*[["l", 1, b"line"]] * 3),
    "an answer, and then another": _items(DONE) + _items(DONE),
    "an answer, and half a frame": _items(DONE) + b"\x01",
}


#: What an honest answer is, on the other side.
HONEST = Outcome(0, None, Usage())
