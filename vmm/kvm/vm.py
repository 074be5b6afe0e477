"""A virtual machine: memory slots and one vCPU."""

from __future__ import annotations

import os

from vmm.kvm.binding import check, ffi, lib
from vmm.kvm.vcpu import Vcpu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

#: Three pages, and one, of guest-physical addresses that VMX without "unrestricted guest" takes for itself
#: (api.rst, 4.37 and 4.41).  Below everything that the memory map uses; other hosts ignore them.
_TSS_ADDRESS = 0x1_0000
_IDENTITY_MAP_ADDRESS = 0x2_0000


class Vm:
    """An open VM descriptor; made by :meth:`vmm.kvm.Kvm.create_vm`."""

    __slots__ = ("_buffers", "_fd", "_run_size")

    def __init__(self, fd: int, run_size: int) -> None:
        self._fd = fd
        self._run_size = run_size
        self._buffers: list[object] = []
        identity = ffi.new("uint64_t *", _IDENTITY_MAP_ADDRESS)
        lib.pyvmm_ioctl(fd, lib.KVM_SET_IDENTITY_MAP_ADDR, identity)
        lib.pyvmm_ioctl_value(fd, lib.KVM_SET_TSS_ADDR, _TSS_ADDRESS)

    def set_memory(self, slot: int, guest_address: int, buffer: object, offset: int, size: int) -> None:
        """Make ``size`` bytes of ``buffer`` from ``offset`` on guest-physical memory at ``guest_address``.

        The buffer cannot be closed or resized before :meth:`close`.

        :param buffer: a writable object with the buffer protocol, page aligned.
        :raises KvmError: KVM refuses.
        """
        pinned = ffi.from_buffer(buffer, require_writable=True)
        if offset + size > len(pinned):
            raise ValueError("the slot is larger than its buffer")
        self._buffers.append(pinned)
        region = ffi.new("struct kvm_userspace_memory_region *")
        region.slot = slot
        region.guest_phys_addr = guest_address
        region.memory_size = size
        region.userspace_addr = int(ffi.cast("uintptr_t", pinned)) + offset
        check(
            lib.pyvmm_ioctl(self._fd, lib.KVM_SET_USER_MEMORY_REGION, region),
            f"KVM_SET_USER_MEMORY_REGION (slot {slot}, {size} bytes)",
        )

    def create_vcpu(self, cpuid: tuple[tuple[int, int, int, int, int, int], ...]) -> Vcpu:
        """The vCPU, with this CPU model.

        :param cpuid: (function, index or -1, eax, ebx, ecx, edx) of each leaf.
        :raises KvmError: KVM refuses.
        """
        fd = check(lib.pyvmm_ioctl_value(self._fd, lib.KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU")
        vcpu = Vcpu(fd, self._run_size)
        try:
            vcpu.set_cpuid(cpuid)
        except BaseException:
            vcpu.close()
            raise
        return vcpu

    def close(self) -> None:
        """Give up the VM and let go of its memory; close the vCPU before.  Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        for pinned in self._buffers:
            ffi.release(pinned)
        self._buffers.clear()

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
