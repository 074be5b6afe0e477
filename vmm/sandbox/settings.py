"""What a worker is to be: which layers, which limits, what it will be asked for.  Plain data."""

from __future__ import annotations

from vmm.boundary import HOST_MEMORY, Job
from vmm.errors import UsageError
from vmm.record import dataclass
from vmm.sandbox.layers import LAYERS

#: What a worker can be asked for besides running jobs; each needs modules that have to be there before the jail closes.
FEATURES = ("record", "replay", "debugger", "symbols")


@dataclass(frozen=True, slots=True)
class JailSettings:
    """Everything that is fixed when the jail closes."""

    #: Names of the layers to close; tests leave some out.
    layers: tuple[str, ...] = tuple(LAYERS)
    #: Bytes of address space beyond what the interpreter has when the jail closes.
    memory: int = HOST_MEMORY
    #: Machines that live at once, at least 1; KVM may make a task for each.
    machines: int = 1
    #: Length in bytes that a file may reach; 0: nothing is written.
    file_size: int = 0
    features: tuple[str, ...] = ()
    #: Look at the network over netlink before the jail closes; pyroute2 takes a quarter of a second to load.
    verify_network: bool = False


#: Bytes of a worker's memory that are not for cold arenas: fixed guest memory, buffers, the interpreter's growth.
WORKER_MEMORY = 192 << 20
#: Bytes of a machine beside its cold arena, with the room that it takes to align it.
_MACHINE = 32 << 20


def settings_for(
    job: Job, layers: tuple[str, ...] = tuple(LAYERS), *, machines: int = 1, verify_network: bool = False
) -> JailSettings:
    """The jail that a job needs, and no wider one.

    :param machines: how many may be kept at once; there are fewer where memory does not suffice.
    :raises UsageError: the machine does not fit the memory of the process that runs it.
    """
    limits = job.limits
    memory = limits.max_memory + HOST_MEMORY if limits.max_host_memory is None else limits.max_host_memory
    if memory < limits.max_memory + WORKER_MEMORY:
        raise UsageError(
            f"--max-host-memory of {memory} bytes; with --max-memory of {limits.max_memory} it takes at least "
            f"{limits.max_memory + WORKER_MEMORY}"
        )
    features = (
        ("record", job.record),
        ("replay", job.replay is not None),
        ("debugger", job.debugger is not None),
    )
    return JailSettings(
        layers=layers,
        memory=memory,
        machines=max(1, min(machines, (memory - WORKER_MEMORY) // (limits.max_memory + _MACHINE))),
        file_size=_file_size(job),
        features=tuple(name for name, wanted in features if wanted),
        verify_network=verify_network,
    )


def _file_size(job: Job) -> int:
    """Length that a file may reach: a file that is changed in place may be longer than what an output may become."""
    lengths = [device.length for device in job.devices if not device.read_only]
    return max(job.limits.max_output, *lengths) if lengths else 0
