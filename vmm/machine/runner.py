"""Machines kept warm: the :class:`vmm.boundary.Runner` of this process."""

from __future__ import annotations

import os

from vmm.boundary import KVM_DEVICE
from vmm.machine.machine import Machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from vmm.boundary import Event, Job, Outcome
    from vmm.machine.machine import Symboliser

#: Machines kept; the one that was not used for longest goes first.
POOL_SIZE = 8

_Key = tuple[bytes, int, int]


class MachineRunner:
    """Runs jobs, each on the warm machine of its operation, device count and memory.

    One job at a time; from any thread.  Not across ``fork``: a child gets machines of its own.

    :param warm: False for a single run: no snapshot is taken and the machine is given up at once.
    :param kvm: the KVM device; see :class:`vmm.kvm.Kvm`.
    :param pool_size: machines kept besides the one that runs.
    :param symbolise: puts functions and lines to the frames of a failure; None: from the operation's ELF, here.
    """

    def __init__(
        self,
        *,
        warm: bool = True,
        kvm: str | tuple[int, str] = KVM_DEVICE,
        pool_size: int = POOL_SIZE,
        symbolise: Symboliser | None = None,
    ) -> None:
        self.warm = warm
        self._kvm = kvm
        self._pool_size = pool_size
        self._symbolise = symbolise
        self._pool: dict[_Key, Machine] = {}
        self._process = os.getpid()

    def run(self, job: Job, on_event: Callable[[Event], None]) -> Outcome:
        """Run one job to its end; see :class:`vmm.boundary.Runner`."""
        if self._process != os.getpid():
            # KVM ties a machine to the process that made it.  This gives up the copies; the parent's stay as they are.
            self.close()
            self._process = os.getpid()
        key = (job.elf, len(job.devices), job.limits.max_memory)
        machine = self._pool.pop(key, None)
        if machine is None:
            machine = Machine(
                job.elf,
                len(job.devices),
                job.limits.max_memory,
                warm=self.warm,
                kvm=self._kvm,
                symbolise=self._symbolise,
            )
        try:
            return machine.run(job, on_event)
        finally:
            if machine.reusable:
                self._pool[key] = machine
                if len(self._pool) > self._pool_size:
                    self._pool.pop(next(iter(self._pool))).close()
            else:
                machine.close()

    def close(self) -> None:
        """Give up every machine.  Idempotent."""
        while self._pool:
            self._pool.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
