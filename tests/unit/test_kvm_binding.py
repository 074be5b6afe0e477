"""What a failed KVM call is told as."""

from __future__ import annotations

import errno

import pytest

from vmm.errors import KvmError
from vmm.kvm.binding import check


def test_an_error_names_the_call_and_the_errno() -> None:
    with pytest.raises(KvmError) as caught:
        check(-errno.ENOMEM, "KVM_CREATE_VCPU")
    assert caught.value.message == "KVM_CREATE_VCPU failed: Cannot allocate memory"
    assert caught.value.as_dict()["errno"] == "ENOMEM"


def test_a_result_passes_through() -> None:
    assert check(7, "KVM_CREATE_VCPU") == 7
