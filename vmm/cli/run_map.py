"""``pyvmm run map``: the words of the command line in, the extents out as they come."""

from __future__ import annotations

from vmm.cli import runoptions
from vmm.cli.failures import error_dict
from vmm.cli.jsontext import compact, quote
from vmm.cli.terminal import out
from vmm.errors import UsageError, VmmError
from vmm.operations.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm.cli.answers import Answers
    from vmm.operations.map import Extent
    from vmm.picture.picture import Picture

#: From this release on qemu-img says which extents are compressed.
_SAYS_COMPRESSED = (8, 2)
#: What qemu-img prints for a range without a byte; its start goes in front.
_NOTHING = ', "length": 0, "depth": 0, "present": false, "zero": false, "data": false'


def answer(command: Answers, path: str | None, first: bool) -> int:
    """One answer; the exit status.

    What fails after the first extent has been printed closes the JSON array with the error as its last item: whoever
    parses it whole cannot take it for complete.
    """
    picture = _picture(command, path)
    if picture is not None:
        with picture:
            return _mapped(command, str(path), first=first, picture=picture)
    return _mapped(command, str(path), first=first)


def _picture(command: Answers, path: str | None) -> Picture | None:
    """What draws the map, if that is asked for."""
    name = command.arguments.get("picture")
    if name is None:
        return None
    if command.many:
        raise UsageError(f"--picture takes one FILE, not {len(command.arguments.operands)}")
    command.refuse_replacing(name)
    from vmm.picture.picture import Picture

    return Picture(name, str(path), follow_symlinks=command.follow)


def _mapped(command: Answers, path: str, *, first: bool, picture: Picture | None = None) -> int:
    from vmm.operations.map import map_image

    arguments = command.arguments
    version = runoptions.qemu_version(arguments)
    start = arguments.get("start")
    start = "0" if start is None else start
    printer: _Json | _Text | _Summary
    if command.json:
        printer = _Json(command, path, compressed=version >= _SAYS_COMPRESSED)
    elif picture is not None:
        printer = _Summary(command, picture)
    else:
        printer = _Text(command, path, first=first)
    try:
        report = map_image(
            command.session,
            path,
            format=arguments.get("format"),
            start=start,
            length=arguments.get("length"),
            qemu_version=".".join(map(str, version)),
            mapped_only=isinstance(printer, _Text),
            # A picture is for looking at what is there; the JSON beside it is qemu-img's.
            exact=isinstance(printer, _Summary),
            on_extents=printer.show if picture is None else picture.before(printer.show),
            follow_symlinks=command.follow,
            chain=command.chain,
            allow_dirs=command.allow_dirs,
        )
    except VmmError as error:
        if not (isinstance(printer, _Json) and printer.has_answered):
            raise
        printer.fail(error)
        return error.exit_status
    if picture is not None:
        picture.finish(report)
    printer.finish(start)
    return report.exit_status


class _Text:
    """qemu-img's table: the extents with data, each where it lies."""

    def __init__(self, command: Answers, path: str, *, first: bool) -> None:
        self.begun = False
        self._command = command
        self._path = path
        self._first = first

    def show(self, extents: tuple[Extent, ...]) -> None:
        """Print some extents."""
        lines = [
            f"{_hexadecimal(extent.start)}{_hexadecimal(extent.length)}{_hexadecimal(extent.offset)}"
            f"{printable(str(extent.filename))}\n"
            for extent in extents
            if extent.data and not extent.zero and extent.offset is not None
        ]
        if not self.begun:
            self.begun = True
            lines.insert(0, f"{'Offset':<16}{'Length':<16}{'Mapped to':<16}File\n")
            self._command.show_text("".join(lines), self._path, first=self._first, header=True)
        elif lines and not self._command.quiet:
            self._command.progress.finish()
            out("".join(lines))

    def finish(self, _start: str) -> None:
        """The map is complete."""
        if not self.begun:
            self.show(())


class _Summary:
    """What a picture shows, in words instead of the table: there is no need to read what can be looked at."""

    def __init__(self, command: Answers, picture: Picture) -> None:
        self._command = command
        self._picture = picture

    def show(self, extents: tuple[Extent, ...]) -> None:
        """Nothing yet."""

    def finish(self, _start: str) -> None:
        """The picture is in place."""
        text = "".join(f"{line}\n" for line in self._picture.summary())
        self._command.show_text(text, None, first=True, header=False)


class _Json:
    """qemu-img's array, an extent on each line; for many files a line with the file's name for each extent."""

    def __init__(self, command: Answers, path: str, *, compressed: bool) -> None:
        self.begun = False
        self._command = command
        self._lines = command.many or command.lines
        self._compressed = compressed
        #: What is printed of a state, by state: there are few, and a million extents.
        self._flags: dict[tuple[bool, ...], str] = {}
        #: Not printed yet: the next one may continue it.
        self._held: Extent | None = None
        self._open = f'{{"filename": {quote(path)}, "start": ' if self._lines else '{ "start": '
        self._separator = "\n" if self._lines else ",\n"

    @property
    def has_answered(self) -> bool:
        """Whether there has been an extent."""
        return self.begun or self._held is not None

    def show(self, extents: tuple[Extent, ...]) -> None:
        """Print some extents, but for the last."""
        self._write(self._texts(extents))

    def _texts(self, extents: Iterable[Extent]) -> list[str]:
        texts = []
        held = self._held
        for extent in extents:
            if held is not None:
                if not self._compressed and held.compressed != extent.compressed and _continues(held, extent):
                    held = _joined(held, extent)
                    continue
                texts.append(self._text(held))
            held = extent
        self._held = held
        return texts

    def _text(self, extent: Extent) -> str:
        state = extent.present, extent.zero, extent.data, extent.compressed
        flags = self._flags.get(state)
        if flags is None:
            flags = self._flags[state] = _flags(extent, compressed=self._compressed)
        place = "}" if extent.offset is None else f', "offset": {extent.offset}}}'
        return f'{self._open}{extent.start}, "length": {extent.length}, "depth": {extent.depth}{flags}{place}'

    def _write(self, texts: list[str], end: str = "") -> None:
        if not texts:
            return
        self._command.progress.finish()
        before = self._separator if self.begun else "" if self._lines else "["
        self.begun = True
        out(before + self._separator.join(texts) + end)

    def _rest(self) -> list[str]:
        held, self._held = self._held, None
        return [] if held is None else [self._text(held)]

    def fail(self, error: VmmError) -> None:
        """Say last why there is no more."""
        self._write([*self._rest(), compact(error_dict(error, self._command.arguments.operands[0]))], self._end)

    @property
    def _end(self) -> str:
        return "\n" if self._lines else "]\n"

    def finish(self, start: str) -> None:
        """The map is complete."""
        rest = self._rest()
        if not rest:
            from vmm.operations.sizes import parse_size

            compressed = ', "compressed": false' if self._compressed else ""
            rest = [f"{self._open}{parse_size(start)}{_NOTHING}{compressed}}}"]
        self._write(rest, self._end)


def _hexadecimal(value: int) -> str:
    """A column of the table: as C's printf with ``%#-16x``, which leaves the prefix of 0 out."""
    return f"{value:<#16x}" if value else f"{0:<16}"


def _flags(extent: Extent, *, compressed: bool) -> str:
    keys = ("present", "zero", "data", *(("compressed",) if compressed else ()))
    return "".join(f', "{key}": {compact(getattr(extent, key))}' for key in keys)


def _continues(one: Extent, other: Extent) -> bool:
    """Whether qemu-img before 8.2 shows two neighbours, of which one is compressed, as one."""
    return (
        (one.depth, one.present, one.zero, one.data) == (other.depth, other.present, other.zero, other.data)
        and one.offset is None
        and other.offset is None
    )


def _joined(one: Extent, other: Extent) -> Extent:
    from vmm.record import replace

    return replace(one, length=one.length + other.length, compressed=other.compressed)
