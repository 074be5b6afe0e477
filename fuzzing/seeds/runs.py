"""Real runs to make seeds of: the operations of the package on small images, and the hostile guests of the tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from calltable.messages import CheckRequest, CreateOptions, CreateRequest, InfoRequest, MapRequest, MeasureRequest
from tests.hostile.images.bases import BASES
from tests.hostile.test_guests import COMPLETE, DMA, PROTOCOL
from tests.machines import job as hostile_job
from vmm.boundary import DeviceSpec, Job, Limits
from vmm.cbor import encode
from vmm.operations.session import load_operation

_LIMITS = Limits(timeout=10.0, max_memory=8 << 20)

#: A job and its name.
Named = tuple[str, Job]


def _job(operation: str, request: object, devices: tuple[DeviceSpec, ...]) -> Job:
    return Job(load_operation(operation), encode(request), devices, _LIMITS, log_level=4, progress=True)


@contextmanager
def _files() -> Iterator[Callable[[bytes, bool], DeviceSpec]]:
    """Makes devices over new files: with this content, writable and resizable or read-only."""
    opened: list[int] = []
    with tempfile.TemporaryDirectory() as folder:

        def made(content: bytes, output: bool) -> DeviceSpec:
            path = Path(folder) / str(len(opened))
            path.write_bytes(content)
            opened.append(os.open(path, os.O_RDWR))
            return DeviceSpec(opened[-1], len(content), read_only=not output, resizable=output)

        try:
            yield made
        finally:
            for fd in opened:
                os.close(fd)


def operations() -> Iterator[Named]:
    """Each operation on each kind of image; run a job before asking for the next."""
    with _files() as made:
        for base in BASES:
            content = base.build().data
            for operation, request in (
                ("info", InfoRequest()),
                ("measure", MeasureRequest(target="qcow2")),
                ("check", CheckRequest()),
                ("map", MapRequest()),
            ):
                yield operation, _job(operation, request.as_fields(), (made(content, False),))
            if base.driver == "qcow2":
                damaged = bytearray(content)
                damaged[len(damaged) // 3 :: 97] = b"\xa5" * len(damaged[len(damaged) // 3 :: 97])
                yield "check", _job("check", {}, (made(bytes(damaged), False),))
        options = CreateOptions(cluster_size=512, preallocation="metadata")
        for create in (
            CreateRequest(format="raw", size=1 << 20),
            CreateRequest(format="qcow2", size=64 << 10, options=options),
            CreateRequest(format="vpc", size=1 << 20),
        ):
            yield "create", _job("create", create.as_fields(), (made(b"", True),))


def hostile() -> Iterator[Named]:
    """The guests that attack rings, doorbell and budgets."""
    with _files() as made:
        for name in (*DMA, *PROTOCOL, *COMPLETE, "panic", "read_and_divide"):
            yield name, hostile_job(name, (made(bytes(range(256)) * 20, False),))
        for name, limits in (("log_flood", {"max_messages": 20}), ("message_flood", {"max_messages": 20})):
            yield name, hostile_job(name, (made(b"x" * 512, False),), **limits)
