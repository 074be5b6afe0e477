"""``resize``: another virtual size of an image, in place."""

from __future__ import annotations

import time

from calltable.messages import Resize, ResizeRequest
from vmm.errors import FileError, GuestFailedError, KvmError, LimitReachedError, UsageError
from vmm.operations.inplace import InPlaceFile
from vmm.operations.sizes import parse_number
from vmm.record import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.errors import VmmError
    from vmm.operations.session import Session

#: What ends a run half-way.
_HALF_WAY = (FileError, GuestFailedError, KvmError, LimitReachedError)
_SIZES = 1 << 64


@dataclass(frozen=True, slots=True)
class ResizeReport:
    """What was done.  All sizes in bytes."""

    #: The file as it was named.
    filename: str
    #: Driver name.
    format: str
    #: Of the virtual disk before.
    old_size: int
    #: Of the virtual disk now, after the format's rounding.
    virtual_size: int
    #: Exact length of the file now.
    file_length: int

    @property
    def exit_status(self) -> int:
        """0: there is no other way to answer."""
        return 0


def parse_change(size: int | str) -> tuple[int, str | None]:
    """A size, and whether it is a difference: None, ``grow`` or ``shrink``, by the sign in front of a text.

    Up to 2^64-1; what a format can do with it is the guest's to say.

    :raises UsageError: no size, or out of range.
    """
    relative = None
    if isinstance(size, str):
        relative = {"+": "grow", "-": "shrink"}.get(size[:1])
        number = parse_number(size[1:] if relative else size)
    else:
        number = size
    if number is None or not 0 <= number < _SIZES:
        raise UsageError(
            "Parameter 'size' expects a non-negative number below 2^64 (with a suffix k, M, G, T, P or E for kilo-, "
            "mega-, giga-, tera-, peta- and exabytes; +SIZE and -SIZE are relative)",
            value=size if isinstance(size, str) else None,
        )
    return number, relative


def resize(
    session: Session,
    path: str,
    size: int | str,
    *,
    format: str | None = None,  # noqa: A002  (qemu-img's word)
    shrink: bool = False,
    preallocation: str | None = None,
    unix_time: int | None = None,
    follow_symlinks: bool = False,
    share: bool = False,
) -> ResizeReport:
    """Give an image another virtual size.  Its content up to the smaller end stays, new space reads as zero.

    The writes are ordered so that a run which ends half-way, for whatever reason, leaves an image that opens and has
    its old content; it has its old size or its new one.

    :param size: bytes, or text such as ``10G``; with a sign in front (``+1G``, ``-512M``) the difference.
    :param format: driver name; None: the guest detects it, and refuses what others could take for something else.
    :param shrink: allow a smaller size; what lies behind the new end is lost.
    :param preallocation: of the new space: off, metadata, falloc or full, as far as the format has it.
    :param unix_time: seconds since 1970, for formats that record when they were changed; None: now.
    :param share: take no locks against other processes that use the image.
    :raises VmmError: see :mod:`vmm.errors`.
    """
    number, relative = parse_change(size)
    request = ResizeRequest(
        format=format,
        size=number,
        relative=relative,
        shrink=shrink or None,
        preallocation=preallocation,
        unix_time=int(time.time()) if unix_time is None else unix_time,
    )
    with InPlaceFile(path, follow_symlinks=follow_symlinks, share=share) as file:
        file.refuse_empty(format)
        try:
            message = session.answer("resize", request, (file.device(),), main=Resize.NAME, names=(path,))
            # No block device has a request for this; what is new in the file lies behind its old end.
            if preallocation == "falloc":
                file.allocate(file.length)
            file.synchronise()
        except _HALF_WAY as error:
            raise _half_way(error) from None
    assert isinstance(message, Resize)
    return ResizeReport(path, message.format, message.old_size, message.virtual_size, message.file_length)


def _half_way(error: VmmError) -> VmmError:
    """The same error, with what it means for the image."""
    error.message += "; the image keeps its old content, and has its old size or the new one"
    error.args = (error.message, *error.args[1:])
    return error
