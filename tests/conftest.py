"""What all tests share: when a test may be skipped, and where the optional foreign images are.

A test that needs KVM, qemu-img, gdb or atheris says so with a marker and is skipped only where they are absent.  Where
they have to be there (our own CI), ``PYVMM_REQUIRE_KVM=1``, ``PYVMM_REQUIRE_QEMU_IMG=1`` and so on turn that absence
into a failure, so that a green run cannot be an empty one.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.differential.ours import Ours

# Where the tests were started in the background of a shell, Ctrl-C is ignored, and so it would be by every command that
# they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parent.parent


#: Marker: what it is called, and the programs that it needs.
PROGRAMS = {"qemu_img": ("qemu-img", ("qemu-img", "qemu-io")), "gdb": ("gdb", ("gdb",))}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, or fail, what needs a program that is not there; the package's plugin does the same for KVM."""
    for marker, (name, programs) in PROGRAMS.items():
        if item.get_closest_marker(marker) is not None:
            _require(name, f"PYVMM_REQUIRE_{marker.upper()}", all(map(shutil.which, programs)))
    if item.get_closest_marker("atheris") is not None:
        _require("atheris", "PYVMM_REQUIRE_ATHERIS", importlib.util.find_spec("atheris") is not None)


def _require(name: str, variable: str, there: bool) -> None:
    if there:
        return
    if os.environ.get(variable) == "1":
        pytest.fail(f"{name} is not installed, and {variable}=1 does not allow that", pytrace=False)
    pytest.skip(f"{name} is not installed")


class ForeignImages:
    """Images written by other people's programs, unpacked, and what qemu-img answered for each."""

    def __init__(self, root: Path, expected: dict[str, Any]) -> None:
        self.root = root
        self.expected = expected


def foreign_source() -> Path | None:
    """The folder with the packed foreign images, or None: ``PYVMM_IMAGES``, else ``../shared/images``."""
    chosen = os.environ.get("PYVMM_IMAGES")
    folder = Path(chosen) if chosen else REPOSITORY.parent / "shared" / "images"
    return folder if (folder / "expected.json").is_file() else None


def _unpack(source: Path, destination: Path) -> None:
    """Unpack every tar; zero blocks stay holes, as sparse tars mean them."""
    for archive in sorted(source.glob("*.tar.xz")):
        with tarfile.open(archive) as tar:
            tar.extractall(destination, filter="data")


@pytest.fixture(scope="session")
def foreign_images(tmp_path_factory: pytest.TempPathFactory) -> ForeignImages:
    """The foreign images, unpacked once for all pytest-xdist workers; skips where they are absent."""
    source = foreign_source()
    if source is None:
        pytest.skip("no foreign images (PYVMM_IMAGES)")
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    root = shared / "foreign"
    with (shared / "foreign.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / ".complete").exists():
            root.mkdir(exist_ok=True)
            _unpack(source, root)
            (root / ".complete").touch()
    return ForeignImages(root, json.loads((source / "expected.json").read_text()))


@pytest.fixture(scope="session")
def ours() -> Iterator[Ours]:
    """The command line inside this process, on machines that stay warm for the whole session."""
    from tests.differential.ours import Ours

    with Ours() as session:
        yield session
