"""``info``: what an image is, and what it refers to."""

from __future__ import annotations

from calltable.messages import (
    Info,
    InfoBitmap,
    InfoFilesystem,
    InfoLuks2Digest,
    InfoLuks2Keyslot,
    InfoLuks2Segment,
    InfoLuks2Token,
    InfoNote,
    InfoPartition,
    InfoPartitionTable,
    InfoReference,
    InfoRequest,
    InfoSnapshot,
)
from vmm.errors import GuestFailedError
from vmm.operations.files import InputFile
from vmm.operations.passphrase import check_passphrase
from vmm.operations.text import printable
from vmm.record import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from calltable.message import Message
    from vmm.operations.session import Session

#: qemu-img release whose answers are given unless another is asked for.
DEFAULT_QEMU_VERSION = "7.2"

_LISTS = tuple(
    kind.NAME
    for kind in (
        InfoSnapshot,
        InfoBitmap,
        InfoReference,
        InfoPartitionTable,
        InfoPartition,
        InfoFilesystem,
        InfoNote,
        InfoLuks2Keyslot,
        InfoLuks2Segment,
        InfoLuks2Digest,
        InfoLuks2Token,
    )
)


@dataclass(frozen=True, slots=True)
class InfoReport:
    """What an image is.  All sizes in bytes."""

    #: The file as it was named.
    filename: str
    #: What the file takes on the host's disk.
    actual_size: int
    #: What the guest found.
    image: Info
    snapshots: tuple[InfoSnapshot, ...] = ()
    bitmaps: tuple[InfoBitmap, ...] = ()
    #: Other files that the image names; none of them is followed.
    references: tuple[InfoReference, ...] = ()
    partition_tables: tuple[InfoPartitionTable, ...] = ()
    partitions: tuple[InfoPartition, ...] = ()
    filesystems: tuple[InfoFilesystem, ...] = ()
    notes: tuple[InfoNote, ...] = ()
    luks2_keyslots: tuple[InfoLuks2Keyslot, ...] = ()
    luks2_segments: tuple[InfoLuks2Segment, ...] = ()
    luks2_digests: tuple[InfoLuks2Digest, ...] = ()
    luks2_tokens: tuple[InfoLuks2Token, ...] = ()

    @property
    def exit_status(self) -> int:
        """0: there is no other way to answer."""
        return 0

    @property
    def format(self) -> str:
        """Driver name, as for ``-f``."""
        return self.image.format

    @property
    def virtual_size(self) -> int:
        """Of the virtual disk."""
        return self.image.virtual_size

    @property
    def backing_filename(self) -> str | None:
        """As written in the image."""
        return self.image.backing_filename

    @property
    def full_backing_filename(self) -> str | None:
        """The backing file's name as seen from the image's directory, as qemu would resolve it."""
        name = self.image.backing_filename
        return None if name is None else combine_path(self.filename, name)


def combine_path(base: str, name: str) -> str:
    """``name`` as seen from the directory of ``base``; absolute names and names with a protocol stay as they are."""
    if name.startswith("/") or ":" in name.partition("/")[0]:
        return name
    return base[: base.rfind("/") + 1] + name


def info(
    session: Session,
    path: str,
    *,
    format: str | None = None,  # noqa: A002  (qemu-img's word)
    qemu_version: str = DEFAULT_QEMU_VERSION,
    luks_passphrase: bytes | None = None,
    follow_symlinks: bool = False,
) -> InfoReport:
    """Describe an image.

    :param format: driver name; None: the guest detects it.
    :param qemu_version: release of qemu-img whose answer is wanted where releases differ.
    :param luks_passphrase: unlocks an encrypted image, so that what lies on its disk is told as well.
    :raises VmmError: see :mod:`vmm.errors`.
    """
    found: dict[str, list[Message]] = {name: [] for name in _LISTS}
    version = None if qemu_version == DEFAULT_QEMU_VERSION else qemu_version
    if luks_passphrase is not None:
        check_passphrase(luks_passphrase)
    request = InfoRequest(format=format, qemu_version=version, passphrase=luks_passphrase)
    with InputFile(path, follow_symlinks=follow_symlinks) as file:
        file.refuse_empty(format)
        main = session.answer(
            "info",
            request,
            (file.device(),),
            lambda message: found[message.NAME].append(message),
            main=Info.NAME,
            lists=_LISTS,
            names=(path,),
        )
        disk_size = file.disk_size
    assert isinstance(main, Info)
    report = InfoReport(path, disk_size, main, *(tuple(found[name]) for name in _LISTS))  # type: ignore[arg-type]
    _validate(report)
    return report


def _validate(report: InfoReport) -> None:
    """Each partition belongs to one table, or a short report could become a long answer: tables times partitions.

    :raises GuestFailedError: two tables of one scheme.
    """
    seen: set[str] = set()
    for table in report.partition_tables:
        if table.scheme in seen:
            raise GuestFailedError(f"the guest reported two partition tables of scheme {printable(table.scheme)}")
        seen.add(table.scheme)
