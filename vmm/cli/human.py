"""Reports as text, to the letter of qemu-img's, with everything unprintable escaped."""

from __future__ import annotations

import time

from vmm.cli.reports import children, format_specific, luks2
from vmm.operations.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from calltable.messages import InfoSnapshot
    from vmm.operations.check import CheckReport
    from vmm.operations.create import CreateReport
    from vmm.operations.info import InfoReport
    from vmm.operations.measure import MeasureReport


def _pad(text: str, width: int) -> str:
    """Left-aligned to a width in bytes, as C's printf counts."""
    return text + " " * (width - len(text.encode("utf-8", "surrogateescape")))


def _dump(value: object, level: int) -> list[str]:
    """The members of a dictionary or list, one line each, nested ones below."""
    items: list[tuple[str, object]] = []
    if isinstance(value, dict):
        items = [(str(key).replace("-", " "), item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        items = [(f"[{index}]", item) for index, item in enumerate(value)]
    lines = []
    indent = "    " * level
    for name, item in items:
        if isinstance(item, (dict, list, tuple)):
            lines += [f"{indent}{name}:", *_dump(item, level + 1)]
        else:
            shown = ("true" if item else "false") if isinstance(item, bool) else printable(str(item))
            lines.append(f"{indent}{name}: {shown}")
    return lines


def _date(seconds: int) -> str:
    """Local time, as qemu-img shows it."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, OSError, ValueError):
        return str(seconds)


def _clock(snapshot: InfoSnapshot, hours_width: int) -> str:
    total = snapshot.vm_clock_sec
    hours = str(total // 3600).zfill(hours_width)
    return f"{hours}:{total // 60 % 60:02}:{total % 60:02}.{snapshot.vm_clock_nsec // 1_000_000 % 1000:03}"


def snapshot_table(snapshots: tuple[InfoSnapshot, ...], version: tuple[int, int]) -> list[str]:
    """The snapshot list; its columns changed with release 9.0."""
    from vmm.cli.sizetext import human_size

    if version >= (9, 0):
        lines = [f"{'ID':<7} {'TAG':<16} {'VM_SIZE':>8} {'DATE':>19} {'VM_CLOCK':>15} {'ICOUNT':>10}"]
    else:
        lines = [f"{'ID':<10}{'TAG':<17}{'VM SIZE':>8}{'DATE':>20}{'VM CLOCK':>13}{'ICOUNT':>11}"]
    for snapshot in snapshots:
        name, identifier = printable(snapshot.name), printable(snapshot.id)
        size, date = human_size(snapshot.vm_state_size), _date(snapshot.date_sec)
        if version >= (9, 0):
            icount = "--" if snapshot.icount is None else str(snapshot.icount)
            lines.append(
                f"{_pad(identifier, 7)} {_pad(name, 16)} {size:>8} {date:>19} {_clock(snapshot, 4):>15} {icount:>10}"
            )
        else:
            icount = "" if snapshot.icount is None else str(snapshot.icount)
            lines.append(
                f"{_pad(identifier, 9)} {_pad(name, 16)} {size:>8}{date:>20}{_clock(snapshot, 2):>13}{icount:>11}"
            )
    return lines


def _backing_lines(report: InfoReport) -> list[str]:
    name, full = report.backing_filename, report.full_backing_filename
    if name is None:
        return []
    line = f"backing file: {printable(name)}"
    if full != name:
        line += f" (actual path: {printable(str(full))})"
    lines = [line]
    if report.image.backing_filename_format is not None:
        lines.append(f"backing file format: {printable(report.image.backing_filename_format)}")
    return lines


def info_text(report: InfoReport, version: tuple[int, int]) -> str:
    """The answer of ``info``."""
    from vmm.cli.sizetext import human_size

    image = report.image
    lines = [
        f"image: {printable(report.filename)}",
        f"file format: {printable(image.format)}",
        f"virtual size: {human_size(image.virtual_size)} ({image.virtual_size} bytes)",
        f"disk size: {human_size(report.actual_size)}",
    ]
    if image.encrypted:
        lines.append("encrypted: yes")
    if image.cluster_size is not None:
        lines.append(f"cluster_size: {image.cluster_size}")
    if image.dirty_flag:
        lines.append("cleanly shut down: no")
    lines += _backing_lines(report)
    if report.snapshots:
        lines += ["Snapshot list:", *snapshot_table(report.snapshots, version)]
    specific = format_specific(report, version)
    if specific is not None:
        lines += ["Format specific information:", *_dump(specific["data"], 1)]
    elif image.luks2 is not None:
        lines += ["Format specific information:", *_dump(luks2(report), 1)]
    if version >= (8, 0):
        for node, name, length, size in children(report):
            lines += [
                f"Child node '/{node}':",
                f"    filename: {printable(name)}",
                "    protocol type: file",
                f"    file length: {human_size(length)} ({length} bytes)",
                f"    disk size: {human_size(size)}",
            ]
    return "\n".join(lines) + "\n"


def measure_text(report: MeasureReport) -> str:
    """The answer of ``measure``."""
    text = f"required size: {report.required}\nfully allocated size: {report.fully_allocated}\n"
    if report.bitmaps is not None:
        text += f"bitmaps size: {report.bitmaps}\n"
    return text


def check_text(report: CheckReport) -> str:
    """The answer of ``check`` on stdout."""
    result = report.result
    text = ""
    if result.corruptions:
        text += (
            f"\n{result.corruptions} errors were found on the image.\n"
            "Data may be corrupted, or further writes to the image may corrupt it.\n"
        )
    if result.leaks:
        text += (
            f"\n{result.leaks} leaked clusters were found on the image.\n"
            "This means waste of disk space, but no harm to data.\n"
        )
    if result.check_errors:
        text += f"\n{result.check_errors} internal errors have occurred during the check.\n"
    text = text or "No errors were found on the image.\n"
    total, allocated = result.total_clusters, result.allocated_clusters
    if total and allocated:
        fragmented = (result.fragmented_clusters or 0) * 100.0 / allocated
        compressed = (result.compressed_clusters or 0) * 100.0 / allocated
        text += (
            f"{allocated}/{total} = {allocated * 100.0 / total:.2f}% allocated, "
            f"{fragmented:.2f}% fragmented, {compressed:.2f}% compressed clusters\n"
        )
    if result.image_end_offset:
        text += f"Image end offset: {result.image_end_offset}\n"
    return text


_LABELS = {"corruption": "ERROR", "leak": "Leaked", "check-error": "ERROR", "note": "note:"}


def findings_text(report: CheckReport) -> str:
    """What ``check`` found, one line each, for stderr."""
    lines = [f"{_LABELS.get(f.kind, 'note:')} {printable(f.message)}\n" for f in report.findings]
    if report.result.findings_omitted:
        lines.append(f"... and {report.result.findings_omitted} more\n")
    return "".join(lines)


def create_text(report: CreateReport) -> str:
    """The line that ``create`` prints; a comma in a value is doubled, as ``-o`` takes it."""
    options = "".join(f" {printable(name)}={printable(value).replace(',', ',,')}" for name, value in report.options)
    return f"Formatting '{printable(report.filename)}', fmt={printable(report.format)}{options}\n"
