"""Reads the definition files and checks them; what the back ends work from."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

DEFINITION = Path(__file__).resolve().parent.parent.parent / "calltable" / "definition"

#: Integer types of the contract: name -> (bytes, signed).
INTEGERS = {"u32": (4, False), "i32": (4, True), "u64": (8, False), "i64": (8, True)}
#: Scalar types of message fields.
SCALARS = ("uint", "int", "bool", "text", "bytes", "any")


class DefinitionError(Exception):
    """The definition contradicts itself; the message names the file and the item."""


@dataclass(frozen=True)
class Argument:
    name: str
    type: str


@dataclass(frozen=True)
class Entry:
    """One function of the call table."""

    name: str
    since: int
    returns: str
    arguments: tuple[Argument, ...]
    doc: str


@dataclass(frozen=True)
class StructField:
    name: str
    type: str
    #: 1 unless the field is an array.
    count: int


@dataclass(frozen=True)
class Struct:
    """A record in guest memory: little endian, naturally aligned without padding (checked)."""

    name: str
    doc: str
    fields: tuple[StructField, ...]


@dataclass(frozen=True)
class MessageField:
    key: str
    type: str
    optional: bool
    many: bool
    doc: str

    @property
    def attribute(self) -> str:
        return self.key.replace("-", "_")


@dataclass(frozen=True)
class Message:
    """The fields of a request or of one message of a report."""

    name: str
    doc: str
    fields: tuple[MessageField, ...]

    @property
    def class_name(self) -> str:
        return "".join(part.capitalize() for part in self.name.split("-"))


@dataclass(frozen=True)
class Constant:
    """A number, or a string, that host and guest share."""

    name: str
    value: int | str
    doc: str = ""


@dataclass(frozen=True)
class Definition:
    constants: tuple[Constant, ...]
    entries: tuple[Entry, ...]
    structs: tuple[Struct, ...]
    messages: tuple[Message, ...]
    codes: tuple[Constant, ...]

    def constant(self, name: str) -> int:
        for constant in self.constants:
            if constant.name == name and isinstance(constant.value, int):
                return constant.value
        raise DefinitionError(f"no constant {name}")

    def struct_size(self, name: str) -> int:
        struct = next(s for s in self.structs if s.name == name)
        return sum(self.type_size(f.type) * f.count for f in struct.fields)

    def type_size(self, name: str) -> int:
        return INTEGERS[name][0] if name in INTEGERS else self.struct_size(name)


def _load(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return tomllib.load(file)


def _struct(raw: dict[str, Any]) -> Struct:
    fields = []
    for name, kind in raw["fields"]:
        match = re.fullmatch(r"(\w+)(?:\[(\d+)\])?", kind)
        if match is None:
            raise DefinitionError(f"struct {raw['name']}: bad type {kind!r} of {name}")
        fields.append(StructField(name, match[1], int(match[2] or 1)))
    return Struct(raw["name"], raw["doc"], tuple(fields))


def _message(raw: dict[str, Any]) -> Message:
    fields = []
    for item in raw["fields"]:
        key, kind, doc = item if len(item) == 3 else (*item, "")
        optional = kind.startswith("?")
        kind = kind.removeprefix("?")
        many = kind.startswith("[") and kind.endswith("]")
        fields.append(MessageField(key, kind[1:-1] if many else kind, optional, many, doc))
    return Message(raw["name"], raw["doc"], tuple(fields))


def _check_structs(definition: Definition) -> None:
    for struct in definition.structs:
        offset = 0
        for field in struct.fields:
            size = definition.type_size(field.type)
            align = min(size, 8)
            if offset % align:
                raise DefinitionError(f"struct {struct.name}: {field.name} is not aligned")
            offset += size * field.count
        if offset % 8:
            raise DefinitionError(f"struct {struct.name}: size {offset} is not a multiple of 8")


def _ordered(messages: list[Message]) -> tuple[Message, ...]:
    """Messages so that each comes after those it refers to."""
    known = {m.name: m for m in messages}
    done: dict[str, Message] = {}

    def visit(message: Message, path: tuple[str, ...]) -> None:
        if message.name in done:
            return
        if message.name in path:
            raise DefinitionError(f"message {message.name} contains itself")
        for field in message.fields:
            if field.type in SCALARS:
                continue
            if field.type not in known:
                raise DefinitionError(f"message {message.name}: unknown type {field.type!r} of {field.key}")
            visit(known[field.type], (*path, message.name))
        done[message.name] = message

    for message in messages:
        visit(message, ())
    return tuple(done.values())


def load() -> Definition:
    """Read ``definition/*.toml`` and ``definition/messages/*.toml``.

    :raises DefinitionError: a name occurs twice, a type is unknown, a record is not aligned.
    """
    table = _load(DEFINITION / "table.toml")
    machine = _load(DEFINITION / "machine.toml")
    message_files = [_load(path) for path in sorted((DEFINITION / "messages").glob("*.toml"))]

    constants = [Constant(f"TABLE_{k.upper()}", v) for k, v in table["table"].items()]
    constants += [Constant(f"ERROR_{e['name']}", e["code"], e["doc"]) for e in table["error"]]
    constants += [Constant(f["name"], f["value"]) for f in table["flag"]]
    constants += [Constant(k, v) for k, v in machine["memory"].items()]
    constants += [
        Constant("CONTROL_DOORBELL" if k == "DOORBELL" else f"COMMAND_{k}", v) for k, v in machine["control"].items()
    ]
    constants += [Constant(k, v) for k, v in machine["limits"].items()]
    constants += [Constant(f"BOOT_{k}", v) for k, v in machine["boot"].items()]

    entries = tuple(
        Entry(e["name"], e["since"], e["returns"], tuple(Argument(n, t) for n, t in e["arguments"]), e["doc"])
        for e in table["entry"]
    )
    definition = Definition(
        constants=tuple(constants),
        entries=entries,
        structs=tuple(_struct(s) for s in table["struct"] + machine["struct"]),
        messages=_ordered([_message(m) for file in message_files for m in file.get("message", [])]),
        codes=tuple(Constant(c["name"], c["name"], c["doc"]) for file in message_files for c in file.get("code", [])),
    )
    names = [c.name for c in constants] + [m.name for m in definition.messages] + [e.name for e in entries]
    for name in names:
        if names.count(name) > 1:
            raise DefinitionError(f"{name} is defined twice")
    if [e.since for e in entries] != sorted(e.since for e in entries):
        raise DefinitionError("entries are not in the order of the versions that brought them")
    _check_structs(definition)
    boot = next(s for s in definition.structs if s.name == "BootInfo")
    if boot.fields[-1].count != definition.constant("MAX_DEVICES"):
        raise DefinitionError("BootInfo does not hold MAX_DEVICES devices")
    return definition


def at_minor(definition: Definition, minor: int) -> Definition:
    """The contract as it was at an older minor: what an operation built back then was compiled against."""
    constants = tuple(replace(c, value=minor) if c.name == "TABLE_MINOR" else c for c in definition.constants)
    entries = tuple(e for e in definition.entries if e.since <= minor)
    return replace(definition, constants=constants, entries=entries)
