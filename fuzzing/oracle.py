"""What is never right, whatever the target: open descriptors left behind, memory out of proportion, raw output."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable

#: KiB by which one input may raise the peak of the process's memory.
GROWTH_KIB = 192 << 10


def guarded(run: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """The same, with an assertion about memory afterwards.

    The peak only ever rises, so that this sees the first input that needs more than all before it.
    """

    def one(data: bytes) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run(data)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < GROWTH_KIB, f"{len(data)} bytes of input took {grown} KiB of memory"

    return one


def open_descriptors() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def check_text(text: str, *, also: str = "\n") -> None:
    """Nothing in a text for people may act on a terminal or hide from the eye.

    :param also: what is allowed besides printable characters.
    """
    if text.isprintable():
        return
    for character in text:
        assert character.isprintable() or character in also, f"raw {character!r} in {text[:200]!r}"


def check_sentence(text: object) -> None:
    """One line of plain ASCII, as messages of the devices are."""
    assert type(text) is str
    assert text
    assert text.isascii()
    assert text.isprintable()
