"""The files of a new image: one that the caller named, and those that the guest adds.

Which files a format has is the guest's to say; where they may lie is said here.  A name from the guest is a plain file
name in the directory of the caller's file, and begins like that one's: a guest that has been taken over can ask for no
other file.
"""

from __future__ import annotations

import os

from calltable import MAX_DEVICES
from calltable.messages import Create, CreateFile, CreateRequest
from vmm.errors import FileError, GuestFailedError
from vmm.operations.output import OutputFile
from vmm.operations.text import printable, printable_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from calltable.message import Message
    from vmm.operations.files import InputFile
    from vmm.operations.session import Session

#: Bytes of a file name on Linux (NAME_MAX).
_MAX_NAME = 255
#: Names of files in the text of an error.
_MAX_LISTED = 5


def target_name(path: str, *, follow_symlinks: bool = False) -> bytes:
    """The last component of a path, of what it points to when links are followed; empty for what is no path."""
    try:
        return os.fsencode(os.path.basename(os.path.realpath(path) if follow_symlinks else path))
    except ValueError:
        return b""


def _stem(name: bytes) -> bytes:
    """A name up to its last dot."""
    return name.rpartition(b".")[0] if b"." in name else name


def _further_names(files: Sequence[CreateFile], target: bytes) -> list[bytes]:
    """The names that the guest gave, when they are allowed.

    :raises GuestFailedError: they are not.
    """
    taken = {target}
    for number, file in enumerate(files, 1):
        name = file.name
        if (
            file.index != number
            or not 0 < len(name) <= _MAX_NAME
            or name in (b".", b"..")
            or b"/" in name
            or b"\0" in name
            or name in taken
            or not name.startswith(_stem(target))
        ):
            raise GuestFailedError(f"the guest named a further file {number} '{printable_bytes(name)}'")
        taken.add(name)
    return [file.name for file in files]


def _beside(first: OutputFile, name: bytes) -> str:
    """The path of a further file.

    :raises FileError: a link would lead away from the directory; it is followed where the caller named it, not here.
    """
    path = os.path.join(first.directory, os.fsdecode(name))
    if os.path.islink(path):
        raise FileError(
            f"Could not create '{printable(path)}': it is a symbolic link, and this name is not the caller's", file=path
        )
    return path


def write_outputs(
    session: Session,
    request: CreateRequest,
    outputs: list[OutputFile],
    open_output: Callable[[str], OutputFile],
    backing: InputFile | None = None,
) -> Create:
    """Run ``create``; the files that the guest adds are opened with ``open_output`` and appended to ``outputs``.

    None is committed here.  More files than a machine has devices are written in several runs.

    :param request: without ``first-output`` and ``backing-device``.
    :param backing: the backing file, when the guest is to see it: the last device of each run.
    :raises VmmError: see :mod:`vmm.errors`.
    """
    named: list[CreateFile] = []

    def on_message(message: Message) -> None:
        assert isinstance(message, CreateFile)
        named.append(message)

    answer = _run(session, request, outputs, backing, on_message)
    if not named:
        return answer
    first = outputs[0]
    names = _further_names(named, os.fsencode(first.name))
    outputs.extend(open_output(_beside(first, name)) for name in names)
    fields = request.as_fields()
    room = MAX_DEVICES if backing is None else MAX_DEVICES - 1
    for start in range(0, len(outputs), room):
        window = CreateRequest.from_fields({**fields, "first-output": start})
        if _run(session, window, outputs[start : start + room], backing) != answer:
            raise GuestFailedError("the guest planned another image for the same request")
    return answer


def _run(
    session: Session,
    request: CreateRequest,
    outputs: Sequence[OutputFile],
    backing: InputFile | None,
    on_message: Callable[[Message], None] | None = None,
) -> Create:
    devices = [output.device() for output in outputs]
    names = [output.path for output in outputs]
    if backing is not None:
        request = CreateRequest.from_fields({**request.as_fields(), "backing-device": len(devices)})
        devices.append(backing.device())
        names.append(backing.path)
    lists = () if on_message is None else (CreateFile.NAME,)
    message = session.answer("create", request, devices, on_message, main=Create.NAME, lists=lists, names=names)
    assert isinstance(message, Create)
    return message


def commit_all(outputs: Sequence[OutputFile]) -> None:
    """Put all files in place, the first one last: an image never refers to a file that is not there yet.

    Everything is durable before the first name appears, so that little is left that can fail between two of them.

    :raises FileError: what is in place already is said; the first file is not among it.
    """
    for output in outputs:
        output.synchronize()
    placed: list[str] = []
    for output in reversed(outputs):
        try:
            output.commit()
        except FileError as error:
            if not placed:
                raise
            listed = ", ".join(f"'{printable(path)}'" for path in placed[:_MAX_LISTED])
            more = f" and {len(placed) - _MAX_LISTED} more" if len(placed) > _MAX_LISTED else ""
            raise FileError(f"{error.message}; already in place: {listed}{more}", **error.details) from None
        placed.append(output.path)
