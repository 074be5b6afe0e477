"""``pyvmm --version``."""

from __future__ import annotations


def version_text() -> str:
    """Name and version of the installed distribution, and of the call table."""
    from calltable import TABLE_MAJOR, TABLE_MINOR
    from vmm.version import package_version

    return f"pyvmm {package_version()}, call table {TABLE_MAJOR}.{TABLE_MINOR}\n"
