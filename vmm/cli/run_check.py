"""``pyvmm run check``: the words of the command line in, the answer out."""

from __future__ import annotations

from vmm.cli.terminal import err

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.cli.answers import Answers


def answer(command: Answers, path: str | None, first: bool) -> int:
    """One answer; the exit status."""
    from vmm.operations.check import check

    report = check(
        command.session,
        str(path),
        format=command.arguments.get("format"),
        follow_symlinks=command.follow,
        chain=command.chain,
        allow_dirs=command.allow_dirs,
    )
    if command.json:
        from vmm.cli.reports import check_json

        command.show_json(check_json(report), path)
    else:
        from vmm.cli.human import check_text, findings_text

        err(findings_text(report))
        command.show_text(check_text(report), path, first=first, header=True)
    return report.exit_status
