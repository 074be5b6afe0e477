"""``pyvmm run resize``: the words of the command line in, the answer out."""

from __future__ import annotations

from vmm.cli.terminal import err, out
from vmm.errors import RefusedError, UsageError
from vmm.operations.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.cli.answers import Answers

_WARNING = (
    "pyvmm: warning: Shrinking an image will delete all data beyond the shrunken image's end. Before performing such "
    "an operation, make sure there is no important data there.\n"
)


def split_size(words: list[str]) -> tuple[list[str], str | None]:
    """The words without the size, which is the last one: a negative one would look like an option.

    ``--help`` may stand there instead.
    """
    if not words or words[-1] in ("-h", "--help"):
        return words, None
    return words[:-1], words[-1]


def answer(command: Answers, path: str | None, first: bool) -> int:
    """One answer; the exit status."""
    from vmm.operations.resize import resize

    arguments = command.arguments
    size = command.size
    if size is None:
        raise UsageError("Expecting image file name and size")
    try:
        report = resize(
            command.session,
            str(path),
            size,
            format=arguments.get("format"),
            shrink="shrink" in arguments,
            preallocation=arguments.get("preallocation"),
            follow_symlinks=command.follow,
            share="share" in arguments,
        )
    except RefusedError as error:
        if error.details.get("structure") == "shrink" and not command.json:
            command.progress.finish()
            err(f"pyvmm: {printable(error.message)}\n{_WARNING}")
            return error.exit_status
        raise
    if command.json:
        from vmm.cli.reports import resize_json

        command.show_json(resize_json(report), path)
    else:
        command.progress.finish()
        if not command.quiet:
            out("Image resized.\n")
    return report.exit_status
