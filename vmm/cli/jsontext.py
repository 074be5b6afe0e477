"""JSON as qemu-img writes it: key order, four-space indentation, escapes.  (Importing :mod:`json` costs 6 ms.)"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_SHORT = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _character(character: str) -> str:
    if " " <= character <= "~" and character not in '"\\':
        return character
    short = _SHORT.get(character)
    if short is not None:
        return short
    code = ord(character)
    if code >= 0x10000:
        code -= 0x10000
        return f"\\u{0xD800 + (code >> 10):04X}\\u{0xDC00 + (code & 0x3FF):04X}"
    # A lone surrogate (a file name's byte that is not UTF-8) has no place in JSON.
    return "\\uFFFD" if 0xD800 <= code < 0xE000 else f"\\u{code:04X}"


def quote(text: str) -> str:
    """A JSON string in ASCII without control characters."""
    return '"' + "".join(map(_character, text)) + '"'


def _scalar(value: object) -> str:
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, (int, float)):
        # JSON has no infinity and no NaN (RFC 8259 section 6).
        return repr(value) if value - value == 0 else "null"
    if isinstance(value, bytes):
        return quote(value.hex())
    return quote(str(value))


def compact(value: object) -> str:
    """On one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quote(str(key))}: {compact(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(compact, value)) + "]"
    return _scalar(value)


def pretty(value: object, indent: str = "") -> str:
    """On many lines, four spaces a level; empty containers take two lines, as qemu-img's do."""
    if not isinstance(value, (dict, list, tuple)):
        return _scalar(value)
    deeper = indent + "    "
    if isinstance(value, dict):
        lines = [f"{deeper}{quote(str(key))}: {pretty(item, deeper)}" for key, item in value.items()]
        opening, closing = "{}"
    else:
        lines = [deeper + pretty(item, deeper) for item in value]
        opening, closing = "[]"
    body = ",\n".join(lines)
    return f"{opening}\n{body}\n{indent}{closing}" if lines else f"{opening}\n{indent}{closing}"


def _bucket(key: str) -> int:
    """Where qemu's dictionary keeps a key: a multiplicative hash of its bytes, modulo 512 buckets.

    qemu-img prints an object in the order of these buckets; the tests compare it with the real one.
    """
    data = key.encode("utf-8", "surrogatepass")
    value = 0x238F13AF * len(data)
    for index, byte in enumerate(data):
        value += byte << (index * 5 % 24)
    return (1103515243 * value + 12345) % 512


def qemu_order(fields: Mapping[str, object]) -> dict[str, object]:
    """The fields in qemu-img's order, without those that are None."""
    return {key: fields[key] for key in sorted(fields, key=_bucket) if fields[key] is not None}


def without_none(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    """A dictionary of what is there."""
    return {key: value for key, value in pairs if value is not None}
