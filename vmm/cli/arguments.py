"""Command-line arguments with getopt_long's rules, as qemu-img has them.

Short options take their value attached or as the next word and may be bundled; long options take it after ``=`` or as
the next word and may be abbreviated; options and operands mix; ``--`` ends the options.  (:mod:`argparse` would cost
8 ms and answer a mistake with status 2, which means corruption here.)
"""

from __future__ import annotations

from vmm.errors import UsageError
from vmm.operations.text import printable
from vmm.record import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Option:
    """One option."""

    #: What it is called in the result.
    key: str
    #: Spellings with dashes, for example ``("-O",)`` or ``("-h", "--help")``.
    names: tuple[str, ...]
    #: What the help calls its value; None: it takes none.
    value: str | None
    help: str


class Arguments:
    """What was given: operands in order, options by key."""

    __slots__ = ("_values", "operands")

    def __init__(self) -> None:
        self.operands: list[str] = []
        self._values: dict[str, list[str]] = {}

    def add(self, key: str, value: str) -> None:
        """Record one occurrence of an option; a flag has an empty value."""
        self._values.setdefault(key, []).append(value)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str) -> str | None:
        """The last value given."""
        values = self._values.get(key)
        return values[-1] if values else None

    def all(self, key: str) -> list[str]:
        """Every value given, in order."""
        return self._values.get(key, [])

    def count(self, key: str) -> int:
        """How often it was given."""
        return len(self._values.get(key, ()))


def _long(word: str, options: Sequence[Option]) -> tuple[Option, str | None]:
    name, equals, value = word.partition("=")
    exact = [option for option in options if name in option.names]
    found = exact or [o for o in options if any(n.startswith(name) and n.startswith("--") for n in o.names)]
    if not found:
        raise UsageError(f"unrecognized option '{printable(name)}'")
    if len(found) > 1:
        names = ", ".join(n for o in found for n in o.names if n.startswith(name))
        raise UsageError(f"option '{printable(name)}' is ambiguous: {names}")
    option = found[0]
    if equals and option.value is None:
        raise UsageError(f"option '{printable(name)}' takes no value")
    return option, value if equals else None


def parse(words: Sequence[str], options: Sequence[Option]) -> Arguments:
    """Sort words into options and operands.

    :raises UsageError: an option that does not exist, lacks its value or has one too many.
    """
    result = Arguments()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            result.operands += rest
            break
        if not word.startswith("-") or word == "-":
            result.operands.append(word)
            continue
        if word.startswith("--"):
            option, value = _long(word, options)
            _take(result, option, value, rest, word)
            continue
        bundle = word[1:]
        while bundle:
            letter, bundle = bundle[0], bundle[1:]
            found = [option for option in options if f"-{letter}" in option.names]
            if not found:
                raise UsageError(f"invalid option -- '{printable(letter)}'")
            attached = bundle if found[0].value is not None and bundle else None
            _take(result, found[0], attached, rest, f"-{letter}")
            if found[0].value is not None:
                break
    return result


def _take(result: Arguments, option: Option, value: str | None, rest: list[str], word: str) -> None:
    if option.value is not None and value is None:
        if not rest:
            raise UsageError(f"option '{printable(word)}' requires an argument")
        value = rest.pop(0)
    result.add(option.key, value or "")


def options_text(options: Sequence[Option]) -> str:
    """The help's list of options."""
    lines = []
    for option in options:
        value = f" {option.value}" if option.value is not None else ""
        left = ", ".join(option.names) + value
        lines.append(f"  {left:<28} {option.help}" if len(left) <= 28 else f"  {left}\n{'':31}{option.help}")
    return "\n".join(lines) + "\n"
