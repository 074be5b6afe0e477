"""Writing to stdout and stderr: whatever the encoding, whatever the reader does."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO


def write(stream: TextIO, text: str) -> None:
    """Write text; characters that the stream's encoding lacks are escaped.

    :raises BrokenPipeError: the reader is gone.
    """
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def out(text: str) -> None:
    """Write to stdout.

    :raises BrokenPipeError: the reader is gone.
    """
    write(sys.stdout, text)


def err(text: str) -> None:
    """Write to stderr; a reader that is gone is nobody's problem."""
    try:
        write(sys.stderr, text)
    except (BrokenPipeError, ValueError):
        pass


def abandon_stdout() -> None:
    """After a broken pipe: let the interpreter's last flush go nowhere."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, 1)
    os.close(null)
