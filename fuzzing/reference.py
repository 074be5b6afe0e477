"""The CBOR subset of the contract, decoded by the letter of RFC 8949 and by nothing that the package uses."""

from __future__ import annotations

from vmm.cbor import MAX_DEPTH


class Refused(ValueError):  # noqa: N818  (what a decoder says, not what went wrong here)
    """Not one item of the subset."""


def decode(data: bytes) -> object:
    """Exactly one item: section 3, without tags, floats, indefinite lengths, other simple values, duplicate keys.

    :raises Refused: anything else.
    """
    value, end = _item(data, 0, 0)
    if end != len(data):
        raise Refused("bytes after the item")
    return value


def _head(data: bytes, at: int) -> tuple[int, int, int]:
    """Major type, argument, and where the rest begins (section 3)."""
    if at >= len(data):
        raise Refused("no initial byte")
    major, short = data[at] >> 5, data[at] & 31
    at += 1
    if short < 24:
        return major, short, at
    if short > 27:
        raise Refused("reserved or indefinite")
    size = 1 << (short - 24)
    if len(data) - at < size:
        raise Refused("an argument that is cut off")
    if major == 7:
        raise Refused("a simple value of two bytes or a float")
    return major, int.from_bytes(data[at : at + size], "big"), at + size


def _item(data: bytes, at: int, depth: int) -> tuple[object, int]:
    major, argument, at = _head(data, at)
    if major == 0:
        return argument, at
    if major == 1:
        return -1 - argument, at
    if major in (2, 3):
        raw = data[at : at + argument]
        if len(raw) < argument:
            raise Refused("a string that is cut off")
        try:
            return (raw if major == 2 else raw.decode("utf-8")), at + argument
        except UnicodeDecodeError:
            raise Refused("text that is not UTF-8") from None
    if major in (4, 5):
        if depth == MAX_DEPTH:
            raise Refused("too deep")
        return _array(data, at, argument, depth + 1) if major == 4 else _map(data, at, argument, depth + 1)
    if major == 7 and argument in (20, 21, 22):
        return {20: False, 21: True, 22: None}[argument], at
    raise Refused(f"major type {major}, argument {argument}")


def _array(data: bytes, at: int, count: int, depth: int) -> tuple[object, int]:
    items = []
    for _ in range(count):
        item, at = _item(data, at, depth)
        items.append(item)
    return items, at


def _map(data: bytes, at: int, count: int, depth: int) -> tuple[object, int]:
    pairs: dict[str, object] = {}
    for _ in range(count):
        key, at = _item(data, at, depth)
        if not isinstance(key, str) or key in pairs:
            raise Refused("a key that is no text, or is there twice")
        pairs[key], at = _item(data, at, depth)
    return pairs, at
