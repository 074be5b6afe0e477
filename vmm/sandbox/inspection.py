"""What the network of the jail really holds, asked over netlink with pyroute2 (rtnetlink(7)).

Imported for ``doctor`` and ``-v`` only: loading pyroute2 takes longer than a thousand runs.
"""

from __future__ import annotations

from pyroute2 import IPRoute

from vmm.sandbox.layers import LayerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_IFF_UP = 1
_LOOPBACK = "lo"


def inspect() -> str:
    """That this network namespace has no link but a loopback that is down, no address, no route and no neighbour.

    Kernels with tunnel modules put a tunnel that is down into every namespace; it is named, and without an address, a
    route and the right to raise it, it leads nowhere.

    :raises LayerError: there is more.
    """
    with IPRoute() as netlink:
        links: list[Any] = list(netlink.get_links())
        counts = {
            "addresses": len(list(netlink.get_addr())),
            "routes": len(list(netlink.get_routes())),
            "neighbours": len(list(netlink.get_neighbours())),
        }
    up = [link.get("ifname") for link in links if link["flags"] & _IFF_UP]
    if up:
        raise LayerError(f"the link {up[0]} is up")
    for what, count in counts.items():
        if count:
            raise LayerError(f"it has {count} {what}")
    others = sorted(str(link.get("ifname")) for link in links if link.get("ifname") != _LOOPBACK)
    named = f" and {', '.join(others)}" if others else ""
    return f"{_LOOPBACK}{named} down, 0 addresses, 0 routes, 0 neighbours (netlink)"
