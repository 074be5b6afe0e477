"""Signals that end the command: Ctrl-C, SIGTERM and SIGHUP clean up, say so in one line, and have their own status.

The first one raises an exception wherever the program stands, so that every context manager on the way out cleans up;
later ones do nothing, so that none of them is interrupted.  Only the command does this, never the library: handlers
belong to the program.  (:mod:`signal` would bring :mod:`enum`; ``_signal`` is the part of it that is built in.)
"""

from __future__ import annotations

import _signal
import sys

from vmm.errors import EXIT_HANGUP, EXIT_INTERRUPTED, EXIT_TERMINATED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

#: What each signal means: the word on stderr and the exit status, 128 and the signal's number.
_MEANINGS = {
    int(_signal.SIGINT): ("interrupted", EXIT_INTERRUPTED),
    int(_signal.SIGTERM): ("terminated", EXIT_TERMINATED),
    int(_signal.SIGHUP): ("hung up", EXIT_HANGUP),
}


class Stopped(BaseException):
    """A signal ends the command.  Not an ``Exception``: nothing on the way out may take it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        #: What the line on stderr says.
        self.word, self.exit_status = _MEANINGS[number]


class _State:
    """The signal that came first, and whether the next one raises."""

    armed = False
    first: int | None = None


def _on_signal(number: int, _: FrameType | None) -> None:
    if _State.armed:
        _State.armed = False
        _State.first = number
        raise Stopped(number)


def _on_unraisable(unraisable: Any) -> None:
    """Of an exception that Python cannot raise where it stands (a finaliser, a callback), and would print."""
    if not isinstance(unraisable.exc_value, Stopped):
        sys.__unraisablehook__(unraisable)


def install() -> None:
    """From here on the first signal raises :class:`Stopped`.  What is ignored stays ignored, as nohup(1) wants it."""
    sys.unraisablehook = _on_unraisable
    _State.armed = True
    for number in _MEANINGS:
        if _signal.getsignal(number) != _signal.SIG_IGN:
            _signal.signal(number, _on_signal)


def settle() -> Stopped | None:
    """From here on no signal raises; what came and was lost in a finaliser, if any."""
    _State.armed = False
    return None if _State.first is None else Stopped(_State.first)
