"""The formats compiled for the host (guest/tests/host_tool.zig), for answers that need no machine."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cbor2

from tools import build_guests

SOURCE = build_guests.GUEST / "tests" / "host_tool.zig"


def compile_tool(folder: Path) -> Path:
    """Compile it once for a session; some seconds."""
    output = folder / "host_tool"
    imports = ("block", "cbor", "formats", "messages")
    build_guests.zig(
        "build-exe", "-fsingle-threaded", "-OReleaseSafe", "--name", "host_tool",
        f"-femit-bin={output}", *build_guests.module_arguments(SOURCE, imports),
    )  # fmt: skip
    return output


@dataclass(frozen=True)
class HostTool:
    """Runs it.  ``files`` are the kinds and paths of further files: ("extent", path), ("parent", path) ..."""

    path: Path

    def run(
        self, operation: str, driver: str, image: Path, files: Sequence[tuple[str, Path]] = ()
    ) -> subprocess.CompletedProcess[bytes]:
        named = [str(part) for pair in files for part in pair]
        return subprocess.run(
            [self.path, operation, driver, image, *named], capture_output=True, check=False, timeout=60
        )

    def messages(
        self, operation: str, driver: str, image: Path, files: Sequence[tuple[str, Path]] = ()
    ) -> list[tuple[str, dict[str, Any]]]:
        done = self.run(operation, driver, image, files)
        assert done.returncode in (0, 1, 2, 3, 63), done
        return list(_decode(done.stdout))

    def error(self, operation: str, driver: str, image: Path, files: Sequence[tuple[str, Path]] = ()) -> dict[str, Any]:
        """Why it was refused."""
        name, fields = self.messages(operation, driver, image, files)[-1]
        assert name == "error", (name, fields)
        return fields

    def map(self, driver: str, image: Path, files: Sequence[tuple[str, Path]] = ()) -> list[dict[str, Any]]:
        """The disk as `qemu-img map --output=json` of release 7.2 shows it."""
        extents: list[tuple[dict[str, Any], Any]] = []
        for name, segment in self.messages("segments", driver, image, files):
            assert name == "segment", segment
            extent: dict[str, Any] = {
                "start": segment["start"],
                "length": segment["length"],
                "depth": 0,
                "present": segment["kind"] != "unallocated",
                "zero": segment["kind"] != "data",
                "data": segment["kind"] == "data" or segment["hole"],
            }
            if "offset" in segment:
                extent["offset"] = segment["offset"]
            _append(extents, extent, segment["device"])
        return [extent for extent, _ in extents]


def _append(extents: list[tuple[dict[str, Any], Any]], extent: dict[str, Any], device: int) -> None:
    """Merge as qemu-img does: everything agrees, and the bytes follow one another in the same file."""
    if extents:
        last, last_device = extents[-1]
        same = all(last[key] == extent[key] for key in ("present", "zero", "data"))
        if same and "offset" in last:
            same = extent.get("offset") == last["offset"] + last["length"] and last_device == device
        elif same:
            same = "offset" not in extent
        if same:
            last["length"] += extent["length"]
            return
    extents.append((extent, device))


def _decode(data: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    stream = io.BytesIO(data)
    while stream.tell() < len(data):
        name, fields = cbor2.load(stream)
        yield name, fields
