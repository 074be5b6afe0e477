"""The pytest plugin, on test files of its own."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

TESTS = """
import pytest

@pytest.mark.kvm
def test_marked():
    pass

def test_uses_the_machine(vmm_machine):
    assert vmm_machine.measure(size=512).required == 512

def test_plain():
    pass
"""


@pytest.fixture
def without_kvm(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import vmm.pytest_plugin

        vmm.pytest_plugin.kvm_reason = lambda path="/dev/kvm": f"{path}: played by a test"
        """
    )


@pytest.mark.usefixtures("without_kvm")
def test_skipped_without_kvm(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYVMM_REQUIRE_KVM", raising=False)
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_subprocess("-rs")
    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines(["*KVM cannot be used: /dev/kvm: played by a test*"])


@pytest.mark.usefixtures("without_kvm")
@pytest.mark.parametrize("how", ["option", "environment"])
def test_failed_where_it_is_required(how: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVMM_REQUIRE_KVM", "1" if how == "environment" else "0")
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_subprocess(*(["--require-kvm"] if how == "option" else []))
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] == 1
    assert outcomes.get("failed", 0) + outcomes.get("errors", 0) == 2
    assert "skipped" not in outcomes


@pytest.mark.kvm
def test_runs_with_kvm(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TESTS)
    pytester.runpytest_subprocess("--strict-markers").assert_outcomes(passed=3)


def test_kvm_reason() -> None:
    from vmm.pytest_plugin import kvm_reason

    assert kvm_reason("/nonexistent/kvm") == "/nonexistent/kvm: No such file or directory"
