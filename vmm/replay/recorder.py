"""A runner that records what another one runs."""

from __future__ import annotations

import os

from vmm.boundary import DEFAULT_MAX_RECORD, LogEvent, MessageEvent, TraceEvent
from vmm.errors import UsageError, VmmError
from vmm.operations.session import load_runtime
from vmm.operations.text import printable
from vmm.record import replace
from vmm.replay.bundle import (
    END,
    LOG,
    MESSAGE,
    RUN,
    TRACE,
    outcome_fields,
    refusal_fields,
    run_fields,
)
from vmm.replay.writer import BundleWriter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.boundary import Event, Job, Outcome, Runner


class Recorder:
    """Runs jobs on another runner and records them, one after another, in one bundle.

    Nothing is at ``path`` before :meth:`commit`.  A run that failed, reached a limit, or whose report was refused is
    recorded like any other; one that never began (no KVM, an ELF that cannot be loaded) is not.

    :param runner: what runs the jobs; stays the caller's.
    :param path: the bundle; an existing file is replaced.
    :param max_record: bytes of the bundle's content, before compression.
    :raises FileError: nothing can be written at ``path``.
    """

    def __init__(
        self,
        runner: Runner,
        path: str,
        max_record: int = DEFAULT_MAX_RECORD,
        *,
        follow_symlinks: bool = False,
    ) -> None:
        self._runner = runner
        self._runtime = load_runtime()
        self.path = path
        #: Runs that are recorded.
        self.runs = 0
        #: What makes the record useless.
        self._broken: VmmError | None = None
        self._writer = BundleWriter(path, max_record, follow_symlinks=follow_symlinks)

    def run(self, job: Job, on_event: Callable[[Event], None]) -> Outcome:
        """Run a job and record it; see :class:`vmm.boundary.Runner`.

        :raises UsageError: the bundle would replace a file of the job.
        :raises LimitReachedError: the record passed ``max_record``; it is lost.
        :raises FileError: the record could not be written; it is lost.
        """
        if self._broken is not None:
            raise self._broken
        self._refuse_own_devices(job)
        begun = False
        refusal: VmmError | None = None

        def put(*item: object) -> None:
            nonlocal begun
            try:
                if not begun:
                    begun = True
                    self._writer.item([RUN, run_fields(job, self._runtime)])
                self._writer.item([*item])
            except VmmError as error:
                self._broken = error
                raise

        def take(event: Event) -> None:
            nonlocal refusal
            if isinstance(event, TraceEvent):
                put(TRACE, event.payload)
                return
            if isinstance(event, MessageEvent):
                put(MESSAGE, event.payload)
            elif isinstance(event, LogEvent):
                put(LOG, event.level, event.text)
            try:
                on_event(event)
            except VmmError as error:
                refusal = error
                raise

        try:
            outcome = self._runner.run(replace(job, record=True), take)
        except BaseException as error:
            if refusal is not None and error is refusal:
                put(END, {"refused": refusal_fields(refusal)})
                self.runs += 1
            elif begun and self._broken is None:
                self._broken = VmmError(f"The run that was recorded in '{printable(self.path)}' was cut off")
            raise
        put(END, {"outcome": outcome_fields(outcome)})
        self.runs += 1
        return outcome

    def _refuse_own_devices(self, job: Job) -> None:
        try:
            target = os.stat(self.path)
        except (OSError, ValueError):
            return
        for device in job.devices:
            found = os.fstat(device.fd)
            if (found.st_dev, found.st_ino) == (target.st_dev, target.st_ino):
                raise UsageError(f"The record would replace a file of the run: '{printable(self.path)}'")

    def commit(self) -> bool:
        """Put the bundle in place; false, and nothing is there, when no run was recorded or the record is lost.

        :raises FileError: the file system refused.
        """
        if self._broken is not None or not self.runs:
            return False
        self._writer.commit()
        return True

    def close(self) -> None:
        """Give up a bundle that is not committed; the runner stays open.  Idempotent."""
        self._writer.close()
