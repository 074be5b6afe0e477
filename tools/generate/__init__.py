"""Generates the guest's Zig, the C header, the host's Python and the CDDL from ``calltable/definition``.

``python -m tools.generate`` writes the files, ``--check`` only compares them.
"""
