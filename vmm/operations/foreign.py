"""Operations that do not come with the package: any static ELF that speaks the call table."""

from __future__ import annotations

from vmm.errors import FileError, OperationLoadError
from vmm.operations.decode import decode_envelope, decode_message
from vmm.operations.files import InputFile, file_error
from vmm.operations.session import MAX_ELF
from vmm.operations.text import printable
from vmm.record import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from calltable.message import Message
    from vmm.cbor import Value
    from vmm.operations.session import Session


@dataclass(frozen=True, slots=True)
class ForeignReport:
    """How a foreign operation ended; its messages went to the caller one by one."""

    filenames: tuple[str, ...]
    #: What the operation gave; 0 is success.
    status: int
    #: How many messages it emitted.
    messages: int

    @property
    def exit_status(self) -> int:
        """0, or 1 for any other status of the operation."""
        return 0 if self.status == 0 else 1


def load_elf(path: str, *, follow_symlinks: bool = True) -> bytes:
    """Read an operation's ELF file.

    :raises FileError: it cannot be read.
    :raises OperationLoadError: it is too large to be an operation.
    """
    with InputFile(path, follow_symlinks=follow_symlinks) as file:
        if file.length > MAX_ELF:
            raise OperationLoadError(f"'{printable(path)}' has {file.length} bytes, at most {MAX_ELF}", file=path)
        try:
            with open(file.fd, "rb", closefd=False) as stream:
                data = stream.read(MAX_ELF + 1)
        except OSError as error:
            raise file_error(path, "read", error) from None
    if not data:
        raise FileError(f"'{printable(path)}' is empty", file=path)
    return data


def run_foreign(
    session: Session,
    elf: bytes,
    name: str,
    paths: Sequence[str],
    on_message: Callable[[str, Mapping[str, Value]], None],
    *,
    options: Mapping[str, str | None] | None = None,
    follow_symlinks: bool = False,
) -> ForeignReport:
    """Run an operation of one's own on some files, one device each.

    The request is ``{"operation": name, "options": {...}}``, all options as text, a bare name as true.

    :param on_message: gets name and fields of each message, decoded but not checked against any schema.
    :raises RefusedError: the operation emitted an ``error`` message.
    :raises VmmError: see :mod:`vmm.errors`.
    """
    count = 0
    errors: list[Message] = []

    def on_payload(payload: bytes) -> None:
        nonlocal count
        count += 1
        message_name, fields = decode_envelope(payload)
        if message_name == "error":
            message = decode_message(payload, frozenset(("error",)))
            if not errors:
                # The first one is the answer; the others only have to be well formed.
                errors.append(message)
        else:
            on_message(message_name, fields)

    request = {
        "operation": name,
        "options": {key: True if value is None else value for key, value in (options or {}).items()},
    }
    files: list[InputFile] = []
    try:
        files.extend(InputFile(path, follow_symlinks=follow_symlinks) for path in paths)
        outcome = session.execute(elf, request, [file.device() for file in files], on_payload, paths)
    finally:
        for file in files:
            file.close()
    if errors:
        raise session.refused(errors[0], paths, outcome)
    return ForeignReport(tuple(paths), outcome.status or 0, count)
