"""The pytest plugin: a warm machine for tests, and a marker for tests that need KVM.

Fixture ``vmm_machine``: a :class:`vmm.Machine` that is booted once for the session and put back to its snapshot between
runs; a test that asks for it is marked ``kvm``.

Marker ``kvm``: skips the test where ``/dev/kvm`` cannot be opened.  With ``--require-kvm`` or ``PYVMM_REQUIRE_KVM=1``
such a test fails instead, so that a green run cannot be an empty one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from vmm.boundary import KVM_DEVICE

if TYPE_CHECKING:
    from vmm.api import Machine


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--require-kvm``."""
    group = parser.getgroup("pyvmm")
    group.addoption(
        "--require-kvm",
        action="store_true",
        default=os.environ.get("PYVMM_REQUIRE_KVM") == "1",
        help="fail, rather than skip, tests marked kvm where KVM cannot be used (or PYVMM_REQUIRE_KVM=1)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", "kvm: needs a usable /dev/kvm; skipped without it (see --require-kvm)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever uses the machine needs KVM."""
    for item in items:
        if "vmm_machine" in getattr(item, "fixturenames", ()) and item.get_closest_marker("kvm") is None:
            item.add_marker(pytest.mark.kvm)


def kvm_reason(path: str = KVM_DEVICE) -> str | None:
    """Why KVM cannot be used, found by opening it; None when it can."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{path}: {error.strerror}"
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, or fail, what needs KVM where there is none."""
    if item.get_closest_marker("kvm") is None:
        return
    reason = kvm_reason()
    if reason is None:
        return
    if item.config.getoption("--require-kvm"):
        pytest.fail(f"KVM is required: {reason}", pytrace=False)
    pytest.skip(f"KVM cannot be used: {reason}")


@pytest.fixture(scope="session")
def _vmm_machine() -> Iterator[Machine]:
    from vmm.api import Machine

    with Machine() as machine:
        yield machine


@pytest.fixture
def vmm_machine(_vmm_machine: Machine) -> Machine:
    """A warm machine, shared by the session's tests and reset between runs: no test sees another's traces."""
    return _vmm_machine
