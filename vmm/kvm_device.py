"""Opening the KVM device, and what to do where that fails.  Needs no binding: whoever opens it need not drive it."""

from __future__ import annotations

import errno
import os

from vmm.errors import KvmUnavailableError

_ADVICE = {
    errno.ENOENT: "is missing: load the module (`modprobe kvm_intel` or `modprobe kvm_amd`), switch on virtualization "
    "in the firmware or nested virtualization for this VM; in a container add `--device /dev/kvm`",
    errno.EACCES: "may not be opened by this user: join the group that owns it (`usermod -aG kvm USER`, then log in "
    "again), or allow it with an ACL (`setfacl -m u:USER:rw /dev/kvm`)",
    errno.EPERM: "may not be opened here: the container's device policy forbids it; start it with `--device /dev/kvm`",
    errno.ENODEV: "has no driver behind it: load the module (`modprobe kvm_intel` or `modprobe kvm_amd`)",
    errno.EBUSY: "is in use by another hypervisor of this host: stop its virtual machines",
}
_ADVICE[errno.ENXIO] = _ADVICE[errno.ENODEV]


def unavailable(number: int, path: str) -> KvmUnavailableError:
    """The error that tells what to do when ``path`` cannot be used because of errno ``number``."""
    advice = _ADVICE.get(number, f"cannot be used: {os.strerror(number)}")
    return KvmUnavailableError(f"{path} {advice}", path=path, errno=errno.errorcode.get(number))


def open_device(path: str) -> int:
    """A descriptor of the KVM device at ``path``, close-on-exec.

    :raises KvmUnavailableError: it cannot be opened; the message says what to do.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise unavailable(error.errno or errno.EIO, path) from None
