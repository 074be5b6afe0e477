"""Compiles C guests for tests, with the compiler of the ziglang wheel; what is compiled once is kept in ``build/``."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import calltable

ROOT = Path(__file__).resolve().parent.parent.parent
INCLUDE = ROOT / "calltable" / "include"
CACHE = ROOT / "build" / "test-guests"
GUESTS = Path(__file__).resolve().parent / "guests"

_FLAGS = (
    *("-target", "x86_64-freestanding-none", "-mcpu=x86_64", "-std=c11", "-O1", "-g"),
    *("-nostdlib", "-static", "-ffreestanding", "-fno-pie", "-mno-red-zone", "-fno-omit-frame-pointer"),
    *("-fno-stack-protector", "-fno-sanitize=all", "-fno-optimize-sibling-calls", "-Wall", "-Wextra", "-Werror"),
    *("-Wno-infinite-recursion", "-Wno-unused-command-line-argument"),
)


def compile_c(
    source: Path, base: int = calltable.OPERATION_BASE, defines: tuple[str, ...] = (), include: Path = INCLUDE
) -> bytes:
    """The ELF of one C file, linked at ``base``, compiled against the ``pyvmm.h`` of the folder ``include``.

    :raises AssertionError: the compiler refused; the text is its output.
    """
    digest = hashlib.sha256()
    headers = [path.read_bytes() for path in sorted(source.parent.glob("*.h"))]
    for part in (source.read_bytes(), (include / "pyvmm.h").read_bytes(), Path(__file__).read_bytes(), *headers):
        digest.update(hashlib.sha256(part).digest())
    digest.update(repr((base, defines)).encode())
    output = CACHE / f"{source.stem}-{digest.hexdigest()[:20]}.elf"
    if not output.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        temporary = output.with_suffix(f".{os.getpid()}")
        command = [sys.executable, "-m", "ziglang", "cc", *_FLAGS, *(f"-D{name}" for name in defines)]
        command += [f"-Wl,--image-base={base:#x}", "-Wl,-z,noexecstack", f"-I{include}", str(source)]
        done = subprocess.run([*command, "-o", str(temporary)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        os.replace(temporary, output)
    return output.read_bytes()
