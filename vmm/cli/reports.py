"""Reports as JSON objects: qemu-img's keys, order and meaning, and one object ``pyvmm`` of our own at the end."""

from __future__ import annotations

from vmm.cli.jsontext import qemu_order, without_none

TYPE_CHECKING = False
if TYPE_CHECKING:
    from calltable.messages import InfoLuks
    from vmm.operations.check import CheckReport
    from vmm.operations.create import CreateReport
    from vmm.operations.info import InfoReport
    from vmm.operations.measure import MeasureReport
    from vmm.operations.resize import ResizeReport

    Json = dict[str, object]

#: Keys of the info message that qemu-img has on top, or that have an object of their own.
_INFO_TOP = frozenset(
    (
        "format",
        "virtual-size",
        "cluster-size",
        "dirty-flag",
        "encrypted",
        "compressed",
        "backing-filename",
        "backing-filename-format",
        "qcow2",
        "luks",
        "vmdk",
        "luks2",
    )
)
_QCOW2_TOP = (
    "compat",
    "compression-type",
    "refcount-bits",
    "lazy-refcounts",
    "corrupt",
    "extended-l2",
    "data-file",
    "data-file-raw",
)
_VMDK_TOP = ("cid", "parent-cid", "create-type")
_SNAPSHOT_TOP = ("id", "name", "vm-state-size", "date-sec", "date-nsec", "vm-clock-sec", "vm-clock-nsec", "icount")
_SECTOR = 512


def version_of(text: str) -> tuple[int, int]:
    """Major and minor of a qemu version such as ``10.0`` or ``7.2.22``.

    :raises ValueError: it is none.
    """
    major, _, rest = text.partition(".")
    return int(major), int(rest.partition(".")[0] or "0")


def _luks(luks: InfoLuks) -> Json:
    fields = luks.as_fields()
    fields["slots"] = [qemu_order(slot.as_fields()) for slot in luks.slots]
    return fields


def _vmdk(report: InfoReport) -> Json:
    from vmm.operations.info import extent_path

    assert report.image.vmdk is not None
    fields = report.image.vmdk.as_fields()
    data: Json = {key: fields.get(key) for key in _VMDK_TOP}
    data["extents"] = [
        qemu_order(
            {
                "virtual-size": extent.virtual_size,
                "filename": report.filename if extent.name is None else extent_path(report.filename, extent.name),
                "cluster-size": extent.cluster_size,
                "format": extent.format,
                "compressed": extent.compressed,
            }
        )
        for extent in report.extents
    ]
    return data


def luks2(report: InfoReport) -> Json:
    """The facts of a LUKS2 container, for which qemu-img has no keys."""
    assert report.image.luks2 is not None
    return report.image.luks2.as_fields() | {
        "keyslots": [message.as_fields() for message in report.luks2_keyslots],
        "segments": [message.as_fields() for message in report.luks2_segments],
        "digests": [message.as_fields() for message in report.luks2_digests],
        "tokens": [message.as_fields() for message in report.luks2_tokens],
    }


def format_specific(report: InfoReport, version: tuple[int, int]) -> Json | None:
    """qemu-img's ``format-specific`` object; None for formats that have none."""
    image = report.image
    if image.luks is not None:
        luks = _luks(image.luks)
        if version >= (9, 0):
            luks["detached-header"] = False
        return {"type": "luks", "data": qemu_order(luks)}
    if image.vmdk is not None:
        return {"type": "vmdk", "data": qemu_order(_vmdk(report))}
    if image.qcow2 is None:
        return None
    fields = image.qcow2.as_fields()
    data: Json = {key: fields.get(key) for key in _QCOW2_TOP}
    if report.bitmaps:
        data["bitmaps"] = [qemu_order(bitmap.as_fields()) for bitmap in report.bitmaps]
    if image.qcow2.encrypt_format is not None:
        encrypt: Json = _luks(image.qcow2.encrypt_luks) if image.qcow2.encrypt_luks is not None else {}
        encrypt["format"] = image.qcow2.encrypt_format
        data["encrypt"] = qemu_order(encrypt)
    return {"type": "qcow2", "data": qemu_order(data)}


def children(report: InfoReport) -> list[tuple[str, str, int, int]]:
    """The files under the format, which qemu-img shows from release 8.0 on: the name of the node, that of the file, its
    length in whole sectors and what it takes on the host's disk, in bytes.  Extents are opened behind the image itself,
    and what was opened last is shown first.
    """
    own = report.actual_size - sum(file.actual_size for file in report.extent_files)
    found = [("file", report.filename, report.image.file_length, own)]
    found += [(f"extents.{file.index}", file.filename, file.length, file.actual_size) for file in report.extent_files]
    return [
        (node, name, (length + _SECTOR - 1) // _SECTOR * _SECTOR, size) for node, name, length, size in reversed(found)
    ]


def _child_node(node: str, name: str, length: int, size: int) -> Json:
    info: Json = {
        "children": [],
        "virtual-size": length,
        "filename": name,
        "format": "file",
        "actual-size": size,
        "format-specific": {"type": "file", "data": {}},
        "dirty-flag": False,
    }
    return qemu_order({"name": node, "info": qemu_order(info)})


def info_json(report: InfoReport, version: tuple[int, int]) -> Json:
    """The answer of ``info``."""
    image = report.image
    top: Json = {
        "virtual-size": image.virtual_size,
        "filename": report.filename,
        "cluster-size": image.cluster_size,
        "format": image.format,
        "actual-size": report.actual_size,
        "encrypted": image.encrypted,
        "compressed": image.compressed,
        "format-specific": format_specific(report, version),
        "full-backing-filename": report.full_backing_filename,
        "backing-filename": image.backing_filename,
        "backing-filename-format": image.backing_filename_format,
        "dirty-flag": None if image.vmdk is not None and image.vmdk.mixed else image.dirty_flag,
    }
    if report.snapshots:
        top["snapshots"] = [
            qemu_order({key: value for key, value in snapshot.as_fields().items() if key in _SNAPSHOT_TOP})
            for snapshot in report.snapshots
        ]
    if version >= (8, 0):
        top["children"] = [_child_node(*child) for child in children(report)]
    return qemu_order(top) | {"pyvmm": _info_own(report)}


def _info_own(report: InfoReport) -> Json:
    """What qemu-img does not say."""
    own: Json = {key: value for key, value in report.image.as_fields().items() if key not in _INFO_TOP}
    if report.image.qcow2 is not None:
        shown = (*_QCOW2_TOP, "encrypt-format", "encrypt-luks")
        own["qcow2"] = {key: value for key, value in report.image.qcow2.as_fields().items() if key not in shown}
    if report.image.vmdk is not None:
        own["vmdk"] = {key: value for key, value in report.image.vmdk.as_fields().items() if key not in _VMDK_TOP}
        own["extents"] = [extent.as_fields() for extent in report.extents]
    if report.image.luks2 is not None:
        own["luks2"] = luks2(report)
    own["references"] = [reference.as_fields() for reference in report.references]
    if report.followed:
        own["followed"] = [
            without_none(
                (
                    ("filename", file.filename),
                    ("owner", file.owner),
                    ("kind", file.kind),
                    ("index", file.index),
                    ("format", file.format),
                    ("actual-size", file.actual_size),
                )
            )
            for file in report.followed
        ]
    if report.partition_tables:
        partitions: dict[str, list[Json]] = {table.scheme: [] for table in report.partition_tables}
        for partition in report.partitions:
            partitions.get(partition.scheme, []).append(partition.as_fields())
        own["partition-tables"] = [
            table.as_fields() | {"partitions": partitions[table.scheme]} for table in report.partition_tables
        ]
    lists = (
        ("parent-entries", report.parent_entries),
        ("filesystems", report.filesystems),
        ("notes", report.notes),
    )
    for key, messages in lists:
        if messages:
            own[key] = [message.as_fields() for message in messages]
    sizes = [{"id": s.id, "disk-size": s.disk_size} for s in report.snapshots if s.disk_size is not None]
    if sizes:
        own["snapshots"] = sizes
    return own


def measure_json(report: MeasureReport) -> Json:
    """The answer of ``measure``."""
    return qemu_order(
        {"required": report.required, "fully-allocated": report.fully_allocated, "bitmaps": report.bitmaps}
    )


def check_json(report: CheckReport) -> Json:
    """The answer of ``check``; counters that are zero are left out where qemu-img leaves them out."""
    result = report.result
    top = qemu_order(
        {
            "image-end-offset": result.image_end_offset or None,
            "total-clusters": result.total_clusters or None,
            "check-errors": result.check_errors,
            "corruptions": result.corruptions or None,
            "leaks": result.leaks or None,
            "allocated-clusters": result.allocated_clusters or None,
            "fragmented-clusters": result.fragmented_clusters or None,
            "compressed-clusters": result.compressed_clusters or None,
            "filename": report.filename,
            "format": result.format,
        }
    )
    own = without_none(
        (
            ("file-length", result.file_length),
            ("virtual-size", result.virtual_size),
            ("cluster-size", result.cluster_size),
            ("clusters-inside", result.clusters_inside),
            ("dirty", result.dirty),
            ("corrupt", result.corrupt),
            ("findings", [finding.as_fields() for finding in report.findings]),
            ("findings-omitted", result.findings_omitted or None),
        )
    )
    return top | {"pyvmm": own}


def create_json(report: CreateReport) -> Json:
    """The answer of ``create``; qemu-img has none."""
    return without_none(
        (
            ("filename", report.filename),
            ("format", report.format),
            ("virtual-size", report.virtual_size),
            ("cluster-size", report.cluster_size),
            ("file-length", report.file_length),
            ("options", dict(report.options)),
        )
    )


def resize_json(report: ResizeReport) -> Json:
    """The answer of ``resize``; qemu-img has none."""
    return without_none(
        (
            ("filename", report.filename),
            ("format", report.format),
            ("old-virtual-size", report.old_size),
            ("virtual-size", report.virtual_size),
            ("file-length", report.file_length),
        )
    )
