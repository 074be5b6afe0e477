"""``map``: where the bytes of a virtual disk are stored."""

from __future__ import annotations

from calltable import MAP_COMPRESSED, MAP_DATA, MAP_OFFSET, MAP_PRESENT, MAP_ZERO
from calltable.messages import Map, MapExtents, MapRequest
from vmm.errors import GuestFailedError, RefusedError
from vmm.operations.files import InputFile
from vmm.operations.follow import open_chain
from vmm.operations.info import DEFAULT_QEMU_VERSION
from vmm.operations.sizes import MAX_SIZE, parse_size
from vmm.record import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from calltable.message import Message
    from vmm.operations.session import Session

#: Extents that a report keeps when nobody takes them as they come; each takes some 200 bytes.
MAX_EXTENTS = 1_000_000

_STATES = MAP_PRESENT | MAP_ZERO | MAP_DATA | MAP_COMPRESSED | MAP_OFFSET


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of the virtual disk that is stored in one way; the first seven are qemu-img's.  Sizes in bytes."""

    #: Byte of the virtual disk.
    start: int
    #: At least 1.
    length: int
    #: How far down the chain the answer was found: 0 the image itself, 1 its backing file.
    depth: int
    #: Whether an image of the chain says what is here; otherwise nobody does, and it reads as zero.
    present: bool
    #: Whether it reads as zero.
    zero: bool
    #: Whether bytes are stored for it.
    data: bool
    #: Byte of the file ``filename`` where it begins; None unless it lies in one as it is.
    offset: int | None
    #: Whether the stored bytes are compressed.
    compressed: bool
    #: None without ``offset``.
    filename: str | None


@dataclass(frozen=True, slots=True)
class MapReport:
    """Where the bytes of a disk are stored."""

    #: The file as it was named.
    filename: str
    #: Driver name, as for ``-f``.
    format: str
    #: Of the virtual disk, in bytes.
    virtual_size: int
    #: How many extents there are.
    count: int
    #: Exact length of the file in bytes.
    file_length: int
    #: Bytes that the file takes on the host's disk.
    actual_size: int
    #: Front to back, without gaps; empty when they were taken as they came.
    extents: tuple[Extent, ...] = ()

    @property
    def exit_status(self) -> int:
        """0: there is no other way to answer."""
        return 0


class _Reader:
    """Takes the messages of a map, and believes none of them."""

    def __init__(self, start: int, length: int, names: Sequence[str]) -> None:
        #: Where the next extent begins.
        self.at = start
        self.count = 0
        self._end = min(start + length, MAX_SIZE)
        self._names = names

    def extents(self, message: MapExtents) -> tuple[Extent, ...]:
        """The extents of a message.

        :raises GuestFailedError: it contradicts itself, the ones before it, or the request.
        """
        columns = (message.lengths, message.states, message.offsets, message.depths, message.devices)
        if not message.lengths or len(set(map(len, columns))) != 1:
            raise GuestFailedError("the guest emitted map-extents whose arrays are not equally long, or empty")
        if message.start != self.at:
            raise GuestFailedError(f"the guest emitted map-extents from byte {message.start}, not from {self.at}")
        found = []
        at, names = self.at, self._names
        for length, state, offset, depth, device in zip(*columns, strict=True):
            valid = state & MAP_OFFSET
            if not length or state & ~_STATES or not state & (MAP_ZERO | MAP_DATA) or (offset and not valid):
                raise GuestFailedError(f"the guest emitted an extent at byte {at} that contradicts itself")
            if device >= len(names):
                raise GuestFailedError(f"the guest emitted an extent in file {device} of {len(names)}")
            found.append(
                Extent(
                    at,
                    length,
                    depth,
                    state & MAP_PRESENT != 0,
                    state & MAP_ZERO != 0,
                    state & MAP_DATA != 0,
                    offset if valid else None,
                    state & MAP_COMPRESSED != 0,
                    names[device] if valid else None,
                )
            )
            at += length
        if at > self._end:
            raise GuestFailedError(f"the guest emitted extents up to byte {at}, behind the end {self._end}")
        self.at = at
        self.count += len(found)
        return tuple(found)

    def finish(self, message: Map, start: int) -> None:
        """Compare the end of a map with what came before it.

        :raises GuestFailedError: they do not agree.
        """
        if message.extents != self.count:
            raise GuestFailedError(f"the guest counted {message.extents} extents and emitted {self.count}")
        if self.at != max(start, min(self._end, message.virtual_size)):
            raise GuestFailedError(
                f"the guest mapped up to byte {self.at} of a disk of {message.virtual_size} bytes, not to its end"
            )


def map_image(
    session: Session,
    path: str,
    *,
    format: str | None = None,  # noqa: A002  (qemu-img's word)
    start: int | str = 0,
    length: int | str | None = None,
    qemu_version: str = DEFAULT_QEMU_VERSION,
    mapped_only: bool = False,
    exact: bool = False,
    on_extents: Callable[[tuple[Extent, ...]], None] | None = None,
    follow_symlinks: bool = False,
    chain: bool = False,
    allow_dirs: Iterable[str] = (),
) -> MapReport:
    """Say where the bytes of an image's disk are stored.

    :param format: driver name; None: the guest detects it.
    :param start: byte of the disk to begin at, a number or text such as ``10M``; behind the end nothing is mapped.
    :param length: bytes at most; None: to the end.
    :param qemu_version: release of qemu-img whose answer is wanted where releases differ.
    :param mapped_only: refuse data that lies in no file as it is: external, encrypted or compressed.  The extent that
        is refused is the last one that is answered.
    :param exact: say where the data lie also for formats whose driver in qemu does not tell (VHDX); qemu-img shows the
        whole disk as data.
    :param on_extents: gets the extents as they come, some at a time, before it is known whether the rest of the map can
        be read; the report has none then.
    :param chain: follow the files that the image names.
    :param allow_dirs: directories below which they may lie, besides the image's own.
    :raises RefusedError: among others, for more than :data:`MAX_EXTENTS` extents without ``on_extents``.
    :raises VmmError: see :mod:`vmm.errors`.
    """
    first = parse_size(start, "start offset")
    limit = None if length is None else parse_size(length, "max length")
    version = None if qemu_version == DEFAULT_QEMU_VERSION else qemu_version
    kept: list[Extent] = []

    def keep(extents: tuple[Extent, ...]) -> None:
        kept.extend(extents)
        if len(kept) > MAX_EXTENTS:
            raise RefusedError(f"the map has more than {MAX_EXTENTS} extents: take them with on_extents", file=path)

    take = keep if on_extents is None else on_extents
    with InputFile(path, follow_symlinks=follow_symlinks) as file:
        file.refuse_empty(format)
        with open_chain(
            session,
            file,
            follow=chain,
            allow_dirs=allow_dirs,
            follow_symlinks=follow_symlinks,
            format=format,
            qemu_version=version,
        ) as files:
            names = files.names()
            reader = _Reader(first, MAX_SIZE if limit is None else limit, names)

            def on_message(message: Message) -> None:
                assert isinstance(message, MapExtents)
                take(reader.extents(message))

            request = MapRequest(
                format=format,
                start=first or None,
                length=limit,
                qemu_version=version,
                mapped_only=mapped_only or None,
                exact=exact or None,
                files=files.files(),
            )
            main = session.answer(
                "map",
                request,
                files.devices(),
                on_message,
                main=Map.NAME,
                lists=(MapExtents.NAME,),
                names=names,
                kept=False,
            )
        sizes = file.length, file.disk_size
    assert isinstance(main, Map)
    reader.finish(main, first)
    return MapReport(path, main.format, main.virtual_size, main.extents, *sizes, tuple(kept))
