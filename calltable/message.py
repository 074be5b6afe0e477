"""What every generated message class shares: immutability, comparison, validation, and the map form for CBOR.

Written without :mod:`dataclasses`: a plain run of the command imports this, and generating a dozen classes at import
would cost more than the run itself.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, ClassVar, NoReturn, Self

UINT_MAX = (1 << 64) - 1
INT_MIN = -(1 << 63)


class SchemaError(ValueError):
    """A message does not have the shape that the contract gives it; the text names message, key and what was found."""


class Field:
    """One field of a message: its key on the wire, its attribute, and what its value must be.

    :param kind: uint, int, bool, text, bytes, any, or message (then ``nested`` is its class).
    """

    __slots__ = ("attribute", "key", "kind", "many", "nested", "optional")

    def __init__(
        self, key: str, attribute: str, kind: str, optional: bool, many: bool, nested: type[Message] | None
    ) -> None:
        self.key = key
        self.attribute = attribute
        self.kind = kind
        self.optional = optional
        self.many = many
        self.nested = nested


def _value(message: str, field: Field, value: object) -> object:
    kind = field.kind
    if kind == "uint":
        if type(value) is int and 0 <= value <= UINT_MAX:
            return value
    elif kind == "int":
        if type(value) is int and INT_MIN <= value <= UINT_MAX:
            return value
    elif kind == "bool":
        if type(value) is bool:
            return value
    elif kind == "text":
        if type(value) is str:
            return value
    elif kind == "bytes":
        if type(value) is bytes:
            return value
    elif kind == "any":
        return value
    elif isinstance(value, dict) and field.nested is not None:
        return field.nested.from_fields(value)
    raise SchemaError(f"{message}: {field.key} is {type(value).__name__}, not {kind}, or out of range")


def _all_uints(field: Field, value: list[Any] | tuple[Any, ...]) -> bool:
    """Whether an array is one of numbers that fit, told at once rather than item by item."""
    return field.kind == "uint" and set(map(type, value)) == {int} and min(value) >= 0 and max(value) <= UINT_MAX


class Message:
    """Base of the generated classes.  Instances are immutable and compare by value."""

    __slots__ = ()
    NAME: ClassVar[str] = ""
    FIELDS: ClassVar[tuple[Field, ...]] = ()

    @classmethod
    def from_fields(cls, fields: Mapping[Any, object]) -> Self:
        """Build from a decoded CBOR map.

        :raises SchemaError: a key is missing or unknown, or a value has the wrong type or range.
        """
        new = object.__new__(cls)
        put = object.__setattr__
        seen = 0
        for field in cls.FIELDS:
            if field.key not in fields:
                if not field.optional:
                    raise SchemaError(f"{cls.NAME}: {field.key} is missing")
                put(new, field.attribute, None)
                continue
            seen += 1
            value = fields[field.key]
            if field.many:
                if not isinstance(value, (list, tuple)):
                    raise SchemaError(f"{cls.NAME}: {field.key} is {type(value).__name__}, not an array")
                if _all_uints(field, value):
                    put(new, field.attribute, tuple(value))
                else:
                    put(new, field.attribute, tuple(_value(cls.NAME, field, item) for item in value))
            else:
                put(new, field.attribute, _value(cls.NAME, field, value))
        if seen != len(fields):
            known = {field.key for field in cls.FIELDS}
            unknown = next(key for key in fields if key not in known)
            raise SchemaError(f"{cls.NAME}: unknown key {ascii(unknown)[:80]}")
        return new

    def as_fields(self) -> dict[str, object]:
        """The map form; absent optional fields are left out.  Keys in RFC 8949 section 4.2.1 order."""
        out: dict[str, object] = {}
        for field in sorted(self.FIELDS, key=lambda f: (len(f.key.encode()), f.key.encode())):
            value = getattr(self, field.attribute)
            if value is None:
                continue
            if field.many:
                out[field.key] = [v.as_fields() if isinstance(v, Message) else v for v in value]
            else:
                out[field.key] = value.as_fields() if isinstance(value, Message) else value
        return out

    def items(self) -> int:
        """How many items its arrays hold, those of nested messages included."""
        count = 0
        for field in self.FIELDS:
            value = getattr(self, field.attribute)
            if field.many and value is not None:
                count += len(value) + sum(item.items() for item in value if isinstance(item, Message))
            elif isinstance(value, Message):
                count += value.items()
        return count

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def _values(self) -> tuple[object, ...]:
        return tuple(getattr(self, field.attribute) for field in self.FIELDS)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), self._values()))

    def __repr__(self) -> str:
        parts = (f"{f.attribute}={getattr(self, f.attribute)!r}" for f in self.FIELDS)
        return f"{type(self).__name__}({', '.join(p for p in parts if not p.endswith('=None'))})"

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (type(self).from_fields, (self.as_fields(),))
