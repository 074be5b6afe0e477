"""The process that fuzzes: ``python -m fuzzing.child TARGET [libFuzzer's options and folders]``; campaigns start it.

Only what is imported inside the ``with`` below is instrumented, and only the host's own code is worth it: the branches
of the harness would lead the search away.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import pkgutil
import resource
import sys

import atheris

from fuzzing.targets import INSTRUMENTED

#: Bytes of address space: an input that wants more ends its process, and is a finding.
ADDRESS_SPACE = 4 << 30
_NOT_IMPORTED = ("vmm.__main__", "vmm.pytest_plugin", "vmm.kvm._build")


def _import_all() -> None:
    """Every module of the host, those too that are otherwise imported when first needed."""
    for package in ("calltable", "vmm"):
        path = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(path, f"{package}."):
            if module.name not in _NOT_IMPORTED and not module.name.endswith("._binding"):
                importlib.import_module(module.name)


def main(argv: list[str]) -> None:
    """Fuzz, or run single inputs, as libFuzzer's options say; does not return."""
    name, *options = argv
    extra = INSTRUMENTED.get(name, ())
    # It names every module that it instruments.
    with contextlib.redirect_stderr(io.StringIO()):
        with atheris.instrument_imports(include=["calltable", "vmm", *extra]):
            _import_all()
            for package in extra:
                for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
                    importlib.import_module(module.name)
        from fuzzing.oracle import guarded
        from fuzzing.targets import load

        target = load(name)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    atheris.Setup([name, *options], guarded(target.run))
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
