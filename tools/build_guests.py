"""Compiles the guest: the resident runtime and one ELF for each operation.

Needs nothing but Python and the ``ziglang`` wheel, so that ``pip install`` can call it from setup.py and tests can
build operations of their own with :func:`compile_elf`.  Each guest becomes two files: ``NAME.elf``, what the machine
loads, without sections, and ``NAME.debug``, the same with DWARF for the symboliser.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GUEST = ROOT / "guest"
OUTPUT = ROOT / "vmm" / "_guest"
CACHE = ROOT / "build" / "zig-cache"

#: An operation's loaded bytes may not pass this (design.md); the aim is far below.
SIZE_LIMIT = 384 * 1024
SIZE_AIM = 128 * 1024

#: Zig modules: name -> (root file below guest/, modules that it imports).
MODULES: dict[str, tuple[str, tuple[str, ...]]] = {
    "calltable": ("calltable.zig", ()),
    "block": ("block/block.zig", ()),
    "cbor": ("cbor/cbor.zig", ()),
    "messages": ("messages.zig", ("cbor",)),
    "formats": ("formats/formats.zig", ("block", "cbor", "messages")),
    "sdk": ("sdk/sdk.zig", ("calltable", "block", "cbor", "messages", "formats")),
}
#: What an operation's root file may import.
OPERATION_MODULES = ("sdk", "formats", "messages", "block", "cbor", "calltable")

_TARGET = ("-target", "x86_64-freestanding-none", "-mcpu=x86_64")
#: Of every module with code, std among them: checks stay in; see guest/root.zig.
_CHECKED = ("-O", "ReleaseSafe")
_FLAGS = (
    # The symboliser reads what is cut off the loaded file.
    "-fno-strip",
    "-fno-stack-check",
    "-fno-stack-protector",
    "-fno-unwind-tables",
    "-fno-omit-frame-pointer",
    "-fsingle-threaded",
    "-fno-PIE",
    "--gc-sections",
)


class BuildError(Exception):
    """The compiler refused; the text is its output."""


@dataclass(frozen=True)
class Guest:
    """One ELF of the product."""

    name: str
    root: Path
    image_base: int
    linker_script: Path | None = None


def _constant(name: str) -> int:
    """A number of the contract, read as text: this runs before the package can be imported."""
    text = (ROOT / "calltable" / "_generated.py").read_text(encoding="utf-8")
    match = re.search(rf"^{name}: Final = (0x[0-9A-F]+)$", text, re.MULTILINE)
    if match is None:
        raise BuildError(f"calltable/_generated.py has no {name}; run `make generate`")
    return int(match[1], 16)


def guests() -> list[Guest]:
    """The runtime and every ``guest/operations/*.zig``."""
    script = GUEST / "runtime" / "runtime.ld"
    runtime = Guest(
        "runtime", GUEST / "runtime" / "runtime.zig", _constant("RUNTIME_BASE"), script if script.exists() else None
    )
    base = _constant("OPERATION_BASE")
    operations = sorted((GUEST / "operations").glob("*.zig"))
    return [runtime] + [Guest(path.stem, path, base) for path in operations]


def module_arguments(root: Path, imports: Sequence[str] = OPERATION_MODULES) -> list[str]:
    """The ``-M`` and ``--dep`` arguments of a compilation whose root file imports ``imports``."""
    wanted: dict[str, None] = {}

    def want(name: str) -> None:
        wanted[name] = None
        for dependency in MODULES[name][1]:
            want(dependency)

    for name in imports:
        want(name)
    out = [part for name in imports for part in ("--dep", name)] + [f"-Mroot={root}"]
    for name in wanted:
        path, dependencies = MODULES[name]
        out += [part for dependency in dependencies for part in ("--dep", dependency)]
        out.append(f"-M{name}={GUEST / path}")
    return out


def _guest_arguments(root: Path, imports: Sequence[str]) -> list[str]:
    """As :func:`module_arguments`, below guest/root.zig.

    std is named too, or it would be compiled as the root is, without checks.
    """
    import ziglang

    out = ["-O", "ReleaseSmall", "--dep", "guest", "--dep", "std", f"-Mroot={GUEST / 'root.zig'}", *_CHECKED]
    for argument in module_arguments(root, imports):
        if not argument.startswith("-M"):
            out.append(argument)
            continue
        out += ["--dep", "std", argument.replace("-Mroot=", "-Mguest=", 1), *_CHECKED]
    return [*out, f"-Mstd={Path(ziglang.__file__).parent / 'lib' / 'std' / 'std.zig'}"]


def zig(*arguments: str, cache: Path = CACHE) -> str:
    """Run the compiler of the ``ziglang`` wheel.

    :param cache: where it keeps what it compiled; of this tree alone unless named, since a cache that two trees
        shared once answered with the other one's tests.
    :raises BuildError: it is not installed, or it refused.
    """
    command = [sys.executable, "-m", "ziglang", *arguments]
    environment = {**os.environ, "ZIG_LOCAL_CACHE_DIR": str(cache)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(arguments[:2])}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def strip_sections(elf: bytes) -> bytes:
    """The ELF without section headers and whatever no segment holds; what is loaded stays byte for byte.

    :raises BuildError: not a little-endian ELF64 file.
    """
    if elf[:6] != b"\x7fELF\x02\x01":
        raise BuildError("not a little-endian ELF64 file")
    table, size, count = struct.unpack_from("<Q", elf, 32)[0], *struct.unpack_from("<HH", elf, 54)
    end = table + size * count
    for index in range(count):
        offset, _, _, file_size = struct.unpack_from("<4Q", elf, table + index * size + 8)
        end = max(end, offset + file_size)
    out = bytearray(elf[:end])
    struct.pack_into("<Q", out, 40, 0)
    struct.pack_into("<HHH", out, 58, 0, 0, 0)
    return bytes(out)


def compile_elf(guest: Guest, output: Path, imports: Sequence[str] = OPERATION_MODULES) -> Path:
    """Compile one guest into ``output`` (a folder); answers the path of its ``.elf``."""
    output.mkdir(parents=True, exist_ok=True)
    debug = output / f"{guest.name}.debug"
    arguments = ["build-exe", "--name", guest.name, *_TARGET, *_FLAGS, "--image-base", hex(guest.image_base)]
    if guest.linker_script is not None:
        arguments += ["-T", str(guest.linker_script)]
    arguments += [f"-femit-bin={debug}", *_guest_arguments(guest.root, imports)]
    zig(*arguments)
    path = output / f"{guest.name}.elf"
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(strip_sections(debug.read_bytes()))
    os.replace(temporary, path)
    debug.chmod(0o644)
    return path


def loaded_size(elf: bytes) -> int:
    """Bytes of the file that the machine loads."""
    table, size, count = struct.unpack_from("<Q", elf, 32)[0], *struct.unpack_from("<HH", elf, 54)
    total = 0
    for index in range(count):
        kind = struct.unpack_from("<I", elf, table + index * size)[0]
        if kind == 1:
            total += struct.unpack_from("<Q", elf, table + index * size + 32)[0]
    return total


def _fingerprint() -> str:
    """Of everything that the output depends on: sources, this script, the compiler's version."""
    digest = hashlib.sha256(zig("version").encode())
    files = [*GUEST.rglob("*.zig"), *GUEST.rglob("*.ld"), Path(__file__)]
    for path in sorted(files):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def build(jobs: int = 2, only: Sequence[str] = ()) -> list[Path]:
    """Compile what is out of date.

    :raises BuildError: a guest does not compile.
    """
    stamp = OUTPUT / "fingerprint"
    fingerprint = _fingerprint()
    chosen = [guest for guest in guests() if not only or guest.name in only]
    paths = [OUTPUT / f"{guest.name}.elf" for guest in chosen]
    current = stamp.exists() and stamp.read_text(encoding="utf-8") == fingerprint
    if current and all(path.exists() for path in paths):
        return paths
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda guest: compile_elf(guest, OUTPUT), chosen))
    if not only:
        stamp.write_text(fingerprint, encoding="utf-8")
    return paths


def check_sizes() -> int:
    """Print the loaded size of each guest; the exit status says whether all are within the limit."""
    failed = 0
    for guest in guests():
        size = loaded_size((OUTPUT / f"{guest.name}.elf").read_bytes())
        verdict = "ok" if size <= SIZE_AIM else "above the aim" if size <= SIZE_LIMIT else "TOO LARGE"
        failed |= size > SIZE_LIMIT
        print(f"{guest.name:10} {size:8} bytes  (aim {SIZE_AIM}, limit {SIZE_LIMIT})  {verdict}")
    return int(failed)


def test_modules() -> None:
    """Run the Zig tests of every module, and of the operations, on the host."""
    with tempfile.TemporaryDirectory() as cache:
        for name, (path, dependencies) in MODULES.items():
            if name in ("calltable", "messages", "sdk"):
                continue
            print(f"zig test {name}", flush=True)
            zig("test", *module_arguments(GUEST / path, dependencies), cache=Path(cache))


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile the guests into vmm/_guest.")
    parser.add_argument("--check-sizes", action="store_true", help="print the sizes and compare them with the limit")
    parser.add_argument("--test", action="store_true", help="run the Zig tests on the host instead")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("names", nargs="*", help="only these guests")
    arguments = parser.parse_args()
    try:
        if arguments.test:
            test_modules()
            return 0
        build(arguments.jobs, arguments.names)
        return check_sizes() if arguments.check_sizes else 0
    except BuildError as error:
        print(f"build_guests: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
