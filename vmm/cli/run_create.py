"""``pyvmm run create``: the words of the command line in, the answer out."""

from __future__ import annotations

from vmm.errors import UsageError
from vmm.operations.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.cli.answers import Answers


def answer(command: Answers, path: str | None, first: bool) -> int:
    """One answer; the exit status."""
    from vmm.cli.runoptions import passphrase
    from vmm.operations.create import create
    from vmm.operations.options import collect_options

    arguments = command.arguments
    options = collect_options(arguments.all("options"))
    for key, name in (("backing", "backing_file"), ("backing-format", "backing_fmt")):
        if key in arguments:
            options[name] = arguments.get(key)
    data_file = options.get("data_file")
    if isinstance(data_file, str):
        command.refuse_replacing(data_file)
    report = create(
        command.session,
        str(path),
        arguments.get("format") or "raw",
        size=arguments.operands[1] if len(arguments.operands) > 1 else None,
        options=options,
        backing_unsafe="unsafe" in arguments,
        force="force" in arguments,
        seed=arguments.get("seed"),
        unix_time=_unix_time(arguments.get("unix-time")),
        uuid=_uuid(arguments.get("uuid")),
        luks_passphrase=passphrase(arguments),
        follow_symlinks=command.follow,
    )
    if command.json:
        from vmm.cli.reports import create_json

        command.show_json(create_json(report), path)
    else:
        from vmm.cli.human import create_text

        command.show_text(create_text(report), path, first=first, header=False)
    return report.exit_status


def _unix_time(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise UsageError(f"--unix-time takes seconds since 1970, not '{printable(text)}'")
    return int(text)


def _uuid(text: str | None) -> bytes | None:
    if text is None:
        return None
    digits = text.replace("-", "")
    try:
        value = bytes.fromhex(digits)
    except ValueError:
        value = b""
    if len(value) != 16 or len(digits) != 32:
        raise UsageError(f"--uuid takes 32 hexadecimal digits, not '{printable(text)}'")
    return value
