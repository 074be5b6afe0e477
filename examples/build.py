"""Builds the example operations: ``python examples/build.py OUT`` writes OUT/count-c.elf and OUT/count-zig.elf.

The C one is compiled by ``cc`` when there is one, otherwise by ``python -m ziglang cc``; the Zig one by ``ziglang``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from calltable import OPERATION_BASE  # noqa: E402  (after the path is set)
from tools.build_guests import Guest, compile_elf  # noqa: E402

#: A static program for one fixed place, without libc, start files or anything the machine does not have.
_C_FLAGS = (
    "-std=c11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-ffreestanding",
    "-fno-builtin",
    "-fno-pic",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-static",
    "-nostdlib",
    "-g",
    "-Wl,-z,noexecstack",
)
#: Text, constants and data on pages of their own: the machine maps each with its own rights.  (LLVM's linker, which
#: the ziglang wheel has, does that by itself.)
_GNU_FLAGS = ("-no-pie", "-fno-tree-loop-distribute-patterns", "-Wl,-z,separate-code", "-Wl,-z,norelro")


def compiler() -> tuple[list[str], list[str]]:
    """The C compiler, and how its linker is told where the operation lies."""
    for name in ("cc", "gcc"):
        if shutil.which(name) is not None:
            return [name], [*_GNU_FLAGS, f"-Wl,-Ttext-segment={OPERATION_BASE:#x}"]
    return zig_compiler()


def zig_compiler() -> tuple[list[str], list[str]]:
    """The C compiler of the ziglang wheel, in the same form."""
    command = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-freestanding-none"]
    return command, [f"-Wl,--image-base={OPERATION_BASE:#x}"]


def build_c(output: Path, command: tuple[list[str], list[str]] | None = None) -> Path:
    """Compile ``c/count.c``; answers the path of the ELF file.

    :raises subprocess.CalledProcessError: the compiler refused; it has said why.
    """
    program, place = command if command is not None else compiler()
    output.mkdir(parents=True, exist_ok=True)
    elf = output / "count-c.elf"
    source = ROOT / "examples" / "c" / "count.c"
    include = f"-I{ROOT / 'calltable' / 'include'}"
    subprocess.run([*program, *_C_FLAGS, *place, include, "-o", str(elf), str(source)], check=True)
    return elf


def build_zig(output: Path) -> Path:
    """Compile ``zig/count.zig`` with the SDK; answers the path of the ELF file."""
    guest = Guest("count-zig", ROOT / "examples" / "zig" / "count.zig", OPERATION_BASE)
    return compile_elf(guest, output, ("sdk",))


def main() -> int:
    """Build both."""
    if len(sys.argv) != 2:
        print("usage: build.py OUT", file=sys.stderr)
        return 64
    for elf in (build_c(Path(sys.argv[1])), build_zig(Path(sys.argv[1]))):
        print(elf)
    return 0


if __name__ == "__main__":
    sys.exit(main())
