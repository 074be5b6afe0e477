"""Whatever a bundle holds, reading it gives recorded runs within its limits or raises BundleError or LimitReachedError,
and the reader lets go of its file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import zstandard

from fuzzing.oracle import check_text, open_descriptors
from fuzzing.targets import Target
from vmm.errors import BundleError, LimitReachedError
from vmm.replay.bundle import MAGIC, VERSION
from vmm.replay.reader import BundleReader

#: Bytes that a bundle may unfold to here.
_MOST = 1 << 16


def _read(path: str) -> None:
    with BundleReader(path, _MOST) as reader:
        while reader.next_run() is not None:
            for event in reader.events():
                assert len(getattr(event, "payload", b"")) <= _MOST


def run(data: bytes) -> None:
    """The first byte says whether the rest is a whole file or what its compressed part unfolds to."""
    content = data[1:]
    if not data or data[0] & 1:
        content = MAGIC + VERSION.to_bytes(2, "big") + zstandard.ZstdCompressor(level=1).compress(content)
    before = open_descriptors()
    fd = os.memfd_create("bundle", os.MFD_CLOEXEC)
    try:
        os.write(fd, content)
        _read(f"/proc/self/fd/{fd}")
    except (BundleError, LimitReachedError) as error:
        check_text(error.message, also="")
    finally:
        os.close(fd)
    assert open_descriptors() == before


def seeds() -> Iterable[bytes]:
    """Bundles of real runs, whole and unfolded."""
    import tempfile

    from vmm.boundary import DeviceSpec, Job
    from vmm.machine.runner import MachineRunner
    from vmm.operations.session import load_operation
    from vmm.replay.recorder import Recorder

    with tempfile.TemporaryDirectory() as folder, MachineRunner() as runner:
        image = os.memfd_create("image", os.MFD_CLOEXEC)
        try:
            os.ftruncate(image, 4096)
            for name, request in (
                ("info", b"\xa1\x66format\x63raw"),
                ("check", b"\xa1\x66format\x63raw"),
                ("info", b"\xa0"),
            ):
                path = os.path.join(folder, "run.pyvmm")
                recorder = Recorder(runner, path, 1 << 20)
                try:
                    recorder.run(Job(load_operation(name), request, (DeviceSpec(image, 4096),)), lambda _: None)
                    recorder.commit()
                finally:
                    recorder.close()
                with open(path, "rb") as file:
                    whole = file.read()
                yield b"\x00" + whole
                body = zstandard.ZstdDecompressor().decompressobj().decompress(whole[len(MAGIC) + 2 :])
                yield b"\x01" + body
        finally:
            os.close(image)


TARGET = Target("bundle", run, seeds, max_length=4096)
