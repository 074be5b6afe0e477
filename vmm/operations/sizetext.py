"""Sizes for people, exactly as qemu-img writes them."""

from __future__ import annotations

import math

_UNITS = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")


def human_size(size: int) -> str:
    """Three significant digits and a unit of 1024: ``196 KiB``, ``1.03 MiB``, ``0.977 TiB``.

    The unit changes where the number would need a fourth digit, at 1000 and not at 1024.
    """
    exponent = max((math.frexp(size / (1000 / 1024))[1] - 1) // 10, 0)
    return f"{size / (1 << 10 * exponent):.3g} {_UNITS[exponent]}B"
