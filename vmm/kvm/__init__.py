"""KVM, typed: the only package that knows an ioctl number."""

from __future__ import annotations

from vmm.kvm.device import Kvm
from vmm.kvm.vcpu import State, Vcpu
from vmm.kvm.vm import Vm

__all__ = ["Kvm", "State", "Vcpu", "Vm"]
