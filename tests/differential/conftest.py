"""Fixtures of the differential matrix."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.differential import tool as plan_tool
from tests.differential.hosttool import HostTool, compile_tool
from tests.differential.recipes import Images


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """One store of images for a session."""
    return Images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planners as a program of the host."""
    return plan_tool.build(tmp_path_factory.mktemp("plan-tool"))


@pytest.fixture(scope="session")
def host_tool(tmp_path_factory: pytest.TempPathFactory) -> HostTool:
    """The formats compiled for the host."""
    return HostTool(compile_tool(tmp_path_factory.mktemp("host-tool")))
