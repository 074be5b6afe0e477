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
    InfoParentEntry,
    InfoPartition,
    InfoPartitionTable,
    InfoReference,
    InfoRequest,
    InfoSnapshot,
    InfoVmdkExtent,
)
from vmm.errors import GuestFailedError
from vmm.operations.files import InputFile
from vmm.operations.follow import open_chain
from vmm.operations.names import combine_path
from vmm.operations.passphrase import check_passphrase
from vmm.operations.text import printable
from vmm.record import dataclass, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from calltable.message import Message
    from vmm.errors import VmmError
    from vmm.operations.chain import Chain, FollowedFile
    from vmm.operations.follow import Alone
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
        InfoParentEntry,
        InfoVmdkExtent,
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
    #: What the file takes on the host's disk, together with those of its extents that were opened.
    actual_size: int
    #: What the guest found.
    image: Info
    snapshots: tuple[InfoSnapshot, ...] = ()
    bitmaps: tuple[InfoBitmap, ...] = ()
    #: Other files that the image names; ``followed`` are those that were opened.
    references: tuple[InfoReference, ...] = ()
    partition_tables: tuple[InfoPartitionTable, ...] = ()
    partitions: tuple[InfoPartition, ...] = ()
    filesystems: tuple[InfoFilesystem, ...] = ()
    notes: tuple[InfoNote, ...] = ()
    #: What a VHDX's parent locator says, key by key.
    parent_entries: tuple[InfoParentEntry, ...] = ()
    #: Of a VMDK image, in the order of the disk.
    extents: tuple[InfoVmdkExtent, ...] = ()
    luks2_keyslots: tuple[InfoLuks2Keyslot, ...] = ()
    luks2_segments: tuple[InfoLuks2Segment, ...] = ()
    luks2_digests: tuple[InfoLuks2Digest, ...] = ()
    luks2_tokens: tuple[InfoLuks2Token, ...] = ()
    #: The files of a VMDK image's extents that were opened, in the order of the disk.
    extent_files: tuple[FollowedFile, ...] = ()
    #: The files that were opened because images name them, in the order of opening.
    followed: tuple[FollowedFile, ...] = ()
    #: Reports on the images behind this one, the nearest first; only where they were asked for.
    backing_chain: tuple[InfoReport, ...] = ()

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


def extent_path(base: str, name: str) -> str:
    """The file of a VMDK extent as qemu names it: relative to the directory of its descriptor ``base``."""
    return name if name.startswith("/") else base[: base.rfind("/") + 1] + name


def info(
    session: Session,
    path: str,
    *,
    format: str | None = None,  # noqa: A002  (qemu-img's word)
    qemu_version: str = DEFAULT_QEMU_VERSION,
    luks_passphrase: bytes | None = None,
    follow_symlinks: bool = False,
    chain: bool = False,
    allow_dirs: Iterable[str] = (),
    backing_chain: bool = False,
) -> InfoReport:
    """Describe an image.

    :param format: driver name; None: the guest detects it.
    :param qemu_version: release of qemu-img whose answer is wanted where releases differ.
    :param chain: follow the files that the image names, to see what lies on the disk; one that is not followed is a
        note, as qemu-img describes an image without them, but for the extents of a disk.
    :param allow_dirs: directories below which they may lie, besides the image's own.
    :param backing_chain: follow, and report on every image behind this one as well; all of them have to be there.
    :param luks_passphrase: unlocks an encrypted image, so that what lies on its disk is told as well.
    :raises VmmError: see :mod:`vmm.errors`.
    """
    version = None if qemu_version == DEFAULT_QEMU_VERSION else qemu_version
    if luks_passphrase is not None:
        check_passphrase(luks_passphrase)
    with InputFile(path, follow_symlinks=follow_symlinks) as file:
        file.refuse_empty(format)
        with open_chain(
            session,
            file,
            follow=chain or backing_chain,
            allow_dirs=allow_dirs,
            follow_symlinks=follow_symlinks,
            format=format,
            qemu_version=version,
            strict=backing_chain,
        ) as files:
            reports = []
            number: int | None = 0
            while number is not None:
                reports.append(
                    _describe(session, files, number, format, version, luks_passphrase if number == 0 else None)
                )
                number = files.behind(number) if backing_chain else None
            followed = files.followed()
            notes = tuple(_not_followed(error) for error in files.refusals)
    if not followed and not notes:
        return reports[0]
    first = reports[0]
    return replace(first, notes=first.notes + notes, followed=followed, backing_chain=tuple(reports[1:]))


def _not_followed(error: VmmError) -> InfoNote:
    return InfoNote(code="not-followed", message=error.message, offset=None, length=None, value=None)


def _describe(
    session: Session,
    files: Chain | Alone,
    number: int,
    format: str | None,  # noqa: A002
    version: str | None,
    passphrase: bytes | None,
) -> InfoReport:
    """The report on one of the files."""
    found: dict[str, list[Message]] = {name: [] for name in _LISTS}
    main = session.answer(
        "info" if passphrase is None else "unlock",
        InfoRequest(
            format=format, qemu_version=version, files=files.files(), image=number or None, passphrase=passphrase
        ),
        files.devices(),
        lambda message: found[message.NAME].append(message),
        main=Info.NAME,
        lists=_LISTS,
        names=files.names(),
    )
    assert isinstance(main, Info)
    name, size = files.names()[number], files.devices()[number].allocated
    assert size is not None
    report = InfoReport(name, size, main, *(tuple(found[name]) for name in _LISTS))  # type: ignore[arg-type]
    _validate(report)
    extents = tuple(one for one in files.followed() if one.owner == number and one.kind == "extent")
    if not extents:
        return report
    total = size + sum(one.actual_size for one in extents)
    return replace(report, actual_size=total, extent_files=tuple(sorted(extents, key=lambda one: one.index)))


def _validate(report: InfoReport) -> None:
    """Each partition belongs to one table, or a short report could become a long answer: tables times partitions.

    :raises GuestFailedError: two tables of one scheme.
    """
    seen: set[str] = set()
    for table in report.partition_tables:
        if table.scheme in seen:
            raise GuestFailedError(f"the guest reported two partition tables of scheme {printable(table.scheme)}")
        seen.add(table.scheme)
