"""``pyvmm --version``."""

from __future__ import annotations


def version_text() -> str:
    """Name and version of the installed distribution, and of the call table."""
    import importlib.metadata

    from calltable import TABLE_MAJOR, TABLE_MINOR

    try:
        version = importlib.metadata.version("pyvmm-sandbox")
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed)"
    return f"pyvmm {version}, call table {TABLE_MAJOR}.{TABLE_MINOR}\n"
