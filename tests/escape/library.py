"""Compiles ``attempts.c``: the library that the prisoner loads before its jail closes, and the program it executes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.hostile.build import CACHE

SOURCE = Path(__file__).resolve().parent / "attempts.c"
_FLAGS = ("-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror")


def _compiler() -> list[str]:
    found = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    return [found] if found else [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-gnu"]


def _compile(suffix: str, *flags: str) -> Path:
    output = CACHE / f"attempts-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:20]}{suffix}"
    if not output.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        temporary = output.with_suffix(f".{os.getpid()}")
        command = [*_compiler(), *_FLAGS, *flags, str(SOURCE), "-o", str(temporary)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        os.replace(temporary, output)
    return output


def library() -> Path:
    """The shared library with the attempts."""
    return _compile(".so", "-shared", "-fPIC")


def program() -> Path:
    """A program that ends with 10 when it runs as root, and with 11 when it does not."""
    return _compile(".exe", "-DPROGRAM")
