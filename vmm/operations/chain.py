"""The other files of an image (``--chain``): the guest names them, this opens them, or refuses without saying why.

What a name may lead to is bounded by the kernel: ``openat2`` below the image's own directory or one that the user
allowed, without magic links, without symbolic links unless the user follows them, and only to regular files.  Whatever
is wrong with a name, the answer is the same, so that an image cannot ask which files the host has.
"""

from __future__ import annotations

import errno
import os
import stat

from calltable import MAX_DEVICES
from calltable.messages import ChainFile, InfoReference, References, ReferencesRequest
from vmm.boundary import DeviceSpec
from vmm.errors import FileError, GuestFailedError, ReferenceRefusedError, RefusedError
from vmm.host import system
from vmm.operations.files import InputFile, close, file_error, os_reason
from vmm.operations.names import combine_path, components, has_protocol
from vmm.operations.text import printable
from vmm.record import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType
    from typing import Self

    from calltable.message import Message
    from vmm.operations.session import Session

#: References between the first image and the last file.
MAX_DEPTH = 16
#: Bytes of a name; the kernel takes no longer path.
MAX_NAME = 4095
#: Names that one reference may have: a VHD has eight locators, each of them also by its last part.
MAX_ALTERNATIVES = 32
#: Characters of a driver's name; it goes into the request, once for each file.
MAX_FORMAT = 64

_KINDS = {
    "backing-file": "backing file",
    "data-file": "data file",
    "extent": "extent",
    "parent": "parent",
}
#: What says more about this process than about a file: descriptors are counted before the path is looked at.
_OWN_FAULTS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
#: Drivers of files that hold nothing but a disk.
_NAMELESS = ("raw", "file")
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


@dataclass(frozen=True, slots=True)
class FollowedFile:
    """A file that was opened because an image names it."""

    #: As qemu-img would call it: the name, seen from the directory of the file that names it.
    filename: str
    #: The image that names it: 0 the first one, otherwise the number of a followed file, from 1.
    owner: int
    #: backing-file, data-file, extent or parent.
    kind: str
    #: Which one of its kind.
    index: int
    #: Driver name, where the image that names it states one.
    format: str | None
    #: What it takes on the host's disk, in bytes.
    actual_size: int
    #: Of the file, in bytes.
    length: int


class Root:
    """A directory below which files may be opened.

    :raises FileError: there is no such directory.
    """

    __slots__ = ("fd", "spellings")

    def __init__(self, path: str) -> None:
        try:
            self.fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise file_error(path, "open directory", error) from None
        except ValueError as error:
            raise FileError(f"Could not open directory '{printable(path)}': {error}", file=path) from None
        #: Its absolute path without symbolic links, and as it was named; components.
        self.spellings = (components(os.path.realpath(path)), components(os.path.abspath(path)))

    def rest(self, components: list[str]) -> str | None:
        """An absolute path as seen from here; None when it does not begin here."""
        for spelling in self.spellings:
            if components[: len(spelling)] == spelling:
                return "/".join(components[len(spelling) :]) or "."
        return None


class _File:
    """One file of the chain, open."""

    __slots__ = (
        "depth",
        "fd",
        "format",
        "identity",
        "index",
        "kind",
        "length",
        "name",
        "owner",
        "place",
        "root",
        "size",
    )

    def __init__(self, fd: int, found: os.stat_result, root: Root, place: str) -> None:
        self.fd = fd
        self.length = found.st_size if stat.S_ISREG(found.st_mode) else os.lseek(fd, 0, os.SEEK_END)
        #: On the host's disk, in bytes.
        self.size = found.st_blocks * 512
        self.identity = (found.st_dev, found.st_ino)
        #: Where it was opened: a path relative to a root.
        self.root = root
        self.place = place
        self.name = place
        self.owner = -1
        self.kind = ""
        self.index = 0
        self.format: str | None = None
        self.depth = 0


class Chain:
    """An image and the files that it leads to.  A context manager; the image stays the caller's.

    :param image: the first image, open.
    :param allow_dirs: directories below which files may be opened, besides the image's own.
    :param follow_symlinks: let names lead over symbolic links, still not out of a directory.
    :raises FileError: a directory cannot be opened, or the kernel cannot bound where names lead.
    """

    def __init__(self, image: InputFile, *, allow_dirs: Iterable[str] = (), follow_symlinks: bool = False) -> None:
        self._resolve = system.RESOLVE_BENEATH | system.RESOLVE_NO_MAGICLINKS
        self._certain = not follow_symlinks
        if not follow_symlinks:
            self._resolve |= system.RESOLVE_NO_SYMLINKS
        self._roots: list[Root] = []
        self._files: list[_File] = []
        #: What was not followed, where that is no error.
        self.refusals: list[RefusedError] = []
        try:
            for path in (os.path.dirname(image.path) or ".", *allow_dirs):
                self._roots.append(Root(path))
            self._probe()
            first = _File(image.fd, os.fstat(image.fd), self._roots[0], os.path.basename(image.path))
        except BaseException:
            self.close()
            raise
        first.name = image.path
        self._files.append(first)

    def _probe(self) -> None:
        """Nothing is opened where the kernel does not bound it."""
        try:
            close(system.openat2(self._roots[0].fd, ".", os.O_PATH | os.O_CLOEXEC, self._resolve))
        except OSError as error:
            raise FileError(
                "--chain needs the system call openat2 (Linux 5.6 or newer), which is not to be had here: "
                f"{os_reason(error)}",
                errno=errno.errorcode.get(error.errno or 0),
            ) from None

    # What an operation needs.

    def devices(self) -> tuple[DeviceSpec, ...]:
        """One for each file, the image first."""
        return tuple(DeviceSpec(fd=file.fd, length=file.length, allocated=file.size) for file in self._files)

    def files(self) -> tuple[ChainFile, ...]:
        """For the request: what each device but the first is."""
        return tuple(
            ChainFile(owner=file.owner, kind=file.kind, index=file.index, format=file.format)
            for file in self._files[1:]
        )

    def names(self) -> tuple[str, ...]:
        """Of the devices, for errors."""
        return tuple(file.name for file in self._files)

    def followed(self) -> tuple[FollowedFile, ...]:
        """The files but the first, for reports."""
        return tuple(
            FollowedFile(file.name, file.owner, file.kind, file.index, file.format, file.size, file.length)
            for file in self._files[1:]
        )

    def behind(self, number: int) -> int | None:
        """The number of what stands behind an image: its backing file or parent."""
        for index, file in enumerate(self._files):
            if file.owner == number and file.kind in ("backing-file", "parent") and file.index == 0:
                return index
        return None

    # Resolving.

    def resolve(
        self,
        session: Session,
        *,
        format: str | None = None,  # noqa: A002  (qemu-img's word)
        qemu_version: str | None = None,
        strict: bool = True,
    ) -> None:
        """Open everything that the image leads to.

        :param format: driver name of the image; None: the guest detects it.
        :param strict: raise for what cannot be followed; otherwise it goes to :attr:`refusals`, but for the extents of
            a disk, without which there is none.
        :raises ReferenceRefusedError: a file may not or cannot be opened, or the chain is a loop, too deep or too long.
        :raises VmmError: see :mod:`vmm.errors`.
        """
        number = 0
        while number < len(self._files):
            stated = self._files[number].format if number else format
            try:
                wanted = {} if stated in _NAMELESS else self._names_in(session, number, stated, qemu_version)
            except RefusedError as error:
                # The first image is the operation's to judge: a check may well answer.
                if number or isinstance(error, ReferenceRefusedError):
                    self._give_up(error, strict)
                wanted = {}
            for alternatives in wanted.values():
                try:
                    self._follow(number, alternatives)
                except ReferenceRefusedError as error:
                    self._give_up(error, strict)
            number += 1

    def _give_up(self, error: RefusedError, strict: bool) -> None:
        if strict or error.details.get("kind") == "extent":
            raise error
        self.refusals.append(error)

    def _names_in(
        self,
        session: Session,
        number: int,
        format: str | None,  # noqa: A002
        qemu_version: str | None,
    ) -> dict[tuple[str, int], list[InfoReference]]:
        """What one of the images refers to, by kind and index: the alternatives of each reference, in its order."""
        wanted: dict[tuple[str, int], list[InfoReference]] = {}

        def on_message(message: Message) -> None:
            assert isinstance(message, InfoReference)
            if message.kind not in _KINDS:
                raise GuestFailedError(f"the guest named a file of the unknown kind {printable(message.kind)}")
            if message.format is not None and len(message.format) > MAX_FORMAT:
                raise GuestFailedError(f"the guest named a format of {len(message.format)} characters")
            names = wanted.setdefault((message.kind, message.index or 0), [])
            names.append(message)
            if len(names) > MAX_ALTERNATIVES:
                raise GuestFailedError(f"the guest named more than {MAX_ALTERNATIVES} alternatives for one file")
            if len(self._files) + len(wanted) > MAX_DEVICES:
                text = f"leads to more than {MAX_DEVICES - 1} other files"
                raise self._refused(number, message, "too-many", text)

        session.answer(
            "references",
            ReferencesRequest(format=format, qemu_version=qemu_version),
            (self.devices()[number],),
            on_message,
            main=References.NAME,
            lists=(InfoReference.NAME,),
            names=(self._files[number].name,),
        )
        return wanted

    def _follow(self, number: int, alternatives: list[InfoReference]) -> None:
        """Open the first of the names that leads to a file."""
        first = alternatives[0]
        owner = self._files[number]
        if owner.depth == MAX_DEPTH:
            text = f"is {MAX_DEPTH} files away from the first image, and names one more"
            raise self._refused(number, first, "too-deep", text)
        for reference in alternatives:
            file = self._open(owner, reference.name)
            if file is None:
                continue
            file.name = combine_path(owner.name, reference.name)
            file.owner, file.kind, file.index = number, reference.kind, reference.index or 0
            file.format = reference.format
            file.depth = owner.depth + 1
            try:
                self._refuse_loop(file, reference)
            except ReferenceRefusedError:
                close(file.fd)
                raise
            self._files.append(file)
            return
        what = _KINDS[first.kind]
        raise self._refused(
            number,
            first,
            "not-opened",
            f"names the {what} '{printable(first.name)}', which is not followed: only regular files below the image's "
            "own directory or one that --allow-dir names are",
        )

    def _refuse_loop(self, file: _File, reference: InfoReference) -> None:
        number = file.owner
        while number >= 0:
            above = self._files[number]
            if above.identity == file.identity:
                text = f"names the {_KINDS[file.kind]} '{printable(reference.name)}', which leads to itself: a loop"
                raise self._refused(file.owner, reference, "loop", text)
            number = above.owner

    def _refused(self, owner: int, reference: InfoReference, reason: str, text: str) -> ReferenceRefusedError:
        name = self._files[owner].name
        return ReferenceRefusedError(
            f"'{printable(name)}' {text}",
            file=name,
            reference=reference.name,
            kind=reference.kind,
            reason=reason,
        )

    def _open(self, owner: _File, name: str) -> _File | None:
        """The first regular file that the name leads to; None for whatever reason there is none."""
        for root, path in self._candidates(owner, name):
            file = self._open_one(root, path)
            if file is not None:
                return file
        return None

    def _candidates(self, owner: _File, name: str) -> Iterator[tuple[Root, str]]:
        """Where a name may lead, relative to the roots; by its text alone."""
        encoded = name.encode("utf-8", "surrogateescape")
        # U+FFFD stands for bytes that were no text, and would lead somewhere else.
        if not name or "\0" in name or "\ufffd" in name or len(encoded) > MAX_NAME or has_protocol(name):
            return
        if name.startswith("/"):
            for root in self._roots:
                rest = root.rest(components(name))
                if rest is not None:
                    yield root, rest
            return
        own = owner.place.rpartition("/")[0]
        yield owner.root, f"{own}/{name}" if own else name
        absolute = self._climb(owner.root.spellings[0], components(own), components(name))
        for root in self._roots:
            rest = root.rest(absolute)
            if rest is not None and root is not owner.root:
                yield root, rest

    def _climb(self, root: list[str], own: list[str], name: list[str]) -> list[str]:
        """The absolute path of a relative name.  ``..`` is taken back as long as what it leaves is no symbolic link."""
        sure = [*root, *own] if self._certain and ".." not in own else [*root]
        rest = name if len(sure) > len(root) or not own else [*own, *name]
        while rest and rest[0] == ".." and sure:
            sure, rest = sure[:-1], rest[1:]
        return [*sure, *rest]

    def _open_one(self, root: Root, path: str) -> _File | None:
        fd = -1
        try:
            # Without touching it: opening a device can have effects.
            place = system.openat2(root.fd, path, os.O_PATH | os.O_CLOEXEC, self._resolve)
            try:
                seen = os.fstat(place)
            finally:
                close(place)
            if not stat.S_ISREG(seen.st_mode):
                return None
            fd = system.openat2(root.fd, path, _READ, self._resolve)
            found = os.fstat(fd)
            if stat.S_ISREG(found.st_mode):
                file, fd = _File(fd, found, root, path), -1
                return file
        except OSError as error:
            if error.errno in _OWN_FAULTS:
                raise FileError(
                    f"Could not follow references: {os_reason(error)}", errno=errno.errorcode.get(error.errno)
                ) from None
        finally:
            if fd >= 0:
                close(fd)
        return None

    def close(self) -> None:
        """Close everything but the first image.  Idempotent."""
        for file in self._files[1:]:
            close(file.fd)
        del self._files[1:]
        while self._roots:
            close(self._roots.pop().fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
