"""Reports of hostile guests: scripts for ``guests/emitter.c``, and messages that are wrong in every way there is.

Everything is made from the contract (``calltable.messages.MESSAGES``): a message or a field that is added there is
attacked here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import cbor2

import calltable
from calltable.message import Field, Message
from calltable.messages import MESSAGES
from tests.hostile.build import GUESTS, compile_c

MESSAGE, BATCH, LOG, PROGRESS, ABORT, FAULT = range(6)
_PLACE = b"pyvmm test script"
_ROOM = 16384

#: Each operation's answer, and what may come before it.
OPERATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "info": (
        "info",
        (
            *("info-snapshot", "info-bitmap", "info-reference", "info-partition-table", "info-partition"),
            *("info-filesystem", "info-note", "info-vmdk-extent"),
            *("info-parent-entry", "info-luks2-keyslot", "info-luks2-segment", "info-luks2-digest", "info-luks2-token"),
        ),
    ),
    "measure": ("measure", ()),
    "check": ("check", ("check-finding",)),
    "resize": ("resize", ()),
    "create": ("create", ("create-file",)),
    "map": ("map", ("map-extents",)),
    # Not an operation of the command line: `--chain` runs it before another one.
    "references": ("references", ("info-reference",)),
}

#: Messages that ask for another run, which canned answers are wrong for; tests/unit/test_outputs.py has them.
ASKING = frozenset({"create-file"})

#: What a terminal could act on, or what hides what is written: C0 and C1 controls, the sequences that set colours,
#: titles and answers, carriage returns, bidirectional overrides and isolates, zero-width and other format characters,
#: line separators, a private use and an unassigned code point.
POISON = (
    "\x1b[31m\x1b]0;title\x07\x1b[6n\x9b2J\x90q\x9c\r\n\b\x00\x7f\t\x0b\x0c\x0e\x85"
    "\u202e\u202d\u2066\u2067\u2069\u200b\u200e\u200f\u2028\u2029\u00ad\ufeff\ue000\u0378\U000e0041\U0010ffff"
)


@dataclass
class Script:
    """What the emitter says, and the status with which it then ends."""

    status: int = 0
    records: list[tuple[int, int, int, bytes]] = field(default_factory=list)

    def add(self, data: bytes, *, kind: int = MESSAGE, repeat: int = 1, argument: int = 0) -> Script:
        """One more record."""
        self.records.append((kind, repeat, argument, data))
        return self

    def encode(self) -> bytes:
        """The file for device 0."""
        head = struct.pack("<II", self.status, len(self.records))
        return head + b"".join(
            struct.pack("<IIII", kind, repeat, argument, len(data)) + data
            for kind, repeat, argument, data in self.records
        )


def emitter(script: Script | None = None) -> bytes:
    """The emitter's ELF; with a script of its own for runs without an image."""
    elf = compile_c(GUESTS / "emitter.c")
    if script is None:
        return elf
    data = script.encode()
    assert len(data) <= _ROOM
    assert elf.count(_PLACE) == 1
    at = elf.index(_PLACE)
    return elf[:at] + data + elf[at + len(data) :]


def messages(*payloads: bytes, status: int = 0) -> Script:
    """A script of plain messages."""
    script = Script(status)
    for payload in payloads:
        script.add(payload)
    return script


# Messages that are right.

Fields = dict[str, Any]


#: Fields whose values have to agree with one another: one extent of one zero byte, and the end of its map; and a
#: kind of reference that there is.
AGREEING: dict[str, Fields] = {
    "map-extents": {"start": 0, "lengths": [1], "states": [2], "offsets": [0], "depths": [0], "devices": [0]},
    "map": {"virtual-size": 1, "extents": 1},
    "info-reference": {"kind": "backing-file"},
}


def _sample(entry: Field, text: str) -> Any:
    values: Fields = {"uint": 1, "int": -1, "bool": True, "text": text, "bytes": b"b", "any": 1}
    if entry.kind == "message":
        assert entry.nested is not None
        value = full(entry.nested, text)
    else:
        value = values[entry.kind]
    return [value] if entry.many else value


def full(kind: type[Message], text: str = "text") -> Fields:
    """The fields of a message with all that it can have."""
    return {entry.key: _sample(entry, text) for entry in kind.FIELDS} | AGREEING.get(kind.NAME, {})


def payload(name: str, fields: object) -> bytes:
    """A message as a guest emits it."""
    return cbor2.dumps([name, fields], canonical=True)


def whole(operation: str, text: str = "text") -> list[bytes]:
    """A report of all messages of an operation, every field filled."""
    main, lists = OPERATIONS[operation]
    return [payload(name, full(MESSAGES[name], text)) for name in (*lists, main) if name not in ASKING]


# Messages that are wrong.

#: A value of every type that CBOR's subset has, and numbers at the edges.
VALUES: tuple[Any, ...] = (
    *(None, True, 0, 1, -1, 2**63, 2**64 - 1, -(2**63), -(2**63) - 1, -(2**64), "", "t", b"b", [], [1], [[]]),
    *({}, {"k": 1}),
)


def fits(entry: Field, value: object) -> bool:
    """Whether a field may hold a value of ``VALUES``; written from the types of ``common.toml``."""
    if entry.many:
        item = Field(entry.key, entry.attribute, entry.kind, entry.optional, False, entry.nested)
        return isinstance(value, list) and all(fits(item, one) for one in value)
    if entry.kind in ("uint", "int"):
        low = 0 if entry.kind == "uint" else -(2**63)
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= 2**64 - 1
    types = {"bool": bool, "text": str, "bytes": bytes, "any": object}
    return entry.kind in types and isinstance(value, types[entry.kind])


def places(kind: type[Message], fields: Fields) -> Iterator[tuple[str, Field, Fields]]:
    """Every field of a message and of those inside it: a name for it, the field, and the map that holds it."""
    for entry in kind.FIELDS:
        yield f"{kind.NAME}.{entry.key}", entry, fields
        if entry.nested is not None and fields.get(entry.key):
            inner = fields[entry.key][0] if entry.many else fields[entry.key]
            yield from places(entry.nested, inner)


@dataclass(frozen=True)
class Wrong:
    """A report against the contract and what the host has to say of it."""

    name: str
    operation: str
    payloads: tuple[bytes, ...]
    #: Part of the error's text.
    text: str
    status: int = 0


def _around(operation: str, name: str, fields: object) -> tuple[bytes, ...]:
    """A message where its operation may have it: before the answer, or as the answer."""
    main, _ = OPERATIONS[operation]
    bad = payload(name, fields)
    return (bad,) if name in (main, "error") else (bad, payload(main, full(MESSAGES[main])))


def wrong_fields(operation: str) -> Iterator[Wrong]:
    """Every field of every message: absent, of every other type, out of range; keys that nobody knows."""
    main, lists = OPERATIONS[operation]
    for name in (*lists, main, "error"):
        kind = MESSAGES[name]
        total = len(list(places(kind, full(kind))))
        for index in range(total):
            fields = full(kind)
            where, entry, holder = list(places(kind, fields))[index]
            keep = holder.pop(entry.key)
            if not entry.optional:
                yield Wrong(f"{where} absent", operation, _around(operation, name, fields), "is missing")
            for value in VALUES:
                if not fits(entry, value):
                    holder[entry.key] = value
                    text = "against the contract"
                    yield Wrong(f"{where} = {value!r}", operation, _around(operation, name, fields), text)
            holder[entry.key] = keep
            holder["extra"] = 1
            yield Wrong(f"{where} + extra", operation, _around(operation, name, fields), "unknown key")


def wrong_order(operation: str) -> Iterator[Wrong]:
    """Messages that are right, and not in this place."""
    main, lists = OPERATIONS[operation]
    answer = payload(main, full(MESSAGES[main]))
    error = payload("error", full(MESSAGES["error"]))
    yield Wrong("nothing", operation, (), "did not answer")
    yield Wrong("nothing, status 1", operation, (), "did not answer", status=1)
    yield Wrong("a status of its own", operation, (answer,), "ended with status 99", status=99)
    yield Wrong("two answers", operation, (answer, answer), f"emitted {main} after {main}")
    yield Wrong("an error after the answer", operation, (answer, error), f"emitted error after {main}")
    yield Wrong("an answer after the error", operation, (error, answer), f"emitted {main} after error")
    yield Wrong("two errors", operation, (error, error), "emitted error after error")
    for name in lists:
        late = payload(name, full(MESSAGES[name]))
        yield Wrong(f"{name} after the answer", operation, (answer, late), f"emitted {name} after {main}")
        yield Wrong(f"{name} alone", operation, (late,), "did not answer")
    for name in MESSAGES:
        if name not in (main, "error", *lists):
            yield Wrong(f"{name} is not of it", operation, (payload(name, full(MESSAGES[name])),), "no message of this")
    yield Wrong("a name that is none", operation, (payload("nobody", {}),), "no message of this")


def wrong_bytes(operation: str) -> Iterator[Wrong]:
    """Payloads that are no message at all."""
    main, _ = OPERATIONS[operation]
    name = cbor2.dumps(main)
    bad = {
        "10,000 arrays": b"\x81" * 10_000 + b"\0",
        "10,000 maps": b"\xa1\x61k" * 9_000 + b"\0",
        "10,000 tags": b"\xc1" * 10_000 + b"\0",
        "10,000 arrays as a key": b"\x82" + name + b"\xa1" + b"\x81" * 10_000 + b"\0\0",
        "text of 4 GiB": b"\x82" + name + b"\xa1\x61k\x7a\xff\xff\xff\xff",
        "text of 2^64-1": b"\x82\x7b" + b"\xff" * 8,
        "bytes of 2^63": b"\x82\x5b\x80" + bytes(7),
        "array of 2^64-1": b"\x9b" + b"\xff" * 8 + b"\0" * 1000,
        "map of 2^64-1": b"\x82" + name + b"\xbb" + b"\xff" * 8,
        "arrays of 2^24 in arrays": b"\x9a\0\xff\xff\xff" * 16,
        "duplicate keys": b"\x82" + name + b"\xa2\x66format\x61a\x66format\x61b",
        "duplicate keys in two spellings": b"\x82" + name + b"\xa2\x66format\x61a\x78\x06format\x61b",
        "a tag": b"\x82" + name + b"\xa1\x66format\xc0\x61a",
        "a bignum": b"\x82" + name + b"\xa1\x6cvirtual-size\xc2\x49\1" + bytes(8),
        "a decimal fraction": b"\x82" + name + b"\xa1\x66format\xc4\x82\x01\x02",
        "a shared reference": b"\x82" + name + b"\xd8\x1c\xa1\x66format\xd8\x1d\0",
        "a regular expression": b"\x82" + name + b"\xa1\x66format\xd8\x23\x65(a+)+",
        "indefinite array": b"\x9f" + name + b"\xa0\xff",
        "indefinite map": b"\x82" + name + b"\xbf\xff",
        "indefinite text": b"\x82\x7f" + name + b"\xff\xa0",
        "a break": b"\xff",
        "a double": b"\x82" + name + b"\xa1\x66format\xfb" + bytes(8),
        "a not-a-number": b"\x82" + name + b"\xa1\x66format\xf9\x7e\0",
        "undefined": b"\x82" + name + b"\xf7",
        "a simple value": b"\x82" + name + b"\xf8\xff",
        "a lone surrogate": b"\x82" + name + b"\xa1\x66format\x63\xed\xa0\x80",
        "a pair of surrogates": b"\x82" + name + b"\xa1\x66format\x66\xed\xa0\x80\xed\xb0\x80",
        "an overlong slash": b"\x82" + name + b"\xa1\x66format\x62\xc0\xaf",
        "beyond Unicode": b"\x82" + name + b"\xa1\x66format\x64\xf4\x90\x80\x80",
        "half a character": b"\x82" + name + b"\xa1\x66format\x61\xe2",
        "bytes for a name": b"\x82\x44info\xa0",
        "escapes for a name": cbor2.dumps([POISON, {}]),
        "no name": b"\x82\x60\xa0",
        "a name of 28 KB": b"\x82\x79\x6f\xe0" + b"n" * 0x6FE0 + b"\xa0",
        "a number for the fields": b"\x82" + name + b"\0",
        "numbers for keys": b"\x82" + name + b"\xa1\0\0",
        "bytes for a key": b"\x82" + name + b"\xa1\x46format\x61a",
        "one item": b"\x81" + name,
        "three items": b"\x83" + name + b"\xa0\xa0",
        "two messages in one": payload(main, {}) * 2,
        "a byte more": payload(main, full(MESSAGES[main])) + b"\0",
        "a byte less": payload(main, full(MESSAGES[main]))[:-1],
    }
    for what, data in bad.items():
        yield Wrong(what, operation, (data,), "the guest emitted")


def wrong_batches() -> Iterator[tuple[str, bytes, str]]:
    """Batches of the doorbell with every kind of malformed length: a name, the batch, what is said of it."""
    good = payload("info", full(MESSAGES["info"]))
    record = struct.pack("<I", len(good)) + good
    for cut in range(1, 4):
        yield f"{cut} bytes of a length", record[:cut], "ends inside a length"
    for size in (0, calltable.MESSAGE_MAX + 1, 2**31, 2**32 - 1):
        yield f"a message of {size} bytes", struct.pack("<I", size) + bytes(8), f"message of {size} bytes"
    for size in (9, calltable.MESSAGE_MAX):
        yield f"{size} bytes of which 8 are there", struct.pack("<I", size) + bytes(8), "ends inside a message"
    yield "a good one and half a length", record + b"\1\0", "ends inside a length"
    yield "a good one and an empty one", record + bytes(4), "message of 0 bytes"
    yield "more than the buffer", bytes(calltable.REPORT_BUFFER + 1), f"batch of {calltable.REPORT_BUFFER + 1} bytes"


def all_wrong(operations: Sequence[str] = tuple(OPERATIONS)) -> list[Wrong]:
    """All of it."""
    return [
        wrong
        for operation in operations
        for make in (wrong_fields, wrong_order, wrong_bytes)
        for wrong in make(operation)
    ]
