"""The call table's exerciser, compiled once a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.exerciser import Exerciser, build


@pytest.fixture(scope="session")
def exerciser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exerciser]:
    """Warm machines whose operation makes the calls that it is told."""
    made = Exerciser(build(tmp_path_factory.mktemp("exerciser")))
    yield made
    made.close()
