"""The contract between host and guest: numbers, records and messages, generated from ``calltable/definition``."""

from __future__ import annotations

from calltable._generated import *  # noqa: F403  (every name in it is a constant of the contract)
