"""Errors as text and as JSON: the same facts in both."""

from __future__ import annotations

from vmm.cli.jsontext import without_none
from vmm.errors import FileError, ReferenceRefusedError, UsageError
from vmm.operations.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.boundary import Failure, Frame
    from vmm.errors import VmmError

#: Exit statuses from harmless to worst: of several files, the worst one's status is the command's.
#: Fine, leaks, no checks for this format, corruption, could not do it, limit reached, guest failed, no KVM, usage.
SEVERITY = (0, 3, 63, 2, 1, 75, 70, 69, 64)


def worst(statuses: list[int]) -> int:
    """The worst of some exit statuses; 0 when there is none."""
    return max(statuses, key=lambda status: SEVERITY.index(status) if status in SEVERITY else 4, default=0)


def frame_dict(frame: Frame) -> dict[str, object]:
    """A code address and where it lies in the source."""
    return without_none(
        (
            ("address", f"{frame.address:#x}"),
            ("function", frame.function),
            ("file", frame.file),
            ("line", frame.line),
        )
    )


def failure_dict(failure: Failure) -> dict[str, object]:
    """A failed run; addresses and registers are hexadecimal text."""
    return without_none(
        (
            ("kind", str(failure.kind)),
            ("message", failure.message),
            ("limit", failure.limit),
            ("limit-value", failure.limit_value),
            ("device", failure.device),
            ("errno", failure.errno),
            ("vector", failure.vector),
            ("error-code", failure.error_code),
            ("address", None if failure.address is None else f"{failure.address:#x}"),
            ("access", failure.access),
            ("region", failure.region),
            ("backtrace", [frame_dict(frame) for frame in failure.backtrace] or None),
            ("registers", {name: f"{value:#x}" for name, value in failure.registers.items()} or None),
            ("recent-requests", list(failure.recent_requests) or None),
        )
    )


def error_dict(error: VmmError, path: str | None = None) -> dict[str, object]:
    """``{"error": {"code", "message", "file", ...}}``."""
    fields = error.as_dict()
    if path is not None:
        fields.setdefault("file", path)
    fields["exit-status"] = error.exit_status
    if error.failure is not None:
        fields["failure"] = failure_dict(error.failure)
    return {"error": fields}


def _site(frame: Frame) -> str:
    where = f"{frame.file}:{frame.line}" if frame.file is not None else f"{frame.address:#x}"
    return printable(f"{where} in {frame.function}" if frame.function is not None else where)


def failure_lines(failure: Failure) -> list[str]:
    """Where and how a run failed, for people."""
    lines = [f"  at {_site(frame)}" for frame in failure.backtrace]
    if failure.address is not None:
        access = f"{failure.access} of " if failure.access else ""
        region = f" ({failure.region})" if failure.region else ""
        lines.append(printable(f"  {access}address {failure.address:#x}{region}"))
    if failure.vector is not None:
        code = f", error code {failure.error_code:#x}" if failure.error_code is not None else ""
        lines.append(f"  exception {failure.vector}{code}")
    names = list(failure.registers)
    for start in range(0, len(names), 4):
        row = " ".join(f"{name:>6}={failure.registers[name]:016x}" for name in names[start : start + 4])
        lines.append("  " + printable(row))
    if failure.recent_requests:
        lines.append("  last block requests:")
        lines += [f"    {printable(request)}" for request in failure.recent_requests]
    return lines


def error_text(error: VmmError, path: str | None = None) -> str:
    """``pyvmm: FILE: MESSAGE`` and, for a failed guest, where and how it failed."""
    message = printable(error.message)
    # Messages about files name them; options and limits are not about one.
    if path is not None and not isinstance(error, (FileError, ReferenceRefusedError, UsageError)):
        # Another file than the one that was asked for is one that it leads to.
        named = error.details.get("file")
        if isinstance(named, str) and named != path:
            message = f"{printable(named)}: {message}"
        message = f"{printable(path)}: {message}"
    lines = [f"pyvmm: {message}"]
    if error.failure is not None and error.failure.limit is None:
        lines += failure_lines(error.failure)
    return "\n".join(lines) + "\n"
