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
    whole = "backing-chain" in command.arguments
    report = info(
        command.session,
        str(path),
        format=command.arguments.get("format"),
        qemu_version=".".join(map(str, version)),
        luks_passphrase=runoptions.passphrase(command.arguments),
        follow_symlinks=command.follow,
        chain=command.chain,
        allow_dirs=command.allow_dirs,
        backing_chain=whole,
    )
    reports = (report, *report.backing_chain)
    if command.json:
        values = [info_json(one, version) for one in reports]
        command.show_json(values if whole else values[0], path)
    else:
        from vmm.cli.human import info_text

        text = "\n".join(info_text(one, version) for one in reports)
        command.show_text(text, path, first=first, header=False)
    return report.exit_status
