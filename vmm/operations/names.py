"""Names that images hold, as text; nothing here looks at a file."""

from __future__ import annotations


def has_protocol(name: str) -> bool:
    """Whether qemu would take a name for an address, as in ``nbd://host`` or ``json:{}``: a colon before any slash."""
    return ":" in name.partition("/")[0]


def combine_path(base: str, name: str) -> str:
    """``name`` as seen from the directory of ``base``; absolute names and names with a protocol stay as they are."""
    if name.startswith("/") or has_protocol(name):
        return name
    return base[: base.rfind("/") + 1] + name


def components(path: str) -> list[str]:
    """The parts of a path that lead somewhere; ``..`` is one."""
    return [part for part in path.split("/") if part not in ("", ".")]
