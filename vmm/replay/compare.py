"""Where two runs differ first, in words."""

from __future__ import annotations

from vmm.boundary import LogEvent, MessageEvent
from vmm.operations.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmm.boundary import Event
    from vmm.cbor import Value

#: Bits of RFLAGS that the architecture leaves to the processor after some instructions or faults: CF, PF, AF, ZF, SF,
#: OF (Intel SDM volume 1, appendix A) and RF (volume 3, section 19.3.1.1).
_FREE_FLAGS = 0x1_08D5
#: Bytes of a message that are shown.
_SHOWN = 16
#: Characters of a value that are shown.
_MAX_VALUE = 200


def _value(value: Value, place: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and ("registers." in place or "address" in place):
        return f"{value:#x}"
    text = printable(value.hex() if isinstance(value, bytes) else str(value))
    return text if len(text) <= _MAX_VALUE else text[:_MAX_VALUE] + "..."


def _names(place: str, name: object) -> str:
    return f"{place}.{name}" if place else str(name)


def first_difference(recorded: Value, found: Value, place: str = "") -> str | None:
    """The first place where two outcomes differ, in the order of the second one; None when they are alike."""
    if isinstance(recorded, dict) and isinstance(found, dict):
        for name in [*found, *(name for name in recorded if name not in found)]:
            if difference := first_difference(recorded.get(name), found.get(name), _names(place, name)):
                return difference
        return None
    if isinstance(recorded, list) and isinstance(found, list):
        for index, (one, other) in enumerate(zip(recorded, found, strict=False)):
            if difference := first_difference(one, other, _names(place, index)):
                return difference
        if len(recorded) != len(found):
            return f"{printable(place)}: {len(recorded)} recorded, now {len(found)}"
        return None
    if place.endswith("registers.rflags") and isinstance(recorded, int) and isinstance(found, int):
        alike = (recorded ^ found) & ~_FREE_FLAGS == 0
    else:
        alike = type(recorded) is type(found) and recorded == found
    return None if alike else f"{printable(place)}: recorded {_value(recorded, place)}, now {_value(found, place)}"


def _bytes(recorded: bytes, found: bytes) -> str:
    at = next(
        (index for index, (one, other) in enumerate(zip(recorded, found, strict=False)) if one != other),
        min(len(recorded), len(found)),
    )
    one, other = (data[at : at + _SHOWN].hex(" ") or "its end" for data in (recorded, found))
    return f"differs at its byte {at}: recorded {one}, now {other}"


class EventComparer:
    """Compares messages and log lines with the recorded ones as they come.

    :param log_level: lines above this level were not recorded, and are not compared.
    """

    __slots__ = ("_log_level", "_recorded", "difference", "messages", "seen")

    def __init__(self, recorded: Sequence[Event], log_level: int) -> None:
        self._recorded = recorded
        self._log_level = log_level
        #: How many were compared, and how many of them were messages.
        self.seen = 0
        self.messages = 0
        #: The first difference.
        self.difference: str | None = None

    @property
    def complete(self) -> bool:
        """Whether as many came as were recorded."""
        return self.seen >= len(self._recorded)

    def take(self, event: MessageEvent | LogEvent) -> None:
        """Compare the next one."""
        if isinstance(event, LogEvent) and event.level > self._log_level:
            return
        self.seen += 1
        self.messages += isinstance(event, MessageEvent)
        if self.difference is not None:
            return
        what = f"message {self.messages}" if isinstance(event, MessageEvent) else "a line of the log"
        if self.seen > len(self._recorded):
            self.difference = f"{what} came after all that were recorded"
            return
        recorded = self._recorded[self.seen - 1]
        if isinstance(event, MessageEvent) and isinstance(recorded, MessageEvent):
            if recorded.payload != event.payload:
                self.difference = f"{what} {_bytes(recorded.payload, event.payload)}"
        elif isinstance(event, LogEvent) and isinstance(recorded, LogEvent):
            if recorded != event:
                self.difference = f"{what} (event {self.seen}) {_bytes(recorded.text, event.text)}"
        else:
            self.difference = f"{what} came where something else was recorded (event {self.seen})"

    def finish(self) -> str | None:
        """The first difference, now that the run is over."""
        if self.difference is None and not self.complete:
            missing = len(self._recorded) - self.seen
            self.difference = f"{missing} of {len(self._recorded)} recorded messages and log lines did not come"
        return self.difference


def outcome_difference(recorded: Mapping[str, Value], found: dict[str, Value]) -> str | None:
    """The first difference between two outcomes, as :func:`vmm.replay.bundle.outcome_fields` makes them."""
    return first_difference(dict(recorded), found)
