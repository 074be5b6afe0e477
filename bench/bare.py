"""The bare virtual machine in C: compiled when the benchmark runs, timed by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("bare_kvm.c")


def build(folder: Path) -> Path:
    """Compile ``bare_kvm.c`` with the C compiler of the machine, or with Zig's where there is none."""
    program = folder / "bare_kvm"
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    command = [compiler] if compiler else [sys.executable, "-m", "ziglang", "cc"]
    subprocess.run([*command, "-O2", "-o", str(program), str(SOURCE)], check=True)
    return program


def lives(program: Path, rounds: int) -> list[int]:
    """Nanoseconds of each of ``rounds`` lives of a VM."""
    done = subprocess.run([str(program), str(rounds)], check=True, capture_output=True, text=True)
    return [int(line) for line in done.stdout.split()]
