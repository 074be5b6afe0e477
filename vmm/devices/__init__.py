"""The devices of the machine: a bus, block devices on virtio-mmio, and the control device.

How the run loop of :mod:`vmm.machine` uses them::

    bus = Bus(device_count, memory)              # once a machine; `memory` is a GuestMemory
    bus.begin_run(job, on_event, check)          # before each run: files, limits, zeroed counters
    signal = bus.write(address, value, size)     # MMIO write exit; value is an int, little endian
    value = bus.read(address, size)              # MMIO read exit

``write`` answers ``CONTINUE`` (0), ``READY`` (the runtime has shaken hands with every device: the place for a
snapshot) or ``DONE`` (the run is complete; ``bus.control.status`` is the operation's status).  It raises

* :class:`~vmm.devices.errors.RunAborted`: the guest panicked (``message``, ``site``),
* :class:`~vmm.devices.errors.LimitExceeded`: a budget ended the run (``limit``, ``value``),
* :class:`~vmm.devices.errors.ProtocolViolation`: nonsense at the control device, or an access where nothing is,
* whatever ``on_event`` or ``check`` raise.

``check`` is called about every 16 MiB of file data while a request is being served, so that a deadline or Ctrl-C
also ends long transfers.  Nothing else leaves this package, whatever a guest writes.

The boot page of a run is filled from ``bus.boot_devices()``; the outcome from ``bus.usage(exits, elapsed_ns)``,
``bus.device_lengths()``, ``bus.recent_requests()`` and ``bus.device_errors()``; ``bus.end_run()`` forgets all that.
``bus.state()`` and ``bus.restore(state)`` are for the snapshot: they hold what the guest's driver knows (registers and
ring positions), not files, so that a warm machine serves other files without another handshake.
"""

from __future__ import annotations

from vmm.devices.bus import CONTINUE, DONE, READY, Bus
from vmm.devices.errors import LimitExceeded, MemoryAccessError, ProtocolViolation, RunAborted

__all__ = [
    "CONTINUE",
    "DONE",
    "READY",
    "Bus",
    "LimitExceeded",
    "MemoryAccessError",
    "ProtocolViolation",
    "RunAborted",
]
