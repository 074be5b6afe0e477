"""Fixtures of the differential matrix: one warm runner and one store of images for a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.differential.ours import Ours
from tests.differential.recipes import Images


@pytest.fixture(scope="session")
def ours() -> Iterator[Ours]:
    with Ours() as session:
        yield session


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return Images(tmp_path_factory.mktemp("images"))
