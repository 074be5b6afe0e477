"""Writes a bundle while its runs go on; it appears when it is whole, or not at all."""

from __future__ import annotations

import os

import zstandard

from calltable import TABLE_MAJOR, TABLE_MINOR
from vmm.cbor import encode
from vmm.errors import LimitReachedError
from vmm.operations.files import file_error
from vmm.operations.output import OutputFile
from vmm.replay.bundle import HEADER, MAGIC, VERSION, WINDOW_LOG
from vmm.version import package_version

#: Kilobytes count, and a run takes longer than this does.
_LEVEL = 9
#: Encoded bytes that are kept for one call of the compressor.
_BATCH = 256 << 10


class BundleWriter:
    """The content of a bundle, item by item.

    :param path: where it appears; an existing file is replaced.
    :param max_record: bytes of content, before compression.
    :raises FileError: nothing can be written there.
    """

    def __init__(self, path: str, max_record: int, *, follow_symlinks: bool = False) -> None:
        self.path = path
        self._max_record = max_record
        self._size = 0
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._file = OutputFile(path, follow_symlinks=follow_symlinks)
        parameters = zstandard.ZstdCompressionParameters.from_level(
            _LEVEL, window_log=WINDOW_LOG, write_checksum=True, write_content_size=False
        )
        self._compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        try:
            self._write(MAGIC + VERSION.to_bytes(2, "big"))
            self.item([HEADER, {"program": f"pyvmm {package_version()}", "call-table": [TABLE_MAJOR, TABLE_MINOR]}])
        except BaseException:
            self.close()
            raise

    def item(self, item: list[object]) -> None:
        """Add an item.

        :raises LimitReachedError: the content would pass ``max_record``.
        :raises FileError: writing failed.
        """
        data = encode(item)
        if self._size + len(data) > self._max_record:
            raise LimitReachedError(
                f"the record passed its limit: max-record is {self._max_record}",
                limit="max-record",
                value=self._max_record,
            )
        self._size += len(data)
        self._pending.append(data)
        self._pending_size += len(data)
        if self._pending_size >= _BATCH:
            self._compress()

    def _compress(self) -> None:
        data = b"".join(self._pending)
        self._pending.clear()
        self._pending_size = 0
        self._write(self._compressor.compress(data))

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._file.fd, view) :]
        except OSError as error:
            raise file_error(self.path, "write", error) from None

    def commit(self) -> None:
        """Put the bundle in place.

        :raises FileError: the file system refused; nothing is left behind.
        """
        self._compress()
        self._write(self._compressor.flush())
        self._file.commit()

    def close(self) -> None:
        """Give up what is not committed.  Idempotent."""
        self._file.close()
