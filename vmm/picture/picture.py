"""The file of a picture: which kind, whether it can be made, and that it appears whole or not at all."""

from __future__ import annotations

import os

from vmm.errors import UsageError
from vmm.operations.files import file_error
from vmm.operations.output import OutputFile
from vmm.operations.text import printable
from vmm.picture.bins import Bins
from vmm.picture.drawing import draw, summary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from vmm.operations.map import Extent, MapReport
    from vmm.picture.drawing import Drawing


def _encoder(path: str) -> Callable[[Drawing], bytes]:
    """What writes files of this name's kind."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".svg":
        from vmm.picture.svg import encode
    elif suffix == ".png":
        try:
            from vmm.picture.png import encode
        except ImportError:
            raise UsageError(
                "--picture: a .png needs Pillow: pip install 'pyvmm-sandbox[picture]' (an .svg needs nothing)",
                file=path,
            ) from None
    else:
        raise UsageError(f"--picture takes a name that ends with .png or .svg, not '{printable(path)}'", file=path)
    return encode


class Picture:
    """Takes the extents of a map and writes its picture.  A context manager; without :meth:`finish` nothing is left.

    :param path: of the file to write, ``.png`` or ``.svg``; an existing one is replaced.
    :param image: the file that is mapped, which is not to be replaced.
    :raises UsageError: neither of the two kinds, Pillow is missing, or ``path`` is the image.
    :raises FileError: the file cannot be written.
    """

    def __init__(self, path: str, image: str, *, follow_symlinks: bool = False) -> None:
        self._encode = _encoder(path)
        if os.path.exists(path) and os.path.exists(image) and os.path.samefile(path, image):
            raise UsageError(f"The picture would replace the image: '{printable(path)}'", file=path)
        self._bins = Bins()
        self._path = path
        self._output = OutputFile(path, follow_symlinks=follow_symlinks)

    def add(self, extents: tuple[Extent, ...]) -> None:
        """Take extents, front to back."""
        self._bins.add(extents)

    def before(self, take: Callable[[tuple[Extent, ...]], None] | None) -> Callable[[tuple[Extent, ...]], None] | None:
        """What takes extents for the picture and for somebody else; None when there is nobody else."""
        if take is None:
            return None

        def both(extents: tuple[Extent, ...]) -> None:
            self.add(extents)
            take(extents)

        return both

    def summary(self) -> list[str]:
        """The legend in words, a line for each kind of storage that there is."""
        return summary(self._bins)

    def finish(self, report: MapReport) -> None:
        """Write the file and put it in place.

        :raises FileError: see :meth:`vmm.operations.output.OutputFile.commit`.
        """
        data = self._encode(draw(self._bins, report))
        try:
            with open(self._output.fd, "wb", closefd=False) as stream:
                stream.write(data)
        except OSError as error:
            raise file_error(self._path, "write", error) from None
        self._output.commit()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._output.close()
