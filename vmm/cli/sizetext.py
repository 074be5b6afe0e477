"""Sizes for people, where the command line looks for them."""

from __future__ import annotations

from vmm.operations.sizetext import human_size as human_size
