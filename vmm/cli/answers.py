"""How the answers of ``pyvmm run`` are shown, whichever operation gives them."""

from __future__ import annotations

import os

from vmm.cli.jsontext import compact, pretty
from vmm.cli.terminal import out
from vmm.errors import UsageError
from vmm.operations.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.cli.arguments import Arguments
    from vmm.cli.progress import Progress
    from vmm.operations.session import Session


class Answers:
    """What an operation's module of the command line works with."""

    #: Name of the operation, or path of its ELF file.
    operation: str
    arguments: Arguments
    session: Session
    progress: Progress
    #: Whether answers are JSON.
    json: bool
    #: Whether JSON answers take one line each, whatever their number.
    lines: bool
    quiet: bool
    #: Whether a symbolic link named as FILE is followed.
    follow: bool
    #: Whether there are many files.
    many: bool
    #: The size that `resize` is given; None for other operations.
    size: str | None
    #: Path of the bundle that is being recorded.
    record: str | None

    @property
    def chain(self) -> bool:
        """Whether the files that an image names are followed."""
        return "chain" in self.arguments

    @property
    def allow_dirs(self) -> list[str]:
        """Directories below which they may lie, besides the image's own."""
        return self.arguments.all("allow-dir")

    def out_json(self, value: object) -> None:
        """Print one JSON value."""
        out((compact(value) if self.many or self.lines else pretty(value)) + "\n")

    def show_json(self, value: dict[str, object] | list[dict[str, object]], path: str | None) -> None:
        """Show a report as JSON, or a list of them; it names its file when there are many."""
        self.progress.finish()
        if self.many and isinstance(value, dict) and "filename" not in value:
            value = {"filename": path, **value}
        self.out_json(value)

    def show_text(self, text: str, path: str | None, *, first: bool, header: bool) -> None:
        """Show a report as text, below its file's name when there are many."""
        self.progress.finish()
        if not self.quiet:
            above = ("" if first else "\n") if self.many else ""
            if self.many and header:
                above += f"image: {printable(str(path))}\n"
            out(above + text)

    def refuse_replacing(self, file: str) -> None:
        """A file of the run is not to be the bundle that is recorded.

        :raises UsageError: it is.
        """
        record = self.record
        if record is not None and os.path.realpath(record) == os.path.realpath(file):
            raise UsageError(f"The record would replace a file of the run: '{printable(record)}'")
