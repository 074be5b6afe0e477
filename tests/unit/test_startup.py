"""What a plain run imports: nothing that costs more than the run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

#: Each of these costs milliseconds, or brings one that does; see vmm/record.py.
HEAVY = (
    *("argparse", "ast", "cffi", "contextlib", "ctypes", "dataclasses", "decimal", "elftools", "enum"),
    *("gettext", "importlib.metadata", "inspect", "json", "logging", "pathlib", "pyroute2", "random", "re"),
    *("shlex", "shutil", "signal", "socket", "subprocess", "tempfile", "threading", "uuid", "zstandard"),
    *("vmm.devices.script", "vmm.devices.trace", "vmm.operations.chain", "vmm.replay"),
    *("vmm.picture", "PIL"),
)

PROGRAM = """
import sys
{code}
print(" ".join(sorted(sys.modules)), file=sys.stderr)
"""


def imported(code: str, *arguments: str) -> set[str]:
    """Modules loaded after some code ran, without what the interpreter and the environment's .pth files bring."""
    command = [sys.executable, "-c", PROGRAM.format(code=code), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before = subprocess.run([sys.executable, "-c", PROGRAM.format(code="")], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split()) - set(before.stderr.split())


def test_import_vmm_is_nothing() -> None:
    assert imported("import vmm") <= {"vmm", "__future__"}


def test_no_work_at_import_of_the_api() -> None:
    found = imported("import vmm; vmm.measure; vmm.Machine; vmm.VmmError")
    assert found & set(HEAVY) == set()
    assert "vmm.machine.runner" not in found


def test_usage_needs_no_machine() -> None:
    found = imported("from vmm.cli.main import main; assert main(['run', 'info', '--zork']) == 64")
    assert found & set(HEAVY) == set()
    assert not [name for name in found if name.startswith(("vmm.machine", "vmm.kvm", "vmm.devices"))]


@pytest.mark.kvm
@pytest.mark.parametrize("operation", ["measure", "info", "check", "map"])
@pytest.mark.parametrize("output", ["human", "json"])
def test_a_plain_run(operation: str, output: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(4096))
    words = ["run", operation, f"--output={output}", str(path)]
    found = imported("from vmm.cli.main import main; main(sys.argv[1:])", *words)
    assert "vmm.sandbox.broker" in found
    # The machine is another process's, with modules of its own.
    assert not [name for name in found if name.startswith(("vmm.machine.", "vmm.kvm.", "vmm.devices."))]
    assert found & set(HEAVY) == set()
    assert not [name for name in found if name.startswith(("vmm.machine.debugger", "vmm.machine.gdb", "vmm.cli.debug"))]


def test_names_of_the_package() -> None:
    import vmm

    for name in vmm.__all__:
        assert getattr(vmm, name) is not None
    assert dir(vmm) == sorted(vmm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = vmm.nonsense
