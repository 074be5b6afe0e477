"""From a payload that a guest emitted to a typed message, or one typed error.

A guest is hostile: whatever bytes it emits, :func:`decode_message` answers or raises
:class:`~vmm.errors.GuestFailedError`, in memory proportional to the payload.
"""

from __future__ import annotations

from calltable.message import SchemaError
from calltable.messages import MESSAGES
from vmm.cbor import DecodeError, decode
from vmm.errors import GuestFailedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from calltable.message import Message
    from vmm.cbor import Value

#: Bytes of a message's name; names are for programs.
MAX_NAME = 64


def decode_envelope(payload: bytes) -> tuple[str, Mapping[str, Value]]:
    """Name and fields of a message: the CBOR array ``[name, map]``.

    :raises GuestFailedError: the payload is anything else.
    """
    try:
        item = decode(payload)
    except DecodeError as error:
        raise GuestFailedError(f"the guest emitted a message that cannot be decoded: {error}") from None
    if not isinstance(item, list) or len(item) != 2:
        raise GuestFailedError("the guest emitted a message that is not a pair of name and fields")
    name, fields = item
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isascii() or not name.isprintable():
        raise GuestFailedError("the guest emitted a message whose name is not a short printable text")
    if not isinstance(fields, dict):
        raise GuestFailedError(f"the guest emitted {name} without a map of fields")
    return name, fields


def decode_message(payload: bytes, allowed: frozenset[str]) -> Message:
    """The typed message in a payload; its name must be among ``allowed``.

    :raises GuestFailedError: it is not a message of the contract, not allowed here, or does not fit its schema.
    """
    name, fields = decode_envelope(payload)
    kind = MESSAGES.get(name)
    if kind is None or name not in allowed:
        raise GuestFailedError(f"the guest emitted {name}, which is no message of this operation")
    try:
        return kind.from_fields(fields)
    except SchemaError as error:
        raise GuestFailedError(f"the guest emitted a message against the contract: {error}") from None
