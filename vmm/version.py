"""Which version of the package this is."""

from __future__ import annotations


def package_version() -> str:
    """The version of the installed distribution; ``(not installed)`` where the source is run as it lies."""
    import importlib.metadata

    try:
        return importlib.metadata.version("pyvmm-sandbox")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
