"""Fixtures of the differential matrix."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.differential import plans
from tests.differential.recipes import Images


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """One store of images for a session."""
    return Images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planners of the guest on the host, compiled once for a session."""
    return plans.build(tmp_path_factory.mktemp("plan-tool"))
