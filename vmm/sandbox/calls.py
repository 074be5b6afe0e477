"""The system calls of a running machine, and nothing else: what the seccomp filter lets through.

Each entry is a name and, where an argument decides, ``(index, mask, value)``: the call passes when
``argument & mask == value``.  Several entries of a name are alternatives.  What a debugger needs is apart.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Rule = tuple[str, tuple[int, int, int] | None]

#: mmap(2), mprotect(2).
_PROT_EXEC = 4
#: The kernel looks at the lower half of ioctl's request only.
_REQUEST_MASK = 0xFFFF_FFFF
_ANY = 0xFFFF_FFFF_FFFF_FFFF

#: Why a machine that runs makes them.
_ALWAYS = (
    # The channel to the broker, and descriptors that come with a job; sending is below.
    "recvmsg",
    # Files: bytes, holes, lengths, durability.
    *("preadv", "preadv2", "pwritev", "pwritev2", "lseek", "fallocate", "ftruncate", "fdatasync", "close"),
    # Memory of the interpreter and of the guest.
    *("brk", "munmap", "mremap", "madvise"),
    # The deadline: a timer, its signal and its handler; the clock where the vDSO has none.
    *("timer_create", "timer_settime", "timer_delete", "rt_sigprocmask", "rt_sigreturn", "clock_gettime"),
    *("gettid", "getpid", "restart_syscall"),
    # The interpreter's lock, and its end.
    *("futex", "exit", "exit_group"),
)

#: A connected debugger is read and written without waiting.
_DEBUGGER = ("recvfrom", "read", "write", "poll", "ppoll", "select", "pselect6")


def rules(requests: Iterable[int], *, debugger: bool = False) -> list[Rule]:
    """The filter's rules.

    :param requests: the ioctl numbers that may pass, KVM's.
    :param debugger: a debugger will be connected.
    """
    names = _ALWAYS + (_DEBUGGER if debugger else ())
    found: list[Rule] = [(name, None) for name in names]
    found += [(name, (2, _PROT_EXEC, 0)) for name in ("mmap", "mprotect")]
    # To nobody but whom the socket is connected to: no address.  (sendmsg would hide one in memory, and descriptors.)
    found.append(("sendto", (4, _ANY, 0)))
    found += [("ioctl", (1, _REQUEST_MASK, request & _REQUEST_MASK)) for request in sorted(set(requests))]
    return found
