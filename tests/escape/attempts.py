"""All attempts, by name."""

from __future__ import annotations

from tests.escape import on_files, on_kernel, on_memory, on_network, on_processes
from tests.escape.table import Attempt

ATTEMPTS: dict[str, Attempt] = {
    attempt.name: attempt
    for module in (on_files, on_processes, on_network, on_memory, on_kernel)
    for attempt in module.ATTEMPTS
}
GROUPS = tuple(dict.fromkeys(attempt.group for attempt in ATTEMPTS.values()))
