"""``pyvmm run measure``: the words of the command line in, the answer out."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.cli.answers import Answers


def answer(command: Answers, path: str | None, first: bool) -> int:
    """One answer; the exit status."""
    from vmm.operations.measure import measure
    from vmm.operations.options import collect_options

    arguments = command.arguments
    report = measure(
        command.session,
        path,
        target=arguments.get("target") or "raw",
        format=arguments.get("format"),
        size=arguments.get("size"),
        options=collect_options(arguments.all("options")),
        follow_symlinks=command.follow,
        chain=command.chain,
        allow_dirs=command.allow_dirs,
    )
    if command.json:
        from vmm.cli.reports import measure_json

        command.show_json(measure_json(report), path)
    else:
        from vmm.cli.human import measure_text

        command.show_text(measure_text(report), path, first=first, header=True)
    return report.exit_status
