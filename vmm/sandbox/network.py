"""A glance at the network of the jail: no link is up.  It costs microseconds and no import; see also ``inspection``."""

from __future__ import annotations

import _socket
import fcntl
from struct import Struct

from vmm.sandbox.layers import LayerError

#: ioctl of a socket that asks for a link's flags, and the flag of a link that is up (netdevice(7)).
_SIOCGIFFLAGS = 0x8913
_IFF_UP = 1
_REQUEST = Struct("16sH22x")


def glance() -> str:
    """That no link of this network namespace is up; the answer names them.

    :raises LayerError: one is.
    """
    names = [name for _, name in _socket.if_nameindex()]
    probe = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    try:
        for name in names:
            _, flags = _REQUEST.unpack(fcntl.ioctl(probe, _SIOCGIFFLAGS, _REQUEST.pack(name.encode(), 0)))
            if flags & _IFF_UP:
                raise LayerError(f"the link {name} is up")
    finally:
        probe.close()
    return f"{', '.join(names) or 'no link'}, down"
