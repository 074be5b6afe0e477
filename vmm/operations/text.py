"""Text from images and guests, made safe to show."""

from __future__ import annotations

#: File names that are not UTF-8 carry their bytes as lone surrogates (PEP 383).
_BYTE_LOW, _BYTE_HIGH = 0xDC80, 0xDCFF


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    if _BYTE_LOW <= code <= _BYTE_HIGH:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable(text: str) -> str:
    """``text`` with everything escaped that a terminal could act on or that hides what is written.

    That is what Unicode does not call printable: C0 and C1 controls, bidirectional overrides, zero-width and other
    format characters, line separators, lone surrogates, unassigned code points.  A backslash stays as it is, so that
    escaping twice changes nothing.
    """
    if text.isprintable():
        return text
    return "".join(map(_escaped, text))


def printable_bytes(data: bytes) -> str:
    """As :func:`printable`, for bytes that should be UTF-8."""
    return printable(data.decode("utf-8", "surrogateescape"))
