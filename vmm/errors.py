"""The one exception tree of the package, and the exit status that each branch means.

Every error that reaches a user is a :class:`VmmError`: it has a machine-readable ``code``, one sentence, and
optional ``details`` that read the same in text and JSON.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import ClassVar

    from vmm.boundary import Failure

#: Exit statuses.  0 to 3 and 63 are qemu-img's; the others are from sysexits.h, outside qemu-img's range, and
#: of signals.
EXIT_OK = 0
EXIT_FAILED = 1
EXIT_CORRUPT = 2
EXIT_LEAKS = 3
EXIT_NO_CHECKS = 63
EXIT_USAGE = 64
EXIT_UNAVAILABLE = 69
EXIT_GUEST_FAILED = 70
EXIT_LIMIT = 75
#: 128 and the number of the signal, as shells have it.
EXIT_HANGUP = 129
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

Detail = str | int | float | bool | None


class VmmError(Exception):
    """Base of everything this package raises on purpose.

    :param message: one sentence for people, without a trailing stop.
    :param details: further facts, keys in kebab-case.
    """

    code: ClassVar[str] = "error"
    exit_status: ClassVar[int] = EXIT_FAILED
    #: How the run failed, when it was a run that failed.
    failure: Failure | None = None

    def __init__(self, message: str, **details: Detail) -> None:
        super().__init__(message)
        self.message = message
        self.details: Mapping[str, Detail] = {k.replace("_", "-"): v for k, v in details.items() if v is not None}

    def as_dict(self) -> dict[str, object]:
        """The JSON form: ``{"code": ..., "message": ..., **details}``."""
        return {"code": self.code, "message": self.message, **self.details}


class UsageError(VmmError):
    """The caller asked for something that does not exist or does not go together."""

    code = "usage"
    exit_status = EXIT_USAGE


class FileError(VmmError):
    """A file could not be opened, read, written or put in place."""

    code = "file"


class KvmUnavailableError(VmmError):
    """KVM cannot be used; the message says what to do about it."""

    code = "kvm-unavailable"
    exit_status = EXIT_UNAVAILABLE


class SandboxError(VmmError):
    """The process that runs the machine cannot be started, or not in the jail that was asked for."""

    code = "sandbox"
    exit_status = EXIT_UNAVAILABLE


class KvmError(VmmError):
    """A KVM system call failed in a way that the host's set-up does not explain."""

    code = "kvm"
    exit_status = EXIT_UNAVAILABLE


class OperationLoadError(VmmError):
    """An operation's ELF is not one that this machine can run."""

    code = "bad-operation"
    exit_status = EXIT_USAGE


class BundleError(VmmError):
    """A bundle is damaged, or is not one that this version can replay; the details say where."""

    code = "bundle"


class RefusedError(VmmError):
    """The operation refused the image or the request; ``guest_code`` is the code of its error message."""

    code = "refused"
    exit_status = EXIT_FAILED


class NoChecksError(RefusedError):
    """``check`` of a format that has no checks."""

    exit_status = EXIT_NO_CHECKS


class ReferenceRefusedError(RefusedError):
    """A file that an image names is not followed.

    ``reason`` is ``not-opened`` whether it is missing, forbidden, outside the allowed directories or no regular file:
    an image is not to learn which files there are.  The other reasons are about files that were opened: ``loop``,
    ``too-deep``, ``too-many``.
    """


class GuestFailedError(VmmError):
    """The guest panicked, faulted or broke the contract: a bug of the operation, contained."""

    code = "guest-failed"
    exit_status = EXIT_GUEST_FAILED


class LimitReachedError(VmmError):
    """A deadline or budget ended the run; the details name the limit and its value."""

    code = "limit"
    exit_status = EXIT_LIMIT


class DebuggerError(VmmError):
    """A debugger ended the run, or its connection was lost."""

    code = "debugger"
    exit_status = EXIT_INTERRUPTED
