"""``measure``: how large the file of a conversion would be."""

from __future__ import annotations

from calltable.messages import Measure, MeasureRequest
from vmm.errors import UsageError
from vmm.operations.files import InputFile
from vmm.operations.follow import open_chain
from vmm.operations.options import build_options
from vmm.operations.sizes import parse_size
from vmm.record import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from calltable.message import Message
    from calltable.messages import ChainFile
    from vmm.operations.options import OptionValue
    from vmm.operations.session import Session


@dataclass(frozen=True, slots=True)
class MeasureReport:
    """What the file of a conversion would take.  All sizes in bytes."""

    #: The measured file as it was named; None when measured by size.
    filename: str | None
    #: For the content that the source has.
    required: int
    #: When every byte of the disk has been written.
    fully_allocated: int
    #: What the source's persistent bitmaps would add; None unless both sides can have bitmaps.
    bitmaps: int | None
    #: Driver name of the target.
    target: str
    #: Of the target.
    virtual_size: int
    #: Driver name of the source; None when measured by size.
    format: str | None

    @property
    def exit_status(self) -> int:
        """0: there is no other way to answer."""
        return 0


def measure(
    session: Session,
    path: str | None = None,
    *,
    target: str = "raw",
    format: str | None = None,  # noqa: A002  (qemu-img's word)
    size: int | str | None = None,
    options: Mapping[str, OptionValue | None] | None = None,
    follow_symlinks: bool = False,
    chain: bool = False,
    allow_dirs: Iterable[str] = (),
) -> MeasureReport:
    """Measure a file, or an empty disk of ``size`` bytes.

    :param target: driver name of the target: raw, qcow2, vmdk, vpc, vhdx or luks.
    :param format: driver name of the source; None: the guest detects it.
    :param size: bytes, or text such as ``10G``; instead of ``path``.
    :param options: creation options of the target by qemu-img's names.
    :param chain: follow the files that the image names.
    :param allow_dirs: directories below which they may lie, besides the image's own.
    :raises UsageError: path and size do not go together, or an option does not exist.
    :raises VmmError: see :mod:`vmm.errors`.
    """
    if (path is None) == (size is None):
        raise UsageError(
            "Either --size N or one filename must be specified."
            if path is None
            else "--size N cannot be used together with a filename."
        )
    if path is None and format is not None:
        raise UsageError("-f requires a filename argument.")
    if path is None and (chain or tuple(allow_dirs)):
        raise UsageError("--chain requires a filename argument.")
    typed, _ = build_options(target, options or {})

    def request(files: tuple[ChainFile, ...] | None) -> MeasureRequest:
        parsed = None if size is None else parse_size(size)
        return MeasureRequest(target=target, format=format, size=parsed, options=typed, files=files)

    if path is None:
        return _report(None, session.answer("measure", request(None), (), main=Measure.NAME))
    with InputFile(path, follow_symlinks=follow_symlinks) as file:
        file.refuse_empty(format)
        with open_chain(
            session, file, follow=chain, allow_dirs=allow_dirs, follow_symlinks=follow_symlinks, format=format
        ) as files:
            devices, names = files.devices(), files.names()
            message = session.answer("measure", request(files.files()), devices, main=Measure.NAME, names=names)
    return _report(path, message)


def _report(path: str | None, message: Message) -> MeasureReport:
    assert isinstance(message, Measure)
    return MeasureReport(
        filename=path,
        required=message.required,
        fully_allocated=message.fully_allocated,
        bitmaps=message.bitmaps,
        target=message.target,
        virtual_size=message.virtual_size,
        format=message.format,
    )
