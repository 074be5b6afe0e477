"""Writing to stdout and stderr: whatever the encoding, whatever the reader does."""

from __future__ import annotations

import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO


def write(stream: TextIO | None, text: str) -> None:
    """Write text; characters that the stream's encoding lacks are escaped.

    :param stream: None where the process was started without the descriptor.
    :raises BrokenPipeError: the reader is gone.
    :raises OSError: nothing can be written there.
    """
    if stream is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def out(text: str) -> None:
    """Write to stdout.

    :raises BrokenPipeError: the reader is gone.
    :raises OSError: nothing can be written there.
    """
    try:
        write(sys.stdout, text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, f"writing to stdout failed: {error.strerror}") from None


def err(text: str) -> None:
    """Write to stderr; what cannot be said there is said by the exit status."""
    try:
        write(sys.stderr, text)
    except (OSError, ValueError):
        pass


def abandon_stdout() -> None:
    """After a broken pipe: let the interpreter's last flush go nowhere."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, 1)
    os.close(null)
