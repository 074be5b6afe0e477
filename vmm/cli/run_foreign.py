"""``pyvmm run ./OPERATION.elf``: an operation that the user brought."""

from __future__ import annotations

from vmm.cli.jsontext import compact
from vmm.cli.terminal import out

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm.cbor import Value
    from vmm.cli.answers import Answers


def answer(command: Answers, elf: bytes, path: str | None) -> int:
    """Its messages as JSON lines; the exit status."""
    from vmm.operations.foreign import run_foreign
    from vmm.operations.options import collect_options

    def show(name: str, fields: Mapping[str, Value]) -> None:
        if not command.quiet:
            command.progress.finish()
            out(compact({"filename": path, "message": name, "fields": fields}) + "\n")

    options = {
        key: value if isinstance(value, str) else None
        for key, value in collect_options(command.arguments.all("options")).items()
    }
    report = run_foreign(
        command.session,
        elf,
        command.operation,
        [] if path is None else [path],
        show,
        options=options,
        follow_symlinks=command.follow,
    )
    return report.exit_status
