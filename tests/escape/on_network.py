"""Attempts on the network, and by the channel."""

from __future__ import annotations

from tests.escape.table import PRIVILEGE, SECCOMP, Attempt, shares

ATTEMPTS = (
    Attempt(
        "socket: TCP",
        "network",
        lambda p: p.call("socket", 2, 1, 0),
        "done",
        SECCOMP,
        rest="done",
    ),
    Attempt(
        "socket: raw packets",
        "network",
        lambda p: p.call("socket", 17, 3, 0x300),
        "done",
        SECCOMP,
        free_user="EPERM",
        alone_root=PRIVILEGE,
        rest="EPERM",
    ),
    Attempt(
        "socket: netlink",
        "network",
        lambda p: p.call("socket", 16, 3, 0),
        "done",
        {"network-namespace": "no effect", **SECCOMP},
        rest="no effect",
        affects=lambda _, report: shares(report, "network"),
    ),
    Attempt(
        "socket: the hypervisor (AF_VSOCK)",
        "network",
        lambda p: p.call("socket", 40, 1, 0),
        "done|EAFNOSUPPORT",
        SECCOMP,
        rest="done|EAFNOSUPPORT",
    ),
    Attempt(
        "connect to the host's 127.0.0.1",
        "network",
        lambda p: p.call("connect", p.socket(2, 1), p.tcp_address, 16),
        "done",
        {"network-namespace": "ENETUNREACH", "landlock>=4": "EACCES", **SECCOMP},
        rest="EACCES|ENETUNREACH",
    ),
    Attempt(
        "connect by a socket of the host's that was handed in",
        "network",
        lambda p: p.call("connect", p.host_socket, p.tcp_address, 16),
        "done",
        {"landlock>=4": "EACCES", **SECCOMP},
        rest="EACCES|done",
    ),
    Attempt(
        "connect by sending (MSG_FASTOPEN) on that socket",
        "network",
        lambda p: p.call("sendto", p.host_socket, b"x", 1, 0x20000000, p.tcp_address, 16),
        "done|EINPROGRESS|EOPNOTSUPP",
        SECCOMP,
        rest="done|EACCES|EINPROGRESS|EOPNOTSUPP",
    ),
    Attempt(
        "connect to an abstract socket",
        "network",
        lambda p: p.call("connect", p.socket(1, 1), *p.abstract_address),
        "done",
        {"network-namespace": "ECONNREFUSED", "landlock>=6": "EPERM", **SECCOMP},
        rest="ECONNREFUSED",
    ),
    Attempt(
        "send a descriptor to the broker",
        "network",
        lambda p: p.call("sendmsg", 3, p.rights_message(), 0),
        "no effect",
        SECCOMP,
        rest="no effect",
        affects=lambda world, _: world.descriptors_grew(),
    ),
)
