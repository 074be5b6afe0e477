"""Progress on stderr: ``(12.34/100%)``, as qemu-img writes it.

On a terminal the line is rewritten, and shown without ``-p`` too once a run has taken a second.  Elsewhere, with ``-p``
only, each update is a line of its own.
"""

from __future__ import annotations

import sys
import time

from vmm.cli.terminal import err

#: Seconds after which a terminal is told without being asked.
PATIENCE = 1.0
#: Seconds between two updates.
INTERVAL = 0.1


class Progress:
    """Shows how far a run is.

    :param asked: ``-p`` was given.
    :param clock: answers seconds.
    """

    def __init__(self, *, asked: bool) -> None:
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._asked = asked
        self._shown = ""
        self.start()

    @property
    def wanted(self) -> bool:
        """Whether a run should report progress at all."""
        return self._asked or self._terminal

    def start(self) -> None:
        """A run begins."""
        self._next = time.monotonic() + (0.0 if self._asked else PATIENCE)

    def update(self, done: int, total: int) -> None:
        """Show work done, of some total; called as often as the guest likes."""
        now = time.monotonic()
        if now < self._next or total <= 0:
            return
        self._next = now + INTERVAL
        text = f"({min(max(done, 0) / total, 1.0) * 100:.2f}/100%)"
        if text != self._shown:
            self._shown = text
            err(f"    {text}\r" if self._terminal else f"{text}\n")

    def finish(self) -> None:
        """The run is over: leave a clean line."""
        if self._shown and self._terminal:
            err("\r" + " " * (len(self._shown) + 4) + "\r")
        self._shown = ""
