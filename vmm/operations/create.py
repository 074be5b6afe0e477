"""``create``: plan and write an empty image."""

from __future__ import annotations

import os
import time

from calltable.messages import CreateRequest
from vmm.errors import FileError, UsageError, VmmError
from vmm.operations.files import InputFile
from vmm.operations.options import build_options
from vmm.operations.output import OutputFile, close_all
from vmm.operations.outputs import commit_all, target_name, write_outputs
from vmm.operations.passphrase import check_passphrase
from vmm.operations.sizes import parse_size
from vmm.operations.text import printable
from vmm.record import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from calltable.messages import CreateOptions
    from vmm.operations.options import OptionValue
    from vmm.operations.session import Session

#: The time that is written when everything comes from a seed: 2020-01-01 00:00 UTC, in seconds since 1970.
SEED_TIME = 1_577_836_800


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


def _as_uuid(value: bytes) -> bytes:
    """16 bytes as an identity: RFC 9562 section 5.4 (version 4)."""
    return bytes((*value[:6], value[6] & 0x0F | 0x40, value[7], value[8] & 0x3F | 0x80, *value[9:16]))


def random_uuid() -> bytes:
    """A random identity."""
    return _as_uuid(os.urandom(16))


def _derived(seed: str, what: str) -> bytes:
    """32 bytes for a purpose, from the text of ``--seed``."""
    from hashlib import sha256

    return sha256(f"pyvmm {what}\0{seed}".encode(errors="surrogateescape")).digest()


def _same(one: str, other: str) -> bool:
    """Whether two paths name one file; of what is no path at all, opening it says so."""
    try:
        return os.path.realpath(one) == os.path.realpath(other)
    except ValueError:
        return False


def _backing_path(path: str, name: str) -> str:
    """Where a backing file lies: beside the image that names it.

    :raises UsageError: qemu-img would take it for something else than a file.
    """
    if ":" in name.split("/", 1)[0]:
        raise UsageError(
            f"The backing file '{printable(name)}' names a protocol, and only files are opened (-u writes the name "
            "without opening it)",
            file=path,
        )
    return os.path.join(os.path.dirname(path), name)


def _open_backing(path: str, typed: CreateOptions | None, *, unsafe: bool, follow_symlinks: bool) -> InputFile | None:
    """The backing file of a new overlay; None when there is none, or it is not to be opened.

    :raises UsageError: it is the image itself.
    :raises FileError: it cannot be opened.
    """
    name = typed.backing_file if typed is not None else None
    if not name:
        return None  # an empty name is the guest's to refuse
    backing = _backing_path(path, name) if not unsafe else name
    if name == path or (not unsafe and _same(backing, path)):
        raise UsageError("Error: Trying to create an image with the same filename as the backing file", file=path)
    if unsafe:
        return None
    try:
        return InputFile(backing, follow_symlinks=follow_symlinks)
    except FileError as error:
        raise FileError(_not_opened(error.message, name), **error.details) from None


def _not_opened(reason: str, name: str) -> str:
    return f"{reason}; Could not open backing image '{printable(name)}'."


def create(
    session: Session,
    path: str,
    format: str = "raw",  # noqa: A002  (qemu-img's word)
    *,
    size: int | str | None = None,
    options: Mapping[str, OptionValue | None] | None = None,
    backing_unsafe: bool = False,
    force: bool = False,
    seed: str | None = None,
    unix_time: int | None = None,
    uuid: bytes | None = None,
    entropy: bytes | None = None,
    parent_cid: int | None = None,
    luks_passphrase: bytes | None = None,
    follow_symlinks: bool = False,
) -> CreateReport:
    """Write an empty image; it is there whole or, when anything fails, not at all.

    Some formats have further files, which lie beside ``path`` and are named after it.

    :param format: driver name: raw, qcow2, vmdk, vpc, vhdx or luks.
    :param size: bytes, or text such as ``10G``; may stand among ``options`` instead.  None: that of the backing file.
    :param options: creation options by qemu-img's names.
    :param backing_unsafe: write the name of the backing file without opening it; the size is needed then.
    :param force: replace an existing file, at once when the new one is whole.
    :param seed: text that everything random is made of, so that the same call writes the same bytes; the time is then
        2020-01-01 unless it is given.
    :param unix_time: seconds since 1970, for formats that record when they were made; None: now.
    :param uuid: 16 bytes of identity for formats that record one; None: random.
    :param entropy: 32 bytes that every other random part of the image is made of; None: random.
    :param parent_cid: vmdk: content identifier of the backing file, 32 bits.
    :param luks_passphrase: opens the first key slot of a LUKS container.
    :raises UsageError: an option does not exist, or the size is given twice.
    :raises FileError: the file exists (``errno`` among the details is ``EEXIST``), or a file cannot be opened or made.
    :raises VmmError: see :mod:`vmm.errors`.
    """
    typed, option_size = build_options(format, options or {})
    if luks_passphrase is not None:
        if format != "luks":
            raise UsageError(f"Format {printable(format)} takes no passphrase", file=path)
        check_passphrase(luks_passphrase)
    if size is not None and option_size is not None:
        raise UsageError("The image size must be specified only once", file=path)
    data_file = typed.data_file if typed is not None else None
    names = [path] if data_file is None else [path, data_file]
    if data_file is not None and _same(data_file, path):
        raise UsageError("The image and its data file are the same file", file=path)
    backing = _open_backing(path, typed, unsafe=backing_unsafe, follow_symlinks=follow_symlinks)
    request = CreateRequest(
        format=format,
        size=option_size if size is None else parse_size(size),
        options=typed,
        unix_time=unix_time if unix_time is not None else int(time.time()) if seed is None else SEED_TIME,
        uuid=uuid if uuid is not None else random_uuid() if seed is None else _as_uuid(_derived(seed, "uuid")),
        entropy=entropy if entropy is not None else os.urandom(32) if seed is None else _derived(seed, "entropy"),
        name=target_name(path, follow_symlinks=follow_symlinks),
        parent_cid=parent_cid,
        passphrase=luks_passphrase,
        backing_time=None if backing is None else backing.changed,
    )
    outputs: list[OutputFile] = []
    try:

        def open_output(name: str) -> OutputFile:
            return OutputFile(name, follow_symlinks=follow_symlinks, replace=force)

        outputs.extend(map(open_output, names))
        try:
            message = write_outputs(session, request, outputs, open_output, backing)
        except VmmError as error:
            if backing is not None and error.details.get("file") == backing.path:
                error.message = _not_opened(error.message, backing.path)
                error.args = (error.message,)
            raise
        if typed is not None and typed.preallocation == "falloc":
            # No block device has a request for this; the guest planned the length, which is all that matters here.
            for output in outputs:
                output.allocate()
        commit_all(outputs)
    finally:
        close_all(outputs)
        if backing is not None:
            backing.close()
    return CreateReport(
        filename=path,
        format=message.format,
        virtual_size=message.virtual_size,
        cluster_size=message.cluster_size,
        file_length=message.file_length,
        options=tuple((option.name, option.value) for option in message.options),
    )
