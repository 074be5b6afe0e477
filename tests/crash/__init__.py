"""Proof that a change in place survives being cut off anywhere: see :mod:`tests.crash.cases` for how a format joins."""
