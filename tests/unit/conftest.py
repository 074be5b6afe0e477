"""What tests of the command line share."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmm.operations import session


@pytest.fixture
def canned_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with two files, one time zone, and operations that need not be built: a FakeRunner plays them."""
    monkeypatch.setattr(session, "load_operation", lambda name: name.encode())
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.chdir(tmp_path)
    Path("image").write_bytes(b"x" * 512)
    Path("other").write_bytes(b"x" * 512)
