"""Sizes as people write them: a number of bytes with an optional suffix b, k, M, G, T, P or E (powers of 1024)."""

from __future__ import annotations

from vmm.errors import UsageError

#: The largest size of a disk, in bytes (qemu-img's limit: a signed 64-bit offset).
MAX_SIZE = (1 << 63) - 1

_SUFFIXES = "bkmgtpe"
_HEXADECIMAL = frozenset("0123456789abcdef")
#: More digits than any size has; Python refuses to convert very long numbers.
_MAX_DIGITS = 40
_HELP = (
    "You may use k, M, G, T, P or E suffixes for kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes."
)


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS


def _hexadecimal(body: str) -> int | None:
    """After 0x; a suffix that is no hexadecimal digit multiplies."""
    exponent = _SUFFIXES.find(body[-1:]) if body and body[-1] not in _HEXADECIMAL else 0
    if exponent > 0:
        body = body[:-1]
    if exponent < 0 or not body or len(body) > _MAX_DIGITS or not _HEXADECIMAL.issuperset(body):
        return None
    return int(body, 16) << 10 * exponent


def parse_number(text: str) -> int | None:
    """Bytes in ``text``, or None when it is no size.

    Decimal, with a fraction when there is a suffix (rounded to whole bytes), or hexadecimal after ``0x``; blanks and a
    plus sign in front are let pass, as by qemu-img.  A negative number is no size.
    """
    body = text.lstrip(" \t\n").removeprefix("+").lower()
    if body.startswith("0x"):
        return _hexadecimal(body[2:])
    exponent = _SUFFIXES.find(body[-1]) if body else -1
    if exponent >= 0:
        body = body[:-1]
    whole, point, fraction = body.partition(".")
    if not _digits(whole):
        return None
    multiplier = 1 << 10 * max(exponent, 0)
    if not point:
        return int(whole) * multiplier
    if multiplier == 1 or (fraction and not _digits(fraction)):
        return None
    scale = int("1" + "0" * len(fraction))
    return int(whole) * multiplier + (2 * int(fraction or "0") * multiplier + scale) // (2 * scale)


def parse_size(size: int | str, what: str = "image size") -> int:
    """A disk size in bytes, 0 to 2^63-1, from text or as a number.

    :raises UsageError: no size, or out of range.
    """
    text = size if isinstance(size, str) else None
    value = parse_number(size) if isinstance(size, str) else size
    if value is None or value < 0:
        raise UsageError(f"Invalid {what} specified. {_HELP}", value=text)
    if value > MAX_SIZE:
        raise UsageError(f"Invalid {what} specified. Must be between 0 and {MAX_SIZE}.", value=text)
    return value
