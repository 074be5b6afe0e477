"""``pyvmm run info``: the words of the command line in, the answer out."""

from __future__ import annotations

from vmm.errors import UsageError
from vmm.operations.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.cli.answers import Answers


def answer(command: Answers, path: str | None, first: bool) -> int:
    """One answer; the exit status."""
    from vmm.cli.reports import info_json, version_of
    from vmm.cli.runoptions import passphrase
    from vmm.operations.info import DEFAULT_QEMU_VERSION, info

    asked = command.arguments.get("qemu-version") or DEFAULT_QEMU_VERSION
    try:
        version = version_of(asked)
    except ValueError:
        raise UsageError(f"--qemu-version takes a version such as 8.0, not '{printable(asked)}'") from None
    report = info(
        command.session,
        str(path),
        format=command.arguments.get("format"),
        qemu_version=".".join(map(str, version)),
        luks_passphrase=passphrase(command.arguments),
        follow_symlinks=command.follow,
    )
    if command.json:
        command.show_json(info_json(report, version), path)
    else:
        from vmm.cli.human import info_text

        command.show_text(info_text(report, version), path, first=first, header=False)
    return report.exit_status
