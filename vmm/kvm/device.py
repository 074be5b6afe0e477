"""/dev/kvm itself: opening it, and why that may fail."""

from __future__ import annotations

import errno
import os

from vmm.boundary import KVM_DEVICE
from vmm.errors import KvmUnavailableError
from vmm.kvm.binding import check, lib
from vmm.kvm.vm import Vm
from vmm.kvm_device import open_device, unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

#: What the machine uses: name -> number and what it is for (Documentation/virt/kvm/api.rst, section 4.4).
CAPABILITIES: dict[str, tuple[int, str]] = {
    "user-memory": (lib.KVM_CAP_USER_MEMORY, "guest memory from the process"),
    "ext-cpuid": (lib.KVM_CAP_EXT_CPUID, "a fixed CPU model"),
    "immediate-exit": (lib.KVM_CAP_IMMEDIATE_EXIT, "deadlines"),
    "vcpu-events": (lib.KVM_CAP_VCPU_EVENTS, "resetting a machine"),
    "xsave": (lib.KVM_CAP_XSAVE, "resetting a machine"),
}


class Kvm:
    """The open device.

    :param device: the device node; or a descriptor of it, which stays the caller's, and its path, for errors.
    :raises KvmUnavailableError: it is missing, forbidden, not KVM, of another API version, or lacks a capability; the
        message says what to do.
    """

    __slots__ = ("_fd", "_own", "_run_size", "path")

    def __init__(self, device: str | tuple[int, str] = KVM_DEVICE) -> None:
        self._own = isinstance(device, str)
        self._fd, self.path = (open_device(device), device) if isinstance(device, str) else device
        try:
            self._check_version()
            self._run_size: int = check(
                lib.pyvmm_ioctl_value(self._fd, lib.KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE"
            )
        except BaseException:
            self.close()
            raise

    def _check_version(self) -> None:
        version = self.api_version
        if version < 0:
            raise KvmUnavailableError(f"{self.path} is not the KVM device", path=self.path)
        if version != lib.KVM_API_VERSION:
            raise KvmUnavailableError(
                f"{self.path} speaks KVM API version {version}, this program version {lib.KVM_API_VERSION}: "
                "update the host's kernel",
                path=self.path,
            )
        for name, (_, purpose) in CAPABILITIES.items():
            if self.capability(name) == 0:
                raise KvmUnavailableError(
                    f"the KVM of this host lacks the capability {name} ({purpose}): use a newer kernel (5.10 or later)",
                    path=self.path,
                    capability=name,
                )

    @property
    def api_version(self) -> int:
        """KVM_GET_API_VERSION; negative when this is not KVM."""
        return int(lib.pyvmm_ioctl_value(self._fd, lib.KVM_GET_API_VERSION, 0))

    def capability(self, name: str) -> int:
        """KVM_CHECK_EXTENSION of a capability of :data:`CAPABILITIES`; 0 is absent."""
        return max(0, int(lib.pyvmm_ioctl_value(self._fd, lib.KVM_CHECK_EXTENSION, CAPABILITIES[name][0])))

    def create_vm(self) -> Vm:
        """A new virtual machine without memory and without vCPU.

        :raises KvmUnavailableError: the host does not give one.
        """
        while True:
            fd = lib.pyvmm_ioctl_value(self._fd, lib.KVM_CREATE_VM, 0)
            if fd != -errno.EINTR:
                break
        if fd < 0:
            raise unavailable(-fd, self.path)
        return Vm(fd, self._run_size)

    def close(self) -> None:
        """Close the device; machines made from it live on.  Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0 and self._own:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
