"""What unlocks an encrypted image: the bytes of a file, exactly."""

from __future__ import annotations

import os

from vmm.errors import UsageError
from vmm.operations.files import close, file_error
from vmm.operations.text import printable

#: Bytes of a passphrase at most: it travels in the request.
MAX_PASSPHRASE = 32 << 10


def read_passphrase(path: str) -> bytes:
    """The bytes of a file, all of them: a newline at its end is part of it, as for ``cryptsetup --key-file``.

    :raises FileError: it cannot be read.
    :raises UsageError: it is empty, or longer than :data:`MAX_PASSPHRASE`.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            parts = []
            room = MAX_PASSPHRASE + 1
            while room > 0 and (part := os.read(fd, room)):
                parts.append(part)
                room -= len(part)
        finally:
            close(fd)
    except OSError as error:
        raise file_error(path, "read", error) from None
    except ValueError:
        raise UsageError(f"'{printable(path)}' is no path") from None
    passphrase = b"".join(parts)
    check_passphrase(passphrase)
    return passphrase


def check_passphrase(passphrase: bytes) -> None:
    """Refuse what is no passphrase; the message never shows any of it.

    :raises UsageError: it is empty, or longer than :data:`MAX_PASSPHRASE`.
    """
    if not passphrase:
        raise UsageError("The passphrase is empty")
    if len(passphrase) > MAX_PASSPHRASE:
        raise UsageError(f"The passphrase has more than {MAX_PASSPHRASE} bytes")
