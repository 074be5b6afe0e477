"""A bundle names its guests by their hashes: the same sources give the same ELF files, wherever they lie."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.build_guests import OUTPUT, ROOT

#: What a build reads.
SOURCES = ("guest", "calltable", "tools")
#: The smallest operation, and the ELF that every run needs.
GUESTS = ("measure", "runtime")


@pytest.mark.slow
def test_another_checkout_builds_the_same_guests(tmp_path: Path) -> None:
    other = tmp_path / "another place" / "with a longer name than the one of the tree that is tested"
    for name in SOURCES:
        shutil.copytree(ROOT / name, other / name, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "ZIG"))}
    subprocess.run([sys.executable, "-m", "tools.build_guests", *GUESTS], cwd=other, check=True, env=environment)
    for name in GUESTS:
        built = (other / "vmm" / "_guest" / f"{name}.elf").read_bytes()
        assert built == (OUTPUT / f"{name}.elf").read_bytes(), name
        assert os.fsencode(other) in (other / "vmm" / "_guest" / f"{name}.debug").read_bytes()
