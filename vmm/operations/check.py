"""``check``: whether an image is consistent."""

from __future__ import annotations

from calltable.messages import Check, CheckFinding, CheckRequest
from vmm.errors import EXIT_CORRUPT, EXIT_FAILED, EXIT_LEAKS, EXIT_OK, GuestFailedError
from vmm.operations.files import InputFile
from vmm.operations.follow import open_chain
from vmm.record import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from calltable.message import Message
    from vmm.operations.session import Session

#: Statuses with which the operation may end after it has answered.
_STATUSES = (EXIT_OK, EXIT_FAILED, EXIT_CORRUPT, EXIT_LEAKS)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a finished check found."""

    #: The file as it was named.
    filename: str
    #: The counters.
    result: Check
    #: What was found, in the order of finding; ``result.findings_omitted`` more were only counted.
    findings: tuple[CheckFinding, ...] = ()

    @property
    def exit_status(self) -> int:
        """0 consistent, 1 the check met errors, 2 corruptions, 3 leaks only."""
        if self.result.check_errors:
            return EXIT_FAILED
        if self.result.corruptions:
            return EXIT_CORRUPT
        return EXIT_LEAKS if self.result.leaks else EXIT_OK

    @property
    def format(self) -> str:
        """Driver name, as for ``-f``."""
        return self.result.format

    @property
    def clean(self) -> bool:
        """Neither errors nor corruptions nor leaks."""
        return self.exit_status == EXIT_OK


def check(
    session: Session,
    path: str,
    *,
    format: str | None = None,  # noqa: A002  (qemu-img's word)
    follow_symlinks: bool = False,
    chain: bool = False,
    allow_dirs: Iterable[str] = (),
) -> CheckReport:
    """Check an image.

    :param format: driver name; None: the guest detects it.
    :param chain: follow the files that the image names; what is behind the image has to open and is not checked.
    :param allow_dirs: directories below which they may lie, besides the image's own.
    :raises NoChecksError: the format has no checks.
    :raises VmmError: see :mod:`vmm.errors`.
    """
    findings: list[CheckFinding] = []

    def on_message(message: Message) -> None:
        assert isinstance(message, CheckFinding)
        findings.append(message)

    with InputFile(path, follow_symlinks=follow_symlinks) as file:
        file.refuse_empty(format)
        with open_chain(
            session, file, follow=chain, allow_dirs=allow_dirs, follow_symlinks=follow_symlinks, format=format
        ) as files:
            main = session.answer(
                "check",
                CheckRequest(format=format, files=files.files()),
                files.devices(),
                on_message,
                main=Check.NAME,
                lists=(CheckFinding.NAME,),
                names=files.names(),
                statuses=_STATUSES,
            )
    assert isinstance(main, Check)
    report = CheckReport(path, main, tuple(findings))
    _validate(report)
    return report


def _validate(report: CheckReport) -> None:
    """The counters must be those of the findings, or a hostile guest could contradict itself.

    :raises GuestFailedError: they are not.
    """
    result = report.result
    if result.findings_omitted:
        return
    for kind, counter in (
        ("corruption", result.corruptions),
        ("leak", result.leaks),
        ("check-error", result.check_errors),
    ):
        total = sum(finding.count for finding in report.findings if finding.kind == kind)
        if total != counter:
            raise GuestFailedError(f"the guest counted {counter} for {kind} and reported {total}")
