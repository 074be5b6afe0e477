"""Fixtures of the differential matrix."""

from __future__ import annotations

import pytest

from tests.differential.recipes import Images


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """One store of images for a session."""
    return Images(tmp_path_factory.mktemp("images"))
