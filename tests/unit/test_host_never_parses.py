"""The one rule: the host never interprets a byte of an image.

Two sides of a proof on the source of the host package: it knows no signature of any format, and the only code that
reads from an image's descriptor is the block device, which reads into guest memory and looks at nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import vmm
from tests.images import raw_writer

PACKAGE = Path(vmm.__file__).parent

#: What a parser would have to compare with.
SIGNATURES = (
    *(magic for _, magic in raw_writer.SIGNATURES.values() if len(magic) > 3),
    b"QFI\xfb",
    b"KDMV",
    b"COWD",
    b"conectix",
    b"cxsparse",
    b"EFI PART",
    b"# Disk DescriptorFile",
    b"WithouFreSpacExt",
    b"koly",
    b"Bochs Virtual HD Image",
)
NUMBERS = {int.from_bytes(magic[:4], order) for magic in SIGNATURES for order in ("big", "little")} | {0xAA55, 0x55AA}

#: Calls that bring bytes of a file to Python, and the modules that may use them, with the reason.
READS = {
    "read",
    "pread",
    "preadv",
    "readv",
    "readinto",
    "readinto1",
    "readline",
    "readlines",
    "read_bytes",
    "read_text",
    "mmap",
}
MAY_READ = {
    "devices/backend.py": "the block device: from the file straight into guest memory",
    "devices/trace.py": "a run that is recorded or replayed: through a buffer into guest memory, summed and copied",
    "machine/doctor.py": "what the kernel says of itself, under /proc and /sys",
    "operations/session.py": "the ELF files of the package's operations",
    "operations/foreign.py": "the ELF file of an operation that the user brings",
    "operations/passphrase.py": "the passphrase that the user names, which is no image",
    "machine/guests.py": "the ELF file of the runtime that comes with the package",
    "machine/memory.py": "mmap of anonymous memory: the RAM of the guest",
    "host/_build.py": "when the package is built: the C source of the binding",
    "machine/gdb_link.py": "the connection to gdb",
    "replay/reader.py": "the bundle that this program wrote, which is no image; what was read from one is passed on",
    "kvm/_build.py": "when the package is built: the C source of the binding",
    "sandbox/_build.py": "when the package is built: the C source of the binding",
    "sandbox/cgroup.py": "what the kernel says of control groups, under /proc and /sys",
    "sandbox/filesystems.py": "what the kernel says of mounts, under /proc",
    "sandbox/jail.py": "what the kernel says of itself and of this process, under /proc and /sys",
}
NOT_FILES = {"meter", "backend", "bus", "_bus", "self", "blocks", "device", "registers"}


def _modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text())


MODULES = dict(_modules())


@pytest.mark.parametrize("name", MODULES)
def test_no_signature(name: str) -> None:
    for node in ast.walk(MODULES[name]):
        if not isinstance(node, ast.Constant):
            continue
        if isinstance(node.value, int) and not isinstance(node.value, bool):
            assert node.value not in NUMBERS, f"{name}:{node.lineno}"
            continue
        text = node.value.encode() if isinstance(node.value, str) else node.value
        if isinstance(text, bytes):
            assert not [magic for magic in SIGNATURES if magic in text], f"{name}:{node.lineno}"


def _owner(node: ast.expr) -> str:
    """The last name before a method: `self.backend.read` -> backend, `bus.blocks[0].read` -> blocks."""
    while isinstance(node, ast.Subscript):
        node = node.value
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("name", [name for name in MODULES if name not in MAY_READ])
def test_nobody_else_reads(name: str) -> None:
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in READS:
            assert _owner(node.func.value) in NOT_FILES, f"{name}:{node.lineno}: {ast.unparse(node)}"


def test_the_list_is_not_stale() -> None:
    assert set(MAY_READ) <= set(MODULES)
