"""``python -m vmm``: the same as ``pyvmm``."""

from __future__ import annotations

from vmm.cli.main import entry

if __name__ == "__main__":
    entry()
