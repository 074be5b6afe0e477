"""Disk image operations inside a KVM sandbox.

    import vmm

    report = vmm.measure("image.vhd", target="qcow2")
    print(report.required, report.fully_allocated)

Everything below is imported when it is first used, so that ``import vmm`` costs nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.api import ForeignAnswer, ForeignMessage, Machine, check, create, info, map_image, measure, resize
    from vmm.boundary import Failure, Limits
    from vmm.errors import (
        BundleError,
        FileError,
        GuestFailedError,
        KvmError,
        KvmUnavailableError,
        LimitReachedError,
        NoChecksError,
        OperationLoadError,
        ReferenceRefusedError,
        RefusedError,
        SandboxError,
        UsageError,
        VmmError,
    )
    from vmm.operations.check import CheckReport
    from vmm.operations.create import CreateReport
    from vmm.operations.info import InfoReport
    from vmm.operations.map import Extent, MapReport
    from vmm.operations.measure import MeasureReport
    from vmm.operations.resize import ResizeReport

__all__ = [
    "BundleError",
    "CheckReport",
    "CreateReport",
    "Extent",
    "Failure",
    "FileError",
    "ForeignAnswer",
    "ForeignMessage",
    "GuestFailedError",
    "InfoReport",
    "KvmError",
    "KvmUnavailableError",
    "LimitReachedError",
    "Limits",
    "Machine",
    "MapReport",
    "MeasureReport",
    "NoChecksError",
    "OperationLoadError",
    "ReferenceRefusedError",
    "RefusedError",
    "ResizeReport",
    "SandboxError",
    "UsageError",
    "VmmError",
    "check",
    "create",
    "info",
    "map_image",
    "measure",
    "resize",
]

_MODULES = {
    "vmm.api": (
        "ForeignAnswer",
        "ForeignMessage",
        "Machine",
        "check",
        "create",
        "info",
        "map_image",
        "measure",
        "resize",
    ),
    "vmm.boundary": ("Failure", "Limits"),
    "vmm.operations.check": ("CheckReport",),
    "vmm.operations.create": ("CreateReport",),
    "vmm.operations.info": ("InfoReport",),
    "vmm.operations.map": ("Extent", "MapReport"),
    "vmm.operations.measure": ("MeasureReport",),
    "vmm.operations.resize": ("ResizeReport",),
}


def __getattr__(name: str) -> object:
    """Import what is asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module = next((module for module, names in _MODULES.items() if name in names), "vmm.errors")
    value: object = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
