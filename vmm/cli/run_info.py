"""``pyvmm run info``: the words of the command line in, the answer out."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.cli.answers import Answers


def answer(command: Answers, path: str | None, first: bool) -> int:
    """One answer; the exit status."""
    from vmm.cli import runoptions
    from vmm.cli.reports import info_json
    from vmm.operations.info import info

    version = runoptions.qemu_version(command.arguments)
    report = info(
        command.session,
        str(path),
        format=command.arguments.get("format"),
        qemu_version=".".join(map(str, version)),
        follow_symlinks=command.follow,
    )
    if command.json:
        command.show_json(info_json(report, version), path)
    else:
        from vmm.cli.human import info_text

        command.show_text(info_text(report, version), path, first=first, header=False)
    return report.exit_status
