"""What a run has used of its budgets, counted where it is used."""

from __future__ import annotations

from vmm.devices.errors import LimitExceeded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.boundary import Limits


class Meter:
    """Counts of one run and their limits.

    Each method is told before the work is done and raises :class:`LimitExceeded` instead of letting it happen.
    """

    __slots__ = (
        "log_lines",
        "max_messages",
        "max_read",
        "max_report",
        "max_write",
        "messages",
        "read_bytes",
        "report_bytes",
        "write_bytes",
    )

    def __init__(self) -> None:
        self.max_read = self.max_write = self.max_messages = self.max_report = 0
        self.begin(None)

    def begin(self, limits: Limits | None) -> None:
        """Zero the counts; without limits nothing is allowed."""
        self.read_bytes = self.write_bytes = self.messages = self.report_bytes = self.log_lines = 0
        if limits is not None:
            self.max_read = limits.max_read
            self.max_write = limits.max_write
            self.max_messages = limits.max_messages
            self.max_report = limits.max_report

    def read(self, count: int) -> None:
        """``count`` bytes are to be read from a file."""
        if self.read_bytes + count > self.max_read:
            raise LimitExceeded("max-read", self.max_read)
        self.read_bytes += count

    def write(self, count: int) -> None:
        """``count`` bytes are to be written to a file."""
        if self.write_bytes + count > self.max_write:
            raise LimitExceeded("max-write", self.max_write)
        self.write_bytes += count

    def message(self, count: int) -> None:
        """A message of ``count`` bytes is to be delivered."""
        if self.messages >= self.max_messages:
            raise LimitExceeded("max-messages", self.max_messages)
        if self.report_bytes + count > self.max_report:
            raise LimitExceeded("max-report", self.max_report)
        self.messages += 1
        self.report_bytes += count

    def log(self, count: int) -> None:
        """A log line of ``count`` bytes is to be delivered; lines are counted by themselves."""
        if self.log_lines >= self.max_messages:
            raise LimitExceeded("max-messages", self.max_messages)
        if self.report_bytes + count > self.max_report:
            raise LimitExceeded("max-report", self.max_report)
        self.log_lines += 1
        self.report_bytes += count
