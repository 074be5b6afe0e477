"""``create``: plan and write an empty image."""

from __future__ import annotations

import os
import time

from calltable.messages import Create, CreateRequest
from vmm.errors import UsageError
from vmm.operations.options import build_options
from vmm.operations.output import OutputFile, close_all
from vmm.operations.passphrase import check_passphrase
from vmm.operations.sizes import parse_size
from vmm.operations.text import printable
from vmm.record import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm.operations.options import OptionValue
    from vmm.operations.session import Session


@dataclass(frozen=True, slots=True)
class CreateReport:
    """What was written.  All sizes in bytes."""

    filename: str
    #: Driver name.
    format: str
    #: What a reader will see, after the format's rounding.
    virtual_size: int
    #: None where the format has none.
    cluster_size: int | None
    #: Exact length of the file.
    file_length: int
    #: Resolved options by qemu-img's names, in the order of its ``Formatting`` line; the size among them.
    options: tuple[tuple[str, str], ...]

    @property
    def exit_status(self) -> int:
        """0: there is no other way to answer."""
        return 0


def random_uuid() -> bytes:
    """A random identity: RFC 9562 section 5.4 (version 4)."""
    value = bytearray(os.urandom(16))
    value[6] = value[6] & 0x0F | 0x40
    value[8] = value[8] & 0x3F | 0x80
    return bytes(value)


def _same(one: str, other: str) -> bool:
    """Whether two paths name one file; of what is no path at all, opening it says so."""
    try:
        return os.path.realpath(one) == os.path.realpath(other)
    except ValueError:
        return False


def create(
    session: Session,
    path: str,
    format: str = "raw",  # noqa: A002  (qemu-img's word)
    *,
    size: int | str | None = None,
    options: Mapping[str, OptionValue | None] | None = None,
    unix_time: int | None = None,
    uuid: bytes | None = None,
    entropy: bytes | None = None,
    luks_passphrase: bytes | None = None,
    follow_symlinks: bool = False,
) -> CreateReport:
    """Write an empty image; it replaces an existing file at once or, when anything fails, not at all.

    :param format: driver name: raw, qcow2, vpc or luks.
    :param size: bytes, or text such as ``10G``; may stand among ``options`` instead.
    :param options: creation options by qemu-img's names.
    :param unix_time: seconds since 1970, for formats that record when they were made; None: now.
    :param uuid: 16 bytes of identity for formats that record one; None: random.
    :param entropy: 32 bytes of which the keys and salts of luks are made; None: random.
    :param luks_passphrase: opens the first key slot of a LUKS container.
    :raises UsageError: an option does not exist, or the size is given twice.
    :raises VmmError: see :mod:`vmm.errors`.
    """
    typed, option_size = build_options(format, options or {})
    if luks_passphrase is not None:
        if format != "luks":
            raise UsageError(f"Format {printable(format)} takes no passphrase", file=path)
        check_passphrase(luks_passphrase)
    if size is not None and option_size is not None:
        raise UsageError("The image size must be specified only once", file=path)
    request = CreateRequest(
        format=format,
        size=option_size if size is None else parse_size(size),
        options=typed,
        unix_time=int(time.time()) if unix_time is None else unix_time,
        uuid=random_uuid() if uuid is None else uuid,
        entropy=os.urandom(32) if entropy is None and format == "luks" else entropy,
        passphrase=luks_passphrase,
    )
    data_file = typed.data_file if typed is not None else None
    names = [path] if data_file is None else [path, data_file]
    if data_file is not None and _same(data_file, path):
        raise UsageError("The image and its data file are the same file", file=path)
    outputs: list[OutputFile] = []
    try:
        outputs.extend(OutputFile(name, follow_symlinks=follow_symlinks) for name in names)
        devices = [output.device() for output in outputs]
        message = session.answer("create", request, devices, main=Create.NAME, names=names)
        if typed is not None and typed.preallocation == "falloc":
            # No block device has a request for this; the guest planned the length, which is all that matters here.
            for output in outputs:
                output.allocate()
        # The data file first: an image never refers to a file that is not there yet.
        for output in reversed(outputs):
            output.commit()
    finally:
        close_all(outputs)
    assert isinstance(message, Create)
    return CreateReport(
        filename=path,
        format=message.format,
        virtual_size=message.virtual_size,
        cluster_size=message.cluster_size,
        file_length=message.file_length,
        options=tuple((option.name, option.value) for option in message.options),
    )
