"""Messages of a report from the bytes of an input: of the contract, nearly of it, or anything at all."""

from __future__ import annotations

import cbor2

from calltable.message import Field, Message
from calltable.messages import MESSAGES
from fuzzing.codec import Source

#: Alphabetical: the order is part of every corpus file.
NAMES = tuple(sorted(MESSAGES))

#: Text that acts on terminals, hides, breaks columns, or means something to whoever reads it.
TEXTS = (
    *("", "raw", "qcow2", "vpc", "corruption", "leak", "check-error", "note", "io", "no-checks", "gpt", "mbr"),
    *("\x1b[31m", "\x9b2J", "\r\n", "\u202eabc", "\u200b", "a\x00b", "\x7f", "\ufffd", '"\\', "e\u0301", "\U000e0001"),
    *("../b", "json:{}", "x" * 200, "\u6f22" * 20, "\t", ",,=", "\ud7ff\ue000", "\U0001f600"),
)
_VALUES: tuple[object, ...] = (None, True, False, 0, -1, 1 << 63, b"\x1b[0m", [], {}, [[[]]], 1.5, {"a": 1}, 1 << 64)


def text(source: Source) -> str:
    """One of the texts above, or the input's own."""
    choice = source.byte()
    if choice < len(TEXTS):
        return TEXTS[choice]
    return source.take(choice & 31).decode("utf-8", "replace")


def _value(source: Source, field: Field, depth: int) -> object:
    if field.nested is not None:
        return _fields(source, field.nested, depth + 1) if depth < 4 else {}
    if field.kind in ("uint", "int"):
        return source.number()
    if field.kind == "bool":
        return bool(source.byte() & 1)
    if field.kind == "bytes":
        return source.take(source.byte() & 31)
    return text(source)


def _fields(source: Source, kind: type[Message], depth: int = 0) -> dict[str, object]:
    """The fields of a message: a byte for each says whether it is there and right."""
    out: dict[str, object] = {}
    for field in kind.FIELDS:
        choice = source.byte()
        if field.optional and choice & 1:
            continue
        if choice >= 0xF8:
            # Wrong: absent, of another type, or of another name.
            if choice & 6 == 2:
                out[field.key] = _VALUES[source.byte() % len(_VALUES)]
            elif choice & 6 == 4:
                out[field.key + "x"] = 0
            continue
        if field.many:
            out[field.key] = [_value(source, field, depth) for _ in range(choice >> 1 & 7)]
        else:
            out[field.key] = _value(source, field, depth)
    return out


def message(source: Source, names: tuple[str, ...] = NAMES) -> bytes:
    """A payload; mostly one that fits the schema."""
    name = names[source.byte() % len(names)]
    return cbor2.dumps([name, _fields(source, MESSAGES[name])], canonical=True)
