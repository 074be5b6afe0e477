"""Command line of the generator."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.generate import cddl, header, model, python, zig

ROOT = Path(__file__).resolve().parent.parent.parent


def outputs() -> dict[str, str]:
    """Path below the project's root -> generated text."""
    definition = model.load()
    return {
        "calltable/_generated.py": python.constants(definition),
        "calltable/messages.py": python.messages(definition),
        "calltable/include/pyvmm.h": header.header(definition),
        "calltable/messages.cddl": cddl.cddl(definition),
        "guest/calltable.zig": zig.calltable(definition),
        "guest/messages.zig": zig.messages(definition),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is out of date")
    arguments = parser.parse_args()
    stale = []
    for name, text in outputs().items():
        path = ROOT / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not arguments.check:
                path.write_text(text, encoding="utf-8")
    if arguments.check and stale:
        print("out of date, run `make generate`: " + ", ".join(stale), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
