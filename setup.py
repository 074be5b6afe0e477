"""Build steps that pyproject.toml cannot state: the bindings and the guests.

Everything else about the package stands in pyproject.toml.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).resolve().parent))

from tools import build_guests

# cffi compiles with the compiler Python was built with; where there is none, the ziglang wheel, a build requirement
# anyway, is one.
if "CC" not in os.environ and not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
    # The target named: headers and C library of the wheel instead of the host's, which may have none.
    zig = f"{sys.executable} -m ziglang cc -target {platform.machine()}-linux-gnu"
    os.environ["CC"] = zig
    os.environ["LDSHARED"] = f"{zig} -shared"


class BuildWithGuests(build_py):
    """Compiles the guests before the package's files are gathered, so that a wheel contains them."""

    def run(self) -> None:
        build_guests.build()
        super().run()


setup(
    cffi_modules=[f"vmm/{package}/_build.py:ffibuilder" for package in ("host", "kvm", "sandbox")],
    cmdclass={"build_py": BuildWithGuests},
    # cffi compiles against the limited API of the oldest Python that is supported: one wheel for all of them.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
